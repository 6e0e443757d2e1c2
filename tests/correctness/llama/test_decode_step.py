"""The draws; the step that feeds itself, and the same step captured.

A CPU has no graphs: there what would be captured is kept and run at each replay, so
that all but CUDA's own part is the same code. On a card it is captured for real.
"""

import gc
import itertools
import weakref
from functools import partial
from unittest.mock import MagicMock, Mock, call, create_autospec

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from llama_perf import quantize_model
from llama_perf.devices import cuda
from llama_perf.llama import decode_step
from llama_perf.llama.compiler import compiler_settings
from llama_perf.llama.decode_step import InjectedSteps, sample
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY, Sampling
from llama_perf.llama.transformer import Transformer
from tests.correctness.support.engines import engine, refusing_to_wait, small_model

SCHEMES = (None, "int8wo", "int8dq", "int4wo-64", "uintx-4-64", "uintx-2-8", "fp6")
LOGITS = torch.tensor([[0.0, 1.0, 2.0, 0.5, -1.0, 1.5]])
PROMPT = torch.tensor([[11, 7, 400, 3, 92]])
# What bfloat16 leaves of logits near 4: half a unit in the last place is 2^-7, and
# two sums of them in another order differ by a few.
TIE = {torch.bfloat16: 0.08, torch.float32: 1e-4}
CAPTURED = itertools.product((*SCHEMES, "sparse-marlin"), ("capture", "fused"))


@pytest.fixture
def model(device: torch.device, graphs: Mock) -> Transformer:
    del graphs  # Captures work from here on.
    return small_model(device)


def drawing(one: Engine, temperature: float = 0.0, seed: int = 0) -> Sampling:
    generator = torch.Generator(device=one.model.device).manual_seed(seed)
    return Sampling(temperature=temperature, top_k=20, generator=generator)


def generated(one: Engine, count: int, sampling: Sampling = GREEDY) -> Tensor:
    prompt = PROMPT.to(one.model.device)
    return one.generate(prompt, max_new_tokens=count, sampling=sampling).cpu()


def test_the_step_is_decoding_and_sampling_by_hand(model: Transformer) -> None:
    by_hand, prompt = engine(model), PROMPT.to(model.device)
    length, sampling = prompt.shape[1], drawing(by_hand, 0.8, seed=3)
    tokens = [sample(by_hand.prefill(prompt), sampling)]
    for place in range(length, length + 30):
        position = torch.tensor([place], device=model.device)
        tokens.append(sample(by_hand.decode(tokens[-1], position), sampling))
    for capture in (False, True):
        one = engine(model, capture=capture)
        actual = generated(one, 31, drawing(one, 0.8, seed=3))
        assert torch.equal(actual[:, length:], torch.cat(tokens, 1).cpu())
        # Each token of a stream is there to keep.
        sampling = drawing(one, 0.8, seed=3)
        stream = list(one.stream(prompt, max_new_tokens=31, sampling=sampling))
        assert torch.equal(torch.cat(stream, 1), torch.cat(tokens, 1))


@pytest.mark.parametrize(("scheme", "mode"), [(None, "compile"), *CAPTURED], ids=str)
def test_tokens_of_each_mode_are_those_of_an_eager_step(
    model: Transformer, scheme: str | None, mode: str
) -> None:
    on_card = model.device.type == "cuda"
    if mode == "fused" and not on_card:
        pytest.skip("test_fused.py has them in the interpreter")
    if scheme is not None:
        model = quantize_model(model, scheme, kernels="native")
    count = 200 if on_card else 20
    options = {"capture": mode != "compile", mode: True}
    with compiler_settings():
        actual = generated(engine(model, **options), count)
    eager = generated(engine(model), count)
    if len(differs := (eager != actual).nonzero()):
        # The first that differs had a logit as good as the best.
        place = int(differs[0, 1])
        logits = model.logits(eager[:, :place])[0, -1]
        best, chosen = logits[[eager[0, place], actual[0, place]]]
        gap = (best - chosen).abs().item()
        assert gap < TIE[model.dtype], f"token {place} differs, {gap} apart"


def test_one_capture_serves_other_seeds_and_lengths(
    model: Transformer, graphs: Mock
) -> None:
    one, eager = engine(model, capture=True), engine(model)
    samplings = {temperature: drawing(one, temperature) for temperature in (0.8, 0)}
    alike = ((12, 0.8, 0), (60, 0.8, 1), (9, 0.8, 2), (4, 0, 0), (60, 0, 0), (5, 0, 0))
    for count, temperature, seed in alike:
        sampling = samplings[temperature]
        assert sampling.generator is not None
        sampling.generator.manual_seed(seed)
        expected = generated(eager, count, drawing(eager, temperature, seed))
        actual = generated(one, count, sampling)
        assert torch.equal(actual, expected), (count, temperature, seed)
    # One draws, one is greedy.
    assert len(one.captured) == 2
    assert model.device.type == "cuda" or graphs.call_count == 2


def test_a_ragged_batch_keeps_its_own_positions(model: Transformer) -> None:
    prompt = PROMPT.repeat(3, 1).to(model.device)
    lengths = torch.tensor([1, 3, 5], device=model.device)
    actual = [
        engine(model, batch_size=3, cache_size=64, capture=capture).generate(
            prompt, max_new_tokens=10, lengths=lengths, sampling=GREEDY
        )
        for capture in (False, True)
    ]
    assert torch.equal(*actual)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("capture", [False, True])
def test_a_slowdown_repeats_steps_and_changes_no_token(
    model: Transformer, capture: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed = engine(model, capture=capture, slowdown=share)
    kind = decode_step.CapturedDecodeStep if capture else decode_step.DecodeStep
    repeated = create_autospec(kind.repeat, side_effect=kind.repeat)
    monkeypatch.setattr(kind, "repeat", repeated)
    decoded = Mock(side_effect=slowed.decode)
    monkeypatch.setattr(slowed, "decode", decoded)
    actual = generated(slowed, 21, drawing(slowed, 0.8))
    assert torch.equal(actual, generated(engine(model), 21, drawing(slowed, 0.8)))
    assert repeated.call_count == 20 * share
    if model.device.type == "cpu":
        # A step is run once more before it is captured.
        assert decoded.call_count == 20 + 20 * share + capture


@pytest.mark.parametrize("share", [0.01, 0.03, 0.05, 0.1, 0.25, 1.5])
def test_a_share_of_all_steps_is_repeated_to_the_nearest_step(share: float) -> None:
    injected = InjectedSteps(share)
    for number in range(1, 3001):
        injected.next_step()
        owed = number * share
        assert abs(injected.repeated - owed) <= 0.5 + 1e-6
    assert injected.run == 3000


def test_a_part_of_a_step_carries_over_to_the_next_generation(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed = engine(model, slowdown=0.05)
    repeat = Mock()
    monkeypatch.setattr(decode_step.DecodeStep, "repeat", repeat)
    # 0.35 steps a generation.
    for calls in (0, 1, 1, 1, 2, 2):
        generated(slowed, 8, GREEDY)
        assert repeat.call_count == calls
    assert (slowed.injected.run, slowed.injected.repeated) == (42, 2)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("capture", [False, True])
def test_decoding_never_waits_and_replays_allocate_nothing(
    model: Transformer, capture: bool, temperature: float
) -> None:
    device, one = model.device, engine(model, capture=capture)
    prompt, sampling = PROMPT.to(device), drawing(one, temperature)

    def run() -> list[Tensor]:
        return list(one.stream(prompt, max_new_tokens=6, sampling=sampling))

    run()  # makes what is made once
    with refusing_to_wait(device):
        assert len(run()) == 6
    if capture and device.type == "cuda":
        (captured,) = one.captured.values()
        before = torch.cuda.memory_stats(device)["allocation.all.allocated"]
        for _ in range(4):
            captured.run()
        after = torch.cuda.memory_stats(device)["allocation.all.allocated"]
        assert before == after


@pytest.mark.parametrize("capture", [False, True])
def test_an_engine_that_is_dropped_gives_its_memory_back_at_once(
    model: Transformer, capture: bool
) -> None:
    """By counting references: no row waits for a collection of garbage."""
    allocated = set()
    gc.disable()
    try:
        for _ in range(2):
            one = engine(model, capture=capture)
            generated(one, 40, drawing(one, 0.8))
            cache = weakref.ref(one.caches[0].k_cache)
            del one
            assert cache() is None
            if model.device.type == "cuda":
                torch.cuda.synchronize()
                allocated.add(torch.cuda.memory_allocated(model.device))
    finally:
        gc.enable()
    assert len(allocated) <= 1


def test_everything_runs_and_is_captured_on_one_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cuBLAS keeps 32 MB for each stream that it has seen, and none is given back."""
    mocked = MagicMock()
    monkeypatch.setattr(torch, "cuda", mocked)
    cuda._capture_stream.cache_clear()
    ran: list[int] = []
    for number in range(3):
        cuda.warm_up(partial(ran.append, number))
        cuda.capture_graph(partial(ran.append, number))
    cuda._capture_stream.cache_clear()
    assert ran == [0, 0, 1, 1, 2, 2]
    mocked.Stream.assert_called_once_with()
    made, graph = mocked.Stream.return_value, mocked.CUDAGraph.return_value
    assert mocked.stream.call_args_list == [call(made)] * 3
    # NCCL's own thread may ask for its events during a capture.
    captured = call(graph, stream=made, capture_error_mode="thread_local")
    assert mocked.graph.call_args_list == [captured] * 3


def draws(logits: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """How often each token is drawn, of 20000."""
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=temperature, top_k=top_k, generator=generator)
    drawn = sample(logits.expand(20000, -1), sampling)
    assert drawn.shape == (20000, 1)
    assert drawn.dtype == torch.int64
    return torch.bincount(drawn[:, 0], minlength=logits.shape[-1])


def follows(counts: Tensor, logits: Tensor) -> bool:
    """Whether they may be draws from the softmax, by chi-square: 0.1 % would not."""
    expected = logits.double().softmax(-1) * counts.sum()
    return bool(chisquare(counts, expected).pvalue > 0.001)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_its_temperature(temperature: float) -> None:
    counts = draws(LOGITS, temperature)
    assert follows(counts, LOGITS[0] / temperature)
    assert not follows(counts, LOGITS[0] / (temperature * 1.1))
    # Half precision is drawn in single.
    assert torch.equal(draws(LOGITS.bfloat16(), temperature), counts)


def test_top_k_never_leaves_the_k_best_and_keeps_their_proportions() -> None:
    counts = draws(LOGITS, top_k=3)
    best = LOGITS[0].topk(3).indices
    assert counts[best].sum() == 20000
    assert follows(counts[best], LOGITS[0][best])
    # Beyond the vocabulary it is all of it.
    assert torch.equal(draws(LOGITS, top_k=200), draws(LOGITS))


def test_temperature_zero_takes_the_best() -> None:
    logits = torch.randn((7, 50))
    assert torch.equal(sample(logits, GREEDY)[:, 0], logits.argmax(-1))


def test_rows_of_a_batch_are_drawn_for_themselves() -> None:
    drawn = sample(torch.zeros((64, 1000)), Sampling(temperature=1.0, top_k=None))
    assert len(drawn.unique()) > 50


def test_after_a_test_that_refused_to_wait_the_next_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = torch.device("cuda")
    modes = Mock(side_effect=[None, None, RuntimeError("no such mode"), None])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes)
    with pytest.raises(KeyError), refusing_to_wait(card):
        raise KeyError
    with pytest.raises(RuntimeError, match="no such mode"), refusing_to_wait(card):
        raise AssertionError("it was not entered")
    assert modes.call_args_list == [call("error"), call("default")] * 2
