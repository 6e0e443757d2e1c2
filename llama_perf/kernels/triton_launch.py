"""As little as a kernel can do, x[0] <- x[0] + 1: what a launch costs by itself."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def count(x, DEPENDENT: tl.constexpr):
    """`DEPENDENT`: the next kernel may start before this one's end, and waits itself.

    By programmatic dependent launch, from sm_90 on.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    tl.store(x, tl.load(x) + 1)
