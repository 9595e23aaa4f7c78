"""The words of a built-in model: its page and its terms, every number of them from its figures."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from export.modes import ModeGate
from runtime import DISCLAIMER
from runtime.model_dir import ModelDir

BAR: Final = 0.72
"""Mean Dice that a built-in model has at least."""
REGIONS: Final = ("WT", "TC", "ET")
TEXTS: Final = Path(__file__).parent / "reference"
_WIDTH: Final = 120
_LIBRARIES: Final = {"openvino": "OpenVINO", "ort": "ONNX Runtime"}


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
            modes=modes(figures["modes"], figures["modes_on_scored"]),
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


def modes(found: Sequence[Mapping[str, Any]], on_scored: Sequence[Mapping[str, Any]]) -> str:
    """A paragraph and a table on the faster modes; empty without any.

    Args:
        found: as `_mode` has them, of the model's own certificate.
        on_scored: of the scored cases.
    """
    if not found:
        return ""
    first = found[0]["backend"]
    named = " and ".join(dict.fromkeys(_LIBRARIES[one["backend"]] for one in found))
    text = (
        "\n## Faster\n\n`brats-infer --quality balanced` takes one window over the whole brain box "
        f"in fp32, `fast` the same in int8. Certified with {named} on {found[0]['cases']} cases "
        "that chose the epoch (so that the Dice itself flatters), on two CPU cores. With "
        f"{_LIBRARIES[first]}:\n\n{_mode_table(found, first)}\n"
    )
    if on_scored:
        text += (
            f"\nOn the {on_scored[0]['cases']} scored cases, which had no part in that:\n\n"
            f"{_mode_table(on_scored, first)}\n\n{_lost(on_scored, first)}\n"
        )
    return text


def _mode_table(found: Sequence[Mapping[str, Any]], backend: str) -> str:
    rows = [
        ["quality", "Dice WT / TC / ET", "least Dice to `exact`", "times faster"],
        ["---", "---", "---:", "---:"],
        ["`exact`", _regions(found[0]["dice"]["exact"]), "", "1"],
    ]
    for one in found:
        if one["backend"] == backend:
            least = min(min(case.values()) for case in one["to_exact"].values())
            faster = f"{one['times_faster']:.1f}"
            name = f"`{one['quality']}`"
            rows.append([name, _regions(one["dice"]["mode"]), f"{least:.3f}", faster])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _lost(found: Sequence[Mapping[str, Any]], backend: str) -> str:
    """Which cases a mode segments otherwise, in words."""
    limit = ModeGate().case
    said = []
    for one in found:
        if one["backend"] != backend:
            continue
        lost = [name for name, dice in one["to_exact"].items() if min(dice.values()) < limit]
        others = [min(dice.values()) for name, dice in one["to_exact"].items() if name not in lost]
        least = f"Dice to `exact` is {min(others):.3f} or more in each region"
        if lost:
            said.append(
                f"`{one['quality']}` would not have passed here: it segments {' and '.join(lost)} "
                f"otherwise than `exact` does. In the other cases {least}."
            )
        else:
            said.append(f"`{one['quality']}`: {least}.")
    return " ".join(said)


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
