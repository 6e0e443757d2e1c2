"""Checkpoints that a disk, a copy or a stranger changed: refused, not computed with."""

import json
import os
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from llama_perf import load_model, save_model
from llama_perf.checkpoints.find import open_weights
from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.errors import TokenizerError, WeightsError
from tests.correctness.checkpoints import test_gguf, test_pth
from tests.correctness.checkpoints.test_save import change_said, quantized
from tests.correctness.quantize.test_apply import SMALL, linears
from tests.correctness.support import tokenizer_samples, weights_samples
from tests.correctness.support.errors import refusal
from tests.correctness.support.readers import READERS, pickle_of, with_pickle
from tests.correctness.support.weights_samples import file_refusal, read_all


def put_folder(path: Path) -> None:
    path.mkdir()


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_loop(path: Path) -> None:
    path.symlink_to(path)


def put_dead_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


UNREADABLE: dict[Callable[[Path], None], str] = {
    put_folder: "Is a directory",
    put_pipe: "it is a pipe",
    put_loop: "Too many levels of symbolic links",
    put_dead_link: "No such file or directory",
}
FILES = [
    *("config", "params", "safetensors", "safetensors-index", "gguf", "pth"),
    *("saved", "saved-config", "gguf-tokenizer", "tiktoken"),
]


@pytest.mark.parametrize("put", UNREADABLE)
@pytest.mark.parametrize("name", FILES)
def test_what_is_there_and_cannot_be_read_is_named(
    name: str, put: Callable[[Path], None], tmp_path: Path
) -> None:
    path = READERS[name].make(tmp_path)
    path.unlink()
    put(path)
    error = TokenizerError if "token" in name else WeightsError
    message = refusal(READERS[name].read, path, error=error)
    # A folder may be a checkpoint.
    if put is put_folder and name in ("gguf", "pth"):
        assert message.startswith(f"{path}: no weights in this folder")
    else:
        assert message == f"{path}: cannot be read: {UNREADABLE[put]}"


def test_a_shard_and_a_tokenizer_that_are_there(tmp_path: Path) -> None:
    index = READERS["safetensors-index"].make(tmp_path)
    (tmp_path / "part-1.safetensors").unlink()
    os.mkfifo(tmp_path / "part-1.safetensors")
    assert file_refusal(index.parent).endswith("cannot be read: it is a pipe")
    os.mkfifo(tmp_path / "tokenizer.model")
    model = quantized("int8wo")
    message = refusal(
        save_model, model, tmp_path / "saved", tokenizer=tmp_path, error=TokenizerError
    )
    assert message.endswith("tokenizer.model: cannot be read: it is a pipe")


def flip(path: Path, at: int) -> None:
    file = bytearray(path.read_bytes())
    file[at] ^= 1
    path.write_bytes(file)


@pytest.mark.parametrize("record", ["/data.pkl", "/data/3"])
def test_a_bit_that_flipped_in_a_pth(record: str, tmp_path: Path) -> None:
    path = READERS["pth"].make(tmp_path)
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(record))
        content = archive.read(name)
    flip(path, path.read_bytes().index(content) + len(content) // 2)
    message = f"damaged or truncated: Bad CRC-32 for file {name!r}"
    assert file_refusal(path) == message
    # No data is read to say what a model needs.
    if record == "/data/3":
        assert open_weights(path).config.dim == 32


def test_a_pth_without_checksums_is_read(tmp_path: Path) -> None:
    path = READERS["pth"].make(tmp_path)
    wanted = weights_samples.all_weights()
    try:
        torch.serialization.set_crc32_options(False)
        READERS["pth"].make(tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    weights_samples.assert_same(open_weights(path), wanted)


def test_a_pth_that_was_zipped_again_is_refused(tmp_path: Path) -> None:
    path = READERS["pth"].make(tmp_path)
    file = path.read_bytes()
    compressed = with_pickle(file, pickle_of(file), compression=zipfile.ZIP_DEFLATED)
    path.write_bytes(compressed)
    assert file_refusal(path).endswith(" is compressed")


def test_a_pickle_of_another_protocol_gives_no_warning(tmp_path: Path) -> None:
    path = READERS["pth"].make(tmp_path)
    wanted = weights_samples.all_weights()
    file = path.read_bytes()
    path.write_bytes(with_pickle(file, b"\x80\x12" + pickle_of(file)[2:]))
    with warnings.catch_warnings(action="error"):
        weights_samples.assert_same(open_weights(path), wanted)


def put_in(tmp_path: Path, tensor: torch.Tensor) -> str:
    return file_refusal(test_pth.write(tmp_path, {"norm.weight": tensor}))


def test_a_tensor_without_its_values(tmp_path: Path) -> None:
    view = torch.ones(1).expand(2**40)
    assert put_in(tmp_path, view) == (
        "norm.weight: damaged: its shape takes 4398046511104 bytes, the file has 4 of"
        " them"
    )
    for tensor, words in (
        (torch.empty(32, device="meta"), "torch.strided tensor on meta"),
        (torch.ones(32).to_sparse(), "torch.sparse_coo tensor on cpu"),
    ):
        assert put_in(tmp_path, tensor) == f"norm.weight: a {words} is not allowed"


@pytest.mark.parametrize("name", ["pth", "gguf", "safetensors"])
def test_a_file_that_is_cut_after_it_was_opened(name: str, tmp_path: Path) -> None:
    """To read past the end of a mapped file would end the process."""
    path = READERS[name].make(tmp_path)
    reader = open_weights(path if name == "gguf" else tmp_path)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    changed = f"{path}: it was changed since it was opened"
    for read in (reader.embedding, reader.final, reader.keep):
        assert refusal(read, error=WeightsError) == changed


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    READERS["safetensors-index"].make(tmp_path)
    shards = sorted(tmp_path.glob("part-*"))
    shards[1].write_bytes(shards[0].read_bytes())
    message = file_refusal(tmp_path)
    assert message.startswith("part-1.safetensors: the tensor ")
    assert message.endswith(" is in part-0.safetensors as well")


SAVED = ["int8wo", "int8dq", "fp6", "int4wo-32", "int4wo-64", "uintx-3-4", "uintx-4-64"]


@pytest.mark.parametrize("scheme", SAVED)
def test_a_folder_that_says_another_scheme(scheme: str, tmp_path: Path) -> None:
    folder = save_model(quantized(scheme), tmp_path / "saved")
    for other in SAVED:
        change_said(folder, scheme=other)
        if other == scheme:
            load_model(folder)
            continue
        assert file_refusal(folder, load_model) == (
            f"model.pth: layers.0.attention.wqkv.weight: a tensor of {scheme} is not"
            f" allowed; config.json says {other}"
        )


TORCHAO = ["int8wo", "int8dq", "int4wo-32", "int4wo-64", "float8wo"]


@pytest.mark.parametrize("scheme", TORCHAO)
def test_a_folder_that_says_another_scheme_of_torchaos(
    scheme: str, tmp_path: Path
) -> None:
    folder = save_model(quantized(scheme, "torchao"), tmp_path / "saved")
    for other in TORCHAO:
        change_said(folder, scheme=other)
        if other == scheme:
            load_model(folder)
            continue
        message = file_refusal(folder, load_model)
        assert message.endswith(
            f"these parts are not allowed; config.json says {other}"
        ), other


def test_another_file_than_the_one_that_was_saved(tmp_path: Path) -> None:
    model = quantized("int8wo")
    folder = save_model(model, tmp_path / "saved")
    with torch.no_grad():
        model.norm.weight.add_(1)
    other = save_model(model, tmp_path / "other")
    (other / "model.pth").replace(folder / "model.pth")
    assert file_refusal(folder, load_model) == (
        "model.pth: it is not the file that was saved with the config.json beside it"
    )
    # Folders of older versions do not say which it was.
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    assert fields.pop("llama_perf_content")
    weights_samples.write_json(path, fields)
    load_model(folder)
    del fields["llama_perf"]["format"]
    weights_samples.write_json(path, fields)
    message = "config.json: llama_perf: format: the field is missing"
    assert file_refusal(folder, load_model) == message


def shorter(part: torch.Tensor) -> torch.Tensor:
    return part[..., :-1].contiguous()


def wider(part: torch.Tensor) -> torch.Tensor:
    return part.to(torch.float64)


@pytest.mark.parametrize("change", [shorter, wider])
@pytest.mark.parametrize("part", ["codes", "scale", "zero"])
def test_quantized_parts_that_do_not_fit_each_other(
    part: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = quantized("int4wo-64")
    weight: Any = linears(model)["layers.0.feed_forward.w1"].weight
    monkeypatch.setattr(weight, part, change(getattr(weight, part)))
    folder = save_model(model, tmp_path / "saved")
    assert file_refusal(folder, load_model) == (
        "model.pth: layers.0.feed_forward.w1.weight: a damaged Int4Weight: its parts"
        f" do not fit its shape ({SMALL.intermediate_size}, {SMALL.dim})"
    )


def test_a_gguf_of_another_order_or_with_other_types_or_tensors_that_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = test_gguf.write(tmp_path)
    file = path.read_bytes()
    # The type and the offset of the last tensor: it begins where the first one does.
    name = b"output.weight"
    at = file.index(len(name).to_bytes(8, "little") + name) + 8 + len(name)
    at += 4 + 2 * 8 + 4
    path.write_bytes(file[:at] + bytes(8) + file[at + 8 :])
    assert file_refusal(path).endswith(" overlap")
    path.write_bytes(file[:at] + b"\xe0" + b"\xff" * 7 + file[at + 8 :])
    with warnings.catch_warnings(action="ignore"):
        assert file_refusal(path) == test_gguf.DAMAGED
    big = partial(gguf.GGUFWriter, endianess=gguf.GGUFEndian.BIG)
    monkeypatch.setattr(gguf, "GGUFWriter", big)
    order = "its numbers have another byte order than this machine's"
    assert file_refusal(test_gguf.write(tmp_path)) == order
    monkeypatch.undo()
    path = test_gguf.write(tmp_path, fields={"tokenizer.ggml.tokens": "t0"})
    words = "tokenizer.ggml.tokens: allowed: a list of strings"
    assert file_refusal(path) == words


def test_a_piece_that_is_no_text(tmp_path: Path) -> None:
    path = tokenizer_samples.train_sentencepiece(tmp_path)
    file = path.read_bytes()
    assert file.count(b"<s>") == 1
    path.write_bytes(file.replace(b"<s>", b"<\xff>"))
    words = "a damaged or truncated sentencepiece model"
    assert refusal(load_tokenizer, path, error=TokenizerError) == f"{path}: {words}"


def test_an_error_with_a_files_own_words_is_one_line(tmp_path: Path) -> None:
    weights = {"a\nb\x1b[31m\ud800": torch.ones(1)}
    message = refusal(read_all, test_pth.write(tmp_path, weights), error=WeightsError)
    assert r"the tensor a\nb\x1b[31m\ud800 is not allowed" in message
    assert message.isprintable()
    assert len(str(WeightsError("x" * 10**6))) < 10**4
