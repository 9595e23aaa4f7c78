"""The average of the weights against its closed form, and what is served with it."""

import pytest
import torch

from runtime.errors import ComputeError
from train.average import WeightAverage
from train.checkpoint import Architecture
from train.config import TrainConfig
from train.device import Compute
from train.patches import Batch
from train.step import Stepper
from train.unet import UNet3D

SMALL = Architecture(features=(4, 8), dropout=0.0)


def _set(network: UNet3D, value: float) -> None:
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(value)


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_average_has_its_closed_form(decay: float) -> None:
    network = SMALL.build()
    average = WeightAverage(network, decay)
    expected = 0.0
    for step in range(12):
        value = float(step * step)
        _set(network, value)
        average.update(network)
        kept = 0.0 if step == 0 else min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * value
        state = average.network.state_dict()
        assert float(state["head.weight"].flatten()[0]) == pytest.approx(expected, rel=1e-5)
        assert float(state["encoder.0.bn1.running_var"][0]) == pytest.approx(expected, rel=1e-5)
        assert int(state["encoder.0.bn1.num_batches_tracked"]) == step * step


def test_an_average_goes_on_from_its_state() -> None:
    networks = [SMALL.build(seed) for seed in range(6)]
    whole = WeightAverage(networks[0], 0.8)
    for network in networks:
        whole.update(network)
    first = WeightAverage(networks[0], 0.8)
    for network in networks[:3]:
        first.update(network)
    second = WeightAverage(SMALL.build(99), 0.8)
    second.load_state(first.state())
    for network in networks[3:]:
        second.update(network)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], tensor), name


def _batch(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(count, 4, 8, 8, 8, generator=generator),
        torch.randint(0, 4, (count, 8, 8, 8), generator=generator).to(torch.uint8),
        torch.arange(count),
    )


def _stepper(network: UNet3D, **options: float) -> Stepper:
    config = TrainConfig(**options)  # type: ignore[arg-type]
    return Stepper(network, config, Compute(torch.device("cpu"), None))


def test_the_average_is_served_and_a_skipped_step_is_not_averaged() -> None:
    network = SMALL.build()
    stepper = _stepper(network, ema=0.5)
    assert stepper.served is not network
    stepper.step(_batch(2), 1e-2)
    stepper.step(_batch(2, 1), 1e-2)
    before = stepper.served.head.weight.clone()
    assert not torch.equal(before, network.head.weight)
    bad = _batch(2)
    bad.voxels[0] = float("inf")
    assert stepper.step(bad, 1e-2) is None
    assert torch.equal(stepper.served.head.weight, before)
    assert _stepper(network).served is network


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    """With the cross-entropy, which is a mean over voxels, and statistics that stand still."""
    states = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        network = SMALL.build()
        for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d)):
            norm.eval()
            norm.train = lambda mode=True, norm=norm: norm  # type: ignore[method-assign, misc, assignment]
        stepper = _stepper(
            network, batch=batch, accumulate=accumulate, cross_entropy=1.0, dice=0.0, clip=0.0
        )
        losses = [stepper.step(_batch(4, seed), 1e-3) for seed in range(4)]
        states.append((losses, network.state_dict()))
    for losses, state in states[1:]:
        assert losses == pytest.approx(states[0][0], rel=1e-5)
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, states[0][1][name], rtol=0, atol=2e-6, msg=name)


def test_dropout_is_a_function_of_the_patch() -> None:
    def trained(seeds: list[int]) -> torch.Tensor:
        network = Architecture(features=(8, 16), dropout=0.5).build()
        torch.manual_seed(sum(seeds))
        batch = _batch(1)._replace(seeds=torch.tensor(seeds))
        _stepper(network).step(batch, 1e-2)
        return network.head.weight.detach().clone()

    assert torch.equal(trained([5]), trained([5]))
    assert not torch.equal(trained([5]), trained([6]))


def test_a_step_that_cannot_be_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class InductorError(RuntimeError):
        __module__ = "torch._inductor.exc"

    def failing(*_: object) -> torch.Tensor:
        raise InductorError("no working C++ compiler\nand a page about it")

    monkeypatch.setattr(torch, "compile", lambda _: failing)
    stepper = _stepper(SMALL.build(), compile=True)
    with pytest.raises(ComputeError, match=r"cannot make \(no working C\+\+ compiler\)"):
        stepper.step(_batch(2), 1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile's own imports
def test_a_compiled_step_is_the_same_step() -> None:
    states = []
    for compiled in (False, True):
        network = SMALL.build()
        stepper = _stepper(network, compile=compiled)
        losses = [stepper.step(_batch(2, seed), 1e-3) for seed in range(3)]
        states.append((losses, network.state_dict()))
    assert states[1][0] == pytest.approx(states[0][0], rel=1e-4)
    assert states[1][1].keys() == states[0][1].keys()
    for name, tensor in states[0][1].items():
        # Adam makes of a gradient's rounding at most a step of the learning rate.
        torch.testing.assert_close(states[1][1][name], tensor, rtol=0, atol=6e-3, msg=name)
