"""The picture and the page that lie beside a label map, where they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtime.case import Case
from runtime.errors import InputError
from runtime.labels import Convention
from runtime.prediction import Look, Pages
from runtime.segmented import Prediction

Note = Callable[[str, Case], None]
"""note(text, case): something worth knowing that is no error."""


@dataclass(frozen=True)
class PageOptions:
    """What is to lie beside a label map.

    Attributes:
        preview, report: whether a picture and a page are.
        truth: numbering of the truth that they show; None is what its naming implies.
    """

    preview: bool = False
    report: bool = False
    truth: Convention | None = None

    def look(self, note: Note) -> Look | None:
        """What draws them; None where none is asked for."""
        if not (self.preview or self.report):
            return None

        def draw(prediction: Prediction, sidecar: dict[str, Any]) -> Pages:
            from runtime.preview import marked_png, preview
            from runtime.report import html_report
            from runtime.truth import load_truth

            volume, truth = prediction.volume, None
            if volume.case.labels is not None:
                try:
                    truth = load_truth(volume.case, volume, self.truth, "--truth-labels")
                except InputError as error:
                    note(f"shown without truth: {error}", volume.case)
            return Pages(
                marked_png(preview(volume, prediction.labels, truth)) if self.preview else None,
                html_report(prediction, sidecar, truth).encode() if self.report else None,
            )

        return draw
