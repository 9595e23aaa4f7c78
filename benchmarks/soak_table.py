"""Write the figures of `make soak` into RESULTS.md: `python -m benchmarks.soak_table SOAK_JSON`.

Only what was run in full is written; a bar that was not met is shown as such.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_page import RESULTS, replace_block, table

Bar = dict[str, Any]
Row = tuple[str, str, str]
"""What was done, what was asked for, what was found."""

HEAD = ("bar", "done", "asked for", "found", "met", "s")


def _verdicts(counts: dict[str, int], kind: str) -> str:
    """Refused, harmless and the like, of one kind of damage."""
    found = {name.split()[1]: count for name, count in counts.items() if name.startswith(kind)}
    return ", ".join(f"{found[name]} {name}" for name in sorted(found)) or "none"


def bit_flips(bar: Bar) -> Row:
    found = [
        f"{name}: {sum(counts.get(f'{kind} silent', 0) for kind in ('flips', 'cuts'))} silent "
        f"(flips {_verdicts(counts, 'flips')}; cuts {_verdicts(counts, 'cuts')})"
        for name, counts in bar["readers"].items()
    ]
    found += [f"{name}: not installed" for name in bar["absent"]]
    done = f"{bar['flips']} bits flipped, {bar['cuts']} cuts of one .nii.gz ({bar['file']})"
    return done, "0 silently taken for another image", "<br>".join(found)


def headers(bar: Bar) -> Row:
    counts = ", ".join(f"{count} {name}" for name, count in bar["results"].items())
    found = f"{counts}; slowest {bar['slowest_s']:.3f} s, largest {bar['peak_mib']:.1f} MiB"
    return f"{bar['files']} headers mutated", "our errors or a valid volume, 1 s, 512 MB", found


def bombs(bar: Bar) -> Row:
    one, heavy = bar["bombs"], bar["heavy"]
    found = (
        f"{one['results'].get('refused', 0)} refused, slowest {one['slowest_s']:.3f} s, largest "
        f"{one['peak_mib']:.1f} MiB; heavy but sound: slowest {heavy['slowest_s']:.3f} s, largest "
        f"{heavy['peak_mib']:.1f} MiB"
    )
    done = f"{sum(one['results'].values())} bombs, {sum(heavy['results'].values())} heavy files"
    return done, "bombs refused in 0.1 s", found


def kills(bar: Bar) -> Row:
    found = (
        f"{len(bar['torn'])} torn, {len(bar['differing'])} other files after the resume, "
        f"{len(bar['done_twice'])} done twice, {len(bar['left_after_resume'])} left over "
        f"({bar['kills_that_left_temporary_files']} kills had left temporary files)"
    )
    done = (
        f"{bar['kills']} kills at random moments of {bar['lives']} runs over {bar['cases']} cases"
    )
    return done, "0 torn, resumed byte-identical, none done twice", found


def cohort_kills(bar: Bar) -> Row:
    found = (
        f"{len(bar['torn'])} torn, {len(bar['differing'])} files that differ, "
        f"{len(bar['done_twice'])} cases done twice, {len(bar['left_after_resume'])} left over "
        f"({bar['kills_that_left_temporary_files']} kills had left temporary files), "
        f"{len(bar['locked'])} locks left, {len(bar['still_running'])} processes left (all ended "
        f"{bar['others_ended_after_s']:.2f} s after the first at the latest)"
    )
    ways = ", ".join(f"{count} {way}" for way, count in bar["kills_by_way"].items())
    done = f"SIGKILL to a cohort of {bar['cases']} cases {bar['kills']} times ({ways})"
    return done, "resumed: all as of a run left alone, but for times", found


def faults(bar: Bar) -> Row:
    calls = ", ".join(f"{count} {name}" for name, count in sorted(bar["operations"].items()))
    found = (
        f"{len(bar['partial'])} partial, {len(bar['untrue'])} sidecars untrue, "
        f"{len(bar.get('lost', []))} earlier results lost, "
        f"{len(bar['wrong_codes'])} wrong exit codes, {len(bar['not_recovered'])} not recovered"
    )
    done = f"ENOSPC, EIO or kill at {bar['faults']} calls ({calls})"
    return done, "the old file or the new one, never partial", found


def non_finite(bar: Bar) -> Row:
    found = f"{len(bar['missed'])} missed, {bar['masks']} masks"
    return f"{bar['runs']} runs", "all detected, 0 masks", found


def leaks(bar: Bar) -> Row:
    found = (
        f"{bar['growth_mib']:+.1f} MiB, descriptors {bar['descriptors']:+d}, threads "
        f"{bar['threads']:+d}, temporary files {bar['temporary_files']:+d}"
    )
    return f"{bar['cases']} cases in one process", "at most 20 MB more, nothing else", found


def flat(bar: Bar) -> Row:
    first, last = bar["from_case"], bar["from_case"] + bar["cases"]
    _, _, found = leaks(bar)
    resident = f"{bar['resident_before_mib']:.1f} to {bar['resident_mib']:.1f} MiB resident"
    peak = f"peak, tables included, {bar['peak_growth_mib']:+.1f} MiB"
    return (
        f"a cohort in one process from its case {first} to its case {last}",
        "at most 20 MB more, nothing else",
        f"{resident}: {found}; {peak}",
    )


def control(bar: Bar) -> Row:
    done, _, found = leaks(bar)
    return done, "must be seen as a leak", found


def names(bar: Bar) -> Row:
    raw = len(bar["raw_on_stderr"]) + len(bar["raw_in_files"]) + len(bar["unescaped"])
    found = (
        f"{len(bar['outside'])} changes outside, {len(bar['crashed'])} tracebacks, {raw} raw in "
        f"messages or files, {bar['links_replaced']} links replaced"
    )
    done = f"{bar['names']} hostile names, {bar['runs']} runs"
    return done, "nothing written outside of the output folder", found


def models(bar: Bar) -> Row:
    parts = ", ".join(f"{file} {count}" for file, count in bar["files"].items())
    done = f"{bar['mutations']} mutations of each of {len(bar['files'])} model files"
    return done, "all refused before a parser runs", f"refused: {parts}"


def _together(bars: dict[str, Bar]) -> dict[str, Bar]:
    """The bars of the model's files as one."""
    parts = [bars[name] for name in sorted(bars) if name.startswith("models_")]
    if not parts:
        return bars
    whole = parts[0] | {
        "met": all(part["met"] for part in parts),
        "full": all(part["full"] for part in parts),
        "seconds": sum(part["seconds"] for part in parts),
        "files": {part["file"]: part["refused"] for part in parts},
    }
    return {name: bar for name, bar in bars.items() if not name.startswith("models_")} | {
        "models": whole
    }


ROWS: dict[str, tuple[str, Callable[[Bar], Row]]] = {
    "bit_flips": ("damaged images", bit_flips),
    "headers": ("hostile headers", headers),
    "bombs": ("bombs", bombs),
    "kills": ("kills", kills),
    "cohort_kills": ("kills of a whole cohort", cohort_kills),
    "ray_kills": ("kills of a cohort on Ray", cohort_kills),
    "faults_shim": ("faults in Python's calls", faults),
    "faults_strace": ("faults in system calls", faults),
    "non_finite_input": ("NaN and Inf in images", non_finite),
    "non_finite_network": ("NaN and Inf from a network", non_finite),
    "non_finite_weights": ("weights that overflow, ONNX Runtime", non_finite),
    "non_finite_weights_openvino": ("weights not finite, OpenVINO", non_finite),
    "leaks": ("a cohort", leaks),
    "leaks_from_20": ("a cohort, early to late", flat),
    "leaks_commands": ("commands in one process", leaks),
    "leak_control_object": ("control: an object kept", control),
    "leak_control_descriptor": ("control: a descriptor kept", control),
    "leak_control_thread": ("control: a thread kept", control),
    "leak_control_file": ("control: a file kept", control),
    "models": ("models", models),
    "names": ("hostile names", names),
}


def soak(bars: dict[str, Bar]) -> str:
    """The table, and where it was measured.

    Raises:
        ValueError: a bar was run in its short form.
    """
    bars = _together(bars)
    short = [name for name, bar in bars.items() if not bar["full"]]
    if short:
        raise ValueError(f"not run in full: {', '.join(short)}")
    rows = []
    for name, (title, row) in ROWS.items():
        if name in bars:
            bar = bars[name]
            met = "yes" if bar["met"] else "**no**"
            rows.append([title, *row(bar), met, f"{bar['seconds']:.0f}"])
    places: dict[str, list[str]] = {}
    for name, (title, _) in ROWS.items():
        if name in bars:
            places.setdefault(_place(bars[name]), []).append(title)
    # The place of most rows comes last, for all that is not named before.
    *few, most = sorted(places, key=lambda place: len(places[place]))
    told = [f"{', '.join(places[place])}: {place}" for place in few]
    told.append(f"All others: {most}" if few else most)
    return "\n\n".join([table(HEAD, rows), *(one[0].upper() + one[1:] for one in told)])


def _place(bar: Bar) -> str:
    return (
        f"{bar['processor']}, {bar['cores']} cores, Python {bar['python']}; {bar['date']}, "
        f"commit {bar['commit'][:10]}."
    )


def main(args: Sequence[str]) -> None:
    """Fill the block from the file that BRATS_SOAK_JSON named."""
    bars = json.loads(Path(args[0]).read_text())
    RESULTS.write_text(replace_block(RESULTS.read_text(), "soak", soak(bars)))
    for name in _together(bars).keys() - ROWS.keys():
        print(f"no row for {name}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
