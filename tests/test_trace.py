"""The traced graph against the network it came from."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.trace import trace
from runtime.model_card import CARD_KEY, InferenceDefaults, ModelCard
from train.unet import UNet3D

LEAKS = (
    str(Path(__file__).parents[1]),
    str(Path(torch.__file__).parent),
    "site-packages",
    'File "',
    "unet.py",
    "pkg.torch",
    "Traceback",
)


class Traced:
    """A network, its card and what `trace` made of them."""

    def __init__(self, features: tuple[int, ...], residual: bool) -> None:
        torch.manual_seed(sum(features))
        # In training mode with dropout: `trace` has to see to that itself.
        self.network = UNet3D(features=features, residual=residual, dropout=0.5).train()
        with torch.no_grad():
            for module in self.network.modules():
                if isinstance(module, torch.nn.BatchNorm3d):
                    module.running_mean.normal_(0, 0.3)
                    module.running_var.uniform_(0.5, 1.5)
            # Logits that are far from equal, so that a second softmax would show.
            self.network.head.weight.mul_(8)
            self.network.head.bias.copy_(torch.tensor([2.0, -1.0, 0.0, 1.0]))
        divisor = self.network.divisor
        self.card = ModelCard(
            "traced",
            patch=(4 * divisor, 4 * divisor, 2 * divisor),
            divisor=divisor,
            inference=InferenceDefaults(batch=2),
            training={"note": 'é, 中, "quoted"'},
        )
        self.model = trace(self.network, self.card)
        self.data = self.model.SerializeToString()
        self.session = onnxruntime.InferenceSession(self.data, providers=["CPUExecutionProvider"])

    def run(self, image: torch.Tensor) -> np.ndarray:
        (output,) = self.session.run(None, {"image": image.numpy()})
        return np.asarray(output)


@pytest.fixture(
    scope="module",
    params=[((4, 8), False), ((4, 6, 8), True)],
    ids=["plain-2-levels", "residual-3-levels"],
)
def traced(request: pytest.FixtureRequest) -> Traced:
    return Traced(*request.param)


def test_any_batch_and_any_shape_of_the_divisor_give_the_softmax_of_the_logits(
    traced: Traced,
) -> None:
    d = traced.card.divisor
    generator = torch.Generator().manual_seed(1)
    # The traced example was (2, 4, 2d, 3d, 4d); one unit on an axis is the hardest.
    for shape in ((2, 4, 2 * d, 3 * d, 4 * d), (1, 4, d, 5 * d, 3 * d), (3, 4, 4 * d, d, d)):
        image = torch.randn(shape, generator=generator)
        with torch.inference_mode():
            logits = traced.network.eval()(image)
        expected = torch.softmax(logits, dim=1).numpy()
        found = traced.run(image)
        assert found.shape == (shape[0], 4, *shape[2:])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
        # The comparison sees a double softmax: it would differ a thousandfold more.
        assert np.abs(torch.softmax(torch.from_numpy(expected), 1).numpy() - found).max() > 1e-2


def test_windows_of_a_batch_do_not_see_each_other(traced: Traced) -> None:
    d = traced.card.divisor
    image = torch.randn((2, 4, 2 * d, 2 * d, 2 * d), generator=torch.Generator().manual_seed(2))
    both = traced.run(image)
    for index in range(2):
        alone = traced.run(image[index : index + 1])
        np.testing.assert_allclose(both[index : index + 1], alone, atol=1e-6)


def test_softmax_is_there_once_and_last(traced: Traced) -> None:
    nodes = traced.model.graph.node
    assert [node.op_type for node in nodes].count("Softmax") == 1
    assert nodes[-1].op_type == "Softmax"
    assert list(nodes[-1].output) == [traced.model.graph.output[0].name]
    axis = {item.name: item.i for item in nodes[-1].attribute}["axis"]
    assert axis == 1


def test_opset_and_a_single_file(traced: Traced) -> None:
    opsets = {item.domain: item.version for item in traced.model.opset_import}
    assert opsets[""] >= 20
    assert set(opsets) == {""}
    assert not traced.model.functions
    for item in traced.model.graph.initializer:
        assert item.data_location == onnx.TensorProto.DEFAULT
        assert not item.external_data
    # From bytes alone, without a folder beside them.
    onnx.checker.check_model(onnx.load_from_string(traced.data), full_check=True)


def test_batch_and_spatial_axes_are_free_and_channels_are_not(traced: Traced) -> None:
    for value in (traced.model.graph.input[0], traced.model.graph.output[0]):
        dims = value.type.tensor_type.shape.dim
        assert len(dims) == 5
        assert dims[1].dim_value == 4
        for axis in (0, 2, 3, 4):
            assert not dims[axis].HasField("dim_value"), (value.name, axis)
            assert dims[axis].dim_param
        assert len({dims[axis].dim_param for axis in (0, 2, 3, 4)}) == 4
    assert [item.name for item in traced.model.graph.input] == ["image"]
    assert [item.name for item in traced.model.graph.output] == ["probabilities"]


def test_batch_norms_are_still_there_for_the_float64_fold(traced: Traced) -> None:
    found = [node.op_type for node in traced.model.graph.node].count("BatchNormalization")
    norms = [m for m in traced.network.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    assert found == len(norms) > 0


def test_dropout_is_gone(traced: Traced) -> None:
    assert "Dropout" not in {node.op_type for node in traced.model.graph.node}


def test_the_card_is_the_only_metadata(traced: Traced) -> None:
    stored = {item.key: item.value for item in traced.model.metadata_props}
    assert CARD_KEY == "brats_deploy.card"
    assert stored == {"brats_deploy.card": traced.card.to_json()}
    assert traced.session.get_modelmeta().custom_metadata_map == stored
    assert ModelCard.from_json(stored[CARD_KEY], "onnx") == traced.card


def test_nothing_of_the_machine_is_in_the_bytes(traced: Traced) -> None:
    for leak in LEAKS:
        assert leak.encode() not in traced.data, leak


def test_the_exported_files_say_nothing_of_the_machine_either(tiny_model: Path) -> None:
    for name in ("model.onnx", "model.fp16.onnx"):
        data = (tiny_model / name).read_bytes()
        for leak in LEAKS:
            assert leak.encode() not in data, (name, leak)
