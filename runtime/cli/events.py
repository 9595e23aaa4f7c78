"""Log events: one JSON object per line."""

import json
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from runtime.errors import EXIT_INTERRUPTED, BratsError

Level = Literal["info", "warning", "error"]


def log_event(level: Level, event: str, **facts: Any) -> None:
    """Write one event as a line of JSON: ``time`` (UTC), ``level``, ``event``, then ``facts``.

    JSON escapes line breaks and everything else that a file's name may hold, so that no name makes
    a line of its own.
    """
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": stamp, "level": level, "event": event, **facts}, allow_nan=False)
    print(line, file=sys.stderr, flush=True)


def log_error(error: BratsError) -> None:
    """The event of an error that ends a command."""
    log_event("error", "failed", exit_code=error.exit_code, **parts_of(error))


def tell_interrupted(as_json: bool) -> None:
    """The last word of a command that Ctrl-C ended: an event, or that word alone."""
    if as_json:
        log_event("error", "interrupted", exit_code=EXIT_INTERRUPTED)
    else:
        print("interrupted", file=sys.stderr, flush=True)


def parts_of(error: BratsError) -> dict[str, Any]:
    """An error taken apart."""
    return {
        "kind": type(error).__name__,
        "where": error.where,
        "found": error.found,
        "expected": error.expected,
        "remedy": error.remedy,
    }
