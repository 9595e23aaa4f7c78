"""How much a run measures: the standard run, or `--quick` for a look at a change."""

from dataclasses import dataclass
from typing import Final, Literal

from runtime.model_card import Shape3


@dataclass(frozen=True)
class Scale:
    """What a run without --data and --checkpoint takes, and how often.

    Attributes:
        name: stands in every figure's record; only those of "standard" become results.
        rounds: times each figure is taken; what is short or wavers is taken oftener.
        read_rounds: times a case is read.
        load_batches: batches per round of the training loader.
        steps: training steps per round.
        cohort_stub, cohort_real: cases of a cohort with a network of 50 ms and with the real one.
        phantom: (X, Y, Z) of the case that is made where there is no data.
        overlap_phantom: of that on which overlaps are told apart.
        features, patch: of the network with random weights that is made where there is none.
        thorough: also the peers and points that cost most.
    """

    name: Literal["standard", "quick"]
    rounds: int
    read_rounds: int
    load_batches: int
    steps: int
    cohort_stub: int
    cohort_real: int
    phantom: Shape3
    overlap_phantom: Shape3
    features: tuple[int, ...]
    patch: Shape3
    thorough: bool


# A MONAI pass of the reference network over the full volume of a real case takes over a minute, and
# there are ten peers: the phantom is cut so that the brain box has four windows, two along y and z,
# and the volume twice as many, as those of a real case have 16 and 36. Those four are the same at
# every overlap up to a half: for overlaps there is a long, narrow phantom, whose box is one window
# wide and 3, 4, 5 and 8 windows long at an overlap of 0, a quarter, a half and three quarters.
STANDARD: Final = Scale(
    name="standard",
    rounds=2,
    read_rounds=15,
    load_batches=4,
    steps=1,
    cohort_stub=16,
    cohort_real=2,
    phantom=(160, 192, 96),
    overlap_phantom=(144, 144, 192),
    features=(16, 32, 64, 128, 256),
    patch=(128, 128, 64),
    thorough=True,
)
QUICK: Final = Scale(
    name="quick",
    rounds=2,
    read_rounds=5,
    load_batches=2,
    steps=1,
    cohort_stub=8,
    cohort_real=2,
    phantom=(96, 96, 80),
    overlap_phantom=(80, 80, 144),
    features=(8, 16, 32, 64, 128),
    patch=(64, 64, 48),
    thorough=False,
)
