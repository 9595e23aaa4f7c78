"""Look through the bytes of an ONNX model, before any library does, for what it could reach outside
of itself.

The manifest says that the bytes are those that were exported; this says that they name no other
file and no operator but ONNX's own. It reads the wire format of protocol buffers and needs no onnx:
the length of a field is enough to step over weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from runtime.errors import InputError
from runtime.model_card import CARD_KEY, ModelCard, check_card

_VARINT: Final = 0
_BYTES: Final = 2
_FIXED: Final = {1: 8, 5: 4}
_DEEPEST: Final = 32
_MOST_FIELDS: Final = 200_000
_MOST_METADATA: Final = 64
_OWN_DOMAIN: Final = (b"", b"ai.onnx")
# ONNX Runtime and OpenVINO look here for models of another kind, whatever the rest of a file is.
_IDENTIFIED: Final = slice(4, 8)
_OTHER_KINDS: Final = (b"ORTM", b"TFL3")

# Field numbers of onnx.proto. A message in which tensors, operators or domains can stand is walked;
# of what cannot hold any the number is enough, and a number that is not here is refused.
WALKED: Final = {
    "ModelProto": {
        7: "GraphProto",
        8: "OperatorSetIdProto",
        14: "StringStringEntryProto",
    },
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
    "OperatorSetIdProto": {},
    "StringStringEntryProto": {},
}
STEPPED_OVER: Final = {
    "ModelProto": {1, 2, 3, 4, 5, 6, 26},
    "GraphProto": {2, 10, 11, 12, 13, 14, 16},
    "NodeProto": {1, 2, 3, 4, 6, 8, 9, 10},
    "AttributeProto": {1, 2, 3, 4, 7, 8, 9, 13, 14, 15, 20, 21},
    "SparseTensorProto": {3},
    "TensorProto": {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16},
    "OperatorSetIdProto": {2},
    "StringStringEntryProto": set[int](),
}
REFUSED: Final = {
    ("ModelProto", 20): "a training graph",
    ("ModelProto", 25): "operators of its own (functions)",
    ("TensorProto", 13): "tensors that lie in another file (external data)",
}
DOMAINS: Final = {("NodeProto", 7), ("OperatorSetIdProto", 1)}
_LOCATION: Final = ("TensorProto", 14)
_TEXTS: Final = {("StringStringEntryProto", 1), ("StringStringEntryProto", 2)}


def check_onnx(data: bytes, card: ModelCard, where: str | Path) -> None:
    """Refuse a model that is not whole in itself, or not that of ``card``.

    Raises:
        InputError: external data, an operator of another domain than ONNX's own, functions,
            training graphs; wire data that is damaged, too deep or of too many fields; no card in
            the metadata, or another one.
    """
    try:
        if data[_IDENTIFIED] in _OTHER_KINDS:
            raise _RefusedError("a model of another format")
        walk = _Walk(memoryview(data))
        walk.message("ModelProto", 0, len(data), 0)
        if not walk.graphs:
            raise _RefusedError("no graph")
        cards = [value for key, value in walk.metadata if key == CARD_KEY.encode()]
        if len(cards) > 1:
            raise _RefusedError(f"{len(cards)} model cards")
    except _RefusedError as error:
        raise InputError(
            where,
            found=f"an ONNX model with {error}",
            expected="a self-contained one of ONNX's own operators, as brats-export writes it",
            remedy="export the model again with brats-export",
        ) from error
    check_card(card, cards[0].decode("utf-8", "replace") if cards else None, where)


class _RefusedError(Exception):
    """What makes a model unfit, in words."""


@dataclass
class _Walk:
    """One way through a model; nothing of it is copied but the metadata.

    Attributes:
        data: the file.
        fields: seen so far.
        graphs: seen so far.
        metadata: keys and values of the model.
    """

    data: memoryview
    fields: int = 0
    graphs: int = 0
    metadata: list[tuple[bytes, bytes]] = field(default_factory=list)

    def message(self, kind: str, start: int, end: int, depth: int) -> None:
        """Look through bytes ``start`` to ``end``, a message of ``kind``."""
        if depth > _DEEPEST:
            raise _RefusedError(f"messages nested deeper than {_DEEPEST}")
        self.graphs += kind == "GraphProto"
        texts = {1: b"", 2: b""}
        for number, wire, first, last in self._fields(start, end):
            if (kind, number) in REFUSED:
                raise _RefusedError(REFUSED[kind, number])
            if (kind, number) == _LOCATION:
                if wire != _VARINT or self._varint(first, last)[0]:
                    raise _RefusedError(REFUSED["TensorProto", 13])
            elif number in WALKED[kind]:
                self._need_bytes(wire)
                self.message(WALKED[kind][number], first, last, depth + 1)
            elif (kind, number) in DOMAINS:
                self._need_bytes(wire)
                self._check_domain(first, last)
            elif (kind, number) in _TEXTS:
                self._need_bytes(wire)
                texts[number] = bytes(self.data[first:last])
            elif number not in STEPPED_OVER[kind]:
                raise _RefusedError(f"a field that ONNX does not have ({kind} {number})")
        if kind == "StringStringEntryProto":
            self.metadata.append((texts[1], texts[2]))
            if len(self.metadata) > _MOST_METADATA:
                raise _RefusedError(f"more than {_MOST_METADATA} entries of metadata")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type and place of every field."""
        at = start
        while at < end:
            self.fields += 1
            if self.fields > _MOST_FIELDS:
                raise _RefusedError(f"more than {_MOST_FIELDS} fields")
            tag, first = self._varint(at, min(end, at + 5))
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise _RefusedError("damaged wire data (a field without a number)")
            if wire == _VARINT:
                last = self._varint(first, end)[1]
            elif wire == _BYTES:
                length, first = self._varint(first, end)
                last = first + length
            elif wire in _FIXED:
                last = first + _FIXED[wire]
            else:
                raise _RefusedError("damaged wire data (a field of no known type)")
            if last > end:
                raise _RefusedError("damaged wire data (a field that ends behind its message)")
            yield number, wire, first, last
            at = last

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """An integer of up to 64 bits, and where it ends."""
        value = 0
        for index, byte in enumerate(self.data[at : min(end, at + 10)]):
            value |= (byte & 127) << 7 * index
            if byte < 128:
                return value, at + index + 1
        raise _RefusedError("damaged wire data (a number that does not end)")

    def _check_domain(self, first: int, last: int) -> None:
        domain = bytes(self.data[first : min(last, first + 100)])
        if domain not in _OWN_DOMAIN:
            shown = domain.decode("utf-8", "replace")
            raise _RefusedError(f"operators of another domain than ONNX's own ({shown!a})")

    @staticmethod
    def _need_bytes(wire: int) -> None:
        if wire != _BYTES:
            raise _RefusedError("damaged wire data (a message that is a number)")
