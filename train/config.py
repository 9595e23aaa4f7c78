"""What a training run is told: frozen dataclasses, filled from defaults, then YAML, then flags."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from runtime.labels import MODALITIES, Convention
from runtime.model_card import InferenceDefaults, ModelCard, Normalisation
from train.checkpoint import Architecture


def _comma_separated(
    convert: Callable[[str], Any], metavar: str, length: int | None = None
) -> PrimitiveConstructorSpec[tuple[Any, ...]]:
    """A flag such as ``--model.patch 128,128,64``; an empty string is an empty tuple."""

    def parse(arguments: list[str]) -> tuple[Any, ...]:
        values = tuple(convert(part) for part in arguments[0].split(",") if part)
        if length is not None and len(values) != length:
            raise ValueError(f"{length} values, separated by commas")
        return values

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


Names = Annotated[tuple[str, ...], _comma_separated(str, "A,B,...")]
Counts = Annotated[tuple[int, ...], _comma_separated(int, "N,N,...")]
Voxels = Annotated[tuple[int, int, int], _comma_separated(int, "X,Y,Z", 3)]
Range = Annotated[tuple[float, float], _comma_separated(float, "LOW,HIGH", 2)]


@dataclass(frozen=True)
class ModelConfig:
    """The network and the contract it is trained for."""

    features: Counts = (16, 32, 64, 128, 256)
    """channels per level, from full resolution to the bottleneck"""
    dropout: float = 0.2
    """probability of Dropout3d after each ReLU"""
    residual: bool = False
    """residual blocks"""
    patch: Voxels = (128, 128, 64)
    """patch (X, Y, Z) in voxels, for training and for inference"""
    normalisation: Normalisation = "zscore-brain"
    """zscore-brain, or zscore-volume as in the published tutorial"""
    overlap: float = 0.5
    """the card's default overlap of windows"""
    batch: int = 4
    """the card's default number of windows per step"""
    deep_supervision: int = 0
    """coarser levels of the decoder that are trained to predict as well; not exported"""
    tolerates_missing: Names = ()
    """modalities that the card lets be absent; each must be droppable in training"""


@dataclass(frozen=True)
class SplitConfig:
    """Which cases train and which validate: a file wins over lists, those over folds, then the
    fraction.
    """

    validation: float = 0.2
    """fraction of patients that validate, drawn with the seed; 0: none"""
    train_cases: Names = ()
    """case ids to train on; empty: all that do not validate"""
    validation_cases: Annotated[Names, tyro.conf.arg(aliases=["--validation-cases"])] = ()
    """case ids to validate on; empty: all patients not in train_cases, else by fold or fraction"""
    exclude: Annotated[Names, tyro.conf.arg(aliases=["--exclude"])] = ()
    """case ids to leave out altogether, such as a held-out test set: all visits of its patients"""
    folds: Annotated[int, tyro.conf.arg(aliases=["--folds"])] = 0
    """cross-validation: the patients in so many parts, drawn with the seed; 0: no parts"""
    fold: Annotated[int, tyro.conf.arg(aliases=["--fold"])] = 0
    """the part that validates, from 0"""
    file: str = ""
    """a split.json of another run to take over"""


@dataclass(frozen=True)
class SamplingConfig:
    """Where patches are cut."""

    sampler: Literal["random", "grid"] = "random"
    """random: tumour-aware; grid: all tumour windows of a stride grid and some background"""
    patches_per_epoch: int = 250
    """patches per epoch; 0 with the grid: all of them"""
    foreground: float = 0.7
    """random: probability to centre a patch on a voxel of a tumour label drawn uniformly"""
    stride: Voxels = (64, 64, 32)
    """grid: stride (X, Y, Z) in voxels; the last window is flush with the end"""
    background_ratio: float = 0.1
    """grid: windows without tumour, as a fraction of those with"""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to a patch; each is a probability, 0 switches it off."""

    flip: float = 0.5
    """mirror, for each of the three axes"""
    noise: float = 0.0
    """Gaussian noise on the normalised intensities"""
    noise_std: Range = (0.0, 0.1)
    """its standard deviation"""
    gamma: float = 0.0
    """|v|**exp(g), sign kept, for each modality"""
    log_gamma: Range = (-0.3, 0.3)
    """g"""
    bias_field: float = 0.0
    """smooth factor on the normalised intensities"""
    bias_coefficient: float = 0.3
    """largest polynomial coefficient of its logarithm"""
    affine: float = 0.0
    """rotation and scaling"""
    affine_degrees: float = 15.0
    """largest angle about each axis"""
    affine_scale: float = 0.1
    """largest relative change of size"""
    blur: float = 0.0
    """Gaussian blur, for each modality"""
    blur_std: Range = (0.5, 1.5)
    """its standard deviation along each axis, in voxels"""
    contrast: float = 0.0
    """factor and summand on the intensities, for each modality"""
    contrast_scale: float = 0.3
    """largest relative change by the factor"""
    contrast_shift: float = 0.3
    """largest summand"""
    modality_dropout: float = 0.0
    """one modality set to 0, as one that is missing"""
    droppable: Names = ()
    """modalities that may be; empty: each of them"""
    where: Literal["device", "loader"] = "device"
    """device: in PyTorch, where it trains; loader: the same by TorchIO, in the loading processes"""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation."""

    epochs: int = 300
    """epochs at most"""
    batch: int = 2
    """patches per step"""
    lr: float = 3e-3
    """peak learning rate of AdamW"""
    weight_decay: float = 1e-4
    """decoupled weight decay"""
    schedule: Literal["constant", "cosine", "poly"] = "cosine"
    """course of the learning rate after warm-up"""
    warm_up: float = 0.03
    """part of the run in which the learning rate rises linearly"""
    clip: float = 5.0
    """largest norm of the gradient; 0: no limit"""
    cross_entropy: float = 0.5
    """weight of the cross-entropy"""
    dice: float = 0.5
    """weight of the soft Dice loss over labels"""
    region_dice: float = 0.0
    """weight of the soft Dice loss over WT, TC and ET"""
    accumulate: int = 1
    """batches whose gradients make one step"""
    ema: float = 0.0
    """decay per step of the averaged weights that are validated and served; 0: none"""
    compile: bool = False
    """torch.compile the step"""
    patience: int = 0
    """stop after so many validations without a better mean Dice; 0: never"""
    keep_epochs: int = 3
    """newest epoch_NNN.pt to keep; 0: none, -1: all"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU"""
    workers: int = -1
    """processes that load patches; -1: none on a CPU, up to 8 beside a GPU"""


@dataclass(frozen=True)
class ValidationConfig:
    """Validation on whole cases through the served segmenter."""

    every: int = 5
    """validate after so many epochs, and after the last"""
    limit: int = 0
    """cases at most while training; 0: all"""
    overlap: float = 0.25
    """overlap of windows while training; the final evaluation uses the card's"""
    thresholds: bool = True
    """learn the card's post-processing on the validation cases at the end"""


@dataclass(frozen=True)
class Config:
    """A training run."""

    data: Annotated[str, tyro.conf.arg(aliases=["-d"])] = "data"
    """folder of cases, searched recursively; BRATS_DATA stands above the YAML file"""
    channels: Names = ()
    """modality of each channel, for files that do not name theirs"""
    labels: Literal["auto", "brats2015", "brats2020", "brats2023", "brats2024", "msd"] = "auto"
    """numbering of the label maps"""
    cache: str = ""
    """folder of prepared cases; empty: .cache beside the runs"""
    device: str = "auto"
    """auto, cpu, or cuda:N"""
    threads: int = 0
    """CPU threads; 0: all cores"""
    seed: int = 0
    """every random draw is a function of it"""
    model: ModelConfig = field(default_factory=ModelConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def architecture(self) -> Architecture:
        """The network's shape."""
        return Architecture(
            in_channels=len(MODALITIES),
            features=self.model.features,
            dropout=self.model.dropout,
            residual=self.model.residual,
            deep_supervision=self.model.deep_supervision,
        )

    def convention(self) -> Convention | None:
        """The numbering of the label maps; None as each case says."""
        return None if self.labels == "auto" else Convention(self.labels)

    def card(self, name: str, training: Mapping[str, Any] | None = None) -> ModelCard:
        """The model's contract.

        Args:
            name: of the model.
            training: figures of the run, as JSON values.
        """
        return ModelCard(
            name=name,
            normalisation=self.model.normalisation,
            patch=self.model.patch,
            divisor=divisor(self.model.features),
            inference=InferenceDefaults(self.model.overlap, self.model.batch),
            tolerates_missing=self.model.tolerates_missing,
            training=dict(training or {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, tuples as lists: what YAML and JSON hold."""
        value: dict[str, Any] = _plain(asdict(self))
        return value


def divisor(features: tuple[int, ...]) -> int:
    """What every window size must be a multiple of."""
    return int(2 ** (len(features) - 1))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, tuple) else value


def keys_of(kind: type[Any]) -> tuple[str, ...]:
    """Names of the fields of one of the dataclasses above."""
    return tuple(item.name for item in fields(kind))
