"""The flags of `llama-perf generate`: the reference's, with its names and defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llama_perf.rows.spec import ATTENTIONS, DTYPE_TOKENS

CHECKPOINT = "checkpoints/meta-llama/Llama-2-7b-chat-hf/model.pth"


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """A flag of the reference: its default there decides whether it is repeated.

    `bare` is its value where it stands without one.
    """

    name: str
    default: object
    help: str
    kind: Callable[[str], object] = str
    bare: str | None = None
    short: str | None = None


FLAGS = (
    Flag(name="prefill_size", default=None, kind=int, help="a random prompt that long"),
    Flag(name="prompt", default="Hello, my name is", help="the text to go on"),
    Flag(name="interactive", default=False, help="read prompts, stop at end of text"),
    Flag(name="num_samples", default=5, kind=int, help="timed generations"),
    Flag(name="max_new_tokens", default=200, kind=int, help="tokens to generate"),
    Flag(name="batch_size", default=1, kind=int, help="copies of the prompt at once"),
    Flag(name="top_k", default=200, kind=int, help="draw from the k most likely"),
    Flag(name="temperature", default=0.8, kind=float, help="0 is greedy"),
    Flag(
        name="checkpoint_path",
        default=CHECKPOINT,
        help="a folder, model.pth, .gguf, or a preset's name for synthetic weights",
    ),
    Flag(name="quantization", default=None, short="-q", help="a scheme"),
    Flag(name="kernels", default=None, help="native or torchao"),
    Flag(
        name="kv_cache_quantization",
        default=False,
        bare="int8",
        help="a quantized key-value cache: int8 (also without a value) or fp8",
    ),
    Flag(name="cache_size", default=None, kind=int, help="positions to allocate"),
    Flag(
        name="linear_causal_mask",
        default=False,
        help="compute the mask's rows, on the sdpa path alone: decode has no mask",
    ),
    Flag(name="attention", default=ATTENTIONS[0], help=", ".join(ATTENTIONS)),
    Flag(name="prefill_chunk", default=None, kind=int, help="tokens of it at a time"),
    Flag(name="fill", default=0, kind=int, help="positions filled before timing"),
    Flag(name="save", default=False, help="save the quantized model in a folder here"),
    Flag(name="compile", default=False, help="compile decoding"),
    Flag(name="compile_prefill", default=False, help="compile the prefill"),
    Flag(name="profile", default=None, help="write a Chrome trace"),
    Flag(name="memory_profile", default=None, help="a CUDA snapshot"),
    Flag(name="device", default="cuda", help="cuda or cpu"),
    Flag(name="precision", default="bfloat16", help=", ".join(DTYPE_TOKENS)),
    Flag(name="write_result", default=None, help="append a result line"),
)
