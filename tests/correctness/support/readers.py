"""Every reader of a user's file: how a valid file is made, and how it is read.

The tests of `fuzz/` and `scripts/studies/fuzz_readers.py` damage these files.
"""

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llama_perf import quantize_model, save_model
from llama_perf.checkpoints.find import open_weights
from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.tokenizers.chat import Message, encode_chat
from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.errors import UserError
from llama_perf.kernels import launch_table
from llama_perf.llama.transformer import is_unquantized
from llama_perf.quantize.autoquant import choose
from llama_perf.results import baselines, history, recording
from llama_perf.results.run import read_merged
from llama_perf.rows.limit_overrides import project_limits
from llama_perf.rows.selection import load_file
from llama_perf.run.bisection import Bisection, Mark, Marked
from llama_perf.strict_json import read_json, to_json
from tests.correctness.checkpoints import test_gguf
from tests.correctness.support import (
    hugging_face_samples,
    record_samples,
    tokenizer_samples,
    weights_files,
)
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.record_files import (
    baseline_file,
    history_file,
    pytest_save,
    results_file,
    text_file,
)

CPU = torch.device("cpu")
TEXT = "Hello the user 123\n\n  using it"
ROWS_TOML = """
[defaults]
dtype = "float32"
device = "cpu"
[[row]]
model = "stories15M"
quantization = "int8wo"
temperature = 0.5
max_new_tokens = 4
limits = { tok_s = 0.2 }
[[row]]
model = "stories15M"
compile = true
"""
LIMITS_TOML = """
[tool.llama-perf.limits]
tok_s = 0.2
[tool.llama-perf.limits."*int8*"]
tok_s = 0.1
"""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A kind of file.

    `make(folder)` writes a valid file, with what it needs in its folder, and returns
    its path. `read(path)` reads all of it. `form` is "json", "toml" or "bytes". Where a
    checksum covers what is to be damaged, `part_of(file)` is that part of the file, and
    `with_part(file, part)` a file whose checksums fit another one.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    form: str = "bytes"
    part_of: Callable[[bytes], bytes] = lambda file: file
    with_part: Callable[[bytes, bytes], bytes] = lambda _, part: part


def _weights(path: Path) -> object:
    return samples.read_all(path)


def _from_folder(path: Path) -> object:
    return samples.read_all(path.parent)


def _model(path: Path) -> object:
    """A saved model, with the weights that a product would read."""
    model = build_model(open_weights(path.parent), dtype=torch.float32, device=CPU)
    return [
        parameter.dequantize()
        for parameter in model.parameters()
        if not is_unquantized(parameter.data)
    ]


def _tokens(path: Path) -> object:
    tokenizer = load_tokenizer(path)
    return tokenizer.decode(tokenizer.encode(TEXT))


def _chat(path: Path) -> object:
    return encode_chat(load_tokenizer(path), [Message("user", TEXT)])


def _tokenizer_json(folder: Path) -> Path:
    path = hugging_face_samples.write_folder(folder, "qwen2")
    hugging_face_samples.change_json(
        folder / "tokenizer_config.json",
        chat_template=template_of(b"").decode(),
        added_tokens_decoder={"403": {"content": "<think>", "normalized": False}},
    )
    return path


def _saved(folder: Path, *, name: str, scheme: str, kernels: str = "native") -> Path:
    reader = samples.tiny_weights(replace(samples.TINY, n_layers=1))
    model = build_model(reader, dtype=torch.float32, device=CPU)
    quantize_model(model, scheme, kernels=kernels)
    (folder / "saved").mkdir()
    return save_model(model, folder / "saved") / name


def _times(folder: Path) -> Path:
    machines = {"cpu, 2 threads": {"int8wo 1x4096x11008 float32 compiled": 12.5}}
    return text_file("times.json", to_json(choose.TimesFile(machines=machines)))(folder)


def _launches(folder: Path) -> Path:
    choice = launch_table.Choice(
        block_u=8, splits=2, warps=4, stages=1, us=1.5, rule_us=2.0
    )
    table = launch_table.LaunchTable(devices={"cuda-some": {"key": choice}})
    return text_file("launch_table.json", to_json(table))(folder)


def _bisection(folder: Path) -> Path:
    report = record_samples.report_of(record_samples.measured())
    marked = Marked(mark=Mark.BAD, reason="slower", report=report)
    state = Bisection(marked={"0" * 40: marked})
    return text_file("bisect.json", to_json(state))(folder)


def pickle_of(file: bytes) -> bytes:
    """The pickle in a file that torch.save wrote."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return archive.read(_pickle_name(archive))


def with_pickle(
    file: bytes, pickled: bytes, *, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """The same file with another pickle."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(file)) as archive,
        zipfile.ZipFile(made, "w", compression) as other,
    ):
        pickle_name = _pickle_name(archive)
        for name in archive.namelist():
            other.writestr(name, pickled if name == pickle_name else archive.read(name))
    return made.getvalue()


def _pickle_name(archive: zipfile.ZipFile) -> str:
    return next(name for name in archive.namelist() if name.endswith("/data.pkl"))


def header_of(file: bytes) -> bytes:
    """The JSON that a safetensors file begins with."""
    (size,) = struct.unpack("<Q", file[:8])
    return file[8 : 8 + size]


def with_header(file: bytes, header: bytes) -> bytes:
    """The same file with another header."""
    return struct.pack("<Q", len(header)) + header + file[8 + len(header_of(file)) :]


def template_of(_file: bytes) -> bytes:
    """The chat template in the file of `with_template`."""
    return (
        b"{% for message in messages %}{{ '<|im_start|>system\nYou help.<|im_end|>\n'"
        b" + message['content'] + '<|im_end|>' }}{% endfor %}"
    )


def _chatty(folder: Path) -> Path:
    tokens, _ = tokenizer_samples.gguf_vocabulary()
    marks = ["<|im_start|>", "<|im_end|>"]
    template = template_of(b"").decode()
    return tokenizer_samples.write_gguf(
        folder / "chat.gguf", tokens=tokens + marks, chat_template=template
    )


def with_template(file: bytes, template: bytes) -> bytes:
    """A GGUF file of a vocabulary with another template, which is a string in it."""
    old = template_of(file)
    before, after = file.split(struct.pack("<Q", len(old)) + old)
    return before + struct.pack("<Q", len(template)) + template + after


def _unsaved(folder: Path, *, name: str) -> Path:
    return _saved(folder, name=name, scheme="uintx-4-32")


PICKLED: dict[str, Any] = {"part_of": pickle_of, "with_part": with_pickle}
JSON: dict[str, Any] = {"form": "json"}
READERS: dict[str, Reader] = {
    "baseline": Reader(make=baseline_file, read=baselines.read, **JSON),
    "save": Reader(make=pytest_save, read=recording.read, **JSON),
    "results": Reader(make=results_file, read=lambda path: read_merged([path]), **JSON),
    "history": Reader(make=history_file, read=history.read, **JSON),
    "rows": Reader(make=text_file("rows.toml", ROWS_TOML), read=load_file, form="toml"),
    "pyproject": Reader(
        make=text_file("pyproject.toml", LIMITS_TOML), read=project_limits, form="toml"
    ),
    "config": Reader(make=weights_files.hugging_face_config, read=_from_folder, **JSON),
    "params": Reader(
        make=partial(weights_files.pth, name="params.json"), read=_from_folder, **JSON
    ),
    "safetensors": Reader(make=weights_files.hugging_face, read=_from_folder),
    "safetensors-header": Reader(
        make=weights_files.hugging_face,
        read=_from_folder,
        part_of=header_of,
        with_part=with_header,
        **JSON,
    ),
    "safetensors-index": Reader(
        make=partial(weights_files.hugging_face, shards=2), read=_from_folder, **JSON
    ),
    "gguf": Reader(make=test_gguf.write, read=_weights),
    "gguf-quantized": Reader(
        make=partial(test_gguf.write, quantized=True), read=_weights
    ),
    "gguf-tokenizer": Reader(
        make=lambda folder: tokenizer_samples.write_gguf(folder / "words.gguf"),
        read=_tokens,
    ),
    "chat-template": Reader(
        make=_chatty, read=_chat, part_of=template_of, with_part=with_template
    ),
    "tokenizer-json": Reader(make=_tokenizer_json, read=_tokens, **JSON),
    "tokenizer-config": Reader(
        make=lambda folder: _tokenizer_json(folder).with_name("tokenizer_config.json"),
        read=lambda path: _chat(path.with_name("tokenizer.json")),
        **JSON,
    ),
    "sentencepiece": Reader(make=tokenizer_samples.train_sentencepiece, read=_tokens),
    "tiktoken": Reader(
        make=lambda folder: tokenizer_samples.write_tiktoken(
            folder / "tokenizer.model"
        ),
        read=_tokens,
    ),
    "pth": Reader(make=weights_files.pth, read=_weights),
    "pth-pickle": Reader(make=weights_files.pth, read=_weights, **PICKLED),
    "pth-old": Reader(
        make=partial(weights_files.pth, _use_new_zipfile_serialization=False),
        read=_weights,
    ),
    "consolidated": Reader(make=weights_files.consolidated, read=_from_folder),
    "consolidated-pickle": Reader(
        make=weights_files.consolidated, read=_from_folder, **PICKLED
    ),
    "saved": Reader(make=partial(_unsaved, name="model.pth"), read=_model),
    "saved-pickle": Reader(
        make=partial(_unsaved, name="model.pth"), read=_model, **PICKLED
    ),
    "saved-torchao-pickle": Reader(
        make=partial(_saved, name="model.pth", scheme="int8wo", kernels="torchao"),
        read=_model,
        **PICKLED,
    ),
    "saved-config": Reader(
        make=partial(_unsaved, name="config.json"), read=_model, **JSON
    ),
    "autoquant-times": Reader(make=_times, read=choose.read_times, **JSON),
    "launch-table": Reader(make=_launches, read=launch_table.read, **JSON),
    "bisect-state": Reader(
        make=_bisection, read=lambda path: read_json(Bisection, path), **JSON
    ),
}


def outcome(reader: Reader, path: Path, valid: bytes, part: bytes) -> str | None:
    """The line with which a file that has this `part` is refused; None if it is read.

    Raises AssertionError for a text that is no line, or that names no file; and
    whatever else the reader raises.
    """
    path.write_bytes(reader.with_part(valid, part))
    try:
        reader.read(path)
    except UserError as error:
        line = str(error)
        assert line.isprintable(), f"more than a line: {line!r}"
        assert str(path.parent) in line, f"no file is named: {line!r}"
        return line
    return None
