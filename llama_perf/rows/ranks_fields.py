"""The fields of a row that several ranks do not have.

Each is refused by its name. Knows the fields, not the model.
"""

from collections.abc import Mapping

from llama_perf.errors import SpecError
from llama_perf.rows.schemes import AUTOQUANT


def check_ranks_fields(values: Mapping[str, object]) -> None:
    """Raise SpecError for a field of a row that `tensor_parallel` does not allow."""
    if values["tensor_parallel"] is None:
        return
    if (kernels := values["kernels"]) not in ("native", "torchao"):
        need = "tensor_parallel: it needs kernels = 'native' or 'torchao'"
        raise SpecError("kernels", kernels, need)
    if (scheme := values["quantization"]) in AUTOQUANT:
        need = "tensor_parallel: each rank would choose by its own times"
        raise SpecError("quantization", scheme, need)
    if (engine := values["engine"]) is not None:
        need = "tensor_parallel: only this project's engine has ranks; leave engine out"
        raise SpecError("engine", engine, need)
    if (fused := values["fused"]) == "persistent":
        need = "tensor_parallel: one kernel for all layers cannot wait for other ranks"
        raise SpecError("fused", fused, need)
