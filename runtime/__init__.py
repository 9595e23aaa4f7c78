"""Serve an exported BraTS segmenter: windows, stitching, backends and label maps, without torch or
onnx.

Research use only: not a medical device, not for diagnosis or treatment.
"""

from typing import Final

__version__: Final = "0.1.0"

DISCLAIMER: Final = "Research use only: not a medical device, not for diagnosis or treatment."
