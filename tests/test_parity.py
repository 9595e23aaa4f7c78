"""The parity gate by itself on label maps of known counts, then the whole of brats-export."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

import export.cli
from export.emulate import FP16_MAX
from export.parity import (
    Candidate,
    CaseList,
    Gate,
    ParityCase,
    Reference,
    certify,
    changed_labels,
    with_entry,
)
from export.release import release
from runtime.backends import BackendInfo, Fill, Take
from runtime.errors import ComputeError, OutputError
from runtime.labels import Label, LabelMap
from runtime.model_card import CARD_KEY, InferenceDefaults, ModelCard, Shape3
from runtime.model_dir import ModelDir
from runtime.nifti import Volume
from runtime.ops.numpy import NumpyOps
from runtime.phantom import Enhancement, write_phantoms
from train.checkpoint import Architecture, Checkpoint, save_checkpoint
from train.unet import UNet3D

Probabilities = npt.NDArray[np.float32]

# --- the gate by itself -----------------------------------------------------------------------

# One window is the whole volume, so that a backend decides every voxel's label.
SHAPE = (64, 56, 48)
CARD = ModelCard("fake", patch=SHAPE, divisor=1, inference=InferenceDefaults(0.5, 1))


class Fake:
    """A backend that is a plain function: the number of the case to its probabilities."""

    def __init__(self, function: Callable[[int], Probabilities]) -> None:
        self.card, self.ops, self.info = CARD, NumpyOps(), BackendInfo("fake", "cpu", "fp32")
        self.function, self.cases = function, 0

    def bind(self, window: Shape3, batch: int) -> None:
        self.buffer = np.zeros((1, 4, *window), np.float32)

    def run(self, n: int, fill: Fill, take: Take) -> None:
        assert n == 1
        fill(0, 1, self.buffer)
        take(0, 1, self.function(self.cases)[None])
        self.cases += 1

    def close(self) -> None:
        pass


def certain(labels: LabelMap) -> Probabilities:
    return np.moveaxis(np.eye(4, dtype=np.float32)[labels], -1, 0) * np.float32(0.9) + 0.025


def blocks(ncr: int = 1000, ed: int = 2000, et: int = 1000) -> LabelMap:
    """So many voxels of each label, side by side."""
    flat = np.zeros(SHAPE, np.uint8).ravel()
    flat[: ncr + ed + et] = np.repeat((Label.NCR, Label.ED, Label.ET), (ncr, ed, et))
    return flat.reshape(SHAPE)


def relabelled(labels: LabelMap, old: int, new: int, count: int) -> LabelMap:
    changed = labels.copy()
    changed.ravel()[np.flatnonzero(labels == old)[:count]] = new
    return changed


def candidate(
    maps: Sequence[LabelMap],
    *,
    reduced: bool = True,
    peaks: dict[str, float] | None = None,
    file: str = "model.onnx",
) -> Candidate:
    backend = Fake(lambda case: certain(maps[case]))
    return Candidate(file, "0" * 64, backend, "words", reduced, peaks or {})


@pytest.fixture
def cases(phantom_volume: Volume) -> Callable[..., Iterator[ParityCase]]:
    def make(count: int = 3, truth: LabelMap | None = None) -> Iterator[ParityCase]:
        for number in range(count):
            case = replace(phantom_volume.case, case_id=f"case{number}")
            yield ParityCase(replace(phantom_volume, case=case), truth)

    return make


Cases = Callable[..., Iterator[ParityCase]]


def judged(
    cases: Iterator[ParityCase],
    reference: LabelMap,
    artefact: LabelMap,
    gate: Gate | None = None,
    *,
    reduced: bool = True,
) -> dict[str, Any]:
    """The certificate of one artefact that predicts the same map in every case."""
    result = certify(
        Fake(lambda _: certain(reference)),
        [candidate([artefact] * 8, reduced=reduced)],
        cases,
        gate or Gate(),
        "test",
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    (entry,) = result["artefacts"]
    assert result["verdict"] == entry["verdict"]
    return result


def reasons(result: dict[str, Any]) -> str:
    return " | ".join(result["artefacts"][0]["reasons"])


@pytest.mark.parametrize("reduced", [False, True])
def test_an_identical_artefact_passes(cases: Cases, phantom_volume: Volume, reduced: bool) -> None:
    result = judged(cases(truth=blocks()), blocks(), blocks(), reduced=reduced)
    assert result["verdict"] == "pass"
    assert reasons(result) == ""
    one = {"WT": 1.0, "TC": 1.0, "ET": 1.0}
    for number, record in enumerate(result["artefacts"][0]["cases"]):
        assert record == {
            "case_id": f"case{number}",
            "non_finite": 0,
            "dice_to_fp32": one,
            "dice_to_truth": {"fp32": one, "artefact": one},
            "changed_labels": 0,
            "max_probability_error": 0,
            "mean_probability_error": 0,
        }
    hashes = {
        name: hashlib.sha256(image.path.read_bytes()).hexdigest()
        for name, image in phantom_volume.images.items()
    }
    assert [case["inputs"] for case in result["cases"]] == [hashes] * 3
    assert result["cases"][0]["predicted_voxels"] == {"WT": 4000, "TC": 2000, "ET": 1000}


@pytest.mark.parametrize(
    ("old", "new", "passes", "fails", "region"),
    [
        # 2 (n - k) / (2 n - k) >= 0.995 for n = 1000 up to k = 9, for n = 2000 up to k = 19.
        pytest.param(Label.ET, Label.NCR, 9, 10, "ET", id="ET"),
        pytest.param(Label.NCR, Label.ED, 19, 20, "TC", id="TC"),
        pytest.param(Label.ED, Label.BACKGROUND, 20, 40, "WT", id="WT"),
    ],
)
def test_dice_to_fp32_of_each_region(
    cases: Cases, old: int, new: int, passes: int, fails: int, region: str
) -> None:
    good = judged(cases(), blocks(), relabelled(blocks(), old, new, passes))
    assert (good["verdict"], reasons(good)) == ("pass", "")
    bad = judged(cases(), blocks(), relabelled(blocks(), old, new, fails))
    assert bad["verdict"] == "fail"
    for number in range(3):
        assert f"case{number}: Dice of {region} to fp32 is 0.99" in reasons(bad)
    assert {name for name in ("WT", "TC", "ET") if f"Dice of {name}" in reasons(bad)} == {region}


def test_one_bad_case_of_three_is_enough(cases: Cases) -> None:
    maps = [blocks(), relabelled(blocks(), Label.ET, Label.NCR, 10), blocks()]
    result = certify(Fake(lambda _: certain(blocks())), [candidate(maps)], cases(), Gate(), "test")
    assert result["verdict"] == "fail"
    (reason,) = result["artefacts"][0]["reasons"]
    assert reason.startswith("case1: Dice of ET")


@pytest.mark.parametrize(
    ("reduced", "passes", "fails"), [(False, 2, 3), (True, 100, 101)], ids=["fp32", "reduced"]
)
def test_changed_labels_have_a_limit_for_each_precision(
    cases: Cases, reduced: bool, passes: int, fails: int
) -> None:
    # 1e-4 and 5e-3 of 20 000 voxels of tumour, taken where no region's Dice notices.
    reference = blocks(ncr=4000, ed=12_000, et=4000)
    ed = Label.ED
    good = judged(cases(), reference, relabelled(reference, ed, 0, passes), reduced=reduced)
    assert (good["verdict"], reasons(good)) == ("pass", "")
    bad = judged(cases(), reference, relabelled(reference, ed, 0, fails), reduced=reduced)
    assert bad["verdict"] == "fail"
    assert "changed labels" in reasons(bad)
    assert "Dice" not in reasons(bad)
    assert bad["artefacts"][0]["cases"][0]["changed_labels"] == fails / 20_000


def test_enhancing_tumour_that_vanishes_fails(cases: Cases) -> None:
    result = judged(cases(), blocks(), relabelled(blocks(), Label.ET, Label.NCR, 1000))
    assert result["verdict"] == "fail"
    assert "case0: Dice of ET to fp32 is 0.0000" in reasons(result)


def test_an_empty_mask_fails(cases: Cases) -> None:
    result = judged(cases(), blocks(), np.zeros(SHAPE, np.uint8))
    assert result["verdict"] == "fail"
    assert all(f"Dice of {name}" in reasons(result) for name in ("WT", "TC", "ET"))


@pytest.mark.parametrize(
    "reference", [blocks(et=0), blocks(0, 0, 0), blocks(et=99)], ids=["no ET", "nothing", "99 ET"]
)
def test_a_reference_that_shows_too_little_decides_nothing(
    cases: Cases, reference: LabelMap
) -> None:
    result = judged(cases(8), reference, reference)
    assert result["verdict"] == "inconclusive"
    assert len(result["cases"]) == 8
    assert not any(case["informative"] for case in result["cases"])
    assert "in 0 cases of 8, 3 are needed" in reasons(result)


def test_a_hundred_voxels_of_each_region_are_enough(cases: Cases) -> None:
    assert judged(cases(), blocks(et=100), blocks(et=100))["verdict"] == "pass"


def test_a_difference_fails_even_where_cases_do_not_suffice(cases: Cases) -> None:
    bad = relabelled(blocks(et=0), Label.NCR, Label.ED, 500)
    assert judged(cases(), blocks(et=0), bad)["verdict"] == "fail"


@pytest.mark.parametrize("count", [0, 2])
def test_too_few_cases_decide_nothing(cases: Cases, count: int) -> None:
    result = judged(cases(count), blocks(), blocks())
    assert result["verdict"] == "inconclusive"
    assert f"in {count} cases of {count}" in reasons(result)


def test_it_stops_after_three_informative_cases(cases: Cases) -> None:
    # The second case shows too little, so that a fourth is read, and no fifth.
    maps = [blocks(), blocks(et=10), *[blocks()] * 6]
    read: list[int] = []

    def told() -> Iterator[ParityCase]:
        for number, case in enumerate(cases(8)):
            read.append(number)
            yield case

    reference = Fake(lambda case: certain(maps[case]))
    artefact = candidate(maps)
    result = certify(reference, [artefact], told(), Gate(), "test")
    assert result["verdict"] == "pass"
    assert read == [0, 1, 2, 3]
    assert [case["informative"] for case in result["cases"]] == [True, False, True, True]
    assert len(result["artefacts"][0]["cases"]) == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_fails(cases: Cases, value: float) -> None:
    def broken(case: int) -> Probabilities:
        probabilities = certain(blocks())
        if case == 2:
            probabilities[1, 30, 30, 30] = value
        return probabilities

    artefact = Candidate("model.onnx", "0" * 64, Fake(broken), "words", True)
    result = certify(Fake(lambda _: certain(blocks())), [artefact], cases(), Gate(), "test")
    assert result["verdict"] == "fail"
    (reason,) = result["artefacts"][0]["reasons"]
    assert reason.startswith("case2: ")
    counts = [record["non_finite"] for record in result["artefacts"][0]["cases"]]
    assert counts == [0, 0, 1]
    json.dumps(result, allow_nan=False)


def test_a_reference_that_is_not_finite_is_an_error_of_the_model(cases: Cases) -> None:
    reference = Fake(lambda _: np.full((4, *SHAPE), np.nan, np.float32))
    with pytest.raises(ComputeError):
        certify(reference, [candidate([blocks()] * 3)], cases(), Gate(), "test")


def test_the_truth_gate_compares_with_what_fp32_reaches(cases: Cases) -> None:
    # Dice to fp32 is 1 - 5 / 1995 = 0.9975, which the first gate lets pass.
    worse = relabelled(blocks(), Label.ET, Label.NCR, 5)
    bad = judged(cases(truth=blocks()), blocks(), worse)
    assert bad["verdict"] == "fail"
    assert "mean Dice of ET against truth is 0.9975 < 0.999 x 1.0000" in reasons(bad)
    assert "to fp32" not in reasons(bad)
    # Without truth, or with a gate that allows it, the same artefact passes.
    assert judged(cases(), blocks(), worse)["verdict"] == "pass"
    assert judged(cases(truth=blocks()), blocks(), worse, Gate(truth=0.99))["verdict"] == "pass"
    # It may be better than fp32, and fp32 may be bad.
    better = judged(cases(truth=blocks()), worse, blocks())
    assert (better["verdict"], reasons(better)) == ("pass", "")
    far = blocks()[::-1].copy()
    assert judged(cases(truth=far), blocks(), blocks())["verdict"] == "pass"


def test_the_truth_gate_is_on_the_mean_over_cases(cases: Cases) -> None:
    # One case of three is 0.0025 worse: the mean by 0.0008.
    maps = [blocks(), relabelled(blocks(), Label.ET, Label.NCR, 5), blocks()]
    for gate, verdict in ((0.999, "pass"), (0.9995, "fail")):
        reference = Fake(lambda _: certain(blocks()))
        artefact = candidate(maps)
        result = certify(reference, [artefact], cases(truth=blocks()), Gate(truth=gate), "test")
        assert result["verdict"] == verdict


@pytest.mark.parametrize(
    ("peak", "verdict"),
    [
        (np.nextafter(FP16_MAX / 4, 0), "pass"),
        (FP16_MAX / 4, "fail"),
        (np.inf, "fail"),
        (np.nan, "fail"),
    ],
)
def test_fp16_values_keep_a_margin_of_four(cases: Cases, peak: float, verdict: str) -> None:
    artefact = candidate([blocks()] * 3, peaks={"small": 1.0, "large": peak})
    result = certify(Fake(lambda _: certain(blocks())), [artefact], cases(), Gate(), "test")
    assert result["verdict"] == verdict
    assert ("tensor large" in reasons(result)) == (verdict == "fail")
    json.dumps(result, allow_nan=False)
    if peak == peak:
        assert result["artefacts"][0]["peak"]["tensor"] == "large"


def test_the_worst_artefact_decides_and_each_keeps_its_own_verdict(cases: Cases) -> None:
    bad = relabelled(blocks(), Label.ET, Label.NCR, 500)
    result = certify(
        Fake(lambda _: certain(blocks())),
        [candidate([blocks()] * 3), candidate([bad] * 3, file="model.fp16.onnx")],
        cases(),
        Gate(),
        "test",
    )
    assert result["verdict"] == "fail"
    verdicts = {entry["file"]: entry["verdict"] for entry in result["artefacts"]}
    assert verdicts == {"model.onnx": "pass", "model.fp16.onnx": "fail"}


def test_probability_errors_are_recorded(cases: Cases) -> None:
    def shifted(_: int) -> Probabilities:
        probabilities = certain(blocks())
        probabilities[0, :8] += 0.25
        probabilities[1, :8] -= 0.25
        return probabilities

    # Background is 0.025 or 0.925, so that 0.25 changes no label.
    artefact = Candidate("model.onnx", "0" * 64, Fake(shifted), "words", True)
    result = certify(Fake(lambda _: certain(blocks())), [artefact], cases(), Gate(), "test")
    record = result["artefacts"][0]["cases"][0]
    assert record["max_probability_error"] == pytest.approx(0.25, abs=1e-6)
    assert record["mean_probability_error"] == pytest.approx(0.25 * 2 / 4 * 8 / 64, rel=1e-5)


def test_changed_labels_by_counting() -> None:
    one = np.array([0, 0, 1, 2, 3, 3, 0, 1], np.uint8).reshape(2, 2, 2)
    other = np.array([0, 1, 1, 3, 0, 3, 0, 2], np.uint8).reshape(2, 2, 2)
    # Six voxels are tumour in either, four of them differ.
    assert changed_labels(one, other) == changed_labels(other, one) == 4 / 6
    assert changed_labels(one, one) == 0
    nothing = np.zeros((2, 2, 2), np.uint8)
    assert changed_labels(nothing, nothing) == 0
    assert changed_labels(nothing, one) == 1


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize(
    ("bad_at", "peaks", "read"),
    [
        pytest.param(0, {}, 1, id="labels of the first case"),
        pytest.param(1, {}, 2, id="labels of the second"),
        pytest.param(None, {"y": FP16_MAX}, 1, id="peak"),
        pytest.param(None, {}, 3, id="nothing"),
    ],
)
def test_it_can_stop_at_the_first_failure(
    cases: Cases, stop: bool, bad_at: int | None, peaks: dict[str, float], read: int
) -> None:
    bad = relabelled(blocks(), Label.ET, Label.NCR, 500)
    maps = [bad if number == bad_at else blocks() for number in range(3)]
    result = certify(
        Fake(lambda _: certain(blocks())),
        [candidate(maps, peaks=peaks)],
        cases(),
        Gate(),
        "test",
        stop_at_failure=stop,
    )
    fails = bad_at is not None or bool(peaks)
    assert result["verdict"] == ("fail" if fails else "pass")
    assert len(result["cases"]) == len(result["artefacts"][0]["cases"]) == (read if stop else 3)


def test_it_stops_only_when_every_candidate_has_failed(cases: Cases) -> None:
    bad = relabelled(blocks(), Label.ET, Label.NCR, 500)
    result = certify(
        Fake(lambda _: certain(blocks())),
        [candidate([bad] * 3), candidate([blocks(), bad, blocks()])],
        cases(),
        Gate(),
        "test",
        stop_at_failure=True,
    )
    assert [len(entry["cases"]) for entry in result["artefacts"]] == [2, 2]
    assert [entry["verdict"] for entry in result["artefacts"]] == ["fail", "fail"]


def test_an_overflow_is_the_first_reason(cases: Cases) -> None:
    bad = relabelled(blocks(), Label.ET, Label.NCR, 500)
    artefact = candidate([bad] * 3, peaks={"first": np.inf, "second": np.inf})
    result = certify(Fake(lambda _: certain(blocks())), [artefact], cases(), Gate(), "test")
    said = result["artefacts"][0]["reasons"]
    assert said[0] == "tensor first reaches inf in fp16, over the margin of 16376"
    assert said[1].startswith("case0: Dice of ET")


def test_a_reference_predicts_a_case_once(cases: Cases) -> None:
    # Each case has labels of its own, so that a prediction of another case would show.
    maps = [blocks(), blocks(ncr=1500), blocks(et=2000)]
    backend = Fake(lambda case: certain(maps[case]))
    reference, kept = Reference(backend), list(cases())
    certificates = [
        certify(reference, [candidate(maps)], chosen, Gate(), "test")
        for chosen in (kept, kept, kept)
    ]
    assert backend.cases == 3
    assert [result["verdict"] for result in certificates] == ["pass"] * 3
    assert certificates[0] == certificates[1] == certificates[2]
    fresh = certify(Fake(lambda case: certain(maps[case])), [candidate(maps)], kept, Gate(), "test")
    assert certificates[0] == fresh
    assert (reference.card, reference.info) == (backend.card, backend.info)
    for case, labels in zip(kept[::-1], maps[::-1], strict=True):
        np.testing.assert_array_equal(reference.predict(case).labels, labels)
    assert backend.cases == 3


def test_cases_of_one_name_and_other_content_are_not_confused(cases: Cases) -> None:
    (one,) = cases(1)
    images = {
        name: replace(image, sha256=f"other {name}") for name, image in one.volume.images.items()
    }
    other = ParityCase(replace(one.volume, images=images), None)
    maps = [blocks(), blocks(et=500)]
    reference = Reference(Fake(lambda case: certain(maps[case])))
    for case, labels in ((one, maps[0]), (other, maps[1]), (one, maps[0])):
        np.testing.assert_array_equal(reference.predict(case).labels, labels)


def test_a_case_list_reads_each_case_once_and_when_asked(cases: Cases) -> None:
    read: list[str] = []

    def told() -> Iterator[ParityCase]:
        for case in cases(4):
            read.append(case.volume.case.case_id)
            yield case

    listed = CaseList(told())
    assert read == []
    first = [case for case, _ in zip(listed, range(2), strict=False)]
    assert read == ["case0", "case1", "case2"]
    # Two readers side by side.
    both = list(zip(listed, listed, strict=True))
    assert len(both) == 4
    assert all(one is other for one, other in both)
    assert both[0][0] is first[0]
    assert read == ["case0", "case1", "case2", "case3"]
    assert len(list(listed)) == 4


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ("pass", "pass", "pass"),
        ("pass", "inconclusive", "inconclusive"),
        ("inconclusive", "fail", "fail"),
        ("fail", "pass", "fail"),
    ],
)
def test_an_entry_joins_a_certificate(first: str, second: str, verdict: str) -> None:
    one = {"file": "model.onnx", "verdict": first}
    other = {"file": "model.fp16.onnx", "verdict": second}
    certificate = {"schema": 1, "verdict": first, "cases": [], "artefacts": [one]}
    joined = with_entry(certificate, other)
    assert joined == {"schema": 1, "verdict": verdict, "cases": [], "artefacts": [one, other]}
    assert certificate["artefacts"] == [one]


def test_the_form_of_the_up_branch_is_recorded_where_it_is_given(cases: Cases) -> None:
    plain = candidate([blocks()] * 3)
    artefacts = [plain, replace(candidate([blocks()] * 3), up_branch="interleave")]
    result = certify(Fake(lambda _: certain(blocks())), artefacts, cases(), Gate(), "test")
    found = [entry.get("up_branch") for entry in result["artefacts"]]
    assert found == [None, "interleave"]


# --- brats-export from checkpoint to model directory ------------------------------------------

ARCHITECTURE = Architecture(features=(8, 16), dropout=0.0)
TRAINED_CARD = ModelCard(
    "thresholds", patch=(48, 48, 32), divisor=2, inference=InferenceDefaults(0.5, 2)
)


def identity_norm(norm: torch.nn.BatchNorm3d, generator: torch.Generator) -> None:
    """Statistics that are far from trivial, and a gain and bias that undo them."""
    mean = torch.randn(norm.num_features, generator=generator)
    variance = 0.5 + torch.rand(norm.num_features, generator=generator)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.bias.copy_(mean)
    norm.weight.copy_((variance + norm.eps).sqrt())


@torch.no_grad()
def thresholds() -> UNet3D:
    """A network that calls all labels on phantoms: linear in the modalities of a voxel.

    The first convolution passes each modality through a pair of ReLUs, the rest passes that on to
    the head; small random weights everywhere keep the other paths at work.
    """
    generator = torch.Generator().manual_seed(0)
    network = ARCHITECTURE.build()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            module.weight.copy_(0.01 * torch.randn(module.weight.shape, generator=generator))
        if isinstance(module, torch.nn.BatchNorm3d):
            identity_norm(module, generator)
    first, last = network.encoder[0], network.decoder[0].block
    for modality in range(4):
        first.conv1.weight[2 * modality, modality, 1, 1, 1] += 1
        first.conv1.weight[2 * modality + 1, modality, 1, 1, 1] -= 1
    for channel in range(8):
        first.conv2.weight[channel, channel, 1, 1, 1] += 1
        # The skip follows the 16 channels that come up.
        last.conv1.weight[channel, 16 + channel, 1, 1, 1] += 1
        last.conv2.weight[channel, channel, 1, 1, 1] += 1
    flair, t1ce = 0, 2
    for label, bias, weights in (
        (Label.NCR, -3.2, {flair: 2.0}),
        (Label.ED, -1.0, {flair: 1.0}),
        (Label.ET, -2.5, {flair: 0.5, t1ce: 2.0}),
    ):
        network.head.bias[label] = 6 * bias
        for modality, weight in weights.items():
            network.head.weight[label, 2 * modality] += 6 * weight
            network.head.weight[label, 2 * modality + 1] -= 6 * weight
    network.head.bias[Label.BACKGROUND] = 0
    return network.eval()


@torch.no_grad()
def without_et() -> UNet3D:
    network = thresholds()
    network.head.bias[Label.ET] = -1e4
    return network


@torch.no_grad()
def all_background() -> UNet3D:
    network = thresholds()
    network.head.bias[Label.BACKGROUND] = 1e4
    return network


@torch.no_grad()
def overflowing() -> UNet3D:
    """The same function in fp32, to the bit, through values that fp16 does not hold."""
    network, scale = thresholds(), 2.0**17
    block = network.encoder[0]
    block.bn1.weight.mul_(scale)
    block.bn1.bias.mul_(scale)
    block.conv2.weight.div_(scale)
    return network


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint for each of the networks above."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for make in (thresholds, without_et, all_background, overflowing):
        state = make().state_dict()
        save_checkpoint(
            folder / f"{make.__name__}.pt", Checkpoint(state, ARCHITECTURE, TRAINED_CARD, epoch=1)
        )
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_phantoms(root, 3, seed=11, shape=SHAPE, enhancement=Enhancement.RIM)
    return root


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, data: Path) -> Path:
    """What brats-export makes of a good checkpoint; read-only."""
    out = tmp_path_factory.mktemp("released") / "model"
    code = exported(checkpoints / "thresholds.pt", "-o", out, "--fp16", "--data", data)
    assert code == 0
    return out


def exported(*args: object) -> int:
    return export.cli.main([*map(str, args), "--threads", "2"])


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_good_model_is_released_whole(released: Path) -> None:
    files = bytes_of(released)
    assert set(files) == {
        "manifest.json",
        "card.json",
        "parity.json",
        "model.onnx",
        "model.fp16.onnx",
    }
    assert sorted(path.name for path in released.parent.iterdir()) == ["model"]
    manifest = json.loads(files.pop("manifest.json"))
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in files.items()
    }


def test_the_card_travels_from_the_checkpoint_into_every_file(released: Path) -> None:
    card = (released / "card.json").read_text()
    assert card == TRAINED_CARD.to_json()
    for name in ("model.onnx", "model.fp16.onnx"):
        model = onnx.load_from_string((released / name).read_bytes())
        assert {item.key: item.value for item in model.metadata_props} == {CARD_KEY: card}


def test_the_certificate_of_a_good_model(released: Path, data: Path) -> None:
    certificate = json.loads((released / "parity.json").read_text())
    assert certificate["verdict"] == "pass"
    assert certificate["allow_inconclusive"] is False
    assert certificate["source"] == "data"
    assert certificate["gate"]["truth"] == 0.999
    found = {
        (entry["file"], entry["backend"], entry["verdict"]) for entry in certificate["artefacts"]
    }
    assert found == {
        ("model.onnx", "openvino", "pass"),
        ("model.onnx", "ort", "pass"),
        ("model.fp16.onnx", "emulation", "pass"),
    }
    for entry in certificate["artefacts"]:
        content = (released / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["device"] == "cpu"
        assert len(entry["cases"]) == 3
        assert all("dice_to_truth" in record for record in entry["cases"])
    (half,) = [entry for entry in certificate["artefacts"] if entry["backend"] == "emulation"]
    assert "fp16" in half["arithmetic"]
    assert 0 < half["peak"]["value"] < FP16_MAX / 4
    # fp16 did something, or its pass says nothing.
    assert all(0 < record["max_probability_error"] < 0.5 for record in half["cases"])
    assert all(case["informative"] for case in certificate["cases"])
    truths = {case["case_id"]: case["inputs"] for case in certificate["cases"]}
    for case_id, inputs in truths.items():
        for modality, digest in inputs.items():
            content = (data / case_id / f"{case_id}_{modality}.nii.gz").read_bytes()
            assert digest == hashlib.sha256(content).hexdigest()
    model = ModelDir.open(released)
    assert model.verdict("model.onnx") == model.verdict("model.fp16.onnx") == "pass"


@pytest.mark.parametrize(
    ("network", "flags", "verdict", "said"),
    [
        ("without_et", (), "inconclusive", "--allow-inconclusive"),
        ("all_background", (), "inconclusive", "--allow-inconclusive"),
        ("overflowing", ("--fp16", "--strict-fp16"), "fail", "model.fp16.onnx"),
    ],
)
def test_a_bad_model_is_not_released(
    checkpoints: Path,
    data: Path,
    released: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    network: str,
    flags: tuple[str, ...],
    verdict: str,
    said: str,
) -> None:
    out = tmp_path / "model"
    shutil.copytree(released, out)
    before = bytes_of(out)
    assert exported(checkpoints / f"{network}.pt", "-o", out, "--data", data, *flags) == 5
    assert bytes_of(out) == before
    rejected = bytes_of(tmp_path / "model.rejected")
    assert list(rejected) == ["parity.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.rejected"]
    certificate = json.loads(rejected["parity.json"])
    assert certificate["verdict"] == verdict
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    by_file = {(e["file"], e["backend"]): e for e in certificate["artefacts"]}
    if network == "overflowing":
        # Only fp16 suffers: in fp32 the network is the good one.
        good = json.loads((released / "parity.json").read_text())
        assert certificate["cases"] == good["cases"]
        verdicts = {key: entry["verdict"] for key, entry in by_file.items()}
        assert verdicts == {
            ("model.onnx", "openvino"): "pass",
            ("model.onnx", "ort"): "pass",
            ("model.fp16.onnx", "emulation"): "fail",
        }
        half = by_file["model.fp16.onnx", "emulation"]
        assert half["peak"]["value"] == "infinite"
        assert any(reason.startswith("tensor ") for reason in half["reasons"])
    else:
        assert not any(case["informative"] for case in certificate["cases"])
        voxels = [case["predicted_voxels"] for case in certificate["cases"]]
        assert all(counts["ET"] == 0 for counts in voxels)
        assert all((counts["WT"] == 0) == (network == "all_background") for counts in voxels)


def test_what_overflows_stays_in_fp32_and_the_certificate_says_so(
    checkpoints: Path, data: Path, released: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    assert exported(checkpoints / "overflowing.pt", "-o", out, "--data", data, "--fp16") == 0
    certificate = json.loads((out / "parity.json").read_text())
    assert certificate["verdict"] == "pass"
    (half,) = [entry for entry in certificate["artefacts"] if entry["backend"] == "emulation"]
    kept = half["kept"]
    # The layer whose values overflow, and the one that reads them.
    assert [part["part"] for part in kept["kept_fp32"]] == ["encoder.0.conv1", "encoder.0.conv2"]
    assert all("in fp16, over the margin" in part["why"] for part in kept["kept_fp32"])
    # Nothing, what makes the value, what reads it, and each of the two without the other.
    assert kept["evaluations"] == 4
    graph = onnx.load_from_string((out / "model.fp16.onnx").read_bytes()).graph
    types = {item.name: item.data_type for item in graph.initializer}
    wide = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}
    assert wide == {name for name in types if name.startswith("network.encoder.0.")}
    good = json.loads((released / "parity.json").read_text())
    assert certificate["cases"] == good["cases"]


def test_allowing_an_inconclusive_verdict_is_recorded(
    checkpoints: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deeper" / "model"
    code = exported(
        checkpoints / "without_et.pt", "-o", out, "--data", data, "--allow-inconclusive"
    )
    assert code == 0
    certificate = json.loads((out / "parity.json").read_text())
    assert certificate["allow_inconclusive"] is True
    assert certificate["verdict"] == "inconclusive"
    assert not (out.parent / "model.rejected").exists()
    # The runtime sees it, too.
    assert ModelDir.open(out).verdict("model.onnx") == "inconclusive"


def test_a_folder_that_is_not_ours_is_left_alone(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("years of work")
    assert exported(checkpoints / "thresholds.pt", "-o", out) == 7
    assert bytes_of(tmp_path) == {"thesis/chapter1.tex": b"years of work"}
    assert "thesis" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_directory_is_left_alone(
    checkpoints: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    out.write_text("not a directory")
    assert exported(checkpoints / "thresholds.pt", "-o", out) == 7
    assert bytes_of(tmp_path) == {"model": b"not a directory"}


def test_a_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(tmp_path / "nowhere.pt", "-o", tmp_path / "model") == 3
    assert "nowhere.pt" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_run_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported("-o", tmp_path / "model", "--runs", tmp_path / "runs") == 3
    assert "brats-train" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_checkpoint(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    content = (checkpoints / "thresholds.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(content[: int(share * len(content))])
    assert exported(cut, "-o", tmp_path / "model") == 3
    assert "cut.pt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cut.pt"]


@pytest.mark.parametrize("gate", ["2", "0", "-0.5", "nan"])
def test_a_gate_outside_its_range(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gate: str
) -> None:
    assert exported(checkpoints / "thresholds.pt", "-o", tmp_path / "model", "--gate", gate) == 2
    assert "--gate" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_manifest_of_something_else_is_left_alone(
    tmp_path: Path, tiny_card: ModelCard
) -> None:
    out = tmp_path / "webapp"
    out.mkdir()
    (out / "manifest.json").write_text('{"name": "my web app"}')
    (out / "thesis.tex").write_text("thesis")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        release(out, tiny_card, {}, {"verdict": "pass", "artefacts": []}, False)
    assert (out / "thesis.tex").read_text() == "thesis"


def test_a_note_beside_a_model_is_not_thrown_away(tmp_path: Path, tiny_card: ModelCard) -> None:
    out = tmp_path / "model"
    certificate = {"verdict": "pass", "artefacts": []}
    release(out, tiny_card, {"model.onnx": b"1"}, certificate, False)
    release(out, tiny_card, {"model.onnx": b"2"}, certificate, False)
    assert (out / "model.onnx").read_bytes() == b"2"
    (out / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"note\.txt"):
        release(out, tiny_card, {"model.onnx": b"3"}, certificate, False)
    assert (out / "model.onnx").read_bytes() == b"2"
