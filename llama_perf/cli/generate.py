"""`llama-perf generate`: the reference's command, with its flags and their defaults."""

import argparse
import shlex
import unicodedata
from dataclasses import fields
from pathlib import Path
from typing import Any

from llama_perf import report as reports
from llama_perf.errors import SpecError, UserError
from llama_perf.files import check_apart, check_appendable, check_writable, is_absent
from llama_perf.rows.bounds import check_bounds
from llama_perf.rows.choices import ATTENTIONS, DTYPE_TOKENS, check_choice
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.spec import RowSpec
from llama_perf.run.numbers import FINITE, WHOLE, Number
from llama_perf.run.read_options import add_shared

HELP = "generate text with one model and print its speed, as the reference did"
CHECKPOINT = "checkpoints/meta-llama/Llama-2-7b-chat-hf/model.pth"
PROMPT = "Hello, my name is"
# They are not part of the work that a command repeats.
_OUTPUTS = {"write_result", "profile", "memory_profile", "interactive", "save"}
# Default and help. A flag is a switch where its default is False, and has its
# default's type, or that in _TYPES.
FLAGS: dict[str, tuple[object, str]] = {
    "prefill_size": (None, "use a prompt of this many random tokens"),
    "prompt": (None, f"the text to continue; without one it is {PROMPT!r}"),
    "interactive": (False, "read prompts from the terminal; stop at end of text"),
    "num_samples": (5, "the number of timed generations"),
    "max_new_tokens": (200, "the tokens to generate"),
    "batch_size": (1, "copies of the prompt at once"),
    "top_k": (200, "draw from the k most likely tokens"),
    "temperature": (0.8, "0 is greedy"),
    "checkpoint_path": (
        CHECKPOINT,
        "a folder, model.pth, .gguf, owner/name in the hub cache, or a preset's name"
        " for synthetic weights",
    ),
    "quantization": (None, "a scheme, such as int8wo"),
    "modules": (None, "the linears to quantize, such as '*.feed_forward.*'"),
    "kernels": (None, "native or torchao"),
    "kv_cache_quantization": (
        False,
        "quantize the KV cache to int8 (also without a value) or fp8",
    ),
    "cache_size": (None, "the positions of the KV cache"),
    "linear_causal_mask": (
        False,
        "compute the mask row by row; only with --attention sdpa is there a mask",
    ),
    "attention": (ATTENTIONS[0], ", ".join(ATTENTIONS)),
    "prefill_chunk": (None, "prefill this many tokens of the prompt at a time"),
    "fill": (0, "positions to fill before timing"),
    "save": (False, "save the quantized model in a folder here"),
    "compile": (False, "compile decoding"),
    "compile_prefill": (False, "compile the prefill and decoding"),
    "profile": (None, "write a Chrome trace to this file"),
    "memory_profile": (None, "write a snapshot of CUDA's memory to this file"),
    "device": ("cuda", "cuda or cpu"),
    "precision": ("bfloat16", ", ".join(DTYPE_TOKENS)),
    "write_result": (None, "append a result line to this file"),
}
_TYPES = dict.fromkeys(("prefill_size", "cache_size", "prefill_chunk"), WHOLE)
_NUMBERS: dict[type, Number[Any]] = {int: WHOLE, float: FINITE}
# Of a conversation nothing is timed, and each prompt is typed.
_UNUSED_BY_TALK = (
    *("prompt", "prefill_size", "num_samples", "batch_size", "fill"),
    *("profile", "memory_profile", "write_result", "save"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the reference's flags, under its names and with its defaults."""
    for name, (default, text) in FLAGS.items():
        keywords: dict[str, Any] = {"action": "store_true"}
        if name == "kv_cache_quantization":
            keywords = {"nargs": "?", "const": "int8", "metavar": "X"}
        elif default is not False:
            kind = _NUMBERS.get(type(default), str)
            keywords = {"type": _TYPES.get(name, kind), "metavar": "X"}
        names = [f"--{name}"] + ["-q"] * (name == "quantization")
        text = f"{text} (default: {default})"
        parser.add_argument(*names, default=default, help=text, **keywords)
    add_shared(parser, "--report")


def repeating_command(arguments: argparse.Namespace) -> str:
    """A command line that does the same work again."""
    words = ["python", "-m", "llama_perf", "generate"]
    for name, (default, _) in FLAGS.items():
        value = getattr(arguments, name)
        if name in _OUTPUTS or value == default:
            continue
        if value is True:
            words.append(f"--{name}")
        elif str(value).startswith("-"):
            # As a word of its own it would be taken for a flag.
            words.append(f"--{name}={value}")
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def main(arguments: argparse.Namespace) -> int:
    """Generate; prints each text and speed, then the reference's averages."""
    row = _checked(arguments)
    # It imports torch, and a mistake in the flags is reported sooner without.
    from llama_perf.cli import generate_run
    from llama_perf.quantize.scheme_faults import scheme_faults

    with scheme_faults(row.quantization):
        return generate_run.run(row, arguments)


def _checked(arguments: argparse.Namespace) -> RowSpec:
    """The row that is asked for; raises UserError before anything is loaded."""
    arguments.precision = arguments.precision.removeprefix("torch.")
    check_choice("precision", arguments.precision, tuple(DTYPE_TOKENS))
    if arguments.memory_profile is not None and arguments.device != "cuda":
        raise SpecError("memory_profile", arguments.memory_profile, "it needs CUDA")
    arguments.report = [Path(path) for path in arguments.report]
    reports.check_paths(arguments.report)
    files = [("report", path) for path in arguments.report]
    for name in ("write_result", "profile", "memory_profile"):
        value = getattr(arguments, name)
        if value is not None:
            check_writable(name, Path(value))
            files.append((name, Path(value)))
    check_apart(files)
    if arguments.write_result is not None:
        check_appendable("write_result", Path(arguments.write_result))
    check_bounds("prefill_size", arguments.prefill_size)
    if any(unicodedata.category(char) == "Cs" for char in arguments.prompt or ""):
        raise SpecError("prompt", arguments.prompt, "it is not UTF-8 text")
    if arguments.prefill_size is not None and arguments.prompt is not None:
        raise UserError("prompt: not with --prefill_size, whose tokens are random")
    for name in _UNUSED_BY_TALK if arguments.interactive else ():
        if getattr(arguments, name) != FLAGS[name][0]:
            raise UserError(f"{name}: not with --interactive, which does not use it")
    if arguments.interactive and arguments.report:
        raise UserError("report: not with --interactive, which measures nothing")
    row, path = row_of(arguments), arguments.checkpoint_path
    if path == CHECKPOINT and is_absent(Path(path)):
        reason = "no such file; give a checkpoint, or a preset's name, such as 7B, for"
        raise SpecError("checkpoint_path", path, f"{reason} synthetic weights")
    return row


def row_of(arguments: argparse.Namespace) -> RowSpec:
    """The row that the flags ask for, with the shortest prompt; raises SpecError."""
    kernels = arguments.kernels
    if kernels is None and arguments.quantization is not None:
        kernels = Scheme.parse(arguments.quantization).kernels[0]
    # Most flags are named as the field of a row that they fill.
    flags = vars(arguments)
    filled = {one.name: flags[one.name] for one in fields(RowSpec) if one.name in flags}
    others = {
        "model": arguments.checkpoint_path,
        "kernels": kernels or "native",
        "dtype": arguments.precision,
        "compile": arguments.compile or arguments.compile_prefill,
        "prompt_length": arguments.prefill_size or 1,
    }
    return RowSpec(**filled | others)
