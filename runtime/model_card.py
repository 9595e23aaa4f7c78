"""The whole contract of a model as one JSON string: what goes in, what comes out, how it is meant
to be run.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from runtime import DISCLAIMER
from runtime.errors import InputError
from runtime.labels import MODALITIES, REGIONS, Label

CARD_SCHEMA: Final = 1
CARD_KEY: Final = "brats_deploy.card"
"""The ONNX metadata key under which a model carries its card."""

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
            value = json.loads(text)
            if not isinstance(value, dict):
                raise TypeError("not a JSON object")
            card = cls(**_typed(value))
        except (ValueError, TypeError, KeyError) as error:
            raise _bad(where, f"an unreadable model card ({error})") from error
        _check(card, where)
        return card


def _bad(where: str | Path, found: str) -> InputError:
    return InputError(
        where,
        found=found,
        expected=f"a card of schema {CARD_SCHEMA} as brats-export writes it",
        remedy="export the model again with this version",
    )


def _typed(value: dict[str, Any]) -> dict[str, Any]:
    known = {item.name for item in fields(ModelCard)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]}")
    missing = sorted(known - set(value))
    if missing:
        raise ValueError(f"key {missing[0]} is missing")
    x, y, z = (int(size) for size in value["patch"])
    sx, sy, sz = (float(size) for size in value["spacing_mm"])
    return value | {
        "modalities": tuple(value["modalities"]),
        "labels": tuple(value["labels"]),
        "regions": {name: tuple(map(int, members)) for name, members in value["regions"].items()},
        "spacing_mm": (sx, sy, sz),
        "patch": (x, y, z),
        "inference": InferenceDefaults(**value["inference"]),
        "tolerates_missing": tuple(value["tolerates_missing"]),
        "postprocess": PostprocessRule(**value["postprocess"]),
    }


def _check(card: ModelCard, where: str | Path) -> None:
    if card.schema != CARD_SCHEMA:
        raise _bad(where, f"a card of schema {card.schema}")
    if not card.modalities or any(name not in MODALITIES for name in card.modalities):
        raise _bad(where, f"modalities {', '.join(card.modalities) or 'none'}")
    if len(card.labels) != len(Label):
        raise _bad(where, f"{len(card.labels)} labels")
    if card.normalisation not in get_args(Normalisation):
        raise _bad(where, f"normalisation {card.normalisation}")
    if card.divisor < 1 or any(size < 1 or size % card.divisor for size in card.patch):
        raise _bad(where, f"patch {card.patch} with divisor {card.divisor}")
    if not 0 <= card.inference.overlap < 1 or card.inference.batch < 1:
        raise _bad(where, f"overlap {card.inference.overlap}, batch {card.inference.batch}")
    axes = ("LR", "PA", "IS")
    if len(card.orientation) != 3 or any(
        sum(code in axis for code in card.orientation) != 1 for axis in axes
    ):
        raise _bad(where, f"orientation {card.orientation}")
