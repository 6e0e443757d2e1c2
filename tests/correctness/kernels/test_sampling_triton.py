"""The kernels around a step's layers: interpreted on a CPU, for real on a card.

As in `test_products`, the interpreter runs in a process of its own.
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from llama_perf.kernels.decode_state import DecodeState
from llama_perf.kernels.triton.launch_sampling import SamplingKernel, start
from llama_perf.kernels.triton.sampling import exponential
from llama_perf.llama.layers import rotary
from tests.correctness.llama.test_decode_step import LOGITS, follows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# More than fits 32 bits.
SEED = 1234567890123
# Three programs of a sequence, the last of which has few.
VOCABULARY = 4200
TEMPERATURE = 0.8
# With fewer to choose from, fewer tell a wrong share.
DRAWS = {None: 250, 3: 100}
together_or_ragged = pytest.mark.parametrize(
    "ragged", [False, True], ids=["together", "ragged"]
)


def room(batch: int, device: torch.device, *, ragged: bool = False) -> DecodeState:
    fed = DecodeState.room(batch, 8, ragged=ragged, device=device)
    fed.seed.fill_(SEED)
    return fed


def choose(
    logits: Tensor,
    *,
    top_k: int | None = None,
    temperature: float = TEMPERATURE,
    fed: DecodeState | None = None,
) -> Tensor:
    """The tokens (B,) that are chosen."""
    fed = fed or room(len(logits), logits.device)
    sampling = SamplingKernel(temperature=temperature, top_k=top_k)
    sampling(logits, fed)
    assert sampling._split_counter is not None
    assert not sampling._split_counter.any()
    return fed.token[:, 0]


def some_logits(
    batch: int, card: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Of which many are alike, and some of either zero."""
    drawn = torch.randn(batch, VOCABULARY).mul(8).round().div(4)
    return drawn.to(card, dtype)


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types.
def draw(out, seed, count, V, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Draw with as many programs and sequences as `choose`, float32 (sequences, V)."""
    part, sequence = tl.program_id(0), tl.program_id(1)
    number = tl.load(count).to(tl.int32)
    drawn = exponential(tl.load(seed), part, sequence, number, BLOCK)
    column = part * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + sequence * V + column, drawn, mask=column < V)


def exponentials(seed: Tensor, count: int, shape: torch.Size) -> Tensor:
    """What the token at `count` is drawn by, float32 (B, V)."""
    out, at = seed.new_empty(shape, dtype=torch.float32), torch.full_like(seed, count)
    grid = (-(-shape[1] // 2048), shape[0])
    draw[grid](out, seed, at, shape[1], BLOCK=2048, num_warps=8)
    return out


def races(logits: Tensor, top_k: int | None, seed: Tensor, rounds: int) -> Tensor:
    """Which tokens win over the kernel's own numbers, among the k best and their ties.

    `sample` has k of them.
    """
    scaled = logits.float() / TEMPERATURE
    if top_k is not None:
        kth = scaled.topk(top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    drawn = [exponentials(seed, count, logits.shape) for count in range(rounds)]
    return torch.stack([(scaled.softmax(-1) / e).argmax(-1) for e in drawn], 1)


@together_or_ragged
@pytest.mark.parametrize("top_k", [None, 1, 3, 200, 3000])
def test_the_race_is_that_of_the_operators(
    top_k: int | None, ragged: bool, card: torch.device
) -> None:
    """Token for token over the same numbers, whatever ties there are."""
    logits = some_logits(2, card, DTYPES[((top_k or 0) + ragged) % 3])
    fed = room(2, card, ragged=ragged)
    wanted = races(logits, top_k, fed.seed, 3)
    before = torch.arange(fed.position.numel(), device=card).view_as(fed.position)
    fed.position.copy_(before)
    for _ in range(3):
        choose(logits, top_k=top_k, fed=fed)
    assert torch.equal(fed.history[:, :3], wanted)
    assert torch.equal(fed.token, wanted[:, -1:])
    assert torch.equal(fed.position, before + 3)
    assert fed.count.item() == 3
    assert not fed.history[:, 3:].any()


def test_the_numbers_are_exponential_and_their_own(card: torch.device) -> None:
    seed = torch.tensor([SEED], device=card)
    shape = torch.Size((4, 16384))
    drawn = exponentials(seed, 0, shape)
    assert drawn.min() > 0
    assert drawn.isfinite().all()
    # Each of equal shares of the distribution holds as many; of the small ones too.
    for bound in (1.0, 1e-3):
        some = drawn[drawn < bound].double()
        uniform = -torch.expm1(-some) / -torch.expm1(-torch.tensor(bound).double())
        assert follows(torch.histc(uniform.cpu(), 6, 0, 1), torch.zeros(6))
    others = (exponentials(seed, 1, shape), exponentials(seed + 2**32, 0, shape))
    for other in (*others, drawn.roll(1, 0)):
        both = torch.stack((drawn.flatten(), other.flatten()))
        assert abs(both.corrcoef()[0, 1]) < 0.02
    assert torch.equal(exponentials(seed, 0, shape), drawn)


@pytest.mark.parametrize("top_k", DRAWS)
def test_draws_follow_the_softmax(top_k: int | None, card: torch.device) -> None:
    tokens = choose(LOGITS.expand(DRAWS[top_k], -1).to(card), top_k=top_k)
    best = (LOGITS[0] / TEMPERATURE).topk(top_k or 6)
    counts = torch.bincount(tokens.cpu(), minlength=6)[best.indices]
    assert counts.sum() == DRAWS[top_k]
    assert follows(counts, best.values)


def test_the_best_is_taken_and_the_first_of_those_alike(card: torch.device) -> None:
    for dtype in DTYPES:
        logits = some_logits(2, card, dtype)
        first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
        assert torch.equal(choose(logits, temperature=0.0), first)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
def test_logits_that_are_no_numbers_end_too(value: float, card: torch.device) -> None:
    for among in (slice(None), slice(7, 4000)):
        logits = some_logits(1, card)
        logits[:, among] = value
        for top_k in (None, 200):
            token = choose(logits, top_k=top_k).item()
            assert 0 <= token < VOCABULARY
            assert among.start is None or value > 0 or not 7 <= token < 4000


def test_more_of_the_best_than_a_program_joins_is_no_launch_of_its() -> None:
    for vocabulary, max_top_k in ((32000, 1024), (128256, 512)):
        for top_k in (max_top_k, max_top_k + 1):
            kernel = SamplingKernel(temperature=1.0, top_k=top_k)
            how = kernel.launch(vocabulary, torch.bfloat16)
            assert (how is None) == (top_k > max_top_k)


@together_or_ragged
def test_a_step_starts_from_the_embedding_and_the_angles(
    ragged: bool, card: torch.device
) -> None:
    embedding = torch.randn(20, 1100).to(card, torch.bfloat16)
    frequencies = torch.rand(24).to(card)
    tokens = torch.tensor([[3, 19], [0, 7]], device=card)
    positions = torch.tensor([5, 131071], device=card)
    if ragged:
        tokens, positions = tokens[:, :1], positions[:, None]
    x, (cos, sin), filled = start(tokens, positions, embedding, frequencies)
    assert torch.equal(x, embedding[tokens])
    for angles, wanted in zip((cos, sin), rotary(frequencies, positions), strict=True):
        torch.testing.assert_close(angles, wanted.view(2, 24), rtol=0, atol=1e-6)
    assert filled.tolist() == [6, 131072]
