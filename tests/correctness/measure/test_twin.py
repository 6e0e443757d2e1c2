"""The twin, layer by layer, against the whole model; what of it is there at a time."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights, layer_shapes
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.measure import twin as twins
from llama_perf.measure.live_bytes import LiveBytes
from llama_perf.measure.twin import Twin
from tests.correctness.support.engines import CPU, SMALL, tokens

LLAMA3 = replace(SMALL, rope_scaling=RopeScaling(factor=8.0), rope_base=5e5)
TIED = replace(SMALL, tied_embeddings=True)
# Narrower than the texts, in one layer of two; and all else that layers may have.
WINDOW = replace(SMALL, sliding_window=6, window_layers=(1,))
QWEN = replace(SMALL, qkv_bias=True, output_bias=True, qk_norm=True, nope_layers=(0,))
CONFIGS = {
    "plain": SMALL,
    "tied": TIED,
    "llama3": LLAMA3,
    "window": WINDOW,
    "qwen": QWEN,
}
NONE = torch.zeros(0, dtype=torch.int64)


def reader_of(config: ModelConfig = SMALL) -> SyntheticWeights:
    return SyntheticWeights(config, dtype=torch.float32, device=CPU)


def new_twin(reader: SyntheticWeights) -> Twin:
    return Twin(reader, dtype=torch.float32, device=CPU)


@pytest.fixture(params=[512, 5])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, and in pieces of both the text and the output layer."""
    monkeypatch.setattr(twins, "PREFILL_CHUNK", request.param)
    monkeypatch.setattr(twins, "HEAD_ROWS", 10 * request.param)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_is_the_whole_model(config: ModelConfig) -> None:
    reader = reader_of(config)
    model = build_model(reader, dtype=torch.float32, device=CPU)
    text, other = tokens(batch=2, length=23)
    twin = new_twin(reader)
    # From the eighth position on the text goes on in another way as well.
    of_text, of_branch = twin.states(text, other[8:], 8)
    head = twin.head()
    branched = torch.cat((text[:8], other[8:]))
    for states, ids, start in ((of_text, text, 0), (of_branch, branched, 8)):
        expected = model.logits(ids[None])[0, start:]
        assert expected.std() > 0.1
        torch.testing.assert_close(head(states), expected, rtol=0, atol=1e-5)


def test_a_branch_may_be_longer_than_the_text_and_may_be_empty() -> None:
    reader = reader_of()
    model = build_model(reader, dtype=torch.float32, device=CPU)
    text, branch = tokens(length=4)[0], tokens(length=30, seed=1)[0]
    twin = new_twin(reader)
    expected = model.logits(torch.cat((text[:2], branch))[None])[0, 2:]
    states = twin.states(text, branch, 2)[1]
    torch.testing.assert_close(twin.head()(states), expected, rtol=0, atol=1e-5)
    assert twin.states(text, NONE, 4)[1].shape == (0, SMALL.dim)


def peak_bytes(work: Callable[[], Tensor], known: Iterable[Tensor] = ()) -> int:
    with LiveBytes("cpu", known) as live:
        work()
    peak: int = live.peak
    return peak


def test_of_its_weights_one_layer_is_there_at_a_time() -> None:
    deep = replace(SMALL, n_layers=12)
    layer = sum(torch.Size(shape).numel() for _, shape in layer_shapes(deep)) * 4
    table = deep.vocab_size * deep.dim * 4
    text = tokens(length=16)[0]
    states = len(text) * deep.dim * 4
    caches = 2 * len(text) * deep.n_kv_heads * deep.head_dim * 4
    inside = 6 * len(text) * max(deep.intermediate_size, deep.qkv_size) * 4
    twin = new_twin(reader_of(deep))
    peak = peak_bytes(lambda: twin.states(text, NONE, 16)[0])
    # Of the layers one, or the table while tokens are looked up in it.
    assert layer <= peak <= max(layer, table) + states + caches + inside
    assert peak < deep.n_layers * layer / 4
    one = new_twin(reader_of(replace(SMALL, n_layers=1)))
    shallow = peak_bytes(lambda: one.states(text, NONE, 16)[0])
    assert peak == shallow


def test_the_output_layer_is_on_the_device_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(twins, "HEAD_ROWS", 64)
    config = replace(SMALL, vocab_size=4096)
    # As a checkpoint has them, in another dtype than the row: each piece is a copy.
    reader = SyntheticWeights(config, dtype=torch.bfloat16, device=CPU)
    final = reader.final()
    monkeypatch.setattr(reader, "final", lambda: final)
    head, states = new_twin(reader).head(), torch.randn(4, config.dim)
    peak = peak_bytes(lambda: head(states), [*final.values(), states])
    piece, logits = 64 * config.dim * 4, 4 * config.vocab_size * 4
    assert piece < peak < 2 * piece + 2 * logits < config.vocab_size * config.dim * 4
