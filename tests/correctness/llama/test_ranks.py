"""A model that ranks share gives the logits of one process."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llama_perf import quantize_model
from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.checkpoints.sharded import sharded
from llama_perf.devices.ranks import from_first_rank, own_rank
from llama_perf.errors import ValuesError
from llama_perf.llama import draws
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY, EngineOptions, Request, Sampling
from llama_perf.llama.transformer import Transformer
from llama_perf.measure.ranks import check_same_tokens
from tests.correctness.support.engines import distance
from tests.correctness.support.rank_pool import RankPool
from tests.correctness.support.shares import CONFIG

CPU = torch.device("cpu")
QWEN = replace(CONFIG, qkv_bias=True, qk_norm=True, tied_embeddings=True)
MISTRAL = replace(CONFIG, sliding_window=5, nope_layers=(1,))
BIASED = replace(CONFIG, output_bias=True, mlp_bias=True)
# Halves of 384 columns are whole groups of 32.
WIDE = replace(CONFIG, dim=192, intermediate_size=384)
TOKENS = torch.arange(1, 8).view(1, -1)
BATCH = torch.arange(1, 15).view(2, -1)
SDPA_LINEAR: dict[str, Any] = {"attention": "sdpa", "linear_causal_mask": True}
ENGINES = [
    EngineOptions(cache_size=32, kv_cache=kind, attention=path, prefill_chunk=chunk)
    for kind in (None, "int8", "fp8")
    for path in ("decode", "sdpa")
    for chunk in (None, 3)
]


def shared_model(config: ModelConfig) -> Transformer:
    reader = SyntheticWeights(config, dtype=torch.float32, device=CPU)
    share = sharded(reader, own_rank())
    return build_model(share, dtype=torch.float32, device=CPU)


def logits() -> list[Tensor]:
    configs = (CONFIG, QWEN, MISTRAL, BIASED)
    return [shared_model(config).logits(TOKENS) for config in configs]


@pytest.mark.parametrize("count", [2, 3])
def test_logits(rank_pool: Callable[[int], RankPool], count: int) -> None:
    wanted = logits()
    for shared in rank_pool(count).run(logits):
        for ours, whole in zip(shared, wanted, strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)


def generated() -> list[tuple[Tensor, Tensor]]:
    """Greedy tokens and their logits, by every cache and path of attention."""
    found, model = [], shared_model(CONFIG)
    for options in ENGINES:
        engine = Engine(model, options)
        engine.fill(TOKENS[:, :3])
        found.append(
            engine.observe(TOKENS, observed=8, max_new_tokens=8, sampling=GREEDY)
        )
    lengths = torch.tensor([4, 7])
    request: Request = {"max_new_tokens": 8, "sampling": GREEDY}
    for fields in ({}, {"attention": "sdpa"}, SDPA_LINEAR):
        options = EngineOptions(cache_size=32, batch_size=2, **fields)
        engine = Engine(model, options)
        found.append(engine.observe(BATCH, observed=8, **request))
    ragged = Engine(model, EngineOptions(cache_size=32, batch_size=2))
    uneven: Request = {**request, "lengths": lengths}
    found.append(ragged.observe(BATCH, observed=8, **uneven))
    # Weights of its own, a longer cache, and a text that is read.
    for other in (ragged.copy(), ragged.longer(40)):
        found.append(other.observe(BATCH, observed=8, **request))
    read = [each.clone() for each in ragged.read(BATCH, 3)]
    return [*found, (BATCH, torch.stack(read))]


@pytest.mark.parametrize("count", [2, 3])
def test_greedy_tokens_and_their_logits(
    rank_pool: Callable[[int], RankPool], count: int
) -> None:
    wanted = generated()
    for shared in rank_pool(count).run(generated):
        for (tokens, ours), (greedy, whole) in zip(shared, wanted, strict=True):
            assert torch.equal(tokens, greedy)
            # The largest logits are near 4.
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)


def sampled(kind: str) -> list[Tensor]:
    """Twice, with draws of its own on each rank but the first."""
    index = own_rank().index
    torch.manual_seed(index)
    generator = torch.Generator().manual_seed(index)
    how: dict[str, Any] = {"generator": {"generator": generator}, "torch's": {}}
    sampling = Sampling(temperature=0.8, top_k=20, **how[kind])
    engine = Engine(shared_model(CONFIG), EngineOptions(cache_size=32))
    generate = partial(engine.generate, TOKENS, max_new_tokens=12, sampling=sampling)
    return [generate(), generate()]


@pytest.mark.parametrize("kind", ["generator", "torch's"])
def test_draws_are_the_first_rank_s(
    rank_pool: Callable[[int], RankPool], kind: str
) -> None:
    first, second = sampled(kind)
    assert not torch.equal(first, second)
    for shared in rank_pool(3).run(sampled, kind):
        assert all(map(torch.equal, shared, (first, second)))


def exchanges() -> list[int]:
    """How often draws are exchanged by three generations with one generator."""
    calls: list[int] = []

    def counted(value: Any) -> Any:
        calls.append(1)
        return from_first_rank(value)

    engine = Engine(shared_model(CONFIG), EngineOptions(cache_size=32))
    sampling = Sampling(generator=torch.Generator().manual_seed(own_rank().index))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "from_first_rank", counted)
        for _ in range(3):
            engine.generate(TOKENS, max_new_tokens=2, sampling=sampling)
    return calls


def test_they_are_exchanged_before_the_first_generation_alone(
    rank_pool: Callable[[int], RankPool],
) -> None:
    """A sample that is timed exchanges none: its row's generator was in the warm-up."""
    assert rank_pool(2).run(exchanges) == [[1], [1]]


def of_torchao(scheme: str) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Greedy tokens, logits, and the shape of a rank's weight if it is torchao's."""
    model = quantize_model(shared_model(WIDE), scheme, kernels="torchao")
    weight = model.get_parameter("layers.0.feed_forward.w2.weight")
    assert type(weight).__module__.startswith("torchao")
    engine = Engine(model, EngineOptions(cache_size=32))
    tokens = engine.generate(TOKENS, max_new_tokens=8, sampling=GREEDY)
    return tokens, model.logits(TOKENS), tuple(weight.shape)


@pytest.mark.parametrize("scheme", ["int8wo", "int8dq", "float8wo", "int4wo-32"])
def test_torchao_quantizes_each_share(
    rank_pool: Callable[[int], RankPool], scheme: str
) -> None:
    """With scales of its own, hardly further from the unquantized model than one."""
    _, whole, (rows, columns) = of_torchao(scheme)
    wanted = shared_model(WIDE).logits(TOKENS)
    first, second = rank_pool(2).run(of_torchao, scheme)
    assert 0 < distance(first[1], wanted) < 1.2 * distance(whole, wanted)
    assert distance(first[1], whole) < distance(whole, wanted)
    assert first[2] == second[2] == (rows, columns // 2)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def compiled() -> tuple[Tensor, int]:
    """Tokens, and how many graphs were compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = EngineOptions(cache_size=32, compile=True, compile_prefill=True)
    engine = Engine(shared_model(CONFIG), options)
    tokens = engine.generate(TOKENS, max_new_tokens=6, sampling=GREEDY)
    return tokens, torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_compiled_blocks(rank_pool: Callable[[int], RankPool]) -> None:
    """A prompt's block, a step's and the head, the sums inside."""
    wanted, graphs = compiled()
    assert graphs == 3
    for tokens, of_rank in rank_pool(2).run(compiled):
        assert torch.equal(tokens, wanted)
        assert of_rank == graphs


def calls_of_a_step() -> list[str]:
    engine = Engine(shared_model(CONFIG), EngineOptions(cache_size=32))
    engine.prefill(TOKENS)
    names: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Names(), torch.no_grad():  # type: ignore[no-untyped-call]
        engine.decode(TOKENS[:, :1], torch.tensor([7]))
    return [name for name in names if "all_" in name]


def test_a_step_sums_twice_a_layer_and_gathers_once(
    rank_pool: Callable[[int], RankPool],
) -> None:
    for names in rank_pool(2).run(calls_of_a_step):
        sums = [name for name in names if "all_reduce" in name]
        assert len(sums) == 2 * CONFIG.n_layers
        assert len(names) == len(sums) + 1


def other_tokens(added: Sequence[int]) -> str:
    """In the second sequence of a batch, at two places, by so much on each rank."""
    own = BATCH.clone()
    own[1, 4:6] += added[own_rank().index]
    try:
        check_same_tokens(own)
    except ValuesError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ((3, 0, 0), "rank 0 15, the others 12"),
        ((0, 0, 3), "rank 2 15, the others 12"),
        ((3, 0, 4), "rank 0 15, rank 1 12, rank 2 16"),
    ],
)
def test_the_first_place_with_other_tokens_is_named(
    rank_pool: Callable[[int], RankPool], added: Sequence[int], words: str
) -> None:
    for told in rank_pool(3).run(other_tokens, added):
        assert told == (
            "check: the ranks chose other tokens from the same draws: at position 4 of"
            f" sequence 1, {words}"
        )
