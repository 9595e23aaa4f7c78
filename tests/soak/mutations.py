"""Changed copies of a file's bytes, as disks, networks and people make them."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Final


def mutations(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Changed copies of ``data``, each of them different from it.

    Args:
        data: any bytes, none too.
        count: of the copies.
        seed: of the choice; the same seed gives the same copies.

    Yields:
        What was done, in words, and the bytes; the kinds take turns.
    """
    random = Random(seed)
    kinds = list(_KINDS) if data else ["append"]
    made = turn = 0
    while made < count:
        # The next kind in any case: a block of zeros cannot be blanked.
        kind = kinds[turn % len(kinds)]
        turn += 1
        where, changed = _KINDS[kind](data, random)
        if changed != data:
            made += 1
            yield f"{kind} {where}", changed


def _flip(data: bytes, random: Random) -> tuple[str, bytes]:
    at, bit = random.randrange(len(data)), random.randrange(8)
    return f"bit {bit} of byte {at}", _put(data, at, bytes([data[at] ^ 1 << bit]))


def _overwrite(data: bytes, random: Random) -> tuple[str, bytes]:
    at = random.randrange(len(data))
    return f"byte {at}", _put(data, at, random.randbytes(1))


def _truncate(data: bytes, random: Random) -> tuple[str, bytes]:
    left = random.choice([0, 1, len(data) - 1, random.randrange(len(data))])
    return f"to {left} bytes", data[: min(left, len(data) - 1)]


def _insert(data: bytes, random: Random) -> tuple[str, bytes]:
    at, more = random.randrange(len(data) + 1), random.randbytes(random.choice([1, 1, 7, 4096]))
    return f"{len(more)} bytes at {at}", data[:at] + more + data[at:]


def _delete(data: bytes, random: Random) -> tuple[str, bytes]:
    at, gone = random.randrange(len(data)), random.choice([1, 1, 7, 4096])
    return f"{gone} bytes at {at}", data[:at] + data[at + gone :]


def _append(data: bytes, random: Random) -> tuple[str, bytes]:
    more = random.choice([b" ", b"\n", b"\0", b"\0" * 512, data[:4096] or b"x"])
    return f"{len(more)} bytes", data + more


def _blank(data: bytes, random: Random) -> tuple[str, bytes]:
    """A sector that was never written."""
    at = random.randrange(len(data)) & -512
    gap = min(512, len(data) - at)
    return f"{gap} bytes at {at}", _put(data, at, b"\0" * gap)


def _transpose(data: bytes, random: Random) -> tuple[str, bytes]:
    at = random.randrange(max(len(data) - 1, 1))
    return f"bytes {at} and {at + 1}", _put(data, at, data[at : at + 2][::-1])


def _letter(data: bytes, random: Random) -> tuple[str, bytes]:
    """Upper for lower case, or the other way round: the same to many a parser."""
    at = random.randrange(len(data))
    for place in (*range(at, len(data)), *range(at)):
        if (changed := data[place : place + 1].swapcase()) != data[place : place + 1]:
            return f"byte {place}", _put(data, place, changed)
    return _flip(data, random)


def _put(data: bytes, at: int, part: bytes) -> bytes:
    return data[:at] + part + data[at + len(part) :]


_KINDS: Final[dict[str, Callable[[bytes, Random], tuple[str, bytes]]]] = {
    "flip": _flip,
    "truncate": _truncate,
    "insert": _insert,
    "delete": _delete,
    "append": _append,
    "overwrite": _overwrite,
    "blank": _blank,
    "transpose": _transpose,
    "case": _letter,
}
