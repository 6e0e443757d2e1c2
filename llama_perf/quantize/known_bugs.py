"""Bugs in released versions of torch and torchao, so that a row can name them.

Knows only versions: nothing is tried here.
"""

import torch
from packaging.version import Version

from llama_perf.rows.spec import RowSpec

# Seen wrong with 2.11.0 on an AMD EPYC, right there on an Intel Xeon with AMX and the
# strides of `compiler_settings`, and right with 2.13.0; 2.12 was not tried.
_INT8DQ_RIGHT_FROM = Version("2.13")


def broken_upstream(row: RowSpec, *, torch_version: str = torch.__version__) -> str:
    """Why what `row` would measure is not what it names, or an empty string."""
    if (
        (row.quantization, row.kernels, row.device) == ("int8dq", "torchao", "cpu")
        and row.compile
        and Version(Version(torch_version).base_version) < _INT8DQ_RIGHT_FROM
    ):
        # Inductor's fused linear with int8 activations takes the scale of one token
        # for a zero-dimensional tensor and misreads it: products are off by 1e4.
        return (
            f"torch {torch_version} compiles torchao's int8dq of one token to wrong"
            f" values on CPU; torch {_INT8DQ_RIGHT_FROM} does not"
        )
    return ""
