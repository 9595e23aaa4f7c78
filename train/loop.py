"""The training loop: epochs, validation, checkpoints, early stopping, the clock."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from time import monotonic
from typing import Any

import torch
from torch.utils.data import DataLoader

from runtime.case import Case
from runtime.errors import InputError, UsageError
from runtime.segmenter import Prediction
from runtime.truth import load_truth
from runtime.windows import plan_windows
from train.augment_torch import DeviceAugment
from train.augment_torchio import PatchAugment
from train.checkpoint import Checkpoint, load_checkpoint, restore_weights, save_checkpoint
from train.config import Config
from train.data import CachedCase
from train.device import Compute
from train.display import Display, epoch_line
from train.evaluate import EvaluationPlan, predict_best, write_evaluation
from train.patches import Item, PatchDataset, augments_on_device, patch_loader, worker_count
from train.pictures import draw_curves
from train.run_dir import RunDir
from train.sampler import EpochSampler, make_sampler
from train.schedule import TimeBudget, learning_rate
from train.step import Stepper
from train.unet import UNet3D
from train.validate import Validation, dice_of, seconds_per_window, segment_cases

# Parts of a limited time that one validation may take; all of them together stay below a quarter.
_SHARE_OF_BUDGET = 0.1
_SHARE_OF_TRAINING = 0.15
_SECONDS_PER_CASE = 1.5
_SECONDS_TO_SCORE = 5.0


@dataclass(frozen=True)
class Job:
    """What is to be trained, on what, where.

    Attributes:
        config: the resolved configuration.
        run: the run directory.
        train: prepared cases to train on.
        validation: cases to validate on, whole.
        compute: device and arithmetic.
    """

    config: Config
    run: RunDir
    train: Sequence[CachedCase]
    validation: Sequence[Case]
    compute: Compute


class Trainer:
    """Trains one network; `fit` does all of it.

    Every random draw is a function of the seed, the epoch and the index, so that a run which is
    interrupted and resumed ends, on a CPU, with the weights of one which was not.
    """

    def __init__(self, job: Job, budget: TimeBudget, display: Display) -> None:
        self._job = job
        self._config = config = job.config
        self._budget = budget
        self._display = display
        self._card = config.card(job.run.name)
        self._model = build_model(config)
        on_gpu = job.compute.device.type == "cuda"
        workers = worker_count(config.train.workers, on_gpu)
        on_device = augments_on_device(config.augment.where, on_gpu, workers)
        modalities = self._card.modalities
        self._stepper = Stepper(
            self._model,
            config.train,
            job.compute,
            config.seed,
            DeviceAugment(config.augment, modalities) if on_device else None,
        )
        sampler = make_sampler(job.train, config.model.patch, config.sampling, config.seed)
        batch = config.train.batch * config.train.accumulate
        self._sampler = EpochSampler(sampler, batch)
        augment = None if on_device else PatchAugment(config.augment, modalities)
        dataset = PatchDataset(job.train, config.model.patch, augment)
        self._loader: DataLoader[Item] = patch_loader(
            dataset, self._sampler, batch, workers, pin=on_gpu
        )
        self._epoch = 0
        self._history: list[dict[str, Any]] = []
        self._best: float | None = None
        self._best_epoch = 0
        self._since_best = 0
        self._validated_at = 0.0
        self._step_seconds = 0.0
        self._ending = False
        limit = config.validation.limit or len(job.validation)
        self._watched = tuple(job.validation[:limit])
        self._seconds_per_case = 0.0
        # Predictions of the newest validation, kept under a time limit to be scored at the end.
        self._fresh: list[Prediction] = []

    def resume(self) -> None:
        """Go on from last.pt.

        Raises:
            InputError: it cannot be read, or belongs to another network.
            UsageError: it has all the epochs already.
        """
        path = self._job.run.last
        checkpoint = load_checkpoint(path)
        if checkpoint.epoch >= self._config.train.epochs:
            raise UsageError(
                path,
                found=f"a run of {checkpoint.epoch} epochs",
                expected=f"fewer than the {self._config.train.epochs} wanted",
                remedy="raise --train.epochs to train it further",
            )
        restore_weights(self._model, checkpoint, path)
        progress = checkpoint.progress
        try:
            self._stepper.load_state(checkpoint.optimizer)
            self._history = list(progress["history"])
            self._best = progress["best"]
            self._best_epoch = progress["best_epoch"]
            self._since_best = progress["since_best"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                path,
                found=f"a checkpoint that cannot be resumed ({error})",
                expected="last.pt of a run",
                remedy="resume from a run directory that brats-train wrote",
            ) from error
        self._epoch = checkpoint.epoch

    def fit(self) -> None:
        """Train until the epochs, the patience or the time is used up; then evaluate.

        Raises:
            ComputeError: training diverges, or memory runs out; the last good checkpoint stays.
            OutputError: the run directory cannot be written.
        """
        self._plan_time()
        with _tensorboard(self._job.run) as board:
            while not self._finished():
                row = self._train_epoch()
                self._epoch += 1
                best = self._after_epoch(row)
                for key, value in row.items():
                    if key != "epoch" and value is not None:
                        board.add_scalar(key, value, self._epoch)
                self._display.say(epoch_line(row, self._config.train.epochs, best))
        if self._job.validation:
            self._evaluate()

    def _finished(self) -> bool:
        patience = self._config.train.patience
        return self._ending or (patience > 0 and self._since_best >= patience)

    def _train_epoch(self) -> dict[str, Any]:
        """One epoch, or what of it the time allows; its row of the history, Dice still missing."""
        config, epoch = self._config, self._epoch
        self._sampler.epoch = epoch
        steps = len(self._loader)
        losses: list[float] = []
        lr, patches, skipped = 0.0, 0, self._stepper.skipped
        began = monotonic()
        self._display.begin(f"epoch {epoch + 1}/{config.train.epochs}", steps)
        for index, batch in enumerate(self._loader):
            started = monotonic()
            by_steps = (epoch + index / steps) / config.train.epochs
            lr = learning_rate(config.train, max(by_steps, self._budget.fraction()))
            loss = self._stepper.step(batch, lr, epoch, index)
            if loss is not None:
                losses.append(loss)
            patches += len(batch.seeds)
            now = monotonic()
            self._step_seconds = now - started
            rate = patches / (now - began)
            recent = f"loss {fmean(losses[-20:]):.4f}  " if losses else ""
            best = f"  best Dice {self._best:.3f}" if self._best is not None else ""
            self._display.update(index + 1, f"{recent}{rate:.2f} patches/s{best}")
            if self._budget.exhausted(self._step_seconds):
                break
        return {
            "epoch": epoch + 1,
            "seconds": monotonic() - began,
            "patches": patches,
            "skipped": self._stepper.skipped - skipped,
            "lr": lr,
            "loss": fmean(losses) if losses else None,
        }

    def _after_epoch(self, row: dict[str, Any]) -> bool:
        """Validate where it is due, then save everything; whether this epoch is the best so far."""
        # Decided once, so that the last epoch is always validated.
        self._ending = self._epoch >= self._config.train.epochs or self._budget.exhausted(
            self._step_seconds
        )
        best = False
        score: float | None = None
        if self._watched and self._validation_due():
            validation = self._validate()
            score = validation.score()
            row |= {f"dice_{name}": value for name, value in validation.mean().items()}
            row["dice_mean"] = score
            best = self._best is None or score > self._best
            self._since_best = 0 if best else self._since_best + 1
        if not self._job.validation:
            # Nothing to choose by: the newest is served.
            best = True
        if best:
            self._best, self._best_epoch = score, self._epoch
        self._history.append(row)
        run = self._job.run
        if best:
            save_checkpoint(run.best, self._checkpoint(resumable=False))
        if self._config.train.keep_epochs != 0:
            save_checkpoint(run.epoch(self._epoch), self._checkpoint(resumable=False))
            run.prune(self._config.train.keep_epochs)
        # last.pt comes after best.pt: a run killed between the two repeats the epoch.
        save_checkpoint(run.last, self._checkpoint(resumable=True))
        run.write_history(self._history)
        draw_curves(run.curves, self._history)
        return best

    def _validation_due(self) -> bool:
        if self._ending:
            return True
        if self._epoch % self._config.validation.every:
            return False
        if not self._budget.limited:
            return True
        since = monotonic() - self._validated_at
        return len(self._watched) * self._seconds_per_case <= _SHARE_OF_TRAINING * since

    def _validate(self) -> Validation:
        config = self._config
        began = monotonic()
        self._display.begin("validation", len(self._watched))
        cases: dict[str, dict[str, float]] = {}
        predictions = segment_cases(
            self._stepper.served,
            self._card,
            self._job.compute,
            self._watched,
            config.validation.overlap,
        )
        self._fresh = []
        for prediction in predictions:
            case = prediction.volume.case
            truth = load_truth(case, prediction.volume, config.convention())
            cases[case.case_id] = dice_of(prediction.labels, truth)
            self._display.update(len(cases))
            if self._budget.limited:
                self._fresh.append(prediction)
            if self._budget.overdue():
                break
        self._validated_at = monotonic()
        return Validation(cases, self._validated_at - began)

    def _checkpoint(self, resumable: bool) -> Checkpoint:
        config = self._config
        mean = {
            key.removeprefix("dice_"): round(value, 4)
            for key, value in self._history[-1].items()
            if key.startswith("dice_") and value is not None
        }
        training = {
            "epochs": self._epoch,
            "cases": len(self._job.train),
            "validation_cases": len(self._watched),
            "patches": sum(row["patches"] for row in self._history),
            "validation_dice": mean,
            "precision": self._job.compute.precision,
        }
        progress = {
            "history": self._history,
            "best": self._best,
            "best_epoch": self._best_epoch,
            "since_best": self._since_best,
        }
        return Checkpoint(
            model={
                name: tensor.detach().cpu().contiguous()
                for name, tensor in self._stepper.served.state_dict().items()
            },
            architecture=config.architecture(),
            card=config.card(self._job.run.name, training),
            epoch=self._epoch,
            config=config.to_dict(),
            progress=progress,
            optimizer=self._stepper.state() if resumable else {},
        )

    def _plan_time(self) -> None:
        """Under a time limit, choose how many cases it leaves room for, and keep that room free."""
        self._validated_at = monotonic()
        if self._budget.seconds is None or not self._watched:
            self._budget.begin_training(0.0)
            return
        config = self._config
        boxes = [
            len(plan_windows(case.shape, config.model.patch, config.validation.overlap))
            for case in self._job.train
        ]
        window = seconds_per_window(self._model, self._card, self._job.compute)
        self._seconds_per_case = fmean(boxes) * window + _SECONDS_PER_CASE
        share = _SHARE_OF_BUDGET * self._budget.seconds
        room = max(1, int(share / self._seconds_per_case))
        self._watched = self._watched[:room]
        reserve = len(self._watched) * (self._seconds_per_case + _SECONDS_TO_SCORE)
        self._budget.begin_training(reserve)
        self._display.say(
            f"time limit {self._budget.seconds / 60:g} min: validates on {len(self._watched)} of "
            f"{len(self._job.validation)} cases, keeps {reserve:.0f} s for it"
        )

    def _evaluate(self) -> None:
        """All figures of the best checkpoint, in float32 and with the card's overlap.

        Under a time limit what validation did is scored, as far as the best epoch is the last one.
        """
        config, job = self._config, self._job
        limited = self._budget.limited
        plan = EvaluationPlan(
            tuple(job.validation),
            config.validation.overlap if limited else config.model.overlap,
            job.compute if limited else replace(job.compute, autocast=None),
            config.convention(),
            config.validation.thresholds,
        )
        ready = self._fresh if limited and self._best_epoch == self._epoch else None
        if ready is None:
            predictions = predict_best(job.run, plan)
            write_evaluation(job.run, plan, predictions, self._budget.overdue, self._display)
        else:
            # Seconds at most: what has been segmented is scored, even if the clock has run out.
            write_evaluation(job.run, plan, ready, lambda: False, self._display)


def build_model(config: Config) -> UNet3D:
    """A fresh network whose weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return config.architecture().build()


def _tensorboard(run: RunDir) -> Any:
    with warnings.catch_warnings():
        # TensorBoard's own imports warn of things that are not ours to mend.
        warnings.simplefilter("ignore")
        from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.tensorboard))
