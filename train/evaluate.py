"""The end of a run: the best checkpoint on the validation cases, with all figures and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from runtime.atomic import write_json, write_text
from runtime.case import Case
from runtime.labels import Convention
from runtime.metrics import SCORED, Scores, summarise, to_json
from runtime.truth import load_truth
from train.checkpoint import load_checkpoint, restore_weights
from train.display import Display
from train.pictures import draw_sample
from train.run_dir import RunDir
from train.validate import PROFILE, score_of, segment_cases

SAMPLES = 3


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated.

    Attributes:
        cases: segmented and scored.
        left_out: ids of validation cases for which a time limit leaves no room.
        overlap: of windows.
        convention: of the label maps; None as each case says.
    """

    cases: tuple[Case, ...]
    left_out: tuple[str, ...]
    overlap: float
    convention: Convention | None = None


def evaluate_best(
    run: RunDir, plan: EvaluationPlan, device: torch.device, display: Display
) -> dict[str, Scores] | None:
    """Write evaluation.json, evaluation_metrics.txt and samples/ from ``run``'s best checkpoint.

    Returns:
        Scores of the last case; None without cases, for which nothing is written.

    Raises:
        InputError: the checkpoint or a case cannot be read.
        ComputeError: the network fails.
        OutputError: a file cannot be written.
    """
    if not plan.cases:
        return None
    checkpoint = load_checkpoint(run.best)
    model = checkpoint.architecture.build()
    restore_weights(model, checkpoint, run.best)
    scores: dict[str, dict[str, Scores]] = {}
    display.begin("evaluation", len(plan.cases))
    predictions = segment_cases(model, checkpoint.card, device, plan.cases, plan.overlap)
    for index, (case, prediction) in enumerate(zip(plan.cases, predictions, strict=True)):
        truth = load_truth(case, plan.convention)
        scores[case.case_id] = score_of(prediction, truth)
        if index < SAMPLES:
            draw_sample(run.samples, prediction, truth)
        display.update(index + 1)
    value = {
        "checkpoint": run.best.name,
        "epoch": checkpoint.epoch,
        "overlap": plan.overlap,
        "left_out": list(plan.left_out),
        **to_json(PROFILE, scores),
    }
    write_json(run.evaluation, value)
    text = metrics_table(scores)
    if plan.left_out:
        text += f"\nNo time was left for: {', '.join(plan.left_out)}\n"
    write_text(run.evaluation_text, text)
    return scores[plan.cases[-1].case_id]


def metrics_table(cases: Mapping[str, Mapping[str, Scores]]) -> str:
    """Dice and HD95 of each case by region and label, and their means, as plain text."""
    width = max(len("case"), *(len(name) for name in cases))
    titles = [f"{metric} {name}" for metric in ("Dice", "HD95") for name in SCORED]
    lines = [f"{'case':<{width}}" + "".join(f"{title:>10}" for title in titles)]
    for case_id, scores in cases.items():
        lines.append(
            _line(
                case_id,
                width,
                [scores[name].dice for name in SCORED],
                [scores[name].hd95 for name in SCORED],
            )
        )
    summary = summarise(cases)
    for statistic in ("mean", "median"):
        lines.append(
            _line(
                statistic,
                width,
                [summary[name]["dice"][statistic] for name in SCORED],
                [summary[name]["hd95"][statistic] for name in SCORED],
            )
        )
    return "\n".join(lines) + "\n\nDice without unit, HD95 in mm.\n"


def _line(title: str, width: int, dice: Sequence[float], hd95: Sequence[float]) -> str:
    return (
        f"{title:<{width}}"
        + "".join(f"{value:>10.4f}" for value in dice)
        + "".join(f"{value:>10.2f}" for value in hd95)
    )
