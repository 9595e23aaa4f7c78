"""Command lines: each function is the entry point of one command and returns its exit code."""


def infer() -> int:
    """brats-infer."""
    from runtime.cli.infer import main

    return main()


def evaluate() -> int:
    """brats-eval."""
    from runtime.cli.evaluate import main

    return main()


def phantom() -> int:
    """brats-phantom."""
    from runtime.cli.phantom import main

    return main()
