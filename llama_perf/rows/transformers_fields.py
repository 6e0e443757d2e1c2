"""The fields of a row that engine "transformers" does not have.

Each is refused by its name unless it has its default. Knows the fields, not the engine.
"""

from collections.abc import Mapping

from llama_perf.errors import SpecError
from llama_perf.rows.schemes import AUTOQUANT

OURS, TRANSFORMERS = "llama-perf", "transformers"
_WITHOUT: dict[str, str] = {
    "attention": "it has its own",
    "fused": "it has no fused kernels",
    "compile_prefill": "it compiles no prompt",
    "kv_cache_quantization": "its static cache has the row's dtype",
    "linear_causal_mask": "it has its own mask",
    "fill": "it fills nothing before the prompt",
    "ragged": "its prompts have one length",
}


def check_fields(values: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """Raise SpecError for a field of a row that its engine does not have."""
    if values["engine"] != TRANSFORMERS:
        return
    for name, reason in _WITHOUT.items():
        if values[name] != defaults[name]:
            need = f"engine {TRANSFORMERS!r}: {reason}; leave it out"
            raise SpecError(name, values[name], need)
    if values["capture"] and not values["compile"]:
        need = f"engine {TRANSFORMERS!r} captures what it compiles: set compile = true"
        raise SpecError("capture", True, need)
    if (scheme := values["quantization"]) in AUTOQUANT:
        need = f"engine {TRANSFORMERS!r}: it times products of the other engine"
        raise SpecError("quantization", scheme, need)
