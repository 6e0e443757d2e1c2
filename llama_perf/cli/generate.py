"""`llama-perf generate`: the reference's command, its flags and its result line."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llama_perf.cli.generate_flags import CHECKPOINT, FLAGS
from llama_perf.errors import PromptError, SpecError
from llama_perf.files import check_writable
from llama_perf.rows.spec import DTYPE_TOKENS, KERNELS, RowSpec

if TYPE_CHECKING:
    from torch import Tensor

    from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
    from llama_perf.measure.prepare import Prepared
    from llama_perf.measure.timing import Sample
    from llama_perf.results.measurement import Measurement

HELP = "generate text with one model and print its speed, as the reference did"
_REFERENCE_VOCABULARY = 1024


# Not part of the work that the repro line repeats.
_OUTPUTS = {"write_result", "profile", "memory_profile", "interactive", "save"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the reference's flags, under its names and with its defaults."""
    for flag in FLAGS:
        names = [f"--{flag.name}"] + ([flag.short] if flag.short else [])
        text = f"{flag.help} (default: {flag.default})"
        if flag.bare is not None:
            parser.add_argument(
                *names,
                nargs="?",
                const=flag.bare,
                default=flag.default,
                metavar="X",
                help=text,
            )
        elif flag.default is False:
            parser.add_argument(*names, action="store_true", help=text)
        else:
            parser.add_argument(
                *names, type=flag.kind, default=flag.default, metavar="X", help=text
            )


def main(arguments: argparse.Namespace) -> int:
    """Generate; prints each text and speed, then the reference's averages."""
    _check(arguments)
    tokenizer, vocab_size = _vocabulary(arguments.checkpoint_path)
    if arguments.interactive:
        from llama_perf.cli.interactive import talk

        return talk(_row(arguments, prompt_length=1), arguments, tokenizer)
    prompt = _prompt(arguments, tokenizer, vocab_size)
    row = _row(arguments, prompt_length=prompt.shape[1])
    prepared, measurement, samples = _measure(row, prompt, tokenizer, arguments)
    _print_totals(prepared, measurement, samples)
    if arguments.write_result is not None:
        with Path(arguments.write_result).open("a", encoding="utf-8") as file:
            line = result_line(arguments, measurement, samples, prepared.quantization)
            file.write(line + "\n")
    if arguments.save:
        from llama_perf.cli.saving import save

        save(prepared)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    # Before anything is loaded: what is wrong here should not cost minutes first.
    arguments.precision = arguments.precision.removeprefix("torch.")
    if arguments.precision not in DTYPE_TOKENS:
        raise SpecError(
            "precision", arguments.precision, f"allowed: {', '.join(DTYPE_TOKENS)}"
        )
    if arguments.kernels is not None and arguments.kernels not in KERNELS:
        raise SpecError("kernels", arguments.kernels, f"allowed: {', '.join(KERNELS)}")
    if arguments.memory_profile is not None and arguments.device != "cuda":
        raise SpecError("memory_profile", arguments.memory_profile, "it needs CUDA")
    for name in ("write_result", "profile", "memory_profile"):
        value = getattr(arguments, name)
        if value is not None:
            check_writable(name, Path(value))
    if arguments.prefill_size is not None and arguments.prefill_size < 1:
        raise SpecError("prefill_size", arguments.prefill_size, "allowed: 1 or more")
    # Checks every other field, for a prompt of the least length.
    row = _row(arguments, prompt_length=arguments.prefill_size or 1)
    if arguments.save:
        from llama_perf.cli.saving import check_save

        check_save(arguments, row)
    path = arguments.checkpoint_path
    if path == CHECKPOINT and not Path(path).exists():
        raise SpecError(
            "checkpoint_path",
            path,
            "no such file; give a checkpoint, or a preset's name, such as 7B, for"
            " synthetic weights",
        )


def _row(arguments: argparse.Namespace, *, prompt_length: int) -> RowSpec:
    kernels = arguments.kernels
    if arguments.quantization is None:
        kernels = kernels or "native"
    elif kernels is None:
        from llama_perf.quantize.model import preferred_kernels

        kernels = preferred_kernels(arguments.quantization)
    return RowSpec(
        model=arguments.checkpoint_path,
        quantization=arguments.quantization,
        kernels=kernels,
        dtype=arguments.precision,
        device=arguments.device,
        compile=arguments.compile or arguments.compile_prefill,
        compile_prefill=arguments.compile_prefill,
        kv_cache_quantization=arguments.kv_cache_quantization,
        linear_causal_mask=arguments.linear_causal_mask,
        attention=arguments.attention,
        prefill_chunk=arguments.prefill_chunk,
        fill=arguments.fill,
        cache_size=arguments.cache_size,
        batch_size=arguments.batch_size,
        prompt_length=prompt_length,
        max_new_tokens=arguments.max_new_tokens,
        num_samples=arguments.num_samples,
        top_k=arguments.top_k,
        temperature=arguments.temperature,
    )


def _vocabulary(checkpoint: str) -> tuple[Tokenizer | None, int]:
    """A checkpoint's tokenizer and its number of ids, or those a preset has too."""
    from llama_perf.checkpoints.open import check_model, find_checkpoint, open_weights
    from llama_perf.checkpoints.tokenizers.tokenizer import (
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
    import torch

    if arguments.prefill_size is not None or tokenizer is None:
        length = arguments.prefill_size or RowSpec(model="any").prompt_length
        if arguments.prefill_size is None:
            print(f"(no tokenizer: a prompt of {length} random tokens)")
        seeded = torch.Generator().manual_seed(0)
        shape = (1, length)
        high = min(_REFERENCE_VOCABULARY, vocab_size)
        tokens = torch.randint(high, shape, generator=seeded)
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
    from llama_perf.cli.profiling import memory_profile, profile
    from llama_perf.devices.device import check_device
    from llama_perf.llama.compiler import compiler_settings
    from llama_perf.measure.memory import MemoryMeter
    from llama_perf.measure.prepare import prepare
    from llama_perf.measure.timing import measure
    from llama_perf.report.autoquant_table import choice_table

    samples: list[Sample] = []

    def show(sample: Sample) -> None:
        samples.append(sample)
        _print_sample(row, prepared, sample, tokenizer, number=len(samples))

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


def _print_sample(
    row: RowSpec,
    prepared: Prepared,
    sample: Sample,
    tokenizer: Tokenizer | None,
    *,
    number: int,
) -> None:
    ids = sample.tokens[0].tolist()
    print(ids if tokenizer is None else tokenizer.decode(ids))
    seconds = sample.total_ns / 1e9
    rate = row.batch_size * row.max_new_tokens / seconds
    read = rate / row.batch_size * prepared.model_size_bytes / 1e9
    print(
        f"Time for inference {number}: {seconds:.2f} sec total,"
        f" {rate:.2f} tokens/sec, time to first token"
        f" {sample.first_token_ns / 1e6:.1f} ms"
    )
    print(f"Bandwidth achieved: {read:.2f} GB/s", flush=True)


def _mean_rate(row: RowSpec, samples: Sequence[Sample]) -> float:
    # The mean over samples, as the reference reports it; the suite uses medians.
    tokens = row.batch_size * row.max_new_tokens
    return sum(tokens * 1e9 / each.total_ns for each in samples) / len(samples)


def _print_totals(
    prepared: Prepared, measurement: Measurement, samples: Sequence[Sample]
) -> None:
    rate = _mean_rate(prepared.row, samples)
    size = measurement.model_size_bytes / 1e9
    print("==========")
    print(f"Average tokens/sec: {rate:.2f}")
    print(f"Average decode tokens/sec: {measurement.decode_tok_s or 0.0:.2f}")
    print(f"Average Bandwidth: {rate / prepared.row.batch_size * size:.2f} GB/s")
    print(f"Peak Memory Usage: {measurement.peak_memory_bytes / 1e9:.2f} GB")
    print(f"Model Size: {size:.2f} GB")


def result_line(
    arguments: argparse.Namespace,
    measurement: Measurement,
    samples: Sequence[Sample],
    quantization: str | None,
) -> str:
    """The reference's line for `--write_result`, with a command that repeats it.

    `quantization` is the model's, which a saved checkpoint brings along.
    """
    row = _row(arguments, prompt_length=1)
    rate = _mean_rate(row, samples)
    size = measurement.model_size_bytes / 1e9
    path = Path(arguments.checkpoint_path)
    model = path.parent.name if path.suffix == ".pth" else path.name
    return (
        f"{datetime.now():%Y%m%d%H%M%S}, tok/s={rate:6.2f},"
        f" mem/s={rate / row.batch_size * size:7.2f} GB/s,"
        f" peak_mem={measurement.peak_memory_bytes / 1e9:5.2f} GB,"
        f" model_size={size:5.2f} GB quant: {quantization}, mod: {model},"
        f" kv_quant: {row.kv_cache_quantization}, compile: {row.compile},"
        f" compile_prefill: {row.compile_prefill}, dtype: torch.{row.dtype},"
        f" device: {row.device} repro: {repro(arguments)}"
    )


def repro(arguments: argparse.Namespace) -> str:
    """A command line that does the same work again."""
    words = ["python", "-m", "llama_perf", "generate"]
    for flag in FLAGS:
        value = getattr(arguments, flag.name)
        if flag.name in _OUTPUTS or value == flag.default:
            continue
        if value is True:
            words.append(f"--{flag.name}")
        elif str(value).startswith("-"):
            # By itself it would be taken for a flag.
            words.append(f"--{flag.name}={value}")
        else:
            words += [f"--{flag.name}", str(value)]
    return shlex.join(words)
