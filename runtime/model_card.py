"""The whole contract of a model as one JSON string: what goes in, what comes out, how it is meant
to be run.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

from runtime import DISCLAIMER
from runtime.bounded import parse_json, words
from runtime.errors import InputError
from runtime.labels import MODALITIES, REGIONS, Label

CARD_SCHEMA: Final = 1
CARD_KEY: Final = "brats_deploy.card"
"""The ONNX metadata key under which a model carries its card."""
LARGEST_PATCH: Final = 1 << 27
"""Voxels of the largest window, 512 along each axis: no case that is read needs a larger one."""
_LARGEST: Final = 10**9
"""Of any number in a card that something is done with."""
_TEXTS: Final = ("name", "orientation", "normalisation", "research_use")
_LISTS_OF_TEXTS: Final = ("modalities", "labels", "tolerates_missing")

T = TypeVar("T", int, float)
Shape3 = tuple[int, int, int]
Normalisation = Literal["zscore-brain", "zscore-volume"]


@dataclass(frozen=True)
class InferenceDefaults:
    """How the model is run unless told otherwise.

    Attributes:
        overlap: fraction of a patch in [0, 1) that neighbouring windows share.
        batch: windows per step.
    """

    overlap: float = 0.5
    batch: int = 4


@dataclass(frozen=True)
class PostprocessRule:
    """What is done to a label map after argmax; volumes in mm3, 0 switches a rule off.

    Attributes:
        min_component_mm3: 26-connected components of whole tumour smaller than this become
            background.
        min_et_mm3: enhancing tumour smaller than this in total becomes NCR.
    """

    min_component_mm3: float = 0.0
    min_et_mm3: float = 0.0


@dataclass(frozen=True)
class ModelCard:
    """Everything a runtime must know about a model.

    Attributes:
        name: of the model, for people and sidecars.
        modalities: the network's input channels, in order; files are found by these names.
        labels: names of the output classes, in order.
        regions: region name to the label values it unites.
        orientation: axis codes of the arrays the network was trained on.
        spacing_mm: voxel size the network was trained on.
        normalisation: "zscore-brain" or "zscore-volume"; see `runtime.preprocess`.
        patch: window shape (X, Y, Z) in voxels.
        divisor: every window size must be a multiple of it.
        inference: defaults for overlap and batch.
        tolerates_missing: modalities that may be absent; zeros take their place.
        postprocess: rules applied to the label map.
        training: figures of the training run, as JSON values.
        research_use: the disclaimer.
        schema: version of this card.
    """

    name: str
    modalities: tuple[str, ...] = MODALITIES
    labels: tuple[str, ...] = ("background", "NCR", "ED", "ET")
    regions: Mapping[str, tuple[int, ...]] = field(
        default_factory=lambda: {name: tuple(map(int, labels)) for name, labels in REGIONS.items()}
    )
    orientation: str = "LPS"
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    normalisation: Normalisation = "zscore-brain"
    patch: Shape3 = (128, 128, 64)
    divisor: int = 16
    inference: InferenceDefaults = InferenceDefaults()
    tolerates_missing: tuple[str, ...] = ()
    postprocess: PostprocessRule = PostprocessRule()
    training: Mapping[str, Any] = field(default_factory=dict)
    research_use: str = DISCLAIMER
    schema: int = CARD_SCHEMA

    def to_json(self) -> str:
        """The card as one line of JSON, keys in a fixed order."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str | Path) -> "ModelCard":
        """Read a card back.

        Args:
            text: what `to_json` wrote.
            where: the file it came from, for errors.

        Raises:
            InputError: not a card, of another schema, with unknown or missing keys, or
                inconsistent.
        """
        try:
            value = parse_json(text)
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
            card = cls(**_typed(value))
        except (ValueError, TypeError) as error:
            raise _bad(where, f"an unreadable model card ({words(error)})") from error
        _check(card, where)
        return card


def check_card(card: ModelCard, stored: str | None, where: str | Path) -> None:
    """Refuse a graph that is not known to keep the contract it is run by.

    Args:
        card: the contract, from card.json.
        stored: what the graph's metadata holds under `CARD_KEY`; None if there is nothing.
        where: the graph's file, for errors.

    Raises:
        InputError: the graph holds no card, or another one.
    """
    try:
        same = stored is not None and parse_json(stored) == parse_json(card.to_json())
    except ValueError:
        same = False
    if not same:
        raise InputError(
            where,
            found="no model card" if stored is None else "the card of another model",
            expected=f"the content of card.json under the metadata key {CARD_KEY}",
            remedy="export the model with brats-export, which stores its card in it",
        )


def _bad(where: str | Path, found: str) -> InputError:
    return InputError(
        where,
        found=found,
        expected=f"a card of schema {CARD_SCHEMA} as brats-export writes it",
        remedy="export the model again with this version",
    )


def _typed(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of a card, each of its type.

    Raises:
        ValueError: one is unknown, missing or of another type.
    """
    _same_keys(value, ModelCard, "")
    regions = value["regions"]
    if not isinstance(regions, dict):
        raise ValueError("regions that are not an object")
    if not isinstance(value["training"], dict):
        raise ValueError("training that is not an object")
    return value | {
        **{name: _text(value, name) for name in _TEXTS},
        **{name: _texts(value[name], name) for name in _LISTS_OF_TEXTS},
        "regions": {name: _integers(members, name) for name, members in regions.items()},
        "spacing_mm": _three(_numbers(value["spacing_mm"], "spacing_mm"), "spacing_mm"),
        "patch": _three(_integers(value["patch"], "patch"), "patch"),
        "divisor": _integers([value["divisor"]], "divisor")[0],
        "schema": _integers([value["schema"]], "schema")[0],
        "inference": _inference(value["inference"]),
        "postprocess": _postprocess(value["postprocess"]),
    }


def _inference(value: Any) -> InferenceDefaults:
    _same_keys(value, InferenceDefaults, "inference.")
    (overlap,) = _numbers([value["overlap"]], "overlap")
    (batch,) = _integers([value["batch"]], "batch")
    return InferenceDefaults(overlap, batch)


def _postprocess(value: Any) -> PostprocessRule:
    _same_keys(value, PostprocessRule, "postprocess.")
    return PostprocessRule(**{name: _numbers([one], name)[0] for name, one in value.items()})


def _same_keys(value: Any, kind: type, prefix: str) -> None:
    known = {item.name for item in fields(kind)}
    if not isinstance(value, dict):
        raise ValueError(f"{prefix.rstrip('.')} that is not an object")
    unknown = sorted(set(value) - known)
    if unknown:
        raise ValueError(f"unknown key {prefix}{unknown[0]}")
    missing = sorted(known - set(value))
    if missing:
        raise ValueError(f"key {prefix}{missing[0]} is missing")


def _text(value: dict[str, Any], name: str) -> str:
    if not isinstance(value[name], str):
        raise ValueError(f"{name} that is no text")
    return str(value[name])


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name} that are not a list of texts")
    return tuple(value)


def _integers(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(one) is not int for one in value):
        raise ValueError(f"{name} that is not made of integers")
    if any(abs(one) > _LARGEST for one in value):
        raise ValueError(f"{name} beyond all measure")
    return tuple(value)


def _numbers(value: Any, name: str) -> tuple[float, ...]:
    if not isinstance(value, list) or any(type(one) not in (int, float) for one in value):
        raise ValueError(f"{name} that is not made of numbers")
    if not all(abs(one) <= _LARGEST for one in value):
        raise ValueError(f"{name} beyond all measure")
    return tuple(map(float, value))


def _three(value: tuple[T, ...], name: str) -> tuple[T, T, T]:
    if len(value) != 3:
        raise ValueError(f"{name} of {len(value)} axes")
    return value[0], value[1], value[2]


def _check(card: ModelCard, where: str | Path) -> None:
    if card.schema != CARD_SCHEMA:
        raise _bad(where, f"a card of schema {card.schema}")
    if not card.name.isprintable():
        raise _bad(where, f"a name of unprintable characters ({card.name[:40]!a})")
    if not card.modalities or any(name not in MODALITIES for name in card.modalities):
        raise _bad(where, f"modalities {', '.join(card.modalities)[:80] or 'none'}")
    if len(set(card.modalities)) != len(card.modalities):
        raise _bad(where, f"a modality twice among {', '.join(card.modalities)[:80]}")
    if not set(card.tolerates_missing) <= set(card.modalities):
        raise _bad(where, "a modality that may be missing and is none of its own")
    if len(card.labels) != len(Label):
        raise _bad(where, f"{len(card.labels)} labels")
    if any(not 0 <= label < len(card.labels) for part in card.regions.values() for label in part):
        raise _bad(where, "a region of labels that it does not have")
    if card.normalisation not in get_args(Normalisation):
        raise _bad(where, f"normalisation {card.normalisation[:40]}")
    if min(card.spacing_mm) <= 0:
        raise _bad(where, f"spacing {card.spacing_mm}")
    if card.divisor < 1 or any(size < 1 or size % card.divisor for size in card.patch):
        raise _bad(where, f"patch {card.patch} with divisor {card.divisor}")
    if math.prod(card.patch) > LARGEST_PATCH:
        raise _bad(where, f"patch {card.patch}, of more than {LARGEST_PATCH} voxels")
    if not 0 <= card.inference.overlap < 1 or card.inference.batch < 1:
        raise _bad(where, f"overlap {card.inference.overlap}, batch {card.inference.batch}")
    if min(card.postprocess.min_component_mm3, card.postprocess.min_et_mm3) < 0:
        raise _bad(where, "a volume below 0 among the rules after argmax")
    axes = ("LR", "PA", "IS")
    if len(card.orientation) != 3 or any(
        sum(code in axis for code in card.orientation) != 1 for axis in axes
    ):
        raise _bad(where, f"orientation {card.orientation[:40]}")
