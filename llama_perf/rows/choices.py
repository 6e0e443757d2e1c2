"""What the fields of a row are chosen from, and the check of a choice."""

from llama_perf.errors import SpecError
from llama_perf.rows.schemes import OWN

DTYPE_TOKENS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
DEVICES = ("cuda", "cpu")
KERNELS = ("native", "torchao", "gemlite", "bitsandbytes", OWN)
ATTENTIONS = ("decode", "sdpa")
KV_CACHES = ("int8", "fp8")
PERSISTENT = "persistent"
"""`fused` where all layers of a step are one kernel."""


def cache_kind(quantization: bool | str) -> str | None:
    """The kind of cache, None for an unquantized one; raises SpecError."""
    if isinstance(quantization, bool):
        return KV_CACHES[0] if quantization else None
    if quantization not in KV_CACHES:
        raise SpecError(
            "kv_cache_quantization",
            quantization,
            f"allowed: false, true (int8), {', '.join(KV_CACHES)}",
            known=KV_CACHES,
        )
    return quantization


def check_fused(fused: bool | str) -> None:
    """Raise SpecError unless it is a row's `fused`."""
    if not isinstance(fused, bool) and fused != PERSISTENT:
        allowed = f"allowed: false, true, {PERSISTENT}"
        raise SpecError("fused", fused, allowed, known=[PERSISTENT])


def check_choice(field: str, value: object, allowed: tuple[str | None, ...]) -> None:
    """Raise SpecError unless `value` is one of `allowed`."""
    if value not in allowed:
        names = ["none" if name is None else name for name in allowed]
        raise SpecError(field, value, f"allowed: {', '.join(names)}", known=names)
