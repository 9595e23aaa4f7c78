"""Which values of a configuration can be trained with."""

from collections.abc import Iterator, Mapping
from math import isfinite, prod
from typing import Any, Final

from runtime.backends import MAX_THREADS
from runtime.errors import UsageError
from runtime.labels import MODALITIES
from runtime.model_card import LARGEST_PATCH, Shape3
from train.config import Config, divisor

# Flag: (lowest, highest) that makes sense; None leaves an end open.
_LIMITS: Final[Mapping[str, tuple[float, float | None]]] = {
    "threads": (0, MAX_THREADS),
    "seed": (0, 2**63 - 1),
    "model.dropout": (0, 0.999),
    "model.overlap": (0, 0.999),
    "model.batch": (1, None),
    "model.deep_supervision": (0, None),
    "split.validation": (0, 0.999),
    "split.folds": (0, None),
    "split.fold": (0, None),
    "sampling.patches_per_epoch": (0, None),
    "sampling.foreground": (0, 1),
    "sampling.background_ratio": (0, None),
    "augment.flip": (0, 1),
    "augment.noise": (0, 1),
    "augment.gamma": (0, 1),
    "augment.bias_field": (0, 1),
    "augment.affine": (0, 1),
    "augment.affine_degrees": (0, 180),
    "augment.bias_coefficient": (0, 100),
    "augment.affine_scale": (0, 0.99),
    "augment.blur": (0, 1),
    "augment.contrast": (0, 1),
    "augment.contrast_scale": (0, 0.99),
    "augment.contrast_shift": (0, 1000),
    "augment.modality_dropout": (0, 1),
    "augment.noise_std": (0, 1000),
    "augment.log_gamma": (-10, 10),
    "augment.blur_std": (0, 100),
    "train.epochs": (1, None),
    "train.batch": (1, None),
    "train.lr": (0, None),
    "train.weight_decay": (0, None),
    "train.cross_entropy": (0, None),
    "train.dice": (0, None),
    "train.region_dice": (0, None),
    "train.accumulate": (1, None),
    "train.ema": (0, 0.999999),
    "train.warm_up": (0, 1),
    "train.clip": (0, None),
    "train.patience": (0, None),
    "train.keep_epochs": (-1, None),
    "train.workers": (-1, None),
    "validation.every": (1, None),
    "validation.limit": (0, None),
    "validation.overlap": (0, 0.999),
}
# Channels; the widest of published 3D U-Nets have 512.
_WIDEST: Final = 8192


def check(config: Config) -> None:
    """Refuse values that cannot be trained with.

    Raises:
        UsageError: names the key, its value and what is allowed.
    """
    _check_numbers(config)
    model, sampling = config.model, config.sampling
    terms = config.train.cross_entropy, config.train.dice, config.train.region_dice
    if not any(terms):
        raise _refused("train.dice", "0, as are cross_entropy and region_dice", "one above 0")
    if len(model.features) < 2 or not all(1 <= width <= _WIDEST for width in model.features):
        raise _refused(
            "model.features", str(model.features), f"two widths or more, from 1 to {_WIDEST}"
        )
    split = config.split
    if split.folds and (split.train_cases or split.validation_cases or split.file):
        raise _refused(
            "split.folds", "folds beside lists of cases or a file", "one of these ways to split"
        )
    folds, fold = split.folds, split.fold
    if folds == 1 or fold >= max(folds, 1):
        raise _refused(
            "split.fold", f"{fold} of {folds} folds", "two folds or more, and one from 0 up to them"
        )
    step = divisor(model.features)
    if any(size < step or size % step for size in model.patch) or (
        prod(model.patch) > LARGEST_PATCH
    ):
        raise _refused(
            "model.patch",
            _shown(model.patch),
            f"multiples of {step}, as the poolings need, {LARGEST_PATCH} voxels at most",
        )
    if sampling.sampler == "random" and sampling.patches_per_epoch == 0:
        raise _refused("sampling.patches_per_epoch", "0", "at least 1 with the random sampler")
    pairs = zip(sampling.stride, model.patch, strict=True)
    if sampling.sampler == "grid" and any(not 1 <= step <= size for step, size in pairs):
        raise _refused(
            "sampling.stride", _shown(sampling.stride), f"1 to the patch ({_shown(model.patch)})"
        )
    if model.deep_supervision > len(model.features) - 2:
        raise _refused(
            "model.deep_supervision",
            f"{model.deep_supervision}",
            f"at most {len(model.features) - 2}, the decoder's levels below full resolution",
        )
    _check_modalities(config)
    augment = config.augment
    changes = ("affine", "bias_field", "blur", "contrast", "gamma", "modality_dropout")
    if model.normalisation == "zscore-volume":
        for key in changes:
            if getattr(augment, key):
                raise _refused(
                    f"augment.{key}",
                    f"{getattr(augment, key):g} with zscore-volume",
                    "0: only flip and noise suit a background that is not 0",
                )
    for key in ("noise_std", "log_gamma", "blur_std"):
        low, high = getattr(config.augment, key)
        if low > high:
            raise _refused(f"augment.{key}", f"{low:g},{high:g}", "a range LOW,HIGH")


def _check_numbers(config: Config) -> None:
    """Every number finite, and those of `_LIMITS` within them: nan and inf are floats to YAML and
    to flags alike.
    """
    for key, value in _flat(config.to_dict()):
        low, high = _LIMITS.get(key, (None, None))
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float):
                continue
            odd = isinstance(number, float) and not isfinite(number)
            if odd or (low is not None and number < low) or (high is not None and number > high):
                shown = f"{number:g}" if isinstance(number, float) else f"{number}"
                raise _refused(key, shown, _allowed(low, high))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _allowed(low: float | None, high: float | None) -> str:
    if low is None:
        return "a finite number"
    return f"at least {low:g}, and finite" if high is None else f"{low:g} to {high:g}"


def check_unchanged(before: Config, now: Config) -> None:
    """Refuse to go on with a run whose network, truth, split or seed would become another.

    Raises:
        UsageError: names the first key that differs.
    """
    one, two = before.to_dict(), now.to_dict()
    keys = [f"{part}.{key}" for part in ("model", "split") for key in one[part]]
    for key in (*keys, "train.ema", "seed", "labels", "channels"):
        was, wanted = (_member(config, key) for config in (one, two))
        if was != wanted:
            raise UsageError(
                f"--{key.replace('_', '-')}",
                found=f"{wanted}",
                expected=f"{was}, with which the run was begun",
                remedy="drop the flag, or begin another run",
            )


def _member(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _check_modalities(config: Config) -> None:
    augment, tolerated = config.augment, config.model.tolerates_missing
    for key, names in (
        ("augment.droppable", augment.droppable),
        ("model.tolerates_missing", tolerated),
    ):
        unknown = [name for name in names if name not in MODALITIES]
        if unknown:
            raise _refused(key, unknown[0], f"modalities among {', '.join(MODALITIES)}")
    never = [name for name in tolerated if name not in (augment.droppable or MODALITIES)]
    if tolerated and (never or not augment.modality_dropout):
        raise _refused(
            "model.tolerates_missing",
            f"{(never or tolerated)[0]}, which training never leaves out",
            "modalities that augment.modality_dropout drops (augment.droppable)",
        )
    if len(tolerated) == len(MODALITIES):
        raise _refused("model.tolerates_missing", "every modality", "at least one that is needed")


def _shown(shape: Shape3) -> str:
    return ",".join(map(str, shape))


def _refused(key: str, found: str, expected: str) -> UsageError:
    return UsageError(
        f"--{key.replace('_', '-')}",
        found=found,
        expected=expected,
        remedy="correct the flag or the key in the YAML file",
    )
