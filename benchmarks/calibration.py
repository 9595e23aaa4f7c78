"""A fixed piece of work, timed beside every benchmark: how fast the machine was just then.

A convolution and a pass over memory, which are what segmenting a case is made of, by PyTorch and
NumPy, in which nothing of ours can be faster or slower.
"""

from time import perf_counter

import numpy as np
import torch
from torch.nn import functional


def calibrate(times: int = 3) -> list[float]:
    """Seconds of each of ``times`` runs; one before them is not counted."""
    generator = torch.Generator().manual_seed(0)
    voxels = torch.randn((1, 16, 48, 48, 48), generator=generator)
    kernels = torch.randn((16, 16, 3, 3, 3), generator=generator)
    memory = np.ones(1 << 23, np.float32)
    seconds = []
    with torch.inference_mode():
        for _ in range(times + 1):
            start = perf_counter()
            functional.conv3d(voxels, kernels, padding=1)
            memory *= np.float32(1.0)
            seconds.append(perf_counter() - start)
    return seconds[1:]
