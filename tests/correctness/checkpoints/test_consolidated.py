"""Parts of a model in Meta's files: merged a tensor at a time, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints import consolidated
from llama_perf.checkpoints.find import open_weights
from llama_perf.checkpoints.pth import PthFile, open_file
from llama_perf.errors import WeightsError
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.errors import refusal
from tests.correctness.support.weights_samples import PARAMS_JSON, file_refusal


def parts_of(weights: dict[str, Tensor], count: int, embedding: int) -> list[Any]:
    parts = samples.consolidated(samples.split_qkv(weights), count, embedding)
    return [{**part, "rope.freqs": torch.ones(4)} for part in parts]


def write(
    folder: Path, parts: list[Any], vocab_size: int = PARAMS_JSON["vocab_size"]
) -> Path:
    samples.write_json(folder / "params.json", PARAMS_JSON | {"vocab_size": vocab_size})
    for number, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{number:02}.pth")
    return folder


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    ("embedding", "vocab_size"), [(1, -1), (1, 48), (0, 48)], ids=["1", "2", "3"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_llama_1_2_and_3(
    tmp_path: Path, count: int, embedding: int, vocab_size: int, dtype: torch.dtype
) -> None:
    weights = {name: w.to(dtype) for name, w in samples.all_weights().items()}
    write(tmp_path, parts_of(weights, count, embedding), vocab_size)
    for path in (tmp_path, tmp_path / "consolidated.01.pth"):
        reader = open_weights(path)
        assert reader.source == f"pth:{tmp_path.name}"
        assert reader.config == samples.TINY
        assert not reader.notes
        samples.assert_same(reader, weights)


def test_one_part_of_llama_2_tells_its_vocabulary(tmp_path: Path) -> None:
    weights = samples.all_weights()
    write(tmp_path, parts_of(weights, 1, 1), vocab_size=-1)
    samples.assert_same(open_weights(tmp_path), weights)
    path = tmp_path / "consolidated.00.pth"
    del weights["tok_embeddings.weight"]
    torch.save(weights, path)
    missing = "the tensor tok_embeddings.weight, of two sizes, is missing"
    assert file_refusal(path) == missing
    write(tmp_path, [weights, weights], vocab_size=-1)
    assert file_refusal(tmp_path) == f"consolidated.00.pth: {missing}"


def test_no_more_than_a_tensor_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def watched(*arguments: Any) -> PthFile:
        path, tensors, read_one, check_data = open_file(*arguments)

        def watched_read(name: str) -> Tensor:
            read.append(name)
            return read_one(name)

        return PthFile(path, tensors, watched_read, check_data)

    monkeypatch.setattr(consolidated, "open_file", watched)
    write(tmp_path, parts_of(samples.all_weights(), 2, 1))
    reader = open_weights(tmp_path)
    assert not read
    reader.embedding()
    assert read == ["tok_embeddings.weight"] * 2
    # They are mapped: what a reader gives does not change the files.
    reader.layer(1)["attention_norm.weight"].zero_()
    samples.assert_same(open_weights(tmp_path), samples.all_weights())


WQ, NORM = "layers.1.attention.wq.weight", "layers.0.ffn_norm.weight"


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    def fault(change: dict[str, Tensor | None], number: int = 1) -> str:
        parts = parts_of(samples.all_weights(), 2, 1)
        parts[number].update(change)
        kept = [{n: w for n, w in part.items() if w is not None} for part in parts]
        return file_refusal(write(tmp_path, kept))

    allowed = "allowed: those of consolidated.00.pth"
    assert fault({WQ: None}) == (
        f"consolidated.01.pth: the tensor {WQ} is missing; {allowed}"
    )
    assert fault({WQ: None}, number=0) == (
        f"consolidated.01.pth: the tensor {WQ} is not allowed; {allowed}"
    )
    assert fault({WQ: torch.ones(8, 32)}) == (
        f"consolidated.01.pth: {WQ}: shape (8, 32) is not allowed; allowed:"
        " (16, 32), as in consolidated.00.pth"
    )
    assert fault({WQ: torch.ones(16, 32).half()}) == (
        f"consolidated.01.pth: {WQ}: dtype float16 is not allowed; allowed:"
        " float32, as in consolidated.00.pth"
    )
    norm = samples.all_weights()[NORM]
    norm[7] += 1e-6
    assert fault({NORM: norm}) == (
        f"consolidated.01.pth: {NORM}: other values than in consolidated.00.pth are not"
        " allowed; allowed: the same in every part"
    )
    message = fault({WQ: torch.ones(16)}, number=0)
    assert message.startswith(f"consolidated.01.pth: {WQ}: shape ")
    parts = parts_of(samples.all_weights(), 2, 1)
    for part in parts:
        part["tok_embeddings.weight"] = torch.tensor(1.0)
    assert file_refusal(write(tmp_path, parts)) == (
        "tok_embeddings.weight: shape () is not allowed; params.json, for 2 parts"
        " together, wants (48, 32)"
    )
    (tmp_path / "consolidated.01.pth").write_bytes(b"PK")
    assert file_refusal(tmp_path).startswith("consolidated.01.pth: damaged, ")


def test_parts_that_are_missing(tmp_path: Path) -> None:
    write(tmp_path, parts_of(samples.all_weights(), 4, 0))
    (tmp_path / "consolidated.03.pth").unlink()
    # The vocabulary of three parts of four.
    assert file_refusal(tmp_path) == (
        "tok_embeddings.weight: shape (36, 32) is not allowed; params.json, for 3 parts"
        " together, wants (48, 32)"
    )
    for name in ("consolidated.01.pth", "consolidated.00.pth"):
        (tmp_path / name).unlink()
        assert file_refusal(tmp_path) == (
            f"{name} is missing; the last one is consolidated.02.pth"
        )
    (tmp_path / "consolidated.002.pth").touch()
    assert refusal(open_weights, tmp_path, error=WeightsError) == (
        f"{tmp_path}: the file 'consolidated.002.pth' is not allowed; allowed:"
        " consolidated.00.pth, consolidated.01.pth, ..."
    )
