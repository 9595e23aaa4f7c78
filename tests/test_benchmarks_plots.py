"""The pictures of RESULTS.md show what was measured: it is looked for in their pixels."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage

from benchmarks import plots
from tests.run_records import PEER, modes_of, run_of, stages_of, together

Pixels = npt.NDArray[np.bool_]
SWATCH = 60
"""Pixels that a colour in a legend is never wide."""


def _pixels(picture: bytes, colour: str) -> Pixels:
    """Where a picture has exactly this colour, rows from the top."""
    with Image.open(io.BytesIO(picture)) as image:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        found: Pixels = (np.asarray(image.convert("RGB")) == wanted).all(axis=-1)
    return found


def _bars(picture: bytes, colour: str) -> list[int]:
    """Lengths of the bars of a colour, from the top."""
    rows = _pixels(picture, colour).sum(axis=1)
    groups, count = ndimage.label(rows > SWATCH)
    return [int(rows[groups == number].max()) for number in range(1, count + 1)]


def _dots(picture: bytes, colour: str) -> list[tuple[float, float]]:
    """Centres (x, y from below) of the discs of a colour, from the left; letters fill less."""
    pixels = _pixels(picture, colour)
    groups, _ = ndimage.label(pixels)
    centres = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(groups), 1):
        disc = groups[rows, columns] == number
        if np.count_nonzero(disc) > 80 and disc.mean() > 0.7:
            y, x = (0.5 * (one.start + one.stop) for one in (rows, columns))
            centres.append((x, pixels.shape[0] - y))
    return sorted(centres)


def test_bars_of_stages_are_as_long_as_they_took() -> None:
    run = together(run_of(stages_of("cold", 3.0), 3.0), run_of(stages_of("warm", 2.0), 2.0))
    picture = plots.stages(run)
    cold, warm = _bars(picture, plots.STAGE["infer"])
    assert cold / warm == pytest.approx(1.5, rel=0.02)
    # Beside the network 50 and 20 ms are too short; below, without it, they are seen.
    decode, save = (_bars(picture, plots.STAGE[name]) for name in ("decode", "save"))
    assert len(decode) == len(save) == 2
    assert np.divide(decode, save) == pytest.approx([2.5, 2.5], rel=0.03)
    assert _bars(picture, plots.STAGE["gather"]) == []


def _ratios(*medians: tuple[str, float]) -> dict[str, Any]:
    found = [
        {"input": where, "ratio_median": one, "ratio_min": 0.9 * one, "ratio_max": 1.1 * one}
        for where, one in medians
    ]
    return together(*(run_of(PEER | one, 1.0) for one in found))


def test_bars_of_peers_are_as_long_as_their_ratios() -> None:
    picture = plots.peers(_ratios(("volume", 9.0), ("box", 3.0), ("volume", 6.0)))
    (box,) = _bars(picture, plots.BOX)
    longer, shorter = _bars(picture, plots.VOLUME)
    assert [longer / box, shorter / box] == pytest.approx([3, 2], rel=0.03)


def test_a_line_over_a_bar_is_the_range_of_rounds_and_of_one_there_is_none() -> None:
    run = _ratios(("volume", 9.0))
    (record,) = run["benchmarks"]

    def crossed() -> int:
        """How much of the bar is drawn over."""
        pixels = _pixels(plots.peers(run), plots.VOLUME)
        rows = pixels.sum(axis=1)
        return int(rows.max() - rows[rows > SWATCH].min())

    with_range = crossed()
    record["extra_info"] |= {"rounds": 1}
    # A tenth of the bar's length below its end, against the dotted line at 1.
    assert with_range > 40 > crossed()


def test_dots_of_modes_lie_at_their_seconds_and_dice() -> None:
    picture = plots.modes(run_of(modes_of(truth=True), 1.0))
    places = {name: _dots(picture, colour) for name, colour in plots.REGION.items()}
    assert {name: len(dots) for name, dots in places.items()} == {"WT": 2, "TC": 2, "ET": 2}
    across, up = (
        np.array([[dot[axis] for dot in dots] for dots in places.values()]) for axis in (0, 1)
    )
    # Each mode at its own seconds, the slower one to the right; Dice falls by 0.1 a region.
    assert np.ptp(across, axis=0) == pytest.approx([0, 0], abs=2)
    assert (across[:, 1] - across[:, 0] > 200).all()
    steps = -np.diff(up, axis=0)
    assert steps.min() > 50
    assert steps == pytest.approx(np.full((2, 2), steps.mean()), abs=3)
