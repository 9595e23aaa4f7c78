"""What is read of a PyTorch file, and that nothing in it is ever run."""

import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime.errors import InputError
from train.state_dict import differing_keys, fill
from train.torch_file import Wanted, read_torch_file

WANTED = Wanted("a file to test with", "write it again", "write nothing but numbers")
NUMBERS = (
    np.float64(0.8531),
    np.float64("-inf"),
    np.float32(0.1),
    np.float16(-2.5),
    np.int64(-(2**60)),
    np.int32(7),
    np.int16(-7),
    np.int8(-128),
    np.uint64(2**64 - 1),
    np.uint32(5),
    np.uint16(40_000),
    np.uint8(255),
    np.bool_(True),
    np.bool_(False),
    np.dtype(">f8").type(0.25),
)


def read(path: Path) -> Any:
    return read_torch_file(path, WANTED)


def repickled(path: Path, change: Callable[[bytes], bytes]) -> None:
    """The same file with another pickle in it."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("numpy", [1, 2])
def test_numpy_numbers_become_python_numbers(tmp_path: Path, numpy: int) -> None:
    path = tmp_path / "x.pth"
    torch.save({"numbers": list(NUMBERS), "tensor": torch.ones(2)}, path)

    def spelled(pickled: bytes) -> bytes:
        one, two = (b"cnumpy.%score.multiarray\nscalar\n" % mark for mark in (b"", b"_"))
        assert one in pickled or two in pickled
        return pickled.replace(two, one) if numpy == 1 else pickled.replace(one, two)

    repickled(path, spelled)
    found = read(path)
    assert found["numbers"] == [number.item() for number in NUMBERS]
    assert {type(number) for number in found["numbers"]} == {float, int, bool}
    assert torch.equal(found["tensor"], torch.ones(2))


def test_a_numpy_number_of_the_other_byte_order_keeps_its_value(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"number": np.float64(0.25)}, path)
    little, big = (np.array(0.25, order + "f8").tobytes().decode("latin1") for order in "<>")

    def turned(pickled: bytes) -> bytes:
        changed = pickled.replace(little.encode(), big.encode()).replace(
            b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00>"
        )
        assert changed != pickled
        return changed

    repickled(path, turned)
    assert read(path) == {"number": 0.25}


class Runs:
    """Leaves a mark where it is unpickled as pickles usually are."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "x.pth", tmp_path / "mark"
    content = {"model_state_dict": {"w": torch.ones(1)}, "history": Runs(mark)}
    torch.save(content, path)
    with pytest.raises(InputError) as caught:
        read(path)
    assert not mark.exists()
    assert caught.value.exit_code == 3
    assert caught.value.found == (
        f"a PyTorch file that holds more than tensors and strings ({os.name}.system)"
    )
    assert caught.value.remedy == "write nothing but numbers"
    # It would have been by a reader that trusts its file.
    pickle.loads(pickle.dumps(Runs(mark)))
    assert mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3),
        np.array({"an": "object"}, dtype=object),
        np.str_("text"),
        np.datetime64("2020-01-01"),
        np.complex128(1j),
        np.dtype("f8").type,
        np.random.default_rng(0),
        Path("x"),
        Wanted("a class of ours", "none"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_but_numbers_of_numpy_is_read(tmp_path: Path, value: Any) -> None:
    torch.save({"value": value}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"found (a PyTorch|an unreadable) file"):
        read(tmp_path / "x.pth")


def test_reading_leaves_no_door_open(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"number": np.float64(1)}, tmp_path / "x.pth")
    read(tmp_path / "x.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pth", weights_only=True)


def test_a_file_of_an_old_pytorch_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"before 1\.6, .*; load it with PyTorch and save it"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"text"])
def test_what_is_no_pytorch_file_is_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match="truncated, or not a PyTorch file"):
        read(tmp_path / "x.pth")


def test_a_missing_file_and_a_folder_are_called_that(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found nothing"):
        read(tmp_path / "x.pth")
    with pytest.raises(InputError, match="found a folder"):
        read(tmp_path)


def test_damage_anywhere_is_bad_input_or_harmless(tmp_path: Path) -> None:
    """Bytes changed, dropped and put in: whatever the reader stumbles over has one name."""
    path = tmp_path / "x.pth"
    torch.save(
        {"a": np.float64(0.5), "b": [(1, 2), np.int64(2)], "c": {"w": torch.ones(2, 3)}}, path
    )
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0

    def damaged(pickled: bytes) -> bytes:
        data = bytearray(pickled)
        for _ in range(chance.choice((1, 2, 5))):
            at = chance.randrange(len(data))
            what = chance.randrange(4)
            if what < 2:
                data[at] = chance.randrange(256)
            elif what == 2:
                del data[at : at + chance.randrange(1, 5)]
            else:
                data[at:at] = bytes([chance.randrange(256)])
        return bytes(data)

    for _ in range(400):
        path.write_bytes(whole)
        repickled(path, damaged)
        try:
            read(path)
        except InputError:
            refused += 1
    assert 200 < refused < 400


# --- what differs -------------------------------------------------------------------------------


def test_the_first_keys_that_differ_are_named_by_kind() -> None:
    expected = {name: torch.ones(2) for name in "abcdef"}
    assert differing_keys(expected, expected) == ""
    assert differing_keys({**expected, "x": 1}, expected) == "unknown: x"
    found = {"a": torch.ones(2), "b": torch.ones(3, 2), "x": torch.ones(2), 7: "y", "z": None}
    assert differing_keys(found, expected) == (
        "missing: c, d and 2 more; unknown: x, 7 and 1 more; "
        "of another shape: b is 3x2 instead of 2"
    )
    # As long as the file pleases.
    assert len(differing_keys({**expected, "x" * 10_000: 1}, expected)) < 100


def test_a_network_without_memory_gets_it_with_its_weights(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    with torch.device("meta"):
        network = torch.nn.Linear(2, 3)
    fill(network, state, tmp_path, WANTED, "wrong weights")
    assert torch.equal(network.weight, state["weight"])
    with torch.device("meta"):
        other = torch.nn.Linear(2, 4)
    with pytest.raises(InputError, match=r"wrong weights \(of another shape: weight is 3x2"):
        fill(other, state, tmp_path, WANTED, "wrong weights")
    assert other.weight.is_meta
    sparse = {**state, "weight": state["weight"].to_sparse()}
    with pytest.raises(InputError, match="of another shape: weight"):
        fill(network, sparse, tmp_path, WANTED, "wrong weights")
    without_memory = {**state, "bias": torch.ones(3, device="meta")}
    with pytest.raises(InputError, match="wrong weights"):
        fill(network, without_memory, tmp_path, WANTED, "wrong weights")
