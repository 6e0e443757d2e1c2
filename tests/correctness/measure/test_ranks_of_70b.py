"""Llama-70B at 2, 4 and 8 ranks, in one process: nothing is computed, shapes are.

The ranks are torch's fake process group. The weights have no values, but the reader
cuts, quantizes and counts them as those of a file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.checkpoints.sharded import sharded
from llama_perf.devices import all_reduce
from llama_perf.devices.ranks import Rank, own_rank, reduced
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.presets import preset
from llama_perf.llama.transformer import Transformer, tensor_bytes
from llama_perf.measure.predict import predict
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec

META, CPU = torch.device("meta"), torch.device("cpu")
ROWS = [row for row in selection.load_set("tensor-parallel") if row.fused]
LAST = [row for row in ROWS if row.ranks == 8]
# Of a quantized row two layers, which are as all others: packing one takes 0.1 s.
LAYERS = {row: 80 if row in LAST and row.quantization is None else 2 for row in ROWS}


class Shapes(SyntheticWeights):
    """Weights without values."""

    def _made(self, _name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)


@contextmanager
def ranks(count: int, index: int) -> Iterator[None]:
    """Be one of so many ranks, of which there are no others."""
    store = FakeStore()
    dist.init_process_group("fake", store=store, rank=index, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def share(row: RowSpec, config: ModelConfig, device: torch.device) -> Transformer:
    """This rank's model of a row."""
    dtype: torch.dtype = getattr(torch, row.dtype)
    reader = sharded(Shapes(config, dtype=dtype, device=device), own_rank())
    make = partial(make_quantizer, kernels=row.kernels, device=device, dtype=dtype)
    quantizer = None if row.quantization is None else make(row.quantization)
    return build_model(reader, dtype=dtype, device=device, quantizer=quantizer)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_the_reader_counts_what_is_predicted(row: RowSpec) -> None:
    """The bytes of the weights and of the caches that a rank holds."""
    config = preset(row.model).first_layers(LAYERS[row])
    predicted = predict(row, config)
    with ranks(row.ranks, row.ranks - 1):
        model = share(row, config, META)
        engine = Engine(model, options(row))
    assert model.weight_bytes() == predicted.model_size_bytes
    assert tensor_bytes(model.tok_embeddings.weight) == predicted.embedding_bytes
    caches = sum(map(tensor_bytes, engine.cache_tensors()))
    assert caches == predicted.cache_bytes


def options(row: RowSpec) -> EngineOptions:
    """The modules': kernels need values."""
    kind = "int8" if row.kv_cache_quantization else None
    return EngineOptions(cache_size=row.allocated_positions, kv_cache=kind)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("name", ["Llama-2-70B", "Llama-3.1-70B"])
def test_the_shares_of_all_ranks_are_the_model(name: str, count: int) -> None:
    config = preset(name).first_layers(1)
    whole = Shapes(config, dtype=torch.bfloat16, device=META)
    parts = [sharded(whole, Rank(index, count)) for index in range(count)]
    norms = {"attention_norm.weight", "ffn_norm.weight"}
    for key, weight in whole.layer(0).items():
        pieces = [part.layer(0)[key] for part in parts]
        summed = weight.nbytes * (count if key in norms else 1)
        assert sum(piece.nbytes for piece in pieces) == summed
        assert len({piece.shape for piece in pieces}) == 1
    eighth = parts[0].layer(0)
    heads = config.n_heads // count, config.n_kv_heads // count
    assert eighth["attention.wqkv.weight"].shape == (
        (heads[0] + 2 * heads[1]) * 128,
        8192,
    )
    assert eighth["attention.wo.weight"].shape == (8192, heads[0] * 128)
    assert eighth["feed_forward.w1.weight"].shape == (28672 // count, 8192)
    assert eighth["feed_forward.w2.weight"].shape == (8192, 28672 // count)
    rows = parts[0].final()["output.weight"].shape
    assert rows == (config.vocab_size // count, 8192)


@pytest.mark.parametrize("row", LAST[:1] + LAST[5:7], ids=lambda row: row.id)
def test_a_step_of_eight_ranks(row: RowSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hidden state and the logits are whole, and each layer sums twice."""
    row, sums = replace(row, quantization=None), []

    def counted(x: Tensor, operation: str) -> Tensor:
        sums.append(x.nbytes)
        return reduced(x, operation)

    monkeypatch.setattr(all_reduce, "reduced", counted)
    config = preset(row.model).first_layers(2)
    with ranks(8, 3), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        engine = Engine(share(row, config, CPU), options(row))
        engine.prefill(torch.ones((1, 6), dtype=torch.int64))
        sums.clear()
        token = torch.ones((1, 1), dtype=torch.int64)
        logits = engine.decode(token, torch.tensor([6]))
    assert logits.shape == (1, config.vocab_size)
    assert sums == [2 * config.dim] * 4
    cache = engine.caches[0].k_cache
    assert cache.shape == (1, 1, row.allocated_positions, 128)
