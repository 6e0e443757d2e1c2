"""`llama-perf generate`: the reference's command, its flags and its result line."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_perf.cli.generate_flags import CHECKPOINT, add_arguments, repeating_command
from llama_perf.errors import PromptError, SpecError
from llama_perf.files import check_writable
from llama_perf.rows.spec import DTYPE_TOKENS, KERNELS, RowSpec

if TYPE_CHECKING:
    from torch import Tensor

    from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
    from llama_perf.measure.prepare import Prepared
    from llama_perf.measure.timing import Sample
    from llama_perf.results.measurement import Measurement

__all__ = ["HELP", "add_arguments", "main"]
HELP = "generate text with one model and print its speed, as the reference did"
_REFERENCE_VOCABULARY = 1024


def main(arguments: argparse.Namespace) -> int:
    """Generate; prints each text and speed, then the reference's averages."""
    _check(arguments)
    tokenizer, vocab_size = _vocabulary(arguments.checkpoint_path)
    if arguments.interactive:
        from llama_perf.cli.generate_interactive import talk

        return talk(row_of(arguments, prompt_length=1), tokenizer)
    # They import torch, and a mistake in the flags is reported sooner without.
    from llama_perf.cli.generate_output import print_totals, result_line, save

    prompt = _prompt(arguments, tokenizer, vocab_size)
    row = row_of(arguments, prompt_length=prompt.shape[1])
    prepared, measurement, samples = _measure(row, prompt, tokenizer, arguments)
    print_totals(prepared, measurement, samples)
    if arguments.write_result is not None:
        line = result_line(
            row,
            measurement,
            samples,
            quantization=prepared.quantization,
            command=repeating_command(arguments),
        )
        with Path(arguments.write_result).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    if arguments.save:
        save(prepared)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for a mistake before anything is loaded, which takes minutes."""
    arguments.precision = arguments.precision.removeprefix("torch.")
    for name, allowed in (("precision", DTYPE_TOKENS), ("kernels", KERNELS)):
        value = getattr(arguments, name)
        if value is not None and value not in allowed:
            raise SpecError(name, value, f"allowed: {', '.join(allowed)}")
    if arguments.memory_profile is not None and arguments.device != "cuda":
        raise SpecError("memory_profile", arguments.memory_profile, "it needs CUDA")
    for name in ("write_result", "profile", "memory_profile"):
        value = getattr(arguments, name)
        if value is not None:
            check_writable(name, Path(value))
    if arguments.prefill_size is not None and arguments.prefill_size < 1:
        raise SpecError("prefill_size", arguments.prefill_size, "allowed: 1 or more")
    # It checks every other field, for the shortest prompt.
    row = row_of(arguments, prompt_length=arguments.prefill_size or 1)
    if arguments.save:
        from llama_perf.cli.generate_output import check_save

        if arguments.interactive:
            raise SpecError("save", True, "not with --interactive")
        check_save(row)
    path = arguments.checkpoint_path
    if path == CHECKPOINT and not Path(path).exists():
        raise SpecError(
            "checkpoint_path",
            path,
            "no such file; give a checkpoint, or a preset's name, such as 7B, for"
            " synthetic weights",
        )


def row_of(arguments: argparse.Namespace, *, prompt_length: int) -> RowSpec:
    """The row that the flags ask for; raises SpecError."""
    kernels = arguments.kernels
    if kernels is None and arguments.quantization is not None:
        from llama_perf.quantize.model import preferred_kernels

        kernels = preferred_kernels(arguments.quantization)
    # Most flags are named as the field of a row that they fill.
    named_alike: dict[str, Any] = {
        field.name: getattr(arguments, field.name)
        for field in fields(RowSpec)
        if hasattr(arguments, field.name)
    }
    others = {
        "model": arguments.checkpoint_path,
        "kernels": kernels or "native",
        "dtype": arguments.precision,
        "compile": arguments.compile or arguments.compile_prefill,
        "prompt_length": prompt_length,
    }
    return RowSpec(**named_alike | others)


def _vocabulary(checkpoint: str) -> tuple[Tokenizer | None, int]:
    """A checkpoint's tokenizer and its number of ids; for a preset None and 1024."""
    from llama_perf.checkpoints.load import check_model, find_checkpoint, open_weights
    from llama_perf.checkpoints.tokenizers.files import (
        check_vocabulary,
        find_tokenizer,
        load_tokenizer,
    )

    path = find_checkpoint(checkpoint)
    if path is None:
        check_model(checkpoint)
        return None, _REFERENCE_VOCABULARY
    vocab_size = open_weights(path).config.vocab_size
    tokenizer_path = find_tokenizer(path)
    if tokenizer_path is None:
        return None, vocab_size
    tokenizer = load_tokenizer(tokenizer_path)
    check_vocabulary(tokenizer, vocab_size, source=str(tokenizer_path))
    return tokenizer, vocab_size


def _prompt(
    arguments: argparse.Namespace, tokenizer: Tokenizer | None, vocab_size: int
) -> Tensor:
    """The prompt's ids, int64 (batch_size, prompt_length)."""
    import torch

    if arguments.prefill_size is not None or tokenizer is None:
        length = arguments.prefill_size or RowSpec(model="any").prompt_length
        if arguments.prefill_size is None:
            print(f"(no tokenizer: a prompt of {length} random tokens)")
        generator = torch.Generator().manual_seed(0)
        high = min(_REFERENCE_VOCABULARY, vocab_size)
        tokens = torch.randint(high, (1, length), generator=generator)
    else:
        tokens = torch.tensor([tokenizer.encode(arguments.prompt)], dtype=torch.int64)
        if tokens.numel() == 0:
            raise PromptError(f"prompt: {arguments.prompt!r} has no tokens")
    return tokens.repeat(arguments.batch_size, 1)


def _measure(
    row: RowSpec,
    prompt: Tensor,
    tokenizer: Tokenizer | None,
    arguments: argparse.Namespace,
) -> tuple[Prepared, Measurement, list[Sample]]:
    """Build the row and measure it; prints what a user follows."""
    from llama_perf.cli.generate_output import memory_profile, print_sample, profile
    from llama_perf.devices.device import check_device
    from llama_perf.llama.compiler import compiler_settings
    from llama_perf.measure.memory import MemoryMeter
    from llama_perf.measure.prepare import prepare
    from llama_perf.measure.timing import measure
    from llama_perf.report.autoquant_table import choice_table

    samples: list[Sample] = []

    def show(sample: Sample) -> None:
        samples.append(sample)
        print_sample(prepared, sample, tokenizer, number=len(samples))

    device = check_device(row.device)
    with compiler_settings(), memory_profile(arguments.memory_profile):
        meter = MemoryMeter(device)
        prepared = prepare(row, prompt=prompt, notify=print)
        print(f"weights: {prepared.weights}; ready in {prepared.build_s:.1f} s")
        if prepared.autoquant is not None:
            print(choice_table(prepared.autoquant))
        measurement = measure(prepared, meter=meter, after_sample=show)
        profile(prepared, arguments.profile)
    return prepared, measurement, samples
