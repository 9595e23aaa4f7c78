"""The training loop: epochs, validation, checkpoints, early stopping, the clock."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from time import monotonic
from typing import Any, Final

from torch.utils.data import DataLoader

from runtime.case import Case
from runtime.errors import InputError, UsageError
from runtime.preview import preview
from runtime.truth import load_truth
from train.augment_torch import DeviceAugment
from train.augment_torchio import PatchAugment
from train.board import Board
from train.checkpoint import Checkpoint, load_checkpoint, restore_weights, save_checkpoint
from train.config import Config
from train.data import CachedCase
from train.device import Compute
from train.display import Display, epoch_line
from train.distributed import ALONE, World
from train.evaluate import SAMPLES, EvaluationPlan, Segmented, segment_best, write_evaluation
from train.pace import Pace
from train.patches import Item, PatchDataset, patch_loader, worker_count
from train.pictures import draw_curves
from train.progress import Progress
from train.run_dir import RunDir
from train.sampler import EpochSampler, make_sampler
from train.schedule import TimeBudget, learning_rate
from train.step import Stepper
from train.validate import Validation, dice_of, seconds_per_window, segment_cases

_KEPT: Final = "the last checkpoint is kept, --resume goes on from it"


@dataclass(frozen=True)
class Job:
    """What is to be trained, on what, where.

    Attributes:
        config: the resolved configuration.
        run: the run directory.
        train: prepared cases to train on.
        validation: cases to validate on, whole.
        compute: device and arithmetic.
        world: the processes that train together.
    """

    config: Config
    run: RunDir
    train: Sequence[CachedCase]
    validation: Sequence[Case]
    compute: Compute
    world: World = ALONE


class Trainer:
    """Trains one network; `fit` does all of it.

    Every random draw is a function of the seed, the epoch and the patch, so that a run which is
    killed and resumed ends, on a CPU, with the weights of one which was not.
    """

    def __init__(self, job: Job, budget: TimeBudget, display: Display) -> None:
        self._job = job
        self._config = config = job.config
        self._display = display
        self._card = config.card(job.run.name)
        on_gpu = job.compute.device.type == "cuda"
        workers = worker_count(config.train.workers, on_gpu)
        on_device = config.augment.where == "device"
        modalities = self._card.modalities
        sampler = make_sampler(job.train, config.model.patch, config.sampling, config.seed)
        batch, accumulate = config.train.batch, config.train.accumulate
        self._sampler = EpochSampler(sampler, batch, accumulate, job.world)
        augment = None if on_device else PatchAugment(config.augment, modalities)
        dataset = PatchDataset(job.train, config.model.patch, augment)
        self._loader: DataLoader[Item] = patch_loader(
            dataset, self._sampler, batch * accumulate, workers, pin=on_gpu
        )
        self._model = config.architecture().build(config.seed)
        self._stepper = Stepper(
            self._model,
            config.train,
            job.compute,
            DeviceAugment(config.augment, modalities) if on_device else None,
            job.world,
            _KEPT,
        )
        self._progress = Progress()
        self._pace = Pace(config, budget, job.world)
        self._watched: tuple[Case, ...] = ()
        self._ending = False
        # What the newest validation has segmented, and the best epoch's: kept under a time limit,
        # to be scored where none is left for a whole evaluation.
        self._segmented: list[Segmented] = []
        self._best: list[Segmented] = []

    def resume(self) -> None:
        """Go on from last.pt.

        Raises:
            InputError: it cannot be read, or belongs to another network.
            UsageError: the run is done, and evaluated.
        """
        path = self._job.run.last
        checkpoint = self._job.world.share(lambda: load_checkpoint(path))
        restore_weights(self._model, checkpoint, path)
        try:
            self._stepper.load_state(checkpoint.optimizer)
            self._progress = Progress.from_json(checkpoint.epoch, checkpoint.progress)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                path,
                found=f"a checkpoint that cannot be resumed ({error})",
                expected="last.pt of a run",
                remedy="resume from a run directory that brats-train wrote",
            ) from error
        found, remedy = self._done()
        self._ending = bool(found)
        if self._ending and not self._unevaluated():
            raise UsageError(path, found=found, expected="one that is not done", remedy=remedy)

    def _done(self) -> tuple[str, str]:
        """What has ended a run that is resumed, and what trains it further; empty if nothing."""
        config, progress = self._config.train, self._progress
        clock = progress.clock
        time_left = clock is None or self._pace.go_on(clock)
        if progress.epoch >= config.epochs:
            found = f"a run of {progress.epoch} epochs, all that are wanted"
            return found, "raise --train.epochs to train it further"
        if clock is not None and not time_left:
            found = f"a run whose {clock['seconds'] / 60:g} minutes are used up"
            return found, "give it more with --max-minutes"
        if self._out_of_patience():
            found = f"a run that has ended by its patience of {config.patience}"
            return found, "raise --train.patience to train it further"
        return "", ""

    def _unevaluated(self) -> bool:
        """Whether the run was killed after its last epoch and before its evaluation was written."""
        run, cases = self._job.run, self._job.validation
        return self._job.world.share(lambda: bool(cases) and not run.evaluated())

    def fit(self) -> None:
        """Train until the epochs, the patience or the time is used up; then evaluate.

        Raises:
            ComputeError: training diverges, or memory runs out; the last good checkpoint stays.
            OutputError: the run directory cannot be written.
        """
        leads = self._job.world.leads
        self._watched, sentence = self._pace.begin(
            self._job.validation,
            [case.shape for case in self._job.train],
            self._seconds_per_window,
            resumed=self._progress.epoch > 0,
        )
        if sentence:
            self._display.say(sentence)
        overlap = f"overlap {self._config.validation.overlap:g}"
        if self._progress.watch([*sorted(case.case_id for case in self._watched), overlap]):
            self._display.say("validates otherwise than before: the best epoch is chosen anew")
        if leads and not self._job.run.last.is_file():
            # Whenever the run is killed from now on, it can be resumed.
            self._progress.clock = self._pace.state()
            save_checkpoint(self._job.run.last, self._checkpoint(resumable=True))
        if leads and self._progress.history:
            # The run may have been killed between last.pt and these.
            self._show_history()
        with Board(self._job.run, self._progress.epoch, leads) as board:
            while not self._finished():
                row = self._train_epoch()
                best = self._after_epoch(row, board)
                left = 0.0 if self._ending else self._pace.seconds_left(self._progress.history)
                self._display.say(epoch_line(row, self._config.train.epochs, best, left))
        if self._job.validation and leads:
            self._evaluate()

    def _finished(self) -> bool:
        return self._ending or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return 0 < self._config.train.patience <= self._progress.since_best

    def _seconds_per_window(self) -> tuple[float, float]:
        """As validation runs it, and as the evaluation does, which is in float32."""
        model, card, compute = self._model, self._card, self._job.compute
        here = seconds_per_window(model, card, compute)
        if compute.autocast is None:
            return here, here
        return here, seconds_per_window(model, card, replace(compute, autocast=None))

    def _show_history(self) -> None:
        self._job.run.write_history(self._progress.history)
        draw_curves(self._job.run.curves, self._progress.history)

    def _train_epoch(self) -> dict[str, Any]:
        """One epoch, or what of it the time allows; its row of the history, Dice still missing."""
        config, epoch, world = self._config, self._progress.epoch, self._job.world
        self._sampler.epoch = epoch
        steps = len(self._loader)
        losses: list[float] = []
        lr, patches, skipped = 0.0, 0, self._stepper.skipped
        began = monotonic()
        self._display.begin(f"epoch {epoch + 1}/{config.train.epochs}", steps)
        for index, batch in enumerate(self._loader):
            started = monotonic()
            lr = learning_rate(config.train, self._pace.progress(epoch + index / steps))
            loss = self._stepper.step(batch, lr)
            if loss is not None:
                losses.append(loss)
            patches += len(batch.seeds) * world.size
            now = monotonic()
            rate = patches / (now - began)
            recent = f"loss {fmean(losses[-20:]):.4f}  " if losses else ""
            best = self._progress.best
            shown = f"  best Dice {best:.3f}" if best is not None else ""
            self._display.update(index + 1, f"{recent}{rate:.2f} patches/s{shown}")
            if self._pace.stepped(now - started):
                break
        return {
            "epoch": epoch + 1,
            "seconds": monotonic() - began,
            "patches": patches,
            "skipped": self._stepper.skipped - skipped,
            "lr": lr,
            "loss": fmean(losses) if losses else None,
        }

    def _after_epoch(self, row: dict[str, Any], board: Board) -> bool:
        """Validate where it is due, then save everything; whether this epoch is the best so far."""
        run, keep = self._job.run, self._config.train.keep_epochs
        self._stepper.check_finite()
        # Decided once, so that the last epoch is always validated.
        self._ending = self._pace.ends(row["epoch"])
        score, cut_short = None, False
        if self._watched and self._pace.validates(row["epoch"], self._ending):
            validation = self._validate(row["epoch"], board)
            score = row["dice_mean"] = validation.score()
            row |= {f"dice_{name}": value for name, value in validation.mean().items()}
            cut_short = len(validation.cases) < len(self._watched)
            # By the clock: the mean of a part is no match for that of all.
            score = None if cut_short and self._progress.best is not None else score
        best = self._progress.record(row, score, chooses=bool(self._job.validation))
        if best and cut_short:
            self._progress.watched = ("a part, for want of time",)
        self._progress.clock = self._pace.state()
        if best:
            self._best = self._segmented
        if not self._job.world.leads:
            return best
        if best:
            save_checkpoint(run.best, self._checkpoint(resumable=False))
        if keep != 0:
            save_checkpoint(run.epoch(row["epoch"]), self._checkpoint(resumable=False))
            run.prune(keep)
        # last.pt comes after best.pt: a run killed between the two repeats the epoch.
        save_checkpoint(run.last, self._checkpoint(resumable=True))
        self._show_history()
        board.scalars(row, row["epoch"])
        return best

    def _validate(self, epoch: int, board: Board) -> Validation:
        """Dice of the watched cases, shared among the processes."""
        config, world = self._config, self._job.world
        began = monotonic()
        own = world.own(self._watched)
        self._display.begin("validation", len(own))
        cases: dict[str, dict[str, float]] = {}
        predictions = segment_cases(
            self._stepper.served,
            self._card,
            self._job.compute,
            own,
            config.validation.overlap,
        )
        segmented: list[Segmented] = []
        for prediction in predictions:
            case = prediction.volume.case
            truth = load_truth(case, prediction.volume, config.convention())
            picture = None
            if len(cases) < SAMPLES:
                picture = preview(prediction.volume, prediction.labels, truth)
                board.picture(f"validation/{case.case_id}", picture, epoch)
            cases[case.case_id] = dice_of(prediction.labels, truth)
            self._display.update(len(cases))
            if self._pace.limited:
                segmented.append(Segmented.of(prediction, truth, picture))
            if self._pace.overdue():
                break
        everybodys = {name: dice for part in world.gather(cases) for name, dice in part.items()}
        if self._pace.limited:
            self._segmented = [one for part in world.gather(segmented) for one in part]
        seconds = monotonic() - began
        self._pace.validated(len(cases), seconds)
        return Validation(dict(sorted(everybodys.items())), seconds)

    def _checkpoint(self, resumable: bool) -> Checkpoint:
        config, progress = self._config, self._progress
        newest = progress.history[-1] if progress.history else {}
        mean = {
            key.removeprefix("dice_"): round(value, 4)
            for key, value in newest.items()
            if key.startswith("dice_") and value is not None
        }
        training = {
            "epochs": progress.epoch,
            "cases": len(self._job.train),
            "validation_cases": len(self._watched),
            "patches": sum(row["patches"] for row in progress.history),
            "validation_dice": mean,
            "precision": self._job.compute.precision,
        }
        return Checkpoint(
            model={
                name: tensor.detach().cpu().contiguous()
                for name, tensor in self._stepper.served.state_dict().items()
            },
            architecture=config.architecture(),
            card=config.card(self._job.run.name, training),
            epoch=progress.epoch,
            config=config.to_dict(),
            progress=progress.to_json(),
            optimizer=self._stepper.state() if resumable else {},
        )

    def _evaluate(self) -> None:
        """All figures of the best checkpoint: of all cases, in float32 and with the card's overlap;
        where no time is left for that, of those that validation watches, as it segments them.
        """
        config, job = self._config, self._job
        plan = EvaluationPlan(
            tuple(job.validation),
            config.model.overlap,
            replace(job.compute, autocast=None),
            config.convention(),
            config.validation.thresholds,
            self._pace.shortage(len(job.validation)),
        )
        segmented: Iterable[Segmented]
        if plan.shortage:
            plan = replace(plan, overlap=config.validation.overlap, compute=job.compute)
            # A run that was resumed may have to segment them again.
            segmented = self._best or segment_best(job.run, replace(plan, cases=self._watched))
        else:
            segmented = segment_best(job.run, plan)
        write_evaluation(job.run, plan, segmented, self._pace.overdue, self._display)
