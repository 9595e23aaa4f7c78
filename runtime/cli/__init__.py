"""Command lines: each function is the entry point of one command and returns its exit code."""

from importlib import import_module

from runtime.errors import EXIT_INTERRUPTED


def infer() -> int:
    """brats-infer."""
    return _main("runtime.cli.infer")


def evaluate() -> int:
    """brats-eval."""
    return _main("runtime.cli.evaluate")


def phantom() -> int:
    """brats-phantom."""
    return _main("runtime.cli.phantom")


def app() -> int:
    """brats-app."""
    return _main("runtime.cli.app")


def _main(module: str) -> int:
    try:
        code: int = import_module(module).main()
    except KeyboardInterrupt:
        # While libraries are imported or arguments read, nothing else is there to catch it.
        return EXIT_INTERRUPTED
    return code
