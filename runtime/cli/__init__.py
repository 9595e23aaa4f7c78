"""Command lines: each function is the entry point of one command and returns its exit code.

Nothing is imported before Ctrl-C would be caught: what a command needs takes from tenths of a
second to several to import.
"""


def infer() -> int:
    """brats-infer."""
    return command("runtime.cli.infer")


def evaluate() -> int:
    """brats-eval."""
    return command("runtime.cli.evaluate")


def phantom() -> int:
    """brats-phantom."""
    return command("runtime.cli.phantom")


def app() -> int:
    """brats-app."""
    return command("runtime.cli.app")


def command(module: str) -> int:
    """Import a command's module, run its ``main``, and return the exit code.

    Ctrl-C while libraries are imported or arguments read, when nothing else is there to catch it,
    ends with one word and 130, as at any later time.
    """
    try:
        from importlib import import_module

        code: int = import_module(module).main()
        return code
    except SystemExit:
        raise
    except BaseException as error:
        import sys

        from runtime.cli.events import tell_interrupted
        from runtime.errors import EXIT_INTERRUPTED, interrupted

        if not interrupted(error):
            raise
        as_json = any(one.replace("_", "-").startswith("--log-json") for one in sys.argv[1:])
        tell_interrupted(as_json)
        return EXIT_INTERRUPTED
