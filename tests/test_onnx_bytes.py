"""What an ONNX model may hold: nothing that lies elsewhere, no operator but ONNX's own."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.fuse import fuse
from export.half_weights import halve_weights
from export.precision import reduce
from export.trace import set_card, trace
from runtime import onnx_bytes
from runtime.errors import InputError
from runtime.model_card import CARD_KEY, ModelCard
from runtime.model_dir import ONNX_FP16, ONNX_FP32, ModelDir
from runtime.onnx_bytes import DOMAINS, REFUSED, STEPPED_OVER, WALKED, check_onnx
from tests.soak.mutations import mutations
from train.unet import UNet3D

CARD = ModelCard("small", patch=(16, 16, 16), divisor=2)
Change = Callable[[onnx.ModelProto], None]


def small() -> onnx.ModelProto:
    """A model with a weight, a constant and a branch."""
    weight = numpy_helper.from_array(np.arange(8, dtype=np.float32), "w")
    constant = numpy_helper.from_array(np.ones(8, np.float32), "c")
    branches = {}
    for name in ("then_branch", "else_branch"):
        value = numpy_helper.from_array(np.full(8, len(name), np.float32), f"{name}_v")
        branches[name] = helper.make_graph(
            [helper.make_node("Identity", [f"{name}_v"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [8])],
            [value],
        )
    nodes = [
        helper.make_node("Constant", [], ["k"], value=constant),
        helper.make_node("Add", ["x", "w"], ["s"]),
        helper.make_node("Mul", ["s", "k"], ["m"]),
        helper.make_node("If", ["b"], ["i"], **branches),
        helper.make_node("Add", ["m", "i"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [8]),
        helper.make_tensor_value_info("b", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    set_card(model, CARD)
    onnx.checker.check_model(model)
    return model


def refused(model: onnx.ModelProto | bytes, match: str) -> None:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(InputError, match=match) as caught:
        check_onnx(data, CARD, "model/model.onnx")
    assert caught.value.where == "model/model.onnx"
    assert "brats-export" in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_model_of_its_own_is_accepted() -> None:
    check_onnx(small().SerializeToString(), CARD, "x")


def outside(tensor: TensorProto) -> None:
    """As onnx.save(..., save_as_external_data=True) leaves a tensor."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def by_location(tensor: TensorProto) -> None:
    tensor.data_location = TensorProto.EXTERNAL


def by_entry(tensor: TensorProto) -> None:
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"


def in_initializer(model: onnx.ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def in_attribute(model: onnx.ModelProto) -> TensorProto:
    return model.graph.node[0].attribute[0].t


def in_tensors(model: onnx.ModelProto) -> TensorProto:
    attribute = model.graph.node[0].attribute.add()
    attribute.name, attribute.type = "many", onnx.AttributeProto.TENSORS
    attribute.tensors.add()
    return attribute.tensors.add()


def in_subgraph(model: onnx.ModelProto) -> TensorProto:
    return model.graph.node[3].attribute[1].g.initializer[0]


def in_graphs(model: onnx.ModelProto) -> TensorProto:
    attribute = model.graph.node[0].attribute.add()
    attribute.name, attribute.type = "many", onnx.AttributeProto.GRAPHS
    return attribute.graphs.add().initializer.add()


def in_sparse_values(model: onnx.ModelProto) -> TensorProto:
    return model.graph.sparse_initializer.add().values


def in_sparse_indices(model: onnx.ModelProto) -> TensorProto:
    return model.graph.sparse_initializer.add().indices


def in_sparse_attribute(model: onnx.ModelProto) -> TensorProto:
    return model.graph.node[0].attribute.add().sparse_tensor.values


def in_sparse_attributes(model: onnx.ModelProto) -> TensorProto:
    return model.graph.node[0].attribute.add().sparse_tensors.add().indices


PLACES = [
    in_initializer, in_attribute, in_tensors, in_subgraph, in_graphs, in_sparse_values,
    in_sparse_indices, in_sparse_attribute, in_sparse_attributes,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("how", [outside, by_location, by_entry], ids=lambda how: how.__name__)
def test_external_data_is_found_wherever_it_is_named(
    place: Callable[[onnx.ModelProto], TensorProto], how: Callable[[TensorProto], None]
) -> None:
    model = small()
    how(place(model))
    refused(model, r"tensors that lie in another file \(external data\)")


def test_what_onnx_saves_outside_is_found(tmp_path: Path) -> None:
    onnx.save(
        small(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0,
        convert_attribute=True, location="w.bin",
    )  # fmt: skip
    refused((tmp_path / "m.onnx").read_bytes(), "external data")


def test_external_data_in_a_function_or_training_graph() -> None:
    model = small()
    body = helper.make_node("Constant", [], ["y"], value=in_attribute(model))
    outside(body.attribute[0].t)
    model.functions.append(
        helper.make_function("", "F", [], ["y"], [body], [helper.make_opsetid("", 18)])
    )
    refused(model, r"operators of its own \(functions\)")
    model = small()
    outside(model.training_info.add().algorithm.initializer.add())
    refused(model, "a training graph")


def domain_of_a_node(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.microsoft"


def domain_in_a_branch(model: onnx.ModelProto) -> None:
    model.graph.node[3].attribute[0].g.node[0].domain = "org.openvinotoolkit"


def domain_imported(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("custom", 1))


def domain_close_by(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "ai.onnx.ml"


@pytest.mark.parametrize(
    "change", [domain_of_a_node, domain_in_a_branch, domain_imported, domain_close_by]
)
def test_operators_of_another_domain(change: Change) -> None:
    model = small()
    change(model)
    refused(model, "operators of another domain than ONNX's own")


def test_the_two_names_of_the_default_domain() -> None:
    model = small()
    model.graph.node[1].domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    in_initializer(model).data_location = TensorProto.DEFAULT
    check_onnx(model.SerializeToString(), CARD, "x")


def test_the_card_must_be_there_once_and_be_the_directorys() -> None:
    model = small()
    del model.metadata_props[:]
    refused(model, "no model card")
    model.metadata_props.add(key="brats_deploy.cards", value=CARD.to_json())
    refused(model, "no model card")
    model.metadata_props.add(key=CARD_KEY, value=CARD.to_json().replace("small", "other"))
    refused(model, "the card of another model")
    model.metadata_props.add(key=CARD_KEY, value=CARD.to_json())
    refused(model, "2 model cards")
    for text in ("", "{", "[" * 100_000, "\0", '{"name": "small"}', "9" * 5000):
        model = small()
        model.metadata_props[0].value = text
        refused(model, "the card of another model")
    # That of a graph or a node is not the model's.
    model = small()
    (entry,) = model.metadata_props
    model.graph.metadata_props.append(entry)
    del model.metadata_props[:]
    refused(model, "no model card")


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def test_nesting_ends() -> None:
    """Graph in attribute in node in graph, as deep as a file may say in a few kilobytes."""
    inner = b""
    for _ in range(2000):
        inner = message(1, message(5, message(6, inner)))
    refused(message(7, inner), "messages nested deeper than 32")
    inner = b""
    for _ in range(8):
        inner = message(1, message(5, message(6, inner)))
    refused(message(7, inner), "no model card")


WHOLE = small().SerializeToString()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "no graph"),
        (b"\x08", "a number that does not end"),
        (b"\x08" + b"\x80" * 30, "a number that does not end"),
        (b"\x80\x80\x80\x80\x80\x01", "a number that does not end"),
        (b"\x00\x01", "without a number"),
        (b"\x3b\x3c", "of no known type"),
        (b"\x0e", "of no known type"),
        (b"\x3a\x05abc", "ends behind its message"),
        (b"\x3a" + varint(2**63 + 5) + b"abc", "ends behind its message"),
        (b"\x09abc", "ends behind its message"),
        (b"\x38\x01", "a message that is a number"),
        (message(27, b""), r"a field that ONNX does not have \(ModelProto 27\)"),
        (message(7, message(99, b"")), r"does not have \(GraphProto 99\)"),
        (message(7, message(5, b"\x72\x01\x01")), "external data"),
        (b"\x08\x0a\x08\x0aORTM" + WHOLE, "damaged wire data|another format"),
        (WHOLE[:4] + b"ORTM" + WHOLE[8:], "a model of another format"),
        (WHOLE[:4] + b"TFL3" + WHOLE[8:], "a model of another format"),
        (b"<?xml version='1.0'?><net/>", "damaged wire data"),
        (message(7, b"\x00") + WHOLE, "damaged wire data"),
    ],
)
def test_damaged_wire_data(data: bytes, found: str) -> None:
    refused(data, found)


def test_time_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field for every two bytes: refused after so many, not after all of them."""
    monkeypatch.setattr(onnx_bytes, "_MOST_FIELDS", 500)
    refused(message(7, message(5, b"\x20\x01" * 10_000)), "more than 500 fields")
    refused(WHOLE + message(14, b"") * 100, "more than 64 entries of metadata")


def test_weights_are_stepped_over_not_copied() -> None:
    import tracemalloc

    tensor = TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[8 << 20])
    tensor.raw_data = bytes(32 << 20)
    model = small()
    model.graph.initializer.append(tensor)
    data = model.SerializeToString()
    tracemalloc.start()
    try:
        check_onnx(data, CARD, "x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


# Whether the tables are those of ONNX


def reaches(descriptor: Descriptor, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a tensor, a node or a domain of operators can stand in a message."""
    if descriptor.name in ("TensorProto", "NodeProto", "OperatorSetIdProto"):
        return True
    if descriptor.name in seen:
        return False
    return any(
        reaches(item.message_type, seen | {descriptor.name})
        for item in descriptor.fields
        if item.message_type is not None
    )


def test_no_place_of_onnx_is_left_out() -> None:
    """Every field of the installed ONNX: walked or refused if anything can stand there."""
    todo, done = [onnx.ModelProto.DESCRIPTOR], set()
    while todo:
        descriptor = todo.pop()
        kind = descriptor.name
        if kind in done:
            continue
        done.add(kind)
        for item in descriptor.fields:
            inner = item.message_type
            known = [
                item.number in WALKED[kind],
                item.number in STEPPED_OVER[kind],
                (kind, item.number) in REFUSED,
                (kind, item.number) in DOMAINS,
                kind == "StringStringEntryProto",
                (kind, item.name) == ("TensorProto", "data_location"),
            ]
            assert sum(known) == 1, (kind, item.name)
            if item.number in STEPPED_OVER[kind]:
                assert inner is None or not reaches(inner), (kind, item.name)
                assert item.name != "domain" or kind == "ModelProto"
            if item.number in WALKED[kind]:
                assert item.type == FieldDescriptor.TYPE_MESSAGE
                assert WALKED[kind][item.number] == inner.name
                todo.append(inner)
    assert done == set(WALKED) == set(STEPPED_OVER)


def test_a_place_is_missed_where_the_tables_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the check: sparse tensors are found because they are walked."""
    model = small()
    outside(in_sparse_values(model))
    monkeypatch.setitem(WALKED, "SparseTensorProto", {})
    monkeypatch.setitem(STEPPED_OVER, "SparseTensorProto", {1, 2, 3})
    check_onnx(model.SerializeToString(), CARD, "x")


# Mutations


def loads(data: bytes) -> onnx.ModelProto | None:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # of protobuf, whichever implementation it has
        return None
    return model


def every_tensor(message: Any) -> list[TensorProto]:
    """All tensors anywhere in a message, found by ONNX's own classes."""
    if isinstance(message, TensorProto):
        return [message]
    found = []
    for item, value in message.ListFields():
        if item.message_type is not None:
            many = value if hasattr(value, "append") else [value]
            found += [tensor for one in many for tensor in every_tensor(one)]
    return found


@given(st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_a_mutated_model_is_refused_or_as_harmless_as_it_was(seed: int) -> None:
    for what, data in mutations(WHOLE, 9, seed):
        try:
            check_onnx(data, CARD, "x")
        except InputError:
            continue
        model = loads(data)
        if model is None:
            # Damage in what was stepped over: no library takes it.
            continue
        assert not any(
            tensor.external_data or tensor.data_location for tensor in every_tensor(model)
        ), what
        assert [entry.value for entry in model.metadata_props if entry.key == CARD_KEY]


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_bad_input(data: bytes) -> None:
    with pytest.raises(InputError):
        check_onnx(data, CARD, "x")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_external_data_does_not_hide_behind_other_fields(data: st.DataObject) -> None:
    """Written by hand: the fields in any order, twice, in two parts of one graph."""
    kinds = [message(13, message(1, b"location") + message(2, b"w")), b"\x70\x01"]
    tensor = data.draw(st.permutations([message(8, b"w"), b"\x10\x01", *kinds[:1]]))
    if data.draw(st.booleans()):
        tensor = data.draw(st.permutations([message(8, b"w"), b"\x10\x01", b"\x70\x00", kinds[1]]))
    graph = message(7, message(5, b"".join(tensor)))
    parts = data.draw(st.permutations([graph, WHOLE, message(3, b"1.0"), struct.pack("<BB", 8, 9)]))
    refused(b"".join(parts), "external data")


# What brats-export writes


@pytest.mark.parametrize("name", [ONNX_FP32, ONNX_FP16])
def test_what_was_exported_is_accepted(tiny_model: Path, name: str) -> None:
    model = ModelDir.open(tiny_model)
    data = (tiny_model / name).read_bytes()
    check_onnx(data, model.card, name)
    assert model.read(name) == data


def test_every_form_of_a_graph_is_accepted(tiny_network: UNet3D, tiny_card: ModelCard) -> None:
    traced = trace(tiny_network, tiny_card)
    check_onnx(traced.SerializeToString(), tiny_card, "traced")
    for form in ("k4", "unfused", "interleave"):
        graph = onnx.ModelProto()
        graph.CopyFrom(traced)
        fuse(graph, form)
        for kind, made in {
            "fp32": graph,
            "fp16": reduce(graph, "fp16"),
            "bf16": reduce(graph, "bf16"),
            "half weights": halve_weights(graph),
        }.items():
            check_onnx(made.SerializeToString(), tiny_card, f"{form} {kind}")
