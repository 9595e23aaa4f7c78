"""Named ways to run a model, faster than its card asks for, and what a certificate says of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from runtime.errors import ParityError
from runtime.manifest import unusable
from runtime.model_dir import ONNX_FP32, ONNX_INT8, PARITY, ModelDir

if TYPE_CHECKING:  # --help needs neither
    from runtime.backends import BackendName, BackendOptions, Precision
    from runtime.segmenter import SegmentOptions

REAL: Final = "data"
"""Where the cases of a certificate come from that may vouch for a mode: a folder of --data."""
Quality = Literal["exact", "balanced", "fast"]
QUALITIES: Final[tuple[Quality, ...]] = get_args(Quality)
"""Best first."""
_BACKENDS: Final = ("trt", "openvino", "ort")
_KINDS: Final = ("cpu", "cuda")


@dataclass(frozen=True)
class Mode:
    """A precision and a window plan.

    Attributes:
        quality: its name.
        precision: "auto" is the device's default for "exact" and fp32 for the others, whose
            certificates are about that graph; "int8" is the quantised one.
        overlap: of the windows, a fraction in [0, 1); None is the card's.
        box: one window over the whole brain box instead, rounded up to the network's divisor.
    """

    quality: Quality
    precision: Literal["auto", "int8"] = "auto"
    overlap: float | None = None
    box: bool = False

    @property
    def artefact(self) -> str:
        """The graph whose label maps its certificate is about."""
        return ONNX_INT8 if self.precision == "int8" else ONNX_FP32

    def record(self) -> dict[str, Any]:
        """For parity.json; `mode_of` reads it."""
        return {"quality": self.quality, "precision": self.precision} | (
            {"window": "box"} if self.box else {"window": "patch", "overlap": self.overlap}
        )


EXACT: Final = Mode("exact")
"""As the card asks for, in full precision: what the others are compared with."""


def mode_of(model: ModelDir, quality: Quality) -> Mode:
    """The mode of that name, as the certificate defines it.

    What it may be run on is asked of `check_covers`.

    Raises:
        ParityError: the certificate does not cover it, was made of another graph or on phantoms, or
            says that it loses too much.
        InputError: the certificate's entry cannot be read.
    """
    if quality == "exact":
        return EXACT
    modes = [(entry, _read(model, entry)) for entry in _entries(model, quality)]
    if not modes:
        raise _refused(model, quality, "no certificate for it")
    if len({mode for _, mode in modes}) > 1:
        raise unusable(model.path / PARITY, f"two kinds of mode {quality}")
    reasons = [_against(model, entry, mode) for entry, mode in modes]
    if all(reasons):
        raise _refused(model, quality, f"a certificate {reasons[0]}")
    return modes[0][1]


def check_covers(model: ModelDir, mode: Mode, backend: str, device: str) -> None:
    """Refuse to run a mode where no certificate says what it loses there.

    Args:
        model: whose certificate names the mode.
        mode: from `mode_of`.
        backend: its name, or "auto" where any may be taken.
        device: "cpu", "cuda" or "cuda:N", or "auto".

    Raises:
        ParityError: it was judged on other backends or devices alone.
    """
    if mode == EXACT or _fitting(model, mode, backend, device):
        return
    places = _places(model, mode)
    known = " and ".join(f"{name} on {there}" for name, there in places)
    asked = "another" if backend == "auto" else backend
    # brats-export certifies modes on the CPU, so that it is no help to who wants a GPU.
    here = (
        f"certify it here with brats-export {model.path} --modes --data CASES, "
        if backend in ("auto", "openvino", "ort") and _kind(device) in ("auto", "cpu")
        else ""
    )
    name, there = places[0] if places else ("auto", "cpu")
    raise ParityError(
        f"--quality {mode.quality}",
        found=f"{asked} on {device}",
        expected=f"what it was certified with: {known}",
        remedy=f"run it with --backend {name} --device {there}, {here}or use --quality exact",
    )


def placed(model: ModelDir, mode: Mode, wanted: "BackendOptions") -> "BackendOptions":
    """Where "auto" leaves the choice, choose among what a mode was certified on.

    Raises:
        ParityError: as for `check_covers`.
    """
    check_covers(model, mode, wanted.backend, wanted.device)
    if mode == EXACT:
        return wanted
    fitting = _fitting(model, mode, wanted.backend, wanted.device)
    names, kinds = ({*side} for side in zip(*fitting, strict=True))
    backend, device = wanted.backend, wanted.device
    if backend == "auto" and len(names) == 1 and names <= {*_BACKENDS}:
        backend = cast("BackendName", names.pop())
    if device == "auto" and len(kinds) == 1 and kinds <= {*_KINDS}:
        device = kinds.pop()
    return replace(wanted, backend=backend, device=device)


def box_mode(model: ModelDir, precision: "Precision") -> Mode:
    """The named mode whose plan is one window over the brain box in some precision.

    Raises:
        ParityError: no certificate speaks of one, or it is refused; see `mode_of`.
        InputError: a certificate's entry cannot be read.
    """
    graph = {"auto": ONNX_FP32, "fp32": ONNX_FP32, "int8": ONNX_INT8}.get(precision)
    refused: ParityError | None = None
    for quality in QUALITIES[1:]:
        plans = [_read(model, entry) for entry in _entries(model, quality)]
        if not any(plan.box and plan.artefact == graph for plan in plans):
            continue
        try:
            return mode_of(model, quality)
        except ParityError as error:
            refused = refused or error
    raise refused or _refused(
        model,
        "fast" if precision == "int8" else "balanced",
        f"no certificate for one window over the brain box in precision {precision}",
    )


def certified(model: ModelDir) -> list[Mode]:
    """The modes that may be run, best first; "exact" is always one of them."""
    found = []
    for quality in QUALITIES:
        try:
            found.append(mode_of(model, quality))
        except ParityError:
            continue
    return found


def options_of(mode: Mode, options: "SegmentOptions") -> "SegmentOptions":
    """Segment as a mode says, and in all else as the options do."""
    overlap = options.overlap if mode.overlap is None else mode.overlap
    return replace(
        options,
        overlap=overlap,
        patch="box" if mode.box else options.patch,
        quality=mode.quality,
    )


def wanted_of(mode: Mode, wanted: "BackendOptions") -> "BackendOptions":
    """Open what a mode needs, and in all else as the options say."""
    return replace(
        wanted,
        precision=wanted.precision if mode == EXACT else _precision(mode),
        patch="box" if mode.box else wanted.patch,
    )


def _precision(mode: Mode) -> "Precision":
    return "fp32" if mode.precision == "auto" else mode.precision


def _kind(device: object) -> str:
    """ "cuda" of "cuda:0"."""
    return str(device).partition(":")[0]


def _places(model: ModelDir, mode: Mode) -> list[tuple[str, str]]:
    """Backends and kinds of devices on which a mode has passed, each once."""
    passed = [entry for entry in _entries(model, mode.quality) if not _against(model, entry, mode)]
    places = ((str(entry.get("backend")), _kind(entry.get("device"))) for entry in passed)
    return list(dict.fromkeys(places))


def _fitting(model: ModelDir, mode: Mode, backend: str, device: str) -> list[tuple[str, str]]:
    """Those of them that are asked for."""
    return [
        (name, there)
        for name, there in _places(model, mode)
        if backend in ("auto", name) and _kind(device) in ("auto", there)
    ]


def _entries(model: ModelDir, quality: Quality) -> list[Mapping[str, Any]]:
    """What the certificate says of a mode, once for each backend that ran it."""
    entries = model.certificate.get("modes", [])
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise unusable(model.path / PARITY, "modes that are no list of entries")
    return [entry for entry in entries if entry.get("quality") == quality]


def _against(model: ModelDir, entry: Mapping[str, Any], mode: Mode) -> str:
    """Why an entry does not vouch for its mode; "" where it does."""
    if entry.get("sha256") != model.hashes.get(mode.artefact):
        return f"for another {mode.artefact}"
    verdict, reasons = entry.get("verdict"), entry.get("reasons")
    if verdict != "pass":
        why = reasons[0] if isinstance(reasons, list) and reasons else "it does not say why"
        return f"that says {verdict}: {why}"
    if entry.get("source") != REAL:
        return f"made on {entry.get('source')}, which is no data of patients"
    return ""


def _read(model: ModelDir, entry: Mapping[str, Any]) -> Mode:
    quality, precision = entry.get("quality"), entry.get("precision")
    window, overlap = entry.get("window"), entry.get("overlap")
    # A bool is an int to Python, and no overlap.
    fraction = isinstance(overlap, int | float) and not isinstance(overlap, bool)
    if (
        precision not in ("auto", "int8")
        or window not in ("box", "patch")
        or not (overlap is None or (fraction and 0 <= overlap < 1))
    ):
        raise unusable(model.path / PARITY, f"a mode {quality} of unknown terms")
    return Mode(cast(Quality, quality), precision, overlap, window == "box")


def _refused(model: ModelDir, quality: Quality, found: str) -> ParityError:
    graph = " --int8" if quality == "fast" and ONNX_INT8 not in model.hashes else ""
    return ParityError(
        f"--quality {quality}",
        found=found,
        expected=f"a passed one in {model.path / PARITY}",
        remedy=f"certify it with brats-export {model.path}{graph} --modes --data CASES, or drop "
        "--quality",
    )
