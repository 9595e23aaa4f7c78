"""TensorBoard: a run's scalars and pictures."""

import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
from PIL.Image import Image

from runtime.atomic import unwritable
from train.run_dir import RunDir


class Board:
    """Writes events below the run directory; a context manager.

    Args:
        run: the run.
        epoch: epochs behind it. What a run that was killed wrote after them is not shown.
        active: False writes nothing: for processes that do not lead.
    """

    def __init__(self, run: RunDir, epoch: int, active: bool = True) -> None:
        self._writer: Any = None
        if not active:
            return
        with warnings.catch_warnings():
            # TensorBoard's own imports warn of things that are not ours to mend.
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
        self._folder = run.tensorboard
        self._writer = SummaryWriter(str(run.tensorboard), purge_step=epoch + 1)

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as closing:
            # On a full disk it is the first error that says what was lost.
            if error is None:
                raise unwritable(self._folder, closing) from closing

    def scalars(self, row: Mapping[str, Any], epoch: int) -> None:
        """A row of the history, but for what it leaves empty."""
        if self._writer is None:
            return
        for key, value in row.items():
            if key != "epoch" and value is not None:
                self._writer.add_scalar(key, value, epoch)

    def picture(self, name: str, picture: Image, epoch: int) -> None:
        """A picture of a validation case."""
        if self._writer is not None:
            pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(name, pixels, epoch, dataformats="HWC")
