"""The weights of a file against what a network takes: put in, or told apart in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from train.torch_file import Wanted

_SHOWN: Final = 2
_LONGEST: Final = 80


def fill(
    model: nn.Module,
    state: Mapping[Any, Any],
    path: Path,
    wanted: Wanted,
    wrong: str,
    remedy: str = "",
) -> None:
    """Put the weights of a file into a network.

    Args:
        model: gets them, in its own type; one on the device "meta" comes to the CPU, once the
            shapes are known to fit.
        state: names to tensors.
        path, wanted: of the file, for errors.
        wrong: what a state that does not fit is, in words.
        remedy: against that.

    Raises:
        InputError: they do not fit; it names the first keys that differ.
    """
    differing = differing_keys(state, model.state_dict())
    if differing:
        raise wanted.error(path, f"{wrong} ({differing})", remedy)
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device="cpu")
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip()
        raise wanted.error(path, f"{wrong} ({last})", remedy) from error


def differing_keys(found: Mapping[Any, Any], expected: Mapping[str, Tensor]) -> str:
    """The first keys of each kind in which ``found`` does not fit; "" if it fits.

    Args:
        found: what a file holds: names to tensors, if all is well.
        expected: ``state_dict`` of the network; shapes and kinds of numbers are compared.

    Returns:
        Such as "missing: head.bias; unknown: out.weight, out.bias and 3 more; of another shape:
        head.weight is 4x16x1x1x1 instead of 4x8x1x1x1".
    """
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unknown": [str(name)[:_LONGEST] for name in found if name not in expected],
        "of another shape": [
            f"{name} is {_described(found[name])} instead of {_described(wanted)}"
            for name, wanted in expected.items()
            if name in found and not _fits(found[name], wanted)
        ],
    }
    return "; ".join(f"{kind}: {_first(names)}" for kind, names in kinds.items() if names)


def _fits(found: Any, wanted: Tensor) -> bool:
    return (
        isinstance(found, Tensor)
        and found.layout == torch.strided
        and not found.is_quantized
        and found.shape == wanted.shape
        and found.is_floating_point() == wanted.is_floating_point()
    )


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = "" if value.is_floating_point() else f" of {str(value.dtype).removeprefix('torch.')}"
    return ("x".join(map(str, value.shape)) or "a single number") + kind


def _first(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
