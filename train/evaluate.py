"""The end of a run: the best checkpoint on the validation cases, with all figures and pictures."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from runtime.atomic import write_json, write_text
from runtime.case import Case
from runtime.labels import Convention
from runtime.metrics import SCORED, Scores
from runtime.segmenter import Prediction
from runtime.summary import summarise, to_json
from runtime.truth import load_truth
from train.checkpoint import load_checkpoint, restore_weights
from train.device import Compute
from train.display import Display
from train.pictures import draw_sample
from train.run_dir import RunDir
from train.validate import PROFILE, score_of, segment_cases

SAMPLES = 3


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated.

    Attributes:
        cases: to be segmented and scored, in order.
        overlap: of windows.
        compute: device and arithmetic.
        convention: of the label maps; None as each case says.
    """

    cases: tuple[Case, ...]
    overlap: float
    compute: Compute
    convention: Convention | None = None


def predict_best(run: RunDir, plan: EvaluationPlan) -> Iterator[Prediction]:
    """Segment the plan's cases with ``run``'s best checkpoint.

    Raises:
        InputError: the checkpoint or a case cannot be read.
        ComputeError: the network fails.
    """
    checkpoint = load_checkpoint(run.best)
    model = checkpoint.architecture.build()
    restore_weights(model, checkpoint, run.best)
    yield from segment_cases(model, checkpoint.card, plan.compute, plan.cases, plan.overlap)


def write_evaluation(
    run: RunDir,
    plan: EvaluationPlan,
    predictions: Iterable[Prediction],
    enough: Callable[[], bool],
    display: Display,
) -> None:
    """Score the best checkpoint: evaluation.json, evaluation_metrics.txt and samples/.

    Args:
        run: where they go.
        plan: what is evaluated.
        predictions: of the plan's cases, in order, from the best checkpoint; may be fewer.
        enough: asked after each case; True leaves the rest out, for want of time.
        display: shows how far it is.

    Raises:
        InputError: a label map cannot be read.
        OutputError: a file cannot be written.
    """
    scores: dict[str, dict[str, Scores]] = {}
    display.begin("evaluation", len(plan.cases))
    for prediction in predictions:
        case = prediction.volume.case
        truth = load_truth(case, prediction.volume, plan.convention)
        scores[case.case_id] = score_of(prediction, truth)
        if len(scores) <= SAMPLES:
            draw_sample(run.samples, prediction, truth)
        display.update(len(scores))
        if enough():
            break
    left_out = [case.case_id for case in plan.cases if case.case_id not in scores]
    value = {
        "checkpoint": run.best.name,
        "precision": plan.compute.precision,
        "overlap": plan.overlap,
        "left_out": left_out,
        **to_json(PROFILE, scores),
    }
    write_json(run.evaluation, value)
    text = metrics_table(scores)
    if left_out:
        text += f"\nNo time was left for: {', '.join(left_out)}\n"
    write_text(run.evaluation_text, text)


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
