"""The flags of `llama-perf generate`: the reference's, with its names and defaults."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from llama_perf.rows.spec import ATTENTIONS, DTYPE_TOKENS

CHECKPOINT = "checkpoints/meta-llama/Llama-2-7b-chat-hf/model.pth"
# They are not part of the work that a command repeats.
_OUTPUTS = {"write_result", "profile", "memory_profile", "interactive", "save"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """A flag, a switch where its default is False.

    `bare` is the value of a flag that is written without one.
    """

    default: object
    help: str
    type: Callable[[str], object] = str
    bare: str | None = None
    short: str | None = None


FLAGS = {
    "prefill_size": Flag(
        default=None, type=int, help="use a prompt of this many random tokens"
    ),
    "prompt": Flag(default="Hello, my name is", help="the text to continue"),
    "interactive": Flag(
        default=False, help="read prompts from the terminal; stop at end of text"
    ),
    "num_samples": Flag(default=5, type=int, help="the number of timed generations"),
    "max_new_tokens": Flag(default=200, type=int, help="the tokens to generate"),
    "batch_size": Flag(default=1, type=int, help="copies of the prompt at once"),
    "top_k": Flag(default=200, type=int, help="draw from the k most likely tokens"),
    "temperature": Flag(default=0.8, type=float, help="0 is greedy"),
    "checkpoint_path": Flag(
        default=CHECKPOINT,
        help="a folder, model.pth, .gguf, or a preset's name for synthetic weights",
    ),
    "quantization": Flag(default=None, short="-q", help="a scheme, such as int8wo"),
    "kernels": Flag(default=None, help="native or torchao"),
    "kv_cache_quantization": Flag(
        default=False,
        bare="int8",
        help="quantize the KV cache to int8 (also without a value) or fp8",
    ),
    "cache_size": Flag(default=None, type=int, help="the positions of the KV cache"),
    "linear_causal_mask": Flag(
        default=False,
        help="compute the mask row by row; only with --attention sdpa is there a mask",
    ),
    "attention": Flag(default=ATTENTIONS[0], help=", ".join(ATTENTIONS)),
    "prefill_chunk": Flag(
        default=None, type=int, help="prefill this many tokens of the prompt at a time"
    ),
    "fill": Flag(default=0, type=int, help="positions to fill before timing"),
    "save": Flag(default=False, help="save the quantized model in a folder here"),
    "compile": Flag(default=False, help="compile decoding"),
    "compile_prefill": Flag(default=False, help="compile the prefill and decoding"),
    "profile": Flag(default=None, help="write a Chrome trace to this file"),
    "memory_profile": Flag(
        default=None, help="write a snapshot of CUDA's memory to this file"
    ),
    "device": Flag(default="cuda", help="cuda or cpu"),
    "precision": Flag(default="bfloat16", help=", ".join(DTYPE_TOKENS)),
    "write_result": Flag(default=None, help="append a result line to this file"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the reference's flags, under its names and with its defaults."""
    for name, flag in FLAGS.items():
        names = [f"--{name}"] + ([flag.short] if flag.short else [])
        text = f"{flag.help} (default: {flag.default})"
        if flag.default is False and flag.bare is None:
            parser.add_argument(*names, action="store_true", help=text)
            continue
        argument = parser.add_argument(
            *names, type=flag.type, default=flag.default, metavar="X", help=text
        )
        if flag.bare is not None:
            argument.nargs, argument.const = "?", flag.bare


def repeating_command(arguments: argparse.Namespace) -> str:
    """A command line that does the same work again."""
    words = ["python", "-m", "llama_perf", "generate"]
    for name, flag in FLAGS.items():
        value = getattr(arguments, name)
        if name in _OUTPUTS or value == flag.default:
            continue
        if value is True:
            words.append(f"--{name}")
        elif str(value).startswith("-"):
            # As a word of its own it would be taken for a flag.
            words.append(f"--{name}={value}")
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)
