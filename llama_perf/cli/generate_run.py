"""`llama-perf generate` once its flags are right: measures, prints, writes.

Prints speeds as the reference did; writes its result line, traces, the saved model.
"""

import argparse
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from llama_perf import report as reports
from llama_perf.checkpoints import find, load
from llama_perf.checkpoints.save import check_scheme_savable, save_model
from llama_perf.checkpoints.tokenizers.chat import Message, encode_chat, is_chat_model
from llama_perf.checkpoints.tokenizers.files import tokenizer_of
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.cli.ending import code_of
from llama_perf.cli.generate import PROMPT, repeating_command
from llama_perf.devices.device import check_device
from llama_perf.errors import PromptError, SpecError, TokenizerError, UserError
from llama_perf.files import append_line, check_new_folder, writing
from llama_perf.llama.compiler import compiler_settings
from llama_perf.llama.engine import Engine
from llama_perf.measure.environment import collect
from llama_perf.measure.prepare import PreparedRow, prepare_row
from llama_perf.measure.timing import RowMemoryMeter, Sample, measure_row, time_row
from llama_perf.report.table import choice_table
from llama_perf.results.disturbance import disturbance_of
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import Report, RowResult, Status
from llama_perf.rows.schemes import package_of
from llama_perf.rows.spec import RowSpec
from llama_perf.words import counted, shown

_REFERENCE_VOCABULARY = 1024


def run(row: RowSpec, arguments: argparse.Namespace) -> int:
    """Build the row and measure it; prints what a user follows.

    Returns 2 where a report could not be written.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    if arguments.save:
        _check_save(row)
    checkpoint, vocab_size = find.find_checkpoint(arguments.checkpoint_path), None
    tokenizer: Tokenizer | None = None
    if checkpoint is None:
        find.check_model(arguments.checkpoint_path)
    else:
        opened = find.open_weights(checkpoint)
        vocab_size, made_for = opened.config.vocab_size, opened.origin.kernels
        if made_for is not None and arguments.kernels not in {None, made_for}:
            reason = f"{checkpoint} was saved for {made_for}"
            raise SpecError("kernels", arguments.kernels, reason)
        tokenizer = tokenizer_of(checkpoint, vocab_size)
    if arguments.interactive:
        _talk(row, tokenizer)
        return 0
    if row.linear_causal_mask and row.attention != "sdpa":
        print("(linear_causal_mask: without --attention sdpa there is no mask)")
    prompt = _prompt(arguments, tokenizer, vocab_size or _REFERENCE_VOCABULARY)
    row = replace(row, prompt_length=prompt.shape[1])
    samples: list[Sample] = []

    def show(sample: Sample) -> None:
        """Print its texts, or their ids without a tokenizer, and its speed."""
        samples.append(sample)
        for number, ids in enumerate(sample.tokens.tolist(), start=1):
            if row.batch_size > 1:
                print(f"text {number} of {row.batch_size}:")
            print(ids if tokenizer is None else tokenizer.decode(ids))
        tok_s = _mean_tok_s(row, [sample])
        read_gb_s = tok_s / row.batch_size * prepared.model_size_bytes / 1e9
        print(
            f"Time for inference {len(samples)}: {sample.total_ns / 1e9:.2f} sec total,"
            f" {tok_s:.2f} tokens/sec, time to first token"
            f" {sample.first_token_ns / 1e6:.1f} ms"
        )
        print(f"Bandwidth achieved: {read_gb_s:.2f} GB/s", flush=True)

    device = check_device(row.device)
    settings = compiler_settings(used=row.compile, package=package_of(row.quantization))
    with settings, _memory_profile(arguments.memory_profile):
        meter = RowMemoryMeter(device)
        prepared = prepare_row(row, prompt=prompt, notify=print, progress=tell)
        print(f"weights: {prepared.weights}; ready in {prepared.build_s:.1f} s")
        if prepared.autoquant is not None:
            print(choice_table(prepared.autoquant))
        measurement = measure_row(
            prepared, meter=meter, progress=tell, after_sample=show
        )
        if arguments.profile is not None:
            # A trace of one further generation, untimed.
            generator = torch.Generator(prepared.engine.model.device).manual_seed(0)
            with torch.profiler.profile() as trace:
                time_row(prepared, generator)
            _write_trace(trace, Path(arguments.profile))
    print("==========")
    tok_s = _mean_tok_s(row, samples)
    size_gb = measurement.model_size_bytes / 1e9
    print(f"Average tokens/sec: {tok_s:.2f}")
    decode_tok_s = measurement.decode_tok_s
    # One new token is chosen by the prefill.
    shown_speed = "-" if decode_tok_s is None else f"{decode_tok_s:.2f}"
    print(f"Average decode tokens/sec: {shown_speed}")
    print(f"Average Bandwidth: {tok_s / row.batch_size * size_gb:.2f} GB/s")
    print(f"Peak Memory Usage: {measurement.peak_memory_bytes / 1e9:.2f} GB")
    print(f"Model Size: {size_gb:.2f} GB")
    if words := disturbance_of(measurement):
        print(f"Disturbed: {words}")
    if arguments.write_result is not None:
        line = result_line(
            row,
            measurement,
            samples,
            quantization=prepared.quantization,
            command=repeating_command(arguments),
        )
        append_line(Path(arguments.write_result), line)
    if arguments.save:
        source = None if tokenizer is None else checkpoint
        folder = save_model(
            _engine_of(prepared).model, _saved_folder(row), tokenizer=source
        )
        print(f"saved: {folder.absolute()}")
    report = _report_of(row, measurement, started)
    return code_of(reports.write_all(report, arguments.report))


def _report_of(row: RowSpec, measurement: Measurement, started: str) -> Report:
    """The generation as a report of one row, which any row could be."""
    result = RowResult(
        id=row.id, row=row, status=Status.MEASURED, measurement=measurement
    )
    return Report(
        started=started,
        environment=collect(check_device(row.device)),
        selected=1,
        results=(result,),
        note="measured by `llama-perf generate`, which prints means: here are medians",
    )


def tell(text: str) -> None:
    """Say on stderr what is done now; stdout has the texts and the speeds."""
    print(text, file=sys.stderr)


def _prompt(
    arguments: argparse.Namespace, tokenizer: Tokenizer | None, vocab_size: int
) -> Tensor:
    """The prompt's ids, int64 (batch_size, prompt_length)."""
    if arguments.prompt is not None and tokenizer is None:
        raise TokenizerError(
            f"prompt: {shown(arguments.checkpoint_path)} has no tokenizer to read it;"
            " without --prompt it gets random tokens"
        )
    if arguments.prefill_size is not None or tokenizer is None:
        length = arguments.prefill_size or RowSpec(model="any").prompt_length
        if arguments.prefill_size is None:
            print(f"(no tokenizer: a prompt of {counted(length, 'random token')})")
        generator = torch.Generator().manual_seed(0)
        high = min(_REFERENCE_VOCABULARY, vocab_size)
        tokens = torch.randint(high, (1, length), generator=generator)
    else:
        text = PROMPT if arguments.prompt is None else arguments.prompt
        tokens = torch.tensor([tokenizer.encode(text)], dtype=torch.int64)
        if tokens.numel() == 0:
            raise PromptError(f"prompt: {shown(text)} has no tokens")
    return tokens.repeat(arguments.batch_size, 1)


def _mean_tok_s(row: RowSpec, samples: Sequence[Sample]) -> float:
    # The mean over samples, as the reference reports it; the suite uses medians.
    tokens = row.batch_size * row.max_new_tokens
    return sum(tokens * 1e9 / sample.total_ns for sample in samples) / len(samples)


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


@contextmanager
def _memory_profile(path: str | None) -> Iterator[None]:
    """Write a snapshot of all CUDA allocations made inside."""
    if path is None:
        yield
        return
    torch.cuda.memory._record_memory_history()
    try:
        yield
    finally:
        with writing(Path(path)):
            torch.cuda.memory._dump_snapshot(path)
        torch.cuda.memory._record_memory_history(enabled=None)
        print(f"wrote {path}")


def _write_trace(trace: torch.profiler.profile, path: Path) -> None:
    """Write a Chrome trace; raises WriteError where not all of it is there."""
    with writing(path):
        trace.export_chrome_trace(str(path))
        # It reports no error of the disk.
        with path.open("rb") as file:
            if not file.read().rstrip().endswith(b"}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    print(f"wrote {path}")


def _check_save(row: RowSpec) -> None:
    """Raise UserError, before anything is measured, where `save` would fail."""
    if row.quantization is None:
        raise UserError("save: it saves a quantized model: give --quantization")
    check_new_folder("save", _saved_folder(row))
    if row.kernels != "native":
        # Whether other tensors can be saved has to be tried.
        check_scheme_savable(
            row.quantization,
            kernels=row.kernels,
            device=check_device(row.device),
            dtype=load.parse_dtype(row.dtype),
        )


def _saved_folder(row: RowSpec) -> Path:
    """`<model>-<scheme>-<kernels>` in the working directory."""
    path = Path(row.model).absolute()
    if path.suffix == ".pth":
        path = path.parent
    name = path.stem if path.suffix == ".gguf" else path.name
    return Path(f"{name}-{row.scheme}-{row.kernels}")


def _talk(row: RowSpec, tokenizer: Tokenizer | None) -> None:
    """Answer prompts from a terminal until the input ends, text as it comes.

    A model with a chat template, or with a chat model's name, keeps the conversation
    until the cache is full; another one continues each text on its own. Generation
    stops at end of text.
    """
    if tokenizer is None:
        raise TokenizerError(f"interactive: {shown(row.model)} has no tokenizer")
    chat = tokenizer.chat_template is not None or is_chat_model(row.model)
    # The row's prompt is one position long; the cache must hold real prompts.
    size = row.cache_size or max(2048, 2 * row.max_new_tokens)
    row = replace(row, prompt_length=1, cache_size=size, batch_size=1)
    with compiler_settings(used=row.compile, package=package_of(row.quantization)):
        prompt = torch.zeros((1, 1), dtype=torch.int64)
        prepared = prepare_row(row, prompt=prompt, notify=print, progress=tell)
        history: list[Message] = []
        while True:
            try:
                text = input("What is your prompt? ")
            except EOFError:
                print()
                return
            if not text.strip():
                continue
            history.append(Message(role="user", content=text))
            try:
                ids = (
                    encode_chat(tokenizer, history) if chat else tokenizer.encode(text)
                )
                answer = _answer(prepared, tokenizer, ids)
                history.append(Message(role="assistant", content=answer))
            except PromptError as error:
                print(f"{error}; starting over", file=sys.stderr)
                history.clear()


def _engine_of(prepared: PreparedRow) -> Engine:
    assert isinstance(prepared.engine, Engine), "no option asks for another one"
    return prepared.engine


def _answer(prepared: PreparedRow, tokenizer: Tokenizer, ids: list[int]) -> str:
    """Print the answer to a prompt of these ids as it comes; returns it."""
    row, engine = prepared.row, _engine_of(prepared)
    prompt = torch.tensor([ids], device=engine.model.device)
    free = row.allocated_positions - engine.filled - len(ids)
    max_new_tokens = min(row.max_new_tokens, free)
    engine.check_prompt(prompt, max_new_tokens=max(max_new_tokens, 1))
    stream = engine.stream(prompt, **prepared.request(count=max_new_tokens))
    new = takewhile(lambda id: id not in tokenizer.eos_ids, map(int, stream))
    answer = ""
    for part in tokenizer.decode_stream(new):
        print(part, end="", flush=True)
        answer += part
    print()
    return answer
