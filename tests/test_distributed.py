"""Two processes train as one: equal weights, one writer, one split of the work."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from runtime.errors import UsageError
from runtime.phantom import Enhancement, write_phantoms
from tests.ddp_worker import train as ten_steps
from train.checkpoint import Architecture, load_checkpoint
from train.cli import main
from train.distributed import ALONE, World, place
from train.sampler import Draw, EpochSampler

ROOT = Path(__file__).parents[1]


def _torchrun(*command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*launcher, "--standalone", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _two(out: Path, kind: str) -> list[dict[str, torch.Tensor]]:
    done = _torchrun("-m", "tests.ddp_worker", str(out), kind)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        # One that lives on may abort the process when the interpreter ends.
        threads = (out / f"threads{rank}.txt").read_text()
        assert "python" in threads
        assert "gloo" not in threads
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_step_as_one_with_the_same_batch(tmp_path: Path) -> None:
    # Batch norms normalise by their running statistics here: by those of a batch, two halves of a
    # batch are normalised differently from the whole.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = ten_steps(ALONE, frozen=True)
    torch.set_num_threads(threads)
    for state in _two(tmp_path, "frozen"):
        assert state.keys() == alone.keys()
        for key, expected in alone.items():
            torch.testing.assert_close(state[key], expected, rtol=0, atol=1e-6, msg=key)
    fresh = Architecture(features=(4, 8, 16), dropout=0.0, deep_supervision=1).build()
    moved = (alone["raw.head.weight"] - fresh.head.weight.detach()).abs()
    # Ten steps of Adam at 1e-3: far more than the two may differ by.
    assert float(moved.max()) > 1e-3
    assert alone["losses"][-1] < alone["losses"][0]


def test_with_live_statistics_the_ranks_agree_bit_for_bit(tmp_path: Path) -> None:
    one, two = _two(tmp_path, "live")
    for key, value in one.items():
        assert torch.equal(two[key], value), key
    moved = one["raw.encoder.0.bn1.running_mean"]
    assert moved.abs().max() > 0
    assert not torch.equal(one["average.encoder.0.bn1.running_mean"], moved)


FAILING = """
import sys
from runtime.errors import InputError
from train.distributed import joined, place
import torch
world = place()
def make():
    if world.rank == 1:
        raise InputError("a case", found="ones", expected="noughts", remedy="mend it")
    return world.rank
with joined(world, torch.device("cpu")):
    try:
        print("got", world.together(make))
    except InputError as error:
        print("said:", error)
        sys.exit(error.exit_code)
"""


def test_where_one_fails_all_leave_and_one_speaks(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    done = _torchrun(str(tmp_path / "failing.py"))
    assert done.returncode != 0
    assert done.stdout.count("said: a case: found ones") == 1
    assert "got" not in done.stdout
    assert "closed by peer" not in done.stderr


def _ranks(*command: str) -> list[tuple[int, str]]:
    """Exit code and stderr of each of two processes, which meet as under torchrun; that one also
    speaks itself, and ends one process when the other has failed.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


ONE_FAILS = """
import errno, os, signal, sys
import torch
from runtime.errors import as_ours
from runtime.errors import BratsError, ComputeError, OutputError
from train.checkpoint import Architecture
from train.config import TrainConfig
from train.device import Compute
from train.distributed import joined, place
from train.step import Stepper
from tests.ddp_worker import global_batch, share
world, kind, failing = place(), sys.argv[1], int(sys.argv[2])

def full(error):
    def raises(*_):
        raise error
    return raises

def run():
    compute = Compute(torch.device("cpu"), None)
    model = Architecture(features=(4, 8), dropout=0.0).build()
    stepper = Stepper(model, TrainConfig(batch=2, accumulate=2), compute, world=world)
    for step in range(3):
        if step == 1 and world.rank == failing:
            if kind == "memory":
                model.outputs = full(torch.OutOfMemoryError("CUDA out of memory"))
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "disk":
                raise OutputError("last.pt", found="no space", expected="some", remedy="free some")
            if kind == "system":
                raise OSError(errno.ENOSPC, "No space left on device", "events.out")
            if kind == "bug":
                raise ZeroDivisionError("a bug of ours")
        if kind == "both":
            model.outputs = full(torch.OutOfMemoryError("CUDA out of memory"))
        stepper.step(share(global_batch(step), world), 1e-3)

torch.set_num_threads(1)
try:
    with joined(world, torch.device("cpu")):
        run()
except (BratsError, OSError) as error:
    print("said:", as_ours(error), file=sys.stderr)
    sys.exit(as_ours(error).exit_code)
"""


@pytest.fixture(scope="module")
def one_fails(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ranks") / "one_fails.py"
    path.write_text(ONE_FAILS)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "rank", "code", "sentence"),
    [
        ("memory", 1, 8, "cpu: found not enough memory for a step of 4 patches"),
        pytest.param(
            *("memory", 0, 8, "cpu: found not enough memory for a step of 4 patches"),
            marks=pytest.mark.slow,
        ),
        ("disk", 0, 7, "last.pt: found no space"),
        ("system", 1, 7, "events.out: found No space left on device"),
    ],
)
def test_whoever_fails_alone_speaks_alone(
    one_fails: str, kind: str, rank: int, code: int, sentence: str
) -> None:
    """In the middle of a step the others wait for its gradients, and would say what TCP says."""
    ended = _ranks(one_fails, kind, str(rank))
    assert [found for found, _ in ended] == [code, code], ended
    assert ended[rank][1].startswith(f"said: {sentence}")
    assert ended[1 - rank][1] == ""


def test_what_fails_in_all_is_said_once(one_fails: str) -> None:
    ended = _ranks(one_fails, "both", "0")
    assert [code for code, _ in ended] == [8, 8], ended
    assert sorted(len(text.splitlines()) for _, text in ended) == [0, 1]


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_has_gone_without_a_word_is_missed(one_fails: str, rank: int) -> None:
    ended = _ranks(one_fails, "killed", str(rank))
    assert ended[rank] == (-9, "")
    code, text = ended[1 - rank]
    assert code == 8
    assert text.startswith(f"said: process {1 - rank}: found another process gone without a word")
    assert len(text.splitlines()) == 1


@pytest.mark.slow
def test_a_bug_keeps_its_traceback_and_nobody_else_has_one(one_fails: str) -> None:
    ended = _ranks(one_fails, "bug", "1")
    assert [code for code, _ in ended] == [1, 1], ended
    assert "ZeroDivisionError: a bug of ours" in ended[1][1]
    assert ended[0][1] == ""


class _Numbered:
    """Draws that are told apart by their case."""

    def __init__(self, count: int) -> None:
        self._count = count

    def draws(self, epoch: int) -> list[Draw]:
        return [Draw(index, (0, 0, 0), epoch) for index in range(self._count)]


@pytest.mark.parametrize(("size", "batch", "accumulate"), [(1, 4, 2), (2, 2, 2), (4, 1, 2)])
def test_every_world_steps_on_the_same_patches(size: int, batch: int, accumulate: int) -> None:
    shares = [
        [
            draw.case
            for draw in EpochSampler(_Numbered(37), batch, accumulate, World(rank, size, rank))
        ]
        for rank in range(size)
    ]
    steps = []
    for start in range(0, len(shares[0]), batch):
        steps.append(sorted(case for share in shares for case in share[start : start + batch]))
    # Blocks of four, 37 patches: eight blocks make four steps, five patches are left out.
    assert steps == [list(range(first, first + 4)) for first in range(0, 32, 4)]


@pytest.mark.parametrize(("rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_before_they_meet_the_first_of_each_machine_speaks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str | None,
    speaks: bool,
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", "5")
        monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("train.voice.LAST_WORD", 0.0)
    code: object
    try:
        code = main(["--train.lr", "nan"])
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert ("--train.lr: found nan" in capsys.readouterr().err) == speaks


def test_an_epoch_must_be_long_enough_for_everybody() -> None:
    with pytest.raises(UsageError, match="at least 16, a step of all of them"):
        EpochSampler(_Numbered(15), 4, 2, World(0, 2, 0))


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert place() == World(0, 1, 0)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(UsageError, match="as torchrun sets them"):
        place()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place() == World(3, 4, 1)


FLAGS = (
    "--config", "demo", "--model.features", "4,8", "--model.patch", "32,32,32",
    "--model.overlap", "0", "--train.precision", "fp32", "--threads", "1", "--train.batch", "1",
    "--train.ema", "0.9", "--folds", "2", "--fold", "1", "--train.epochs", "2",
    "--sampling.patches-per-epoch", "5", "--validation.every", "1",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run of two processes that has ended: its directory, its data, what was said."""

    path: Path
    data: Path
    said: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("torchrun")
    write_phantoms(folder / "data", 4, seed=5, shape=(48, 48, 40), enhancement=Enhancement.RIM)
    common = ["-d", str(folder / "data"), "-o", str(folder / "runs")]
    done = _torchrun("-m", "train.cli", *FLAGS, *common)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").glob("demo-*")
    return Run(run, folder / "data", done.stderr)


def test_brats_train_under_torchrun_writes_one_run(whole: Run) -> None:
    run = whole.path
    assert load_checkpoint(run / "checkpoints" / "best.pt").card.training["cases"] == 2
    history = (run / "history.csv").read_text().splitlines()
    # Two patches a step: five make two steps.
    assert [line.split(",")[2] for line in history] == ["patches", "4", "4"]
    evaluation = json.loads((run / "evaluation.json").read_text())
    split = json.loads((run / "split.json").read_text())
    assert sorted(evaluation["cases"]) == split["validation"]
    assert len(split["validation"]) == 2
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert whole.said.count("epoch 2/2  loss") == 1
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_two_processes_resume_as_one(whole: Run, tmp_path: Path) -> None:
    cache = str(whole.path.parent / ".cache")
    common = ["-d", str(whole.data), "-o", str(tmp_path), "--name", "parts", "--cache", cache]
    # Two steps an epoch: in the middle of the second.
    killed = _ranks("-m", "tests.killed_run", "step:3", *FLAGS, *common, "--quiet")
    assert [code for code, _ in killed] == [-9, -9], killed
    checkpoints = tmp_path / "parts" / "checkpoints"
    last = (checkpoints / "last.pt").read_bytes()
    assert load_checkpoint(checkpoints / "last.pt").epoch == 1

    # A disk has lost the end of it: one sentence, of one process.
    (checkpoints / "last.pt").write_bytes(last[: len(last) // 2])
    ended = _ranks("-m", "train.cli", "--resume", *common)
    assert [code for code, _ in ended] == [3, 3], ended
    said = "".join(text for _, text in ended)
    assert said.count("error: ") == 1
    assert f"{checkpoints / 'last.pt'}: found an unreadable file" in said
    assert "Traceback" not in said

    (checkpoints / "last.pt").write_bytes(last)
    done = _torchrun("-m", "train.cli", "--resume", *common)
    assert done.returncode == 0, done.stderr
    both = (whole.path, tmp_path / "parts")
    for name in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(path / "checkpoints" / name) for path in both)
        assert one.epoch == two.epoch
        for key, tensor in one.model.items():
            assert torch.equal(two.model[key], tensor), (name, key)
    weights = [
        load_checkpoint(path / "checkpoints" / "last.pt").optimizer["weights"] for path in both
    ]
    for key, tensor in weights[0].items():
        assert torch.equal(weights[1][key], tensor), key
    evaluations = [(path / "evaluation.json").read_bytes() for path in both]
    assert evaluations[0] == evaluations[1]
    # It is done, and one of them says so.
    ended = _ranks("-m", "train.cli", "--resume", *common)
    assert [code for code, _ in ended] == [2, 2], ended
    assert sum(text.count("raise --train.epochs") for _, text in ended) == 1
