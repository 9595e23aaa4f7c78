"""What many cases' scores come to: mean, median, deviation, and how sure the mean is."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.metrics import SCORED, Profile, Scores

_AT_ONCE: Final = 1000


@dataclass(frozen=True)
class Bootstrap:
    """How the interval of a mean is found: the percentile bootstrap over cases (Efron 1979).

    Attributes:
        resamples: each draws as many cases as there are, with replacement, and takes their mean.
        level: of the interval, whose ends are the (1 - level) / 2 quantiles of those means.
        seed: of the draws; one seed gives one interval.
    """

    resamples: int = 10_000
    level: float = 0.95
    seed: int = 0


BOOTSTRAP: Final = Bootstrap()


def summarise(
    cases: Mapping[str, Mapping[str, Scores]], bootstrap: Bootstrap = BOOTSTRAP
) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean, median, standard deviation and interval of the mean over cases.

    Args:
        cases: case id to what `runtime.metrics.score_case` gave.
        bootstrap: how the interval is found.

    Returns:
        ``{scored: {metric: {"mean", "median", "std", "interval", "cases"}}}``: floats; std is the
        population's; interval is ``[low, high]``, None for a single case, which says nothing of
        others; cases counts those that have the figure. A figure that no case has is left out.
        Empty without cases.
    """
    if not cases:
        return {}
    columns: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    for name in SCORED:
        rows = [scores[name].figures() for scores in cases.values()]
        for metric in rows[0]:
            found = [figure for row in rows if (figure := row[metric]) is not None]
            if found:
                columns[name, metric] = np.array(found, np.float64)
    intervals = _intervals(columns, bootstrap)
    summary: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in SCORED}
    for (name, metric), values in columns.items():
        summary[name][metric] = {
            "mean": float(values.mean()),
            "median": float(np.median(values)),
            "std": float(values.std()),
            "interval": intervals[name, metric],
            "cases": values.size,
        }
    return summary


def to_json(
    profile: Profile,
    cases: Mapping[str, Mapping[str, Scores]],
    bootstrap: Bootstrap = BOOTSTRAP,
) -> dict[str, Any]:
    """What `brats-eval --json` writes: ``{profile, cases{id:{region:{dice, ...}}}, summary,
    bootstrap}``.
    """
    return {
        "profile": profile.name,
        "cases": {
            case_id: {name: one.figures() for name, one in scores.items()}
            for case_id, scores in cases.items()
        },
        "summary": summarise(cases, bootstrap),
        "bootstrap": asdict(bootstrap),
    }


def bootstrap_interval(
    values: npt.NDArray[np.float64], bootstrap: Bootstrap = BOOTSTRAP
) -> npt.NDArray[np.float64]:
    """The interval of each column's mean.

    Args:
        values: float64 (cases, columns); the columns of one draw come from the same cases.
        bootstrap: how it is found.

    Returns:
        float64 (2, columns): low and high.
    """
    count = len(values)
    generator = np.random.default_rng(bootstrap.seed)
    means = []
    # How often each case is drawn is multinomial: one product instead of gathering every draw.
    for first in range(0, bootstrap.resamples, _AT_ONCE):
        draws = min(_AT_ONCE, bootstrap.resamples - first)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=draws)
        means.append(drawn @ values / count)
    ends = (50 * (1 - bootstrap.level), 50 * (1 + bootstrap.level))
    found: npt.NDArray[np.float64] = np.percentile(np.concatenate(means), ends, axis=0)
    return found


def _intervals(
    columns: Mapping[tuple[str, str], npt.NDArray[np.float64]], bootstrap: Bootstrap
) -> dict[tuple[str, str], list[float] | None]:
    """Columns of one length are drawn together."""
    found: dict[tuple[str, str], list[float] | None] = {}
    for size in {values.size for values in columns.values()}:
        names = [name for name, values in columns.items() if values.size == size]
        if size == 1:
            found |= dict.fromkeys(names)
            continue
        low, high = bootstrap_interval(np.stack([columns[name] for name in names], 1), bootstrap)
        found |= {name: [low[i].item(), high[i].item()] for i, name in enumerate(names)}
    return found
