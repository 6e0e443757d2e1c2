"""What `llama-perf generate` prints and writes: speeds, traces, the saved model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch

from llama_perf.checkpoints.load import find_checkpoint, parse_dtype
from llama_perf.checkpoints.save import check_scheme_savable, save_model
from llama_perf.checkpoints.tokenizers.files import find_tokenizer
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.devices.device import check_device
from llama_perf.errors import SpecError
from llama_perf.files import check_new_folder
from llama_perf.measure.prepare import Prepared
from llama_perf.measure.timing import Sample, time_generation
from llama_perf.results.measurement import Measurement
from llama_perf.rows.spec import RowSpec


def print_sample(
    prepared: Prepared, sample: Sample, tokenizer: Tokenizer | None, *, number: int
) -> None:
    """Print a sample's text, or its ids without a tokenizer, and its speed."""
    row = prepared.row
    ids = sample.tokens[0].tolist()
    print(ids if tokenizer is None else tokenizer.decode(ids))
    seconds = sample.total_ns / 1e9
    tok_s = row.batch_size * row.max_new_tokens / seconds
    read_gb_s = tok_s / row.batch_size * prepared.model_size_bytes / 1e9
    print(
        f"Time for inference {number}: {seconds:.2f} sec total,"
        f" {tok_s:.2f} tokens/sec, time to first token"
        f" {sample.first_token_ns / 1e6:.1f} ms"
    )
    print(f"Bandwidth achieved: {read_gb_s:.2f} GB/s", flush=True)


def _mean_tok_s(row: RowSpec, samples: Sequence[Sample]) -> float:
    # The mean over samples, as the reference reports it; the suite uses medians.
    tokens = row.batch_size * row.max_new_tokens
    return sum(tokens * 1e9 / sample.total_ns for sample in samples) / len(samples)


def print_totals(
    prepared: Prepared, measurement: Measurement, samples: Sequence[Sample]
) -> None:
    """Print the averages of all samples, memory and model size."""
    tok_s = _mean_tok_s(prepared.row, samples)
    size_gb = measurement.model_size_bytes / 1e9
    print("==========")
    print(f"Average tokens/sec: {tok_s:.2f}")
    print(f"Average decode tokens/sec: {measurement.decode_tok_s or 0.0:.2f}")
    print(f"Average Bandwidth: {tok_s / prepared.row.batch_size * size_gb:.2f} GB/s")
    print(f"Peak Memory Usage: {measurement.peak_memory_bytes / 1e9:.2f} GB")
    print(f"Model Size: {size_gb:.2f} GB")


def result_line(
    row: RowSpec,
    measurement: Measurement,
    samples: Sequence[Sample],
    *,
    quantization: str | None,
    command: str,
) -> str:
    """The reference's line for `--write_result`, with a command that repeats it.

    `quantization` is the model's, which a saved checkpoint brings along.
    """
    tok_s = _mean_tok_s(row, samples)
    size_gb = measurement.model_size_bytes / 1e9
    path = Path(row.model)
    model = path.parent.name if path.suffix == ".pth" else path.name
    return (
        f"{datetime.now():%Y%m%d%H%M%S}, tok/s={tok_s:6.2f},"
        f" mem/s={tok_s / row.batch_size * size_gb:7.2f} GB/s,"
        f" peak_mem={measurement.peak_memory_bytes / 1e9:5.2f} GB,"
        f" model_size={size_gb:5.2f} GB quant: {quantization}, mod: {model},"
        f" kv_quant: {row.kv_cache_quantization}, compile: {row.compile},"
        f" compile_prefill: {row.compile_prefill}, dtype: torch.{row.dtype},"
        f" device: {row.device} repro: {command}"
    )


def profile(prepared: Prepared, path: str | None) -> None:
    """Write a Chrome trace of one further generation, untimed."""
    if path is None:
        return
    device = prepared.engine.model.device
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.profiler.profile() as trace:
        time_generation(prepared, generator)
    trace.export_chrome_trace(path)
    print(f"wrote {path}")


@contextmanager
def memory_profile(path: str | None) -> Iterator[None]:
    """Write a snapshot of all CUDA allocations made inside."""
    if path is None:
        yield
        return
    torch.cuda.memory._record_memory_history()
    try:
        yield
    finally:
        torch.cuda.memory._dump_snapshot(path)
        torch.cuda.memory._record_memory_history(enabled=None)
        print(f"wrote {path}")


def check_save(row: RowSpec) -> None:
    """Raise UserError, before anything is measured, where `save` would fail."""
    if row.quantization is None:
        raise SpecError("save", True, "it saves a quantized model: give --quantization")
    check_new_folder("save", saved_folder(row))
    if row.kernels == "torchao":
        # Whether torchao's tensors can be saved has to be tried.
        check_scheme_savable(
            row.quantization,
            kernels=row.kernels,
            device=check_device(row.device),
            dtype=parse_dtype(row.dtype),
        )


def saved_folder(row: RowSpec) -> Path:
    """`<model>-<scheme>-<kernels>` in the working directory."""
    path = Path(row.model).absolute()
    if path.suffix == ".pth":
        path = path.parent
    name = path.stem if path.suffix == ".gguf" else path.name
    return Path(f"{name}-{row.quantization}-{row.kernels}")


def save(prepared: Prepared) -> None:
    """Save the measured model, with its checkpoint's tokenizer; prints the folder."""
    row = prepared.row
    checkpoint = find_checkpoint(row.model)
    tokenizer = None if checkpoint is None else find_tokenizer(checkpoint)
    folder = save_model(prepared.engine.model, saved_folder(row), tokenizer=tokenizer)
    print(f"saved: {folder.absolute()}")
