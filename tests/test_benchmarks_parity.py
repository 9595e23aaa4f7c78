"""The benchmark of parity judges real cases and a phantom, each by itself; every overlap that is
asked about is scaled.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from benchmarks import bench_parity, bench_scaling
from benchmarks.bench_scaling import MODES
from benchmarks.rounding import CHANGED_BY_ROUNDING
from benchmarks.scale import QUICK, STANDARD, Scale
from benchmarks.tables import parity
from export.half_weights import halve_weights
from export.parity import Gate
from runtime.case import Case
from runtime.model_card import ModelCard
from runtime.model_dir import ONNX_FP32, ModelDir
from runtime.nifti import Volume, load
from runtime.ops.numpy import NumpyOps
from runtime.phantom import Enhancement, write_phantom
from runtime.preprocess import prepare
from runtime.windows import plan_windows
from tests.run_records import run_of
from train.unet import UNet3D


def judged(
    tiny: tuple[UNet3D, ModelCard, Path],
    cases: list[Case],
    phantom: Case,
    made: Callable[[bytes], bytes] = bytes,
) -> dict[str, Any]:
    """What the benchmark records of the tiny model's fp32 graph."""
    network, card, path = tiny
    model = ModelDir.open(path)
    told: dict[str, Any] = {}
    bench_parity.bench_parity(
        benchmark=SimpleNamespace(pedantic=lambda judge, rounds: judge()),
        report=lambda question, figures, **facts: told.update(
            facts, figures=figures, question=question
        ),
        trained=(network, card, "tiny"),
        model=model,
        graphs={ONNX_FP32: made(model.read(ONNX_FP32))},
        cases=cases,
        phantom=phantom,
        network_facts={"weights": "tiny"},
    )
    return told


@pytest.fixture
def tiny(
    tiny_network: UNet3D, tiny_card: ModelCard, tiny_model: Path
) -> tuple[UNet3D, ModelCard, Path]:
    return tiny_network, tiny_card, tiny_model


def test_real_cases_do_not_take_the_phantoms_place(
    tiny: tuple[UNet3D, ModelCard, Path], phantom_root: Path, tmp_path: Path
) -> None:
    """With --data there was no phantom."""
    real = [Case.from_dir(folder) for folder in sorted(phantom_root.iterdir())]
    phantom = Case.from_dir(write_phantom(tmp_path, 9, 3, shape=(40, 44, 36)))
    names = [case.case_id for case in real]
    told = judged(tiny, real, phantom)
    assert [[one["case_id"] for one in entry["cases"]] for entry in told["artefacts"]] == [
        names,
        [phantom.case_id],
    ] * 2
    assert {entry["backend"] for entry in told["artefacts"]} == {"openvino", "ort"}
    assert "model.onnx (ort), WT to fp32" in told["figures"]
    assert "model.onnx (ort) of a phantom, WT to fp32" in told["figures"]
    text = parity(run_of(told, 1.0))
    assert text.count(f"| {phantom.case_id} |") == text.count(f"| {names[0]} |") == 2
    assert f"Over {', '.join((*names, phantom.case_id))}, weights tiny." in text


def test_a_phantom_that_is_the_case_is_judged_once(
    tiny: tuple[UNet3D, ModelCard, Path], phantom_dir: Path
) -> None:
    phantom = Case.from_dir(phantom_dir)
    told = judged(tiny, [phantom], phantom)
    assert len(told["artefacts"]) == 2
    assert told["case"] == phantom.case_id
    assert not any("of a phantom" in name for name in told["figures"])


def test_weights_in_fp16_are_named_and_judged_as_the_peers_are(
    tiny: tuple[UNet3D, ModelCard, Path], phantom_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stood as "fp32 ... pass" under the limit of a graph that computes in fp16."""
    gates: list[Gate] = []
    judge = bench_parity.certify

    def noted(*args: Any) -> dict[str, Any]:
        gates.append(args[3])
        return judge(*args)

    monkeypatch.setattr(bench_parity, "certify", noted)
    phantom = Case.from_dir(phantom_dir)
    told = judged(tiny, [phantom], phantom, halved)
    assert {gate.changed_reduced for gate in gates} == {CHANGED_BY_ROUNDING} == {1e-3}
    assert {entry["arithmetic"] for entry in told["artefacts"]} == {"fp32, weights fp16"}
    assert "| model.onnx (ort, fp32, weights fp16) |" in parity(run_of(told, 1.0))
    gates.clear()
    told = judged(tiny, [phantom], phantom)
    assert {gate.changed_fp32 for gate in gates} == {1e-4}
    assert {entry["arithmetic"] for entry in told["artefacts"]} == {"fp32"}


def halved(graph: bytes) -> bytes:
    stored: bytes = halve_weights(onnx.load_model_from_string(graph)).SerializeToString()
    return stored


def test_figures_are_means_over_a_groups_cases() -> None:
    def case(to_fp32: float, to_truth: float | None) -> dict[str, Any]:
        regions = ("WT", "TC", "ET")
        one: dict[str, Any] = {"dice_to_fp32": dict.fromkeys(regions, to_fp32)}
        one["changed_labels"] = (1 - to_fp32) / 10
        if to_truth is not None:
            one["dice_to_truth"] = {"artefact": dict.fromkeys(regions, to_truth)}
        return one

    entry = {"file": "m", "backend": "b", "group": "", "cases": [case(1.0, 0.5), case(0.5, None)]}
    entry |= {"verdict": "pass"}
    phantom = entry | {"group": " of a phantom", "cases": [case(0.25, None)], "verdict": "fail"}
    found = bench_parity.figures_of([entry, phantom])
    assert found["m (b), WT to fp32"]["values"] == [0.75]
    assert found["m (b), WT to truth"]["values"] == [0.5]
    assert found["m (b) of a phantom, WT to fp32"]["values"] == [0.25]
    assert len(found) == 13
    # Of the verdict and of the worst case: `--compare` reads figures alone.
    assert found["m (b), verdict"] == {"unit": "verdict", "values": [1.0]}
    assert found["m (b) of a phantom, verdict"]["values"] == [0.0]
    assert found["m (b), changed labels"] == {"unit": "changed", "values": [0.05]}


def test_how_far_a_mode_is_from_the_reference_is_a_figure() -> None:
    """`balanced` could lose a tenth of its Dice to `exact`, unheard by `--compare`."""
    dice = {"WT": 0.97, "TC": 0.96, "ET": 0.95}
    found = bench_scaling._figures("box (balanced)", [2.0, 2.1], dice, 0.03)
    assert {name: (one["unit"], one["values"]) for name, one in found.items()} == {
        "box (balanced): time": ("s", [2.0, 2.1]),
        "box (balanced): changed labels": ("changed", [0.03]),
        "box (balanced): WT to overlap 0.5": ("Dice", [0.97]),
        "box (balanced): TC to overlap 0.5": ("Dice", [0.96]),
        "box (balanced): ET to overlap 0.5": ("Dice", [0.95]),
    }
    assert list(bench_scaling._figures("overlap 0.5", [2.0], dice, 0.0)) == ["overlap 0.5: time"]


@pytest.mark.parametrize("scale", [STANDARD, QUICK], ids=["standard", "quick"])
def test_overlaps_differ_without_real_cases(scale: Scale, tmp_path: Path) -> None:
    """They had the same four windows from 0 to 0.5, so that nothing was measured."""
    case = Case.from_dir(
        write_phantom(tmp_path, 1, 3, shape=scale.overlap_phantom, enhancement=Enhancement.RIM)
    )
    card = ModelCard("x", patch=scale.patch)
    box = prepare(load(case), card, NumpyOps(), card.patch).voxels.shape[1:]
    overlaps = (0.0, 0.25, 0.5, 0.75)
    counts = [len(plan_windows(box, card.patch, overlap, "fitted")) for overlap in overlaps]
    assert counts == [3, 4, 5, 8]


def test_what_no_batch_changes_is_not_measured(tiny_model: Path, phantom_volume: Volume) -> None:
    """Three equal rows."""
    with pytest.raises(pytest.skip.Exception, match="openvino on a CPU runs one window at a time"):
        bench_scaling.bench_batch(
            benchmark=None,
            report=lambda *_, **__: None,
            model=ModelDir.open(tiny_model),
            volume=phantom_volume,
            rounds=1,
            case_facts={},
            network_facts={},
        )


def test_every_overlap_that_changes_the_plan_of_a_real_case_is_scaled() -> None:
    """0.375 has a quarter of the windows less than 0.5; box of a case of BraTS 2018."""
    overlaps = {mode.name: mode.options.overlap for mode in MODES if mode.options.patch is None}
    counts = {
        name: len(plan_windows((138, 170, 144), (128, 128, 64), overlap, "fitted"))
        for name, overlap in overlaps.items()
        if isinstance(overlap, float)
    }
    assert counts == {
        "overlap 0": 12,
        "overlap 0.25": 12,
        "overlap 0.375": 12,
        "overlap 0.5": 16,
        "overlap 0.5, int8": 16,
        "overlap 0.75": 36,
    }
