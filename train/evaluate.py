"""The end of a run: the best checkpoint on the validation cases, with all figures and pictures."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final

from PIL.Image import Image

from runtime.atomic import write_json, write_text
from runtime.case import Case
from runtime.labels import REGIONS, Convention, LabelMap
from runtime.metrics import SCORED, Scores, score_case
from runtime.model_card import PostprocessRule
from runtime.postprocess import postprocess
from runtime.preview import preview
from runtime.segmented import Prediction
from runtime.summary import summarise, to_json
from runtime.truth import load_truth
from train.checkpoint import load_checkpoint, restore_weights, save_checkpoint
from train.device import Compute
from train.display import Display
from train.pictures import write_picture
from train.run_dir import RunDir
from train.thresholds import Labelled, learn_rule
from train.validate import PROFILE, dice_of, segment_cases

SAMPLES: Final = 3
"""Cases that a run draws."""
_WITHOUT: Final = "dice_without_modality"


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated.

    Attributes:
        cases: to be segmented and scored, in order.
        overlap: of windows.
        compute: device and arithmetic.
        convention: of the label maps; None as each case says.
        thresholds: learn the card's post-processing on these cases.
        shortage: why there is no time to segment all cases, in words; whatever has been segmented
            is scored then. Empty where there is.
    """

    cases: tuple[Case, ...]
    overlap: float
    compute: Compute
    convention: Convention | None = None
    thresholds: bool = False
    shortage: str = ""


@dataclass(frozen=True)
class Segmented:
    """A case that the best epoch has segmented, as it is kept until it is scored.

    Attributes:
        case: label maps of the network and of the truth.
        picture: of both; None where none is drawn.
    """

    case: Labelled
    picture: Image | None

    @classmethod
    def of(cls, prediction: Prediction, truth: LabelMap, picture: Image | None) -> "Segmented":
        """From a prediction that is not post-processed, and uint8 (X, Y, Z) in its file's order."""
        case_id, spacing = prediction.volume.case.case_id, prediction.volume.grid.spacing
        return cls(Labelled.cropped(case_id, prediction.labels, truth, spacing), picture)


def segment_best(run: RunDir, plan: EvaluationPlan) -> Iterator[Segmented]:
    """Segment the plan's cases with ``run``'s best checkpoint.

    Raises:
        InputError: the checkpoint, a case or its label map cannot be read.
        ComputeError: the network fails.
    """
    for index, prediction in enumerate(_predict(run, plan)):
        volume = prediction.volume
        truth = load_truth(volume.case, volume, plan.convention)
        drawn = preview(volume, prediction.labels, truth) if index < SAMPLES else None
        yield Segmented.of(prediction, truth, drawn)


def _predict(run: RunDir, plan: EvaluationPlan, without: str | None = None) -> Iterator[Prediction]:
    """The plan's cases, not post-processed, with or without a modality."""
    checkpoint = load_checkpoint(run.best)
    model = checkpoint.architecture.build()
    restore_weights(model, checkpoint, run.best)
    # A resumed run may have learned a rule before; it is learned anew from what the network says.
    card = replace(checkpoint.card, postprocess=PostprocessRule())
    yield from segment_cases(model, card, plan.compute, plan.cases, plan.overlap, without)


def write_evaluation(
    run: RunDir,
    plan: EvaluationPlan,
    segmented: Iterable[Segmented],
    enough: Callable[[int], bool],
    display: Display,
) -> None:
    """Score the best checkpoint: samples/, evaluation_metrics.txt and, last, evaluation.json.

    With `EvaluationPlan.thresholds` post-processing is learned from the label maps, stored in the
    card of best.pt, and applied before scoring.

    Args:
        run: where they go.
        plan: what is evaluated.
        segmented: the plan's cases, in order, by the best checkpoint; may be fewer.
        enough: asked after each case, with how many there are to be scored; True leaves the rest
            out, for want of time.
        display: shows how far it is.

    Raises:
        InputError: a label map cannot be read.
        OutputError: a file cannot be written.
        ValueError: nothing has been segmented; nothing is written.
    """
    labelled: list[Labelled] = []
    display.begin("evaluation", len(plan.cases))
    for one in segmented:
        labelled.append(one.case)
        if one.picture is not None and len(labelled) <= SAMPLES:
            write_picture(run.samples / f"{one.case.case_id}.png", one.picture)
        display.update(len(labelled))
        if not plan.shortage and enough(len(labelled)):
            break
    if not labelled:
        raise ValueError("there is no case to evaluate")
    learned = learn_rule(labelled) if plan.thresholds else None
    rule = PostprocessRule() if learned is None else learned.rule
    scores = {case.case_id: _scored(case, rule) for case in labelled}
    scored = tuple(case for case in plan.cases if case.case_id in scores)
    missing = _without_each(run, replace(plan, cases=scored), rule, enough, display)
    _update_card(run, rule, missing)
    left_out = [case.case_id for case in plan.cases if case.case_id not in scores]
    shortened = _shortened(plan, len(scores), left_out)
    value = {
        "checkpoint": run.best.name,
        "precision": plan.compute.precision,
        "overlap": plan.overlap,
        "left_out": left_out,
        "shortened": shortened or None,
        "postprocess": None if learned is None else learned.to_json(),
        _WITHOUT: missing,
        **to_json(PROFILE, scores),
    }
    text = metrics_table(scores)
    if learned is not None:
        text += f"\n{learned.sentence()}\n"
    for modality, dice in missing.items():
        figures = ", ".join(f"{region} {value:.4f}" for region, value in dice.items())
        text += f"\nWithout {modality}: mean Dice {figures}.\n"
    if shortened:
        text += f"\n{shortened}\n"
    write_text(run.evaluation_text, text)
    # A run with this file is done.
    write_json(run.evaluation, value)
    figures = "  ".join(
        f"{region} {fmean(one[region].dice for one in scores.values()):.3f}" for region in REGIONS
    )
    display.say(f"best epoch on {len(scores)} validation cases: Dice {figures}")
    for sentence in (shortened, "" if learned is None else learned.sentence()):
        if sentence:
            display.say(sentence)


def _shortened(plan: EvaluationPlan, scored: int, left_out: Sequence[str]) -> str:
    """What is less than a whole evaluation, and why; empty where nothing is."""
    if plan.shortage:
        return (
            f"Shortened: {plan.shortage}. Scored is what validation watches, as it is segmented "
            f"there: {scored} of {len(plan.cases)} cases with overlap {plan.overlap:g} in "
            f"{plan.compute.precision}."
        )
    if left_out:
        return f"Shortened: the time limit came before {', '.join(left_out)}."
    return ""


def _without_each(
    run: RunDir,
    plan: EvaluationPlan,
    rule: PostprocessRule,
    enough: Callable[[int], bool],
    display: Display,
) -> dict[str, dict[str, float]]:
    """Mean Dice by region without each of the modalities that the card lets be absent, as far as
    time allows.
    """
    found: dict[str, dict[str, float]] = {}
    for modality in load_checkpoint(run.best).card.tolerates_missing:
        if enough(0):
            break
        display.begin(f"evaluation without {modality}", len(plan.cases))
        scores: list[dict[str, float]] = []
        for prediction in _predict(run, plan, modality):
            if enough(0):
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
    return found


def _update_card(
    run: RunDir, rule: PostprocessRule, missing: Mapping[str, Mapping[str, float]]
) -> None:
    """Put what the evaluation found into the card of best.pt, which is what gets exported."""
    checkpoint = load_checkpoint(run.best)
    training = {key: value for key, value in checkpoint.card.training.items() if key != _WITHOUT}
    if missing:
        # Beside the permission to leave them out.
        training[_WITHOUT] = missing
    card = replace(checkpoint.card, postprocess=rule, training=training)
    # The newest run is the one whose best.pt was written last: not for nothing.
    if card != checkpoint.card:
        save_checkpoint(run.best, replace(checkpoint, card=card))


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
