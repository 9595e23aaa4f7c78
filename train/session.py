"""What brats-train does, in order: device, data, split, cache, training."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from runtime.atomic import write_json
from runtime.bounded import parse_json
from runtime.case import Case
from runtime.errors import BratsError, UsageError
from train import device as devices
from train.cases import check_held_out, find_labelled, find_split
from train.cli import Arguments
from train.config import Config
from train.config_check import check_unchanged
from train.config_file import read_config, to_yaml, write_config
from train.copies import check_copies
from train.data import CachedCase, cached, check_held_out_images, check_prepared
from train.display import Display
from train.distributed import World, joined, place
from train.dry_run import dry_run
from train.loop import Job, Trainer
from train.memory import keep_freed_memory
from train.provenance import provenance
from train.run_dir import RunDir, claimed
from train.schedule import TimeBudget
from train.split import Split, make_split, read_split
from train.voice import one_voice


def train(arguments: Arguments, given: Sequence[str], run: RunDir, console: Console) -> int:
    """Train, or say what training would do.

    Args:
        arguments: the resolved command line.
        given: the command line as it was typed.
        run: the run directory that this process chose; the leader's is taken.
        console: for people.

    Returns:
        The exit code.

    Raises:
        BratsError: of every kind.
    """
    minutes = arguments.max_minutes
    budget = TimeBudget(None if minutes is None else minutes * 60)
    config = arguments.keys
    with one_voice():
        world = place()
        compute = devices.choose(
            config.device, config.train.precision, config.threads, world.local_rank
        )
    if compute.device.type == "cpu":
        keep_freed_memory()
    quiet = arguments.quiet or not world.leads
    if quiet:
        console = Console(quiet=True)
    with joined(world, compute.device), ExitStack() as held:
        if not arguments.dry_run:
            claim = claimed(run, not arguments.resume, may_rename=not arguments.name)
            path = world.together(lambda: held.enter_context(claim).path if world.leads else None)
            run = RunDir(world.share(lambda: path or run.path))
        shared = f", {world.size} processes" if world.size > 1 else ""
        console.print(f"[bold]{run.path}[/] on {compute.device} ({compute.precision}){shared}")
        console.print(to_yaml(config).rstrip(), markup=False, highlight=False, soft_wrap=True)
        split, chosen, excluded = world.together(lambda: _cases(arguments, run, console))
        if arguments.dry_run:
            if world.leads:
                dry_run(config, chosen, split, compute, console)
            return 0

        def record() -> None:
            if world.leads:
                _record(run, config, split, provenance(given, compute, world))

        if not arguments.resume:
            # From here on it can be gone on with, wherever it is killed.
            world.together(record)
        with Display(console, quiet) as display:

            def ready() -> Trainer:
                prepared = _prepared(chosen, excluded, config, _cache(arguments), world, display)
                job = Job(
                    config=config,
                    run=run,
                    train=prepared[: len(split.train)],
                    validation=chosen[len(split.train) :],
                    compute=compute,
                    world=world,
                )
                return Trainer(job, budget, display)

            _fit(ready, run, world, record if arguments.resume else None)
            display.say(f"done in {budget.elapsed() / 60:.1f} min: {run.best}")
    return 0


def _fit(
    ready: Callable[[], Trainer], run: RunDir, world: World, record: Callable[[], None] | None
) -> None:
    """Train what ``ready`` makes; ``record`` belongs to a run that is gone on with."""
    try:
        trainer = ready()
    except (BratsError, SystemExit):
        # Nothing to go on with: the same cases would fail again.
        if record is None and world.leads:
            _forget(run)
        raise
    if record is not None:
        # Without a checkpoint it was killed while its cases were prepared.
        if world.share(run.last.is_file):
            trainer.resume()
        # Nothing is changed in a run that cannot be gone on with.
        record()
    trainer.fit()


def _cases(
    arguments: Arguments, run: RunDir, console: Console
) -> tuple[Split, list[Case], tuple[Case, ...]]:
    """The split, its cases, those to train on first, and those that must not be among them."""
    config = arguments.keys
    root = Path(config.data)
    if arguments.resume:
        check_unchanged(read_config(run.config), config)
        split = read_split(run.split, "put back the run's own split.json, or begin another run")
        found = find_split(root, config.channels, split)
    else:
        found = find_labelled(root, config.channels, config.split.exclude)
        split = make_split([case.case_id for case in found.labelled], config.split, config.seed)
        check_held_out(split, found.excluded)
    for line in found.lines(config.data):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    chosen = _chosen(split, found.labelled, run, config)
    console.print(found.split_line(split), markup=False, highlight=False, soft_wrap=True)
    check_copies(chosen, found.excluded)
    check_prepared(chosen, config.card("cache"), _cache(arguments), config.convention())
    return split, chosen, found.excluded


def _cache(arguments: Arguments) -> Path:
    return Path(arguments.keys.cache) if arguments.keys.cache else arguments.output / ".cache"


def _record(run: RunDir, config: Config, split: Split, made_with: dict[str, Any]) -> None:
    """What the run is made of; how it was begun stays when it is gone on with."""
    if run.environment.is_file():
        made_with = {**made_with, "earlier": _earlier(run)}
    run.sweep()
    write_config(run.config, config)
    # From here on --resume takes it.
    write_json(run.split, split.to_json())
    write_json(run.environment, made_with)


def _earlier(run: RunDir) -> list[Any]:
    """What environment.json has said so far, newest first; what cannot be read stays as text."""
    text = run.environment.read_bytes().decode(errors="replace")
    try:
        newest = parse_json(text)
    except ValueError:
        newest = None
    if not isinstance(newest, dict) or not isinstance(newest.get("earlier", []), list):
        return [{"unreadable": text}]
    return [newest, *newest.pop("earlier", [])]


def _forget(run: RunDir) -> None:
    for path in (run.config, run.split, run.environment):
        path.unlink(missing_ok=True)


def _chosen(split: Split, cases: Sequence[Case], run: RunDir, config: Config) -> list[Case]:
    """The cases of the split, those to train on first."""
    by_id = {case.case_id: case for case in cases}
    names = (*split.train, *split.validation)
    for name in names:
        if name not in by_id:
            raise UsageError(
                run.split,
                found=f"case {name}, which is not in {config.data}",
                expected="the cases the run was begun with",
                remedy="name their folder with --data",
            )
    return [by_id[name] for name in names]


def _prepared(
    cases: Sequence[Case],
    excluded: Sequence[Case],
    config: Config,
    cache: Path,
    world: World,
    display: Display,
) -> list[CachedCase]:
    """The cases from the cache; one process of each machine fills it, the others find it full."""
    display.begin("preparing cases", len(cases))
    ready: list[str] = []

    def done(case_id: str) -> None:
        ready.append(case_id)
        display.update(len(ready))

    def fill(verify: bool) -> list[CachedCase]:
        card, convention = config.card("cache"), config.convention()
        entries = cached(cases, card, cache, convention, done, display.say, verify)
        if verify:
            check_held_out_images(cases, entries, excluded, card, cache)
        return entries

    entries = world.together(lambda: fill(verify=True) if world.local_rank == 0 else [])
    return entries if world.size == 1 else world.together(lambda: fill(verify=False))
