"""Make the built-in reference model from an export, its scores and the run that trained it.

    python -m benchmarks.reference_model MODEL RUN SCORES_2020 SCORES_2023 WITHOUT_RULE \\
        [--scored-modes SCORED] EARLIER...

MODEL is written by `brats-export --half-weights --engines no`, the scores by `brats-eval --json`. A
model that does not reach the bar, or is no better than the one that is there, is refused.
WITHOUT_RULE are scores of 2020 after `brats-infer --no-postprocess`. EARLIER are those that other
states of the run got on the same cases before: the model's page says that it was trained on until
they were good enough. SCORED is the same model after `brats-export MODEL --modes --data` with the
scored cases: what the faster modes do there, where nothing was chosen by them, stands on the page.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.reference_page import BAR, REGIONS, certified_cases, licence, mean_dice, page
from export.half_weights import is_halved
from export.modes import mean_over
from runtime.atomic import write_bytes, write_json, write_text
from runtime.atomic_directory import replace_directory
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_dir import BUILT_IN, CARD, ONNX_FP32, ONNX_INT8, PARITY, ModelDir
from runtime.naming import patient_of

FIGURES: Final = "figures.json"


@dataclass(frozen=True)
class ScoreFiles:
    """What `brats-eval --json` wrote of the five cases.

    Attributes:
        whole, lesions: by the profiles of 2020 and of 2023.
        without_rule: by that of 2020, of label maps as after argmax.
        earlier: by that of 2020, of other states of the run, the first one first.
        modes: a model directory whose certificate says what the faster modes do on these cases.
    """

    whole: Path
    lesions: Path
    without_rule: Path
    earlier: tuple[Path, ...] = ()
    modes: Path | None = None


def make(model_dir: Path, run: Path, files: ScoreFiles, out: Path) -> float:
    """Write the built-in model to ``out``; returns its mean Dice.

    Raises:
        SystemExit: the model misses the bar, is not better than the one at ``out``, was scored
            on a patient who took part in its training, or does not store its weights in fp16; or
            the scores are not of the profiles and of the same cases.
    """
    model = ModelDir.open(model_dir)
    whole, lesions = (json.loads(path.read_text()) for path in (files.whole, files.lesions))
    raw, *before_it = (
        json.loads(path.read_text()) for path in (files.without_rule, *files.earlier)
    )
    split = json.loads((run / "split.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    for scores, profile in ((whole, "brats2020"), (lesions, "brats2023")):
        if scores["profile"] != profile:
            raise SystemExit(f"scores by {scores['profile']}, expected {profile} in that place")
    if any(set(one["cases"]) != set(whole["cases"]) for one in (raw, *before_it)):
        raise SystemExit("other scores are of different cases, expected the same")
    if set(whole["cases"]) != set(lesions["cases"]):
        raise SystemExit("the two profiles have scored different cases, expected the same")
    mean = mean_dice(whole)
    used = {patient_of(case_id) for case_id in (*split["train"], *split["validation"])}
    known = [case_id for case_id in sorted(whole["cases"]) if patient_of(case_id) in used]
    if known:
        raise SystemExit(f"scored on patients that it was trained with: {', '.join(known)}")
    if mean < BAR:
        raise SystemExit(f"mean Dice {mean:.4f}, expected {BAR} or more; train longer")
    there = out / FIGURES
    if there.is_file():
        before = mean_dice(json.loads(there.read_text())["scores"]["brats2020"])
        # The same weights may come with more than before: modes, and the graphs of those.
        same = json.loads(there.read_text())["model_sha256"] == model.hashes[ONNX_FP32]
        if mean <= before and not (same and model.certificate.get("modes")):
            raise SystemExit(f"mean Dice {mean:.4f}, expected more than the {before:.4f} of {out}")
    if model.verdict(ONNX_FP32) != "pass":
        raise SystemExit(f"{model_dir}: the certificate does not pass")
    if not is_halved(model.read(ONNX_FP32)):
        raise SystemExit(f"{model_dir}: weights in fp32, expected brats-export --half-weights")
    on_scored: list[dict[str, Any]] = []
    if files.modes is not None:
        other = ModelDir.open(files.modes)
        if other.hashes[ONNX_FP32] != model.hashes[ONNX_FP32]:
            raise SystemExit(f"{files.modes}: another {ONNX_FP32} than that of {model_dir}")
        on_scored = [_mode(entry) for entry in other.certificate["modes"]]
        if any(set(one["to_exact"]) != set(whole["cases"]) for one in on_scored):
            raise SystemExit(f"{files.modes}: modes on other cases, expected the scored ones")
    card = json.loads(model.read(CARD))
    figures = {
        "scores": {"brats2020": whole, "brats2023": lesions},
        "training": {
            **card["training"],
            "commands": [
                _without_paths(one["arguments"])
                for one in (*reversed(environment.get("earlier", [])), environment)
            ],
            **{name: environment[name] for name in ("packages", "revision", "cores", "device")},
        },
        "split": split,
        "without_rule": {name: raw["summary"][name]["dice"]["mean"] for name in REGIONS},
        "earlier_mean_dice": [mean_dice(scores) for scores in before_it],
        "model_sha256": model.hashes[ONNX_FP32],
        "modes": [_mode(entry) for entry in model.certificate.get("modes", [])],
        "modes_on_scored": on_scored,
    }

    def fill(directory: Path) -> None:
        for name in (*({ONNX_INT8} & set(model.hashes)), ONNX_FP32, CARD, PARITY):
            write_bytes(directory / name, model.read(name))
        write_json(directory / FIGURES, figures)
        write_text(directory / "README.md", page(figures, card))
        write_text(directory / "LICENSE-WEIGHTS", licence(figures, certified_cases(model)))
        write_bytes(directory / MANIFEST, manifest_of(directory))

    replace_directory(out, fill, owned_by=MANIFEST)
    return mean


def _mode(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a certificate says of a mode, in a few numbers."""
    scored = [case["dice_to_truth"] for case in entry["cases"]]
    means = {
        way: {name: mean_over(scored, way, name) for name in REGIONS} for way in ("exact", "mode")
    }
    names = ("quality", "backend", "verdict", "times_faster")
    to_exact = {case["case_id"]: case["dice_to_exact"] for case in entry["cases"]}
    return {name: entry[name] for name in names} | {
        "cases": len(scored),
        "dice": means,
        "to_exact": to_exact,
    }


def _without_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command, folders reduced to their names."""
    words = [word for one in arguments for word in (one.split("=", 1) if one[:1] == "-" else [one])]
    return [Path(word).name if word.startswith("/") else word for word in words]


def main(args: Sequence[str]) -> None:
    paths, scored_modes = list(args), None
    if "--scored-modes" in paths[:-1]:
        at = paths.index("--scored-modes")
        scored_modes = Path(paths[at + 1])
        del paths[at : at + 2]
    if len(paths) < 5:
        raise SystemExit(__doc__)
    model, run, whole, lesions, without_rule, *earlier = map(Path, paths)
    files = ScoreFiles(whole, lesions, without_rule, tuple(earlier), scored_modes)
    mean = make(model, run, files, BUILT_IN)
    print(f"{BUILT_IN}: mean Dice {mean:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
