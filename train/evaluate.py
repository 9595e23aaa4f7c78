"""The end of a run: the best checkpoint on the validation cases, with all figures and pictures."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from runtime.atomic import write_json, write_text
from runtime.case import Case
from runtime.labels import REGIONS, Convention
from runtime.metrics import SCORED, Scores, score_case
from runtime.model_card import PostprocessRule
from runtime.postprocess import postprocess
from runtime.segmenter import Prediction
from runtime.summary import summarise, to_json
from runtime.truth import load_truth
from train.checkpoint import load_checkpoint, restore_weights, save_checkpoint
from train.device import Compute
from train.display import Display
from train.pictures import draw_sample
from train.run_dir import RunDir
from train.thresholds import Labelled, learn_rule
from train.validate import PROFILE, dice_of, segment_cases

SAMPLES = 3


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated.

    Attributes:
        cases: to be segmented and scored, in order.
        overlap: of windows.
        compute: device and arithmetic.
        convention: of the label maps; None as each case says.
        thresholds: learn the card's post-processing on these cases.
        all_of_them: score every prediction that there is, whatever the time.
    """

    cases: tuple[Case, ...]
    overlap: float
    compute: Compute
    convention: Convention | None = None
    thresholds: bool = False
    all_of_them: bool = False


def predict_best(
    run: RunDir, plan: EvaluationPlan, without: str | None = None
) -> Iterator[Prediction]:
    """Segment the plan's cases with ``run``'s best checkpoint, not post-processed.

    Args:
        run: whose best.pt.
        plan: cases, device, windows.
        without: a modality to leave out.

    Raises:
        InputError: the checkpoint or a case cannot be read.
        ComputeError: the network fails.
    """
    checkpoint = load_checkpoint(run.best)
    model = checkpoint.architecture.build()
    restore_weights(model, checkpoint, run.best)
    # A resumed run may have learned a rule before; it is learned anew from what the network says.
    card = replace(checkpoint.card, postprocess=PostprocessRule())
    yield from segment_cases(model, card, plan.compute, plan.cases, plan.overlap, without)


def write_evaluation(
    run: RunDir,
    plan: EvaluationPlan,
    predictions: Iterable[Prediction],
    enough: Callable[[], bool],
    display: Display,
) -> None:
    """Score the best checkpoint: evaluation.json, evaluation_metrics.txt and samples/.

    With `EvaluationPlan.thresholds` post-processing is learned from the predictions, stored in the
    card of best.pt, and applied before scoring.

    Args:
        run: where they go.
        plan: what is evaluated.
        predictions: of the plan's cases, in order, from the best checkpoint, not post-processed;
            may be fewer.
        enough: asked after each case; True leaves the rest out, for want of time.
        display: shows how far it is.

    Raises:
        InputError: a label map cannot be read.
        OutputError: a file cannot be written.
    """
    labelled: list[Labelled] = []
    display.begin("evaluation", len(plan.cases))
    for prediction in predictions:
        case = prediction.volume.case
        truth = load_truth(case, prediction.volume, plan.convention)
        spacing = prediction.volume.grid.spacing
        labelled.append(Labelled.cropped(case.case_id, prediction.labels, truth, spacing))
        if len(labelled) <= SAMPLES:
            draw_sample(run.samples, prediction, truth)
        display.update(len(labelled))
        if enough() and not plan.all_of_them:
            break
    ids = [case.case_id for case in labelled]
    left_out = [case.case_id for case in plan.cases if case.case_id not in ids]
    learned = None
    if plan.thresholds and labelled:
        learned = learn_rule(labelled)
        _update_card(run, postprocess=learned.rule)
    rule = PostprocessRule() if learned is None else learned.rule
    scores = {case.case_id: _scored(case, rule) for case in labelled}
    scored = tuple(case for case in plan.cases if case.case_id in ids)
    missing = _without_each(run, replace(plan, cases=scored), rule, enough, display)
    value = {
        "checkpoint": run.best.name,
        "precision": plan.compute.precision,
        "overlap": plan.overlap,
        "left_out": left_out,
        "postprocess": None if learned is None else learned.to_json(),
        "dice_without_modality": missing,
        **to_json(PROFILE, scores),
    }
    write_json(run.evaluation, value)
    text = metrics_table(scores)
    if learned is not None:
        text += f"\n{learned.sentence()}\n"
    for modality, dice in missing.items():
        figures = ", ".join(f"{region} {value:.4f}" for region, value in dice.items())
        text += f"\nWithout {modality}: mean Dice {figures}.\n"
    if left_out:
        text += f"\nNo time was left for: {', '.join(left_out)}\n"
    write_text(run.evaluation_text, text)
    if scores:
        figures = "  ".join(
            f"{region} {fmean(one[region].dice for one in scores.values()):.3f}"
            for region in REGIONS
        )
        display.say(f"best epoch on {len(scores)} validation cases: Dice {figures}")
    if learned is not None:
        display.say(learned.sentence())


def _without_each(
    run: RunDir,
    plan: EvaluationPlan,
    rule: PostprocessRule,
    enough: Callable[[], bool],
    display: Display,
) -> dict[str, dict[str, float]]:
    """Mean Dice by region without each of the modalities that the card lets be absent, as far as
    time allows; also in the card, beside that permission.
    """
    found: dict[str, dict[str, float]] = {}
    for modality in load_checkpoint(run.best).card.tolerates_missing:
        display.begin(f"evaluation without {modality}", len(plan.cases))
        scores: list[dict[str, float]] = []
        for prediction in predict_best(run, plan, modality):
            if enough():
                break
            truth = load_truth(prediction.volume.case, None, plan.convention)
            spacing = prediction.volume.grid.spacing
            labels = postprocess(prediction.labels, rule, spacing)
            scores.append(dice_of(labels, truth))
            display.update(len(scores))
        # A mean over fewer cases would not stand beside the others.
        if len(scores) < len(plan.cases):
            break
        found[modality] = {
            region: round(fmean(score[region] for score in scores), 4) for region in REGIONS
        }
    if found:
        training = load_checkpoint(run.best).card.training
        _update_card(run, training={**training, "dice_without_modality": found})
    return found


def _update_card(run: RunDir, **changes: Any) -> None:
    """Change the card of best.pt, which is what gets exported."""
    checkpoint = load_checkpoint(run.best)
    save_checkpoint(run.best, replace(checkpoint, card=replace(checkpoint.card, **changes)))


def _scored(case: Labelled, rule: PostprocessRule) -> dict[str, Scores]:
    return score_case(*case.changed(rule).whole(), case.spacing, PROFILE)


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
