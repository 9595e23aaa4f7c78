"""Where brats-export begins: `export.cli` takes a while to import, in which Ctrl-C may come."""

from runtime.cli import command


def main() -> int:
    """Entry point of the installed command; returns the exit code."""
    return command("export.cli")
