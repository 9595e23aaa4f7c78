"""Make the built-in reference model from an export, its scores and the run that trained it.

    python -m benchmarks.reference_model MODEL RUN SCORES_2020 SCORES_2023 WITHOUT_RULE EARLIER...

MODEL is written by `brats-export --half-weights --engines no`, the scores by `brats-eval --json`. A
model that does not reach the bar, or is no better than the one that is there, is refused.
WITHOUT_RULE are scores of 2020 after `brats-infer --no-postprocess`. EARLIER are those that other
states of the run got on the same cases before: the model's page says that it was trained on until
they were good enough.
"""

import json
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from export.half_weights import is_halved
from export.modes import mean_over
from runtime import DISCLAIMER
from runtime.atomic import write_bytes, write_json, write_text
from runtime.atomic_directory import replace_directory
from runtime.manifest import MANIFEST, manifest_of
from runtime.model_dir import BUILT_IN, CARD, ONNX_FP32, ONNX_INT8, PARITY, ModelDir
from runtime.naming import patient_of

BAR: Final = 0.72
REGIONS: Final = ("WT", "TC", "ET")
FIGURES: Final = "figures.json"

_WIDTH: Final = 120
TEXTS: Final = Path(__file__).parent / "reference"


def mean_dice(scores: Mapping[str, Any]) -> float:
    """Mean of WT, TC and ET over all cases."""
    return sum(scores["summary"][region]["dice"]["mean"] for region in REGIONS) / len(REGIONS)


def table(scores: Mapping[str, Any]) -> str:
    """A row per case and one for the mean: Dice, then HD95, of each region."""
    names = ("dice", "hd95")
    head = ["case", *(f"{region} {name}" for name in ("Dice", "HD95") for region in REGIONS)]
    rows = [head, ["---", *["---:"] * 6]]
    for case_id, found in scores["cases"].items():
        rows.append(
            [case_id, *(_shown(found[region][name], name) for name in names for region in REGIONS)]
        )
    summary = scores["summary"]
    means = [_shown(summary[region][name]["mean"], name) for name in names for region in REGIONS]
    rows.append(["**mean**", *(f"**{value}**" for value in means)])
    low_high = [summary[region]["dice"]["interval"] for region in REGIONS]
    rows.append(
        [
            "95 % interval of the mean",
            *(f"{low:.2f}-{high:.2f}" for low, high in low_high),
            *[""] * 3,
        ]
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shown(value: float, name: str) -> str:
    return f"{value:.3f}" if name == "dice" else f"{value:.1f}"


def licence(figures: Mapping[str, Any], certified: Collection[str]) -> str:
    """The terms, with the cases named.

    Args:
        figures: as `make` keeps them.
        certified: cases on which the certificate was made.
    """
    split, earlier = figures["split"], figures["earlier_mean_dice"]
    chosen = sorted(split["validation"], key=lambda case: (case not in certified, case))
    return (
        (TEXTS / "LICENSE-WEIGHTS.in")
        .read_text()
        .format(
            trained=_listed(sorted(split["train"])),
            chosen=_listed(chosen),
            certified=len(certified),
            scored=_listed(sorted(figures["scores"]["brats2020"]["cases"])),
            looks=", and training went on until they sufficed" if earlier else "",
        )
    )


def certified_cases(model: ModelDir) -> set[str]:
    """Cases on which a model's certificate was made."""
    return {str(case["case_id"]) for case in model.certificate.get("cases", ())}


def page(figures: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """The model's page, every number of it from the figures and the card."""
    training = figures["training"]
    lesions = figures["scores"]["brats2023"]["summary"]
    said = (
        (TEXTS / "README.md.in")
        .read_text()
        .format(
            disclaimer=DISCLAIMER,
            table=table(figures["scores"]["brats2020"]),
            lesions=", ".join(
                f"{name} {lesions[name]['lesion_dice']['mean']:.3f}" for name in REGIONS
            ),
            rule=rule(card),
            modes=modes(figures["modes"]),
            without=table_of_means(figures["without_rule"]),
            looked=looked(figures["earlier_mean_dice"]),
            patch="x".join(map(str, card["patch"])),
            **{name: training[name] for name in ("cases", "epochs", "patches", "precision")},
        )
    )
    return "\n".join(_wrapped(line) for line in said.split("\n"))


def table_of_means(scores: Mapping[str, Any]) -> str:
    """WT 0.751, TC 0.713, ET 0.680."""
    return ", ".join(f"{name} {scores[name]:.3f}" for name in REGIONS)


def _wrapped(line: str) -> str:
    """A paragraph that stands on one line in the template."""
    if len(line) <= _WIDTH or line.startswith("|"):
        return line
    return textwrap.fill(
        line,
        _WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
        subsequent_indent="  " if line.startswith("- ") else "",
    )


def _listed(cases: Sequence[str]) -> str:
    return "\n".join(f"  {case}" for case in cases)


def rule(card: Mapping[str, Any]) -> str:
    """What happens after argmax, in words."""
    component, enhancing = (
        card["postprocess"][name] for name in ("min_component_mm3", "min_et_mm3")
    )
    parts = []
    if component:
        parts.append(f"components of tumour under {component:g} mm3 become background")
    if enhancing:
        parts.append(f"enhancing tumour under {enhancing:g} mm3 in all becomes NCR")
    return " and ".join(parts) or "nothing more is done"


@dataclass(frozen=True)
class ScoreFiles:
    """What `brats-eval --json` wrote of the five cases.

    Attributes:
        whole, lesions: by the profiles of 2020 and of 2023.
        without_rule: by that of 2020, of label maps as after argmax.
        earlier: by that of 2020, of other states of the run, the first one first.
    """

    whole: Path
    lesions: Path
    without_rule: Path
    earlier: tuple[Path, ...] = ()


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
    names = ("quality", "verdict", "times_faster")
    return {name: entry[name] for name in names} | {"cases": len(scored), "dice": means}


def modes(found: Sequence[Mapping[str, Any]]) -> str:
    """A paragraph and a table on the faster modes; empty without any."""
    if not found:
        return ""
    rows = [["quality", "Dice WT / TC / ET", "times faster"], ["---", "---", "---:"]]
    rows.append(["`exact`", _regions(found[0]["dice"]["exact"]), "1"])
    for one in found:
        rows.append(
            [f"`{one['quality']}`", _regions(one["dice"]["mode"]), f"{one['times_faster']:.1f}"]
        )
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        "\n## Faster\n\n`brats-infer --quality balanced` takes one window over the whole brain box "
        f"in fp32, `fast` the same in int8. Certified on {found[0]['cases']} cases that chose the "
        f"epoch (so that the Dice itself flatters), on two CPU cores:\n\n{lines}\n"
    )


def _regions(scores: Mapping[str, float]) -> str:
    return " / ".join(f"{scores[name]:.4f}" for name in REGIONS)


def looked(earlier: Sequence[float]) -> str:
    """How often the scored cases were looked at: their figures are only as good as that."""
    if not earlier:
        return "They were scored once."
    means = ", ".join(f"{mean:.3f}" for mean in earlier)
    return (
        f"They are not untouched, though: other states of the run had been scored on them before "
        f"(mean Dice {means}), and training went on until it was {BAR}. How much better that makes "
        "these figures than those of other cases would be is not known."
    )


def _without_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command, folders reduced to their names."""
    words = [word for one in arguments for word in (one.split("=", 1) if one[:1] == "-" else [one])]
    return [Path(word).name if word.startswith("/") else word for word in words]


def main(args: Sequence[str]) -> None:
    if len(args) < 5:
        raise SystemExit(__doc__)
    model, run, whole, lesions, without_rule, *earlier = map(Path, args)
    files = ScoreFiles(whole, lesions, without_rule, tuple(earlier))
    mean = make(model, run, files, BUILT_IN)
    print(f"{BUILT_IN}: mean Dice {mean:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
