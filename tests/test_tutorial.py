"""Checkpoints of the published tutorial, from the file to the label map, against a network written
here from the tutorial's description alone.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import Tensor, nn

from export.build import build
from export.emulate import EmulatedGraph
from runtime.cli.infer import main as infer
from runtime.errors import InputError, UsageError
from runtime.model_card import ModelCard
from runtime.model_dir import ModelDir
from runtime.phantom import Enhancement, write_phantoms
from tests.test_torch_file import Runs
from tests.tiny_export import bytes_of, exported
from train.checkpoint import (
    Architecture,
    Checkpoint,
    load_checkpoint,
    load_tutorial,
    save_checkpoint,
)

FEATURES = (8, 8, 10, 12, 14)
PATCH = (16, 16, 32)
CHANNELS = ("t1ce", "t2", "flair", "t1")

# --- the tutorial, as it is described -----------------------------------------------------------


class Block(nn.Module):
    """Twice (convolution, BN, ReLU, dropout), then the residual: 1x1x1 where the channels differ,
    and the input itself where they are equal.
    """

    def __init__(self, i: int, o: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv3d(i, o, 3, padding=1, bias=bias), nn.BatchNorm3d(o), nn.ReLU(), nn.Dropout3d()
        )
        self.conv2 = nn.Sequential(
            nn.Conv3d(o, o, 3, padding=1, bias=bias), nn.BatchNorm3d(o), nn.ReLU(), nn.Dropout3d()
        )
        if i != o:
            self.residual_upsampler = nn.Conv3d(i, o, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.residual_upsampler(x) if hasattr(self, "residual_upsampler") else x
        after_the_second_relu = self.conv2(self.conv1(x))
        return after_the_second_relu + residual


class Deconv(nn.Module):
    def __init__(self, i: int, o: int, bias: bool) -> None:
        super().__init__()
        self.deconv = nn.Sequential(
            nn.ConvTranspose3d(i, o, 2, stride=2, bias=bias), nn.BatchNorm3d(o), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.deconv(x)


class Tutorial(nn.Module):
    def __init__(
        self,
        features: tuple[int, ...] = FEATURES,
        modalities: int = 4,
        classes: int = 4,
        bias: bool = False,
        sequential_head: bool = False,
    ) -> None:
        super().__init__()
        a, b, c, d, e = features
        self.conv_blk1 = Block(modalities, a, bias)
        self.conv_blk2 = Block(a, b, bias)
        self.conv_blk3 = Block(b, c, bias)
        self.conv_blk4 = Block(c, d, bias)
        self.conv_blk5 = Block(d, e, bias)
        self.deconv_blk4 = Deconv(e, d, bias)
        self.dec_conv_blk4 = Block(2 * d, d, bias)
        self.deconv_blk3 = Deconv(d, c, bias)
        self.dec_conv_blk3 = Block(2 * c, c, bias)
        self.deconv_blk2 = Deconv(c, b, bias)
        self.dec_conv_blk2 = Block(2 * b, b, bias)
        self.deconv_blk1 = Deconv(b, a, bias)
        self.dec_conv_blk1 = Block(2 * a, a, bias)
        self.pool = nn.MaxPool3d(2)
        head: nn.Module = nn.Conv3d(a, classes, 1, bias=not bias)
        self.final_conv = nn.Sequential(head) if sequential_head else head

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.conv_blk1(x)
        x2 = self.conv_blk2(self.pool(x1))
        x3 = self.conv_blk3(self.pool(x2))
        x4 = self.conv_blk4(self.pool(x3))
        y = self.conv_blk5(self.pool(x4))
        y = self.dec_conv_blk4(torch.cat([self.deconv_blk4(y), x4], 1))
        y = self.dec_conv_blk3(torch.cat([self.deconv_blk3(y), x3], 1))
        y = self.dec_conv_blk2(torch.cat([self.deconv_blk2(y), x2], 1))
        y = self.dec_conv_blk1(torch.cat([self.deconv_blk1(y), x1], 1))
        return self.final_conv(y)


@torch.no_grad()
def randomised(network: Tutorial, seed: int = 0) -> Tutorial:
    """Random weights, and batch norms that are far from the identity."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, like: Tensor) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.copy_(uniform(-0.5, 0.5, module.running_mean))
            module.running_var.copy_(uniform(0.3, 2, module.running_var))
            module.weight.copy_(uniform(-1.5, 1.5, module.weight))
            module.bias.copy_(uniform(-0.5, 0.5, module.bias))
        elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            fan_in = module.weight[0].numel()
            noise = torch.randn(module.weight.shape, generator=generator)
            module.weight.copy_(noise * (2 / fan_in) ** 0.5)
            if module.bias is not None:
                module.bias.copy_(uniform(-0.5, 0.5, module.bias))
    return network.eval()


@torch.no_grad()
def segmenting() -> Tutorial:
    """A network that calls every region on phantoms: the residuals carry the modalities of a voxel
    to the head, and random weights keep all other paths at work.
    """
    network = randomised(Tutorial(), 4)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm3d):
            gain = 2 if "deconv" in name else 0.2
            module.weight.mul_(gain)
            module.bias.mul_(gain)
    first = network.conv_blk1.residual_upsampler.weight
    last = network.dec_conv_blk1.residual_upsampler.weight
    first.mul_(0.05)
    last.mul_(0.1)
    for channel in range(4):
        first[channel, channel] += 1
        # The skip follows the 8 channels that come up.
        last[channel, 8 + channel] += 1
    t1ce, _, flair, t1 = range(4)
    weight, bias = network.final_conv.weight, network.final_conv.bias
    weight.zero_()
    bias.zero_()
    for label, offset, weights in (
        (1, -13.5 + 10, {flair: 4.5, t1: -6.0}),
        (2, -13.5, {flair: 4.5}),
        (3, -13.5 - 16, {flair: 4.5, t1ce: 6.0}),
    ):
        bias[label] = offset
        for channel, value in weights.items():
            weight[label, channel] = value
    return network


def saved(network: nn.Module, path: Path, **more: Any) -> Path:
    """As the tutorial's training saves its best model."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=1e-5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    torch.save(
        {
            "epoch": 13,
            "model_state_dict": network.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "scaler_state_dict": {"scale": 65536.0},
            "best_val_dice": np.float64(0.8531),
            "loss": np.float32("nan"),
            "improved": np.bool_(True),
            "history": {
                "train_loss": [np.float64(0.9), np.float32(0.25)],
                "best_epoch": np.int64(11),
            },
            **more,
        },
        path,
    )
    return path


def image_of(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 16, 32, 48, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(segmenting(), tmp_path_factory.mktemp("tutorial") / "best_model.pth")


# --- the network and its card -------------------------------------------------------------------


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sequential_head", [False, True])
def test_the_network_is_the_one_described(
    tmp_path: Path, bias: bool, sequential_head: bool
) -> None:
    described = randomised(Tutorial(bias=bias, sequential_head=sequential_head))
    network, _ = load_tutorial(saved(described, tmp_path / "x.pth"))
    assert not network.training
    with torch.inference_mode():
        close(network(image_of()), described(image_of()))


def test_channels_that_are_equal_have_no_convolution_in_the_residual(tmp_path: Path) -> None:
    described = randomised(Tutorial((4, 4, 6, 6, 8)))
    names = set(described.state_dict())
    assert "conv_blk1.residual_upsampler.weight" not in names
    network, _ = load_tutorial(saved(described, tmp_path / "x.pth"))
    assert set(network.state_dict()) == names
    with torch.inference_mode():
        close(network(image_of()), described(image_of()))


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("container", ["model_state_dict", "state_dict", None])
def test_weights_are_found_under_their_wrappers(
    tmp_path: Path, prefix: str, container: str | None
) -> None:
    described = randomised(Tutorial())
    state = {prefix + name: tensor for name, tensor in described.state_dict().items()}
    torch.save({container: state} if container else state, tmp_path / "x.pth")
    network, card = load_tutorial(tmp_path / "x.pth")
    assert card.training == {"source": "published tutorial"}
    with torch.inference_mode():
        close(network(image_of()), described(image_of()))


def test_weights_in_half_precision_become_float32(tmp_path: Path) -> None:
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in randomised(Tutorial()).state_dict().items()
    }
    torch.save({"model_state_dict": state}, tmp_path / "x.pth")
    network, _ = load_tutorial(tmp_path / "x.pth")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert torch.equal(
        network.state_dict()["final_conv.weight"], state["final_conv.weight"].float()
    )


def test_the_card_says_what_the_tutorial_does_and_what_the_checkpoint_claims(file: Path) -> None:
    _, card = load_tutorial(file)
    assert card == ModelCard(
        "best_model",
        modalities=("flair", "t1", "t1ce", "t2"),
        labels=("background", "NCR", "ED", "ET"),
        orientation="LPS",
        normalisation="zscore-volume",
        patch=(128, 128, 64),
        divisor=16,
        training={
            "source": "published tutorial",
            "claimed_by_checkpoint": {
                "epoch": 13,
                "best_val_dice": 0.8531,
                "history.best_epoch": 11,
            },
        },
    )
    assert card.inference.overlap == 0.5
    assert ModelCard.from_json(card.to_json(), "card") == card


def test_fewer_channels_need_their_names(tmp_path: Path) -> None:
    path = saved(randomised(Tutorial(modalities=3)), tmp_path / "x.pth")
    network, card = load_tutorial(path, ("flair", "t1ce", "t2"), (32, 32, 16))
    assert (card.modalities, card.patch) == (("flair", "t1ce", "t2"), (32, 32, 16))
    assert network(image_of(3)).shape == (2, 4, 16, 32, 48)
    with pytest.raises(UsageError, match="each of the 3 channels"):
        load_tutorial(path)
    with pytest.raises(UsageError, match="multiples of 16"):
        load_tutorial(path, ("flair", "t1ce", "t2"), (32, 32, 24))


def test_depth_is_read_too(tmp_path: Path) -> None:
    """Without the lowest level, the block above it takes its place."""
    described = randomised(Tutorial())
    lost = ("conv_blk5.", "deconv_blk4.", "dec_conv_blk4.")
    state = {
        name: tensor for name, tensor in described.state_dict().items() if not name.startswith(lost)
    }
    torch.save({"model_state_dict": state}, tmp_path / "x.pth")
    network, card = load_tutorial(tmp_path / "x.pth")
    assert (network.divisor, card.divisor) == (8, 8)
    assert network(torch.zeros(1, 4, 8, 16, 24)).shape == (1, 4, 8, 16, 24)


# --- the graph ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_the_graph_is_folded_exactly_and_its_up_branches_are_left_alone(
    tmp_path: Path, bias: bool
) -> None:
    described = randomised(Tutorial(bias=bias))
    network, card = load_tutorial(saved(described, tmp_path / "x.pth"), patch=PATCH)
    built = build(network, card, ("k4", "unfused", "interleave"), threads=1)
    for candidate in built.candidates:
        candidate.backend.close()
    # No form of a graph that is as it was.
    assert list(built.graphs) == ["k4"]
    operators = [node.op_type for node in built.graphs["k4"].graph.node]
    assert "BatchNormalization" not in operators
    assert (operators.count("ConvTranspose"), operators.count("Concat")) == (4, 4)
    assert (built.report.folded, built.report.composed) == (22, 0)
    assert built.report.left_alone == (
        "deconv_blk4.deconv.0, deconv_blk3.deconv.0, deconv_blk2.deconv.0, deconv_blk1.deconv.0: a "
        "bias, normalisation or non-linearity stands between up-convolution and concatenation",
    )
    with torch.inference_mode():
        expected = torch.softmax(described.double()(image_of().double()), 1).numpy()
    found = EmulatedGraph(built.graphs["k4"], torch.float64)(image_of().numpy())
    # The folded weights are stored in float32.
    np.testing.assert_allclose(found, expected, atol=3e-6)


# --- from the command line ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cases")
    write_phantoms(root, 3, seed=11, shape=(44, 44, 36), enhancement=Enhancement.RIM)
    return root


@pytest.fixture(scope="module")
def said(
    file: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The exported model directory, read-only, and the lines that were printed on the way."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("exported") / "model"
    flags = ("--channels", "t1c,t2w,flair,t1", "--patch", ",".join(map(str, PATCH)))
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        code = exported(
            file, "--from", "tutorial", *flags, "-o", out, "--fp16", "--data", data,
            "--engines", "no",
        )  # fmt: skip
    assert code == 0, printed.getvalue()
    return out, printed.getvalue().splitlines()


def test_a_tutorials_checkpoint_is_certified_in_fp32_and_fp16(
    said: tuple[Path, list[str]],
) -> None:
    out, lines = said
    model = ModelDir.open(out)
    assert (model.card.modalities, model.card.patch) == (CHANNELS, PATCH)
    assert model.card.name == "best_model"
    found = [
        (entry["file"], entry["backend"], entry["verdict"])
        for entry in json.loads((out / "parity.json").read_text())["artefacts"]
    ]
    assert found == [
        ("model.onnx", "openvino", "pass"),
        ("model.onnx", "ort", "pass"),
        ("model.fp16.onnx", "emulation", "pass"),
    ]
    half = onnx.load_model_from_string((out / "model.fp16.onnx").read_bytes())
    assert onnx.TensorProto.FLOAT16 in {item.data_type for item in half.graph.initializer}
    assert "channels: t1ce, t2, flair, t1 (--channels names another order)" in lines
    assert "graph: 22 batch norms folded, no up branch composed" in lines
    assert [line for line in lines if line.startswith("left alone: deconv_blk4.deconv.0, ")]


def starts(length: int, patch: int) -> list[int]:
    """Windows that lie evenly from end to end and overlap by a half or more."""
    room = length - patch
    count = -(-room // (patch // 2)) + 1
    return [round(i * room / (count - 1)) for i in range(count)] if room else [0]


def by_hand(network: Tutorial, case_dir: Path) -> npt.NDArray[np.float64]:
    """(4, X, Y, Z) probabilities, in float64, of a case whose arrays are in LPS."""
    case = case_dir.name
    raw = [nib.load(case_dir / f"{case}_{name}.nii.gz").get_fdata() for name in CHANNELS]
    image = np.stack([(one - one.mean()) / one.std() for one in raw])
    brain = np.argwhere(np.any(np.stack(raw) != 0, axis=0))
    low, high = brain.min(0), brain.max(0) + 1
    assert ((high - low) >= PATCH).all()
    total = np.zeros((4, *raw[0].shape))
    weight = np.zeros(raw[0].shape)
    importance = np.ones(())
    for size in PATCH:
        centred = (np.arange(size) - (size - 1) / 2) / (0.125 * size)
        importance = np.multiply.outer(importance, np.exp(-(centred**2) / 2))
    importance = np.maximum(importance, 1e-3)
    model = network.double().eval()
    offsets = [starts(b - a, size) for a, b, size in zip(low, high, PATCH, strict=True)]
    for corner in np.stack(np.meshgrid(*offsets), -1).reshape(-1, 3) + low:
        window = tuple(slice(a, a + size) for a, size in zip(corner, PATCH, strict=True))
        with torch.inference_mode():
            logits = model(torch.from_numpy(image[(slice(None), *window)])[None])
        total[(slice(None), *window)] += torch.softmax(logits, 1)[0].numpy() * importance
        weight[window] += importance
    total[0, weight == 0] = 1
    return total / np.where(weight > 0, weight, 1)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("backend", ["openvino", "ort"])
def test_label_maps_are_those_of_the_tutorials_network_run_by_hand(
    said: tuple[Path, list[str]], data: Path, tmp_path: Path, number: int, backend: str
) -> None:
    case = f"BraTSPhantom_{number:04d}"
    options = ["--model", str(said[0]), "-o", str(tmp_path), "--threads", "1", "--quiet"]
    assert infer([str(data / case), "--backend", backend, *options]) == 0
    found = np.asarray(nib.load(tmp_path / f"{case}_seg.nii.gz").dataobj)
    probabilities = by_hand(segmenting(), data / case)
    expected = np.array([0, 1, 2, 4])[probabilities.argmax(0)]
    assert all((expected == label).sum() > 30 for label in (0, 1, 2, 4))
    ranked = np.sort(probabilities, 0)
    # Arithmetic decides a tie; there is hardly one.
    tied = ranked[-1] - ranked[-2] < 1e-5
    assert tied.sum() <= 2
    np.testing.assert_array_equal(found[~tied], expected[~tied])


@torch.no_grad()
def mistaken(network: Tutorial, mistake: str) -> Tutorial:
    if mistake == "the deepest level says nothing":
        norm = network.deconv_blk4.deconv[1]
        norm.weight.zero_()
        norm.bias.zero_()
    elif mistake == "skip before what comes up":
        network.dec_conv_blk1.conv1[0].weight.copy_(
            network.dec_conv_blk1.conv1[0].weight.roll(8, 1)
        )
    elif mistake == "residual before the ReLU":
        network.conv_blk1.forward = lambda x: network.conv_blk1.conv2[2](
            network.conv_blk1.conv2[:2](network.conv_blk1.conv1(x))
            + network.conv_blk1.residual_upsampler(x)
        )
    return network


@pytest.mark.parametrize(
    "mistake",
    ["the deepest level says nothing", "skip before what comes up", "residual before the ReLU"],
)
def test_these_label_maps_would_show_a_mistake(data: Path, mistake: str) -> None:
    """Equality of label maps, as above, says something of every level."""
    case_dir = data / "BraTSPhantom_0001"
    right = by_hand(segmenting(), case_dir).argmax(0)
    wrong = by_hand(mistaken(segmenting(), mistake), case_dir).argmax(0)
    assert (wrong != right).sum() > 20


# --- files that are something else --------------------------------------------------------------


def message_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


Captured = pytest.CaptureFixture[str]


def test_without_the_flag_a_tutorials_checkpoint_is_recognised(
    file: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "model"
    assert exported(file, "-o", out) == 3
    said = message_of(capsys)
    assert "looks like a checkpoint of the published tutorial" in said
    assert "brats-export --from tutorial" in said
    assert not out.exists()
    bare = tmp_path / "bare.pth"
    torch.save({f"module.{name}": one for name, one in segmenting().state_dict().items()}, bare)
    with pytest.raises(InputError, match="--from tutorial"):
        load_checkpoint(bare)


def test_with_the_flag_our_own_checkpoint_is_recognised(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert exported(tiny_checkpoint, "--from", "tutorial", "-o", tmp_path / "model") == 3
    said = message_of(capsys)
    assert "found a checkpoint of brats-train" in said
    assert "drop --from tutorial" in said


def test_a_truncated_checkpoint_loses_nothing(
    said: tuple[Path, list[str]], file: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = Path(shutil.copytree(said[0], tmp_path / "model"))
    before = bytes_of(tmp_path)
    for size in (0, 100, file.stat().st_size // 2, file.stat().st_size - 1):
        cut = tmp_path.with_name(f"{tmp_path.name}-cut-{size}.pth")
        cut.write_bytes(file.read_bytes()[:size])
        assert exported(cut, "--from", "tutorial", "-o", out) == 3
        assert f"{cut}: found an unreadable file (truncated" in message_of(capsys)
    assert bytes_of(tmp_path) == before


def test_code_beside_the_weights_is_refused_with_a_remedy(tmp_path: Path, capsys: Captured) -> None:
    path, mark = tmp_path / "x.pth", tmp_path / "mark"
    saved(segmenting(), path, callbacks=[Runs(mark)])
    for flags in ((), ("--from", "tutorial")):
        assert exported(path, *flags, "-o", tmp_path / "model") == 3
        said = message_of(capsys)
        assert "more than tensors and strings (posix.system)" in said
        assert ("save its weights alone" in said) == bool(flags)
    assert not mark.exists()
    assert not (tmp_path / "model").exists()


def changed(tmp_path: Path, **change: Any) -> Path:
    """A checkpoint with other weights under some names; None drops one."""
    state: dict[str, Any] = {**segmenting().state_dict(), **change}
    kept = {name: one for name, one in state.items() if one is not None}
    torch.save({"model_state_dict": kept}, tmp_path / "x.pth")
    return tmp_path / "x.pth"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"dec_conv_blk2.conv1.1.running_var": None},
            "(missing: dec_conv_blk2.conv1.1.running_var)",
        ),
        ({"conv_blk5.conv1.0.weight": None}, "missing: conv_blk5.conv1.0.weight"),
        (
            {"attention.psi.weight": torch.ones(1), "attention.psi.bias": torch.ones(1)},
            "(unknown: attention.psi.weight, attention.psi.bias)",
        ),
        (
            {"conv_blk2.residual_upsampler.weight": torch.ones(8, 8, 1, 1, 1)},
            "(unknown: conv_blk2.residual_upsampler.weight)",
        ),
        (
            {"conv_blk3.residual_upsampler.weight": None},
            "(missing: conv_blk3.residual_upsampler.weight)",
        ),
        (
            {"deconv_blk4.deconv.0.weight": torch.ones(14, 12, 3, 3, 3)},
            "(of another shape: deconv_blk4.deconv.0.weight is 14x12x3x3x3 instead of 14x12x2x2x2)",
        ),
        (
            {"conv_blk2.conv1.0.weight": torch.ones(0, 8, 3, 3, 3)},
            "conv_blk2.conv1.0.weight is 0x8x3x3x3 instead of 32x8x3x3x3",
        ),
        (
            {"conv_blk1.conv1.1.num_batches_tracked": torch.ones(3)},
            "conv_blk1.conv1.1.num_batches_tracked is 3 instead of a single number of int64",
        ),
        (
            {"conv_blk1.conv1.1.bias": [1.0] * 8},
            "conv_blk1.conv1.1.bias is a list instead of 8",
        ),
        (
            {"conv_blk1.conv1.1.bias": torch.ones(8, dtype=torch.int32)},
            "conv_blk1.conv1.1.bias is 8 of int32 instead of 8",
        ),
        (
            {
                "final_conv.weight": torch.ones(3, 8, 1, 1, 1),
                "final_conv.bias": torch.ones(3),
            },
            "a network of 3 classes for 4 labels",
        ),
    ],
)
def test_another_architecture_is_named_by_what_differs(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_tutorial(changed(tmp_path, **change))
    assert said in caught.value.found
    assert "brats-train --config tutorial" in caught.value.remedy


def test_a_network_that_is_no_tutorials_is_named_by_its_first_keys(
    tmp_path: Path, capsys: Captured
) -> None:
    torch.save({"model_state_dict": Architecture().build().state_dict()}, tmp_path / "x.pth")
    assert exported(tmp_path / "x.pth", "--from", "tutorial", "-o", tmp_path / "model") == 3
    said = message_of(capsys)
    assert (
        "weights of another architecture (missing: conv_blk1.conv1.0.weight, "
        "conv_blk1.conv1.1.weight and 140 more; unknown: encoder.0.conv1.weight, "
        "encoder.0.bn1.weight and 112 more), expected a checkpoint of the published tutorial; "
    ) in said
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("value", [{}, {"model_state_dict": 3}, {"epoch": 1}, [torch.ones(1)]])
def test_a_file_without_weights_says_so(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(InputError, match="without weights under model_state_dict"):
        load_tutorial(tmp_path / "x.pth")


def test_our_own_checkpoint_of_another_architecture_names_the_keys(
    tmp_path: Path, capsys: Captured
) -> None:
    state = Architecture(features=(4, 8), dropout=0.0).build().state_dict()
    card = ModelCard("x", patch=(16, 16, 16), divisor=2)
    path = tmp_path / "x.pt"
    save_checkpoint(path, Checkpoint(state, Architecture(features=(4, 16)), card, epoch=1))
    assert exported(path, "-o", tmp_path / "model") == 3
    said = message_of(capsys)
    assert (
        "weights that do not fit the architecture beside them (of another shape: "
        "encoder.1.conv1.weight is 8x4x3x3x3 instead of 16x4x3x3x3, encoder.1.bn1.weight is 8 "
        "instead of 16 and "
    ) in said
    residual = Architecture(features=(4, 8), residual=True)
    save_checkpoint(path, Checkpoint(state, residual, card, epoch=1))
    assert exported(path, "-o", tmp_path / "model") == 3
    assert (
        "(missing: encoder.0.shortcut.weight, encoder.1.shortcut.weight and 1 more)"
        in message_of(capsys)
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--channels", "flair,t1,t1ce,t2"), "--channels: found a checkpoint of brats-train"),
        (("--patch", "32,32,32"), "--patch: found a checkpoint of brats-train"),
        (("--from", "tutorial", "--channels", "flair,t1,t1,t2"), "--channels: found channels"),
        (("--from", "tutorial", "--channels", "flair,t1"), "each of the 4 channels"),
        (("--from", "tutorial", "--patch", "32,32,8"), "--patch: found 32,32,8, expected multip"),
    ],
)
def test_flags_that_do_not_suit_the_checkpoint_are_usage_errors(
    file: Path, tmp_path: Path, capsys: Captured, flags: tuple[str, ...], said: str
) -> None:
    assert exported(file, *flags, "-o", tmp_path / "model") == 2
    assert said in message_of(capsys)


def test_the_flag_needs_a_checkpoint_and_not_a_model(
    said: tuple[Path, list[str]], tmp_path: Path, capsys: Captured
) -> None:
    assert exported("--from", "tutorial", "-o", tmp_path / "model") == 2
    assert "name it: brats-export best_model.pth --from tutorial" in message_of(capsys)
    assert exported(said[0], "--from", "tutorial") == 2
    assert "--from tutorial: found the model directory" in message_of(capsys)
    assert exported(tmp_path, "--from", "tutorial", "-o", tmp_path / "model") == 3
    assert "found a folder" in message_of(capsys)
