"""The shares of several ranks: the bits of the whole model, whatever its files are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from llama_perf import load_model, save_model
from llama_perf.checkpoints import gguf_values
from llama_perf.checkpoints.cut import Cut
from llama_perf.checkpoints.find import open_weights
from llama_perf.llama.config import ModelConfig
from tests.correctness.checkpoints.test_query_key import IN_GGUF
from tests.correctness.support import architectures, query_key_samples, shares
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.shares import (
    CONFIG,
    HUGGING_FACE,
    RANKS,
    split_qkv,
    write_config,
    write_consolidated,
)

TIED = replace(CONFIG, tied_embeddings=True)
BIASED = replace(CONFIG, qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True)


@pytest.mark.parametrize("config", [CONFIG, TIED, BIASED], ids=["", "tied", "biased"])
def test_synthetic_weights(config: ModelConfig) -> None:
    for count in RANKS:
        shares.assert_whole(samples.tiny_weights(config), count)


@pytest.mark.parametrize("name", architectures.MODELS)
def test_safetensors_and_a_saved_model(tmp_path: Path, name: str) -> None:
    model = architectures.random_model(name, **HUGGING_FACE)
    folder = query_key_samples.safetensors(model, tmp_path / "one")
    shards = query_key_samples.safetensors(model, tmp_path / "more", size="200KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    saved = save_model(load_model(folder), tmp_path / "saved")
    for path in (folder, shards, saved):
        for count in RANKS:
            shares.assert_whole(open_weights(path), count)


@pytest.mark.parametrize("name", IN_GGUF)
def test_gguf(tmp_path: Path, name: str) -> None:
    model = architectures.random_model(name, **(HUGGING_FACE | IN_GGUF[name]))
    for kind in (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0):
        path = query_key_samples.gguf_file(model, tmp_path, kind=kind)
        for count in RANKS:
            shares.assert_whole(open_weights(path), count)


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K, Kind.Q5_1, Kind.BF16])
def test_columns_of_a_gguf_file_that_are_no_whole_blocks(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    # Rows in several stretches, the last of them shorter.
    monkeypatch.setattr(gguf_values, "_STRETCH", 4 * 1024)
    row_bytes = 1024 // gguf.GGML_QUANT_SIZES[kind][0] * gguf.GGML_QUANT_SIZES[kind][1]
    stored = np.random.default_rng(0).integers(0, 256, (11, row_bytes), np.uint8)

    def tensor_of(data: Any, *shape: int) -> gguf.ReaderTensor:
        reversed_shape = np.array(shape[::-1])
        return gguf.ReaderTensor("t", kind, reversed_shape, 0, 0, 0, data, None)  # type: ignore[arg-type]

    whole = gguf_values.values(tensor_of(stored, 11, 1024), Cut())
    assert whole.shape == (11, 1024)
    for columns in ((0, 256), (256, 512), (300, 700), (1000, 1024)):
        for rows in (None, ((2, 7), (9, 11))):
            cut = Cut(rows, columns)
            part = gguf_values.values(tensor_of(stored, 11, 1024), cut)
            assert part.shape == cut.shape_of((11, 1024))
            # Random scales may be no numbers.
            assert torch.equal(part.view(torch.int32), cut.of(whole).view(torch.int32))
    bias, cut = tensor_of(stored[0], 1024), Cut(((100, 300), (600, 601)))
    part = gguf_values.values(bias, cut)
    assert torch.equal(part.view(torch.int32), cut.of(whole[0]).view(torch.int32))


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_pth(tmp_path: Path, apart: bool, zipped: bool) -> None:
    weights = samples.all_weights(samples.tiny_weights(CONFIG))
    write_config(tmp_path, CONFIG)
    stored = split_qkv(weights) if apart else weights
    options: dict[str, Any] = {"_use_new_zipfile_serialization": zipped}
    torch.save(stored, tmp_path / "model.pth", **options)
    for count in RANKS:
        shares.assert_whole(open_weights(tmp_path), count)


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("embedding", [0, 1])
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["", "tied"])
def test_consolidated_parts(
    tmp_path: Path, parts: int, embedding: int, config: ModelConfig
) -> None:
    """Also where the parts are not those of the ranks."""
    write_consolidated(tmp_path, config, parts, embedding)
    for count in RANKS:
        reader = open_weights(tmp_path)
        assert reader.config == config
        shares.assert_whole(reader, count)
