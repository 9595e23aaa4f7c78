"""How a cohort is to be run, as one value that can be sent to another process or machine."""

from collections.abc import Callable, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.backends import Backend, BackendOptions, open_backend, open_spare
from runtime.errors import ParityError
from runtime.memory import Room
from runtime.model_dir import ModelDir
from runtime.modes import Mode, check_covers
from runtime.pages import PageOptions
from runtime.segmenter import Segmenter, SegmentOptions

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Work:
    """What turns a case into a label map, whoever does it.

    Attributes:
        model: path of the model directory.
        backend: what to open.
        options: how to segment.
        mode: that it is run in; None where the user says himself how.
        pages: what is to lie beside the label maps.
        resume: leave out cases whose earlier result still stands.
        as_good: other graphs, by their hashes, and options whose results stand as well.
        memory: bytes that a process may take; None leaves it to itself.
    """

    model: Path
    backend: BackendOptions = field(default_factory=BackendOptions)
    options: SegmentOptions = field(default_factory=SegmentOptions)
    mode: Mode | None = None
    pages: PageOptions = field(default_factory=PageOptions)
    resume: bool = False
    as_good: Sequence[tuple[str, SegmentOptions]] = ()
    memory: int | None = None

    def on(self, device: str, threads: int | None, share: int) -> "Work":
        """The same on one of several devices: a share of the memory, and its own CPU threads."""
        memory = None if self.memory is None else self.memory // share
        backend = replace(self.backend, device=device, threads=threads)
        return replace(self, backend=backend, memory=memory)

    @contextmanager
    def opened(self, given: Backend | None = None) -> "Iterator[Segmenter]":
        """A segmenter, closed at the end of the block.

        Args:
            given: a backend that is open already; closed all the same.

        Raises:
            ParityError: the mode is not certified on the backend that opens.
            BratsError: as for `open_backend`.
        """
        model = ModelDir.open(self.model)
        with closing(given or self._open(model)) as backend:
            yield Segmenter(
                backend,
                self.options,
                spare=lambda: open_spare(model, self.backend, backend.info),
            )

    def room(self, note: Callable[[str], None] = lambda text: None) -> Room | None:
        """The bound on the memory of the process that asks; ``note`` is told if it is too low."""
        return None if self.memory is None else Room(self.memory, note)

    def _open(self, model: ModelDir) -> Backend:
        if self.mode is not None:
            check_covers(model, self.mode, self.backend.backend, self.backend.device)
        backend = open_backend(model, self.backend)
        try:
            if self.mode is not None:
                check_covers(model, self.mode, backend.info.name, backend.info.device)
        except ParityError:
            backend.close()
            raise
        return backend
