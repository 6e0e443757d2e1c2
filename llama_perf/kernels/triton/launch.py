"""How a Triton kernel is started: shared by the `launch_` modules.

They are imported only where Triton is: on a CUDA device, in its interpreter, or to
compile ahead of time.
"""

from dataclasses import dataclass
from typing import Any

from llama_perf.kernels.triton.dependent_launch import may_start_early


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A kernel's grid, its constants, its warps and the stages of its pipeline."""

    grid: tuple[int, ...]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 2

    @property
    def splits(self) -> int:
        """Programs along the second axis: of few tokens, parts of K to be summed."""
        return self.grid[1]


def run(
    kernel: Any, launch: Launch, arguments: tuple[Any, ...], **constants: Any
) -> None:
    """Start `kernel`.

    One that takes DEPENDENT starts before the one in front of it ends, where the device
    of the first argument can do that.
    """
    options: dict[str, Any] = {}
    if "DEPENDENT" in kernel.arg_names:
        constants["DEPENDENT"] = may_start_early(arguments[0].device)
        options = {"launch_pdl": True} if constants["DEPENDENT"] else {}
    kernel[launch.grid](
        *arguments,
        **constants,
        **launch.constants,
        num_warps=launch.warps,
        num_stages=launch.stages,
        **options,
    )
