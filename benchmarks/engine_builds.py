"""Which graphs of a model directory does the TensorRT that is here build, in which input layout?

    python -m benchmarks.engine_builds MODEL_DIR

Nothing is run, and nothing is kept. TensorRT for RTX needs no GPU for it.
"""

import os
import sys
from pathlib import Path
from typing import get_args

from export.build import GRAPHS, file_of
from export.engine import BuildOptions, build_engine
from export.engines import layouts
from export.up_branch import UpBranch
from runtime.backends.tensorrt_library import load_tensorrt
from runtime.engine import Profile
from runtime.errors import BratsError
from runtime.model_dir import ModelDir

MAX_BATCH = 16
WORKSPACE = 16 << 30


def main(path: Path) -> None:
    """Print a Markdown table."""
    model, library = ModelDir.open(path), load_tensorrt()
    profile = Profile(model.card.patch, 1, model.card.inference.batch, MAX_BATCH)
    print(f"{library}\n\n| graph | input | build s | plan MB |\n| --- | --- | --- | --- |")
    for precision in GRAPHS:
        for form in get_args(UpBranch):
            file = file_of(precision, form)
            for layout in layouts(precision) if file in model.hashes else ():
                options = BuildOptions(profile, WORKSPACE, input_layout=layout)
                try:
                    built = build_engine(model.read(file), library, options, None, file)
                except BratsError as error:
                    print(f"| `{file}` | {layout} | not built: {error.found} | |")
                else:
                    size = len(built.plan) / 1e6
                    print(f"| `{file}` | {layout} | {built.seconds:.2f} | {size:.1f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    # A TensorRT without a driver can crash while the interpreter takes it down.
    os._exit(0)
