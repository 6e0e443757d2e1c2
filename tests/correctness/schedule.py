"""Which files' tests share a process under `--dist loadfile`, and which start first.

Knows files, not tests. By file and not by `xdist_group`: pytest 9.2 keeps an id where
pytest-xdist 3.8 does not write the group's name, so that nothing is grouped
(pytest-xdist's issue 1386).
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

# Two processes on one card would take each other's memory and time.
CARD = (
    "test_attention_triton",
    "test_autoquant_times",
    "test_captured_prompt",
    "test_ceiling",
    "test_cuda",
    "test_fused",
    "test_kernels_triton",
    "test_sampling_triton",
    "test_step",
    "test_weights_synthetic",
)
# What takes long to compute is kept in the process.
TOGETHER = (
    ("test_closeness", "test_twins", "test_smollm2"),
    ("test_predict", "test_sizes"),
    CARD,
)
_PROCESS = {file: files[0] for files in TOGETHER for file in files}
# The longest first, or one process ends long after the other; of files that share a
# process, the one that is named first above.
FIRST = (
    "test_closeness",
    "test_isolation",
    "test_cache_closeness",
    "test_attention_triton",
    "test_predict",
    "test_pairs",
    "test_scripts",
)


def place(file: str) -> int:
    """When the tests of `file`, a name without `.py`, start: the least first."""
    process = _PROCESS.get(file, file)
    return FIRST.index(process) if process in FIRST else len(FIRST)


def scheduling(config: Any, log: Any) -> Any:
    """pytest-xdist's by file, where some files count as one."""
    # Not installed where a card's tests alone are run.
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = PurePath(super()._split_scope(nodeid)).stem
            return _PROCESS.get(file, file)

    return Scheduling(config, log)
