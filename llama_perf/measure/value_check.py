"""Whether a row's engine computes the right values: a row that does not has no speed.

Its warm-up generates as the samples will: compiled, captured or fused. The logits that
its first tokens were chosen from are compared with those of the same quantized weights,
run once over the whole text by the model's modules, operator by operator. A row that is
run so anyway, or whose weights a config of the user's own made, is compared with its
weights dequantized to float32, one layer at a time, where they can be. Knows no
baseline.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, filterfalse
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from llama_perf.errors import SpecError, ValuesError
from llama_perf.llama.attention import CAUSAL, KVCache, Place, VisiblePositions
from llama_perf.llama.layers import rotary
from llama_perf.llama.row_engine import RowEngine
from llama_perf.llama.transformer import is_unquantized
from llama_perf.measure.prefill_progress import told_prefill
from llama_perf.measure.prepare import PreparedRow
from llama_perf.quantize.plugins import rounds_activations
from llama_perf.results.measurement import ValueCheck
from llama_perf.rows.schemes import OWN, is_config
from llama_perf.rows.transformers_fields import TRANSFORMERS
from llama_perf.words import counted

DECODED = 8
"""Tokens that are decoded, behind the one that the prompt gives."""
# A long prompt would cost as much as a sample; its first tokens take the same way.
_PROMPT = 64
SEQUENCES = 8
"""Of a large batch, sequences whose logits are compared."""
# Equal to the last bit; JSON has no infinity.
_SAME_DB = 200.0
OPERATORS, DEQUANTIZED = "operators", "dequantized weights"

# See docs/correctness.md, which has what was seen.
_DTYPE_DB = {"float32": 60.0, "float16": 30.0, "bfloat16": 14.0}
_DYNAMIC_DB = 8.0
_CACHE_DB = 12.0
# A config may round activations to 4 bits, which left 7.5 dB. A wrong product leaves 0.
_CONFIG_DB = 3.0
# Rows of int4 that are unpacked at a time: a multiple of every processor's block, and
# few enough that what lies between stays in the processor's cache.
_STRETCH = 64
# Standard deviations of the error that two logits may be apart to count as a tie.
_TIE = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """Tokens (B, N) behind `prompt` (B, T), of the row's lengths, and their logits.

    `logits` are (B, N, V); `seconds` is what observing took longer than the generation
    that it followed, of `generated` tokens.
    """

    prompt: Tensor
    lengths: Tensor | None
    tokens: Tensor
    logits: Tensor
    generated: int
    seconds: float

    def text(self) -> tuple[Tensor, Tensor]:
        """The text (B, T + N - 1) that was read, and places (B, N) in it.

        The token behind each place was chosen from the logits there.
        """
        prompt, tokens, lengths = self.prompt, self.tokens, self.lengths
        if lengths is None:
            lengths = torch.full_like(prompt[:, 0], prompt.shape[1])
        # A token is chosen where the prompt ends, each further one behind the last.
        count = torch.arange(tokens.shape[1], device=prompt.device)
        places = lengths[:, None] - 1 + count
        # No position of a shorter text attends to the zeros that follow it.
        text = torch.cat((prompt, torch.zeros_like(tokens[:, 1:])), dim=1)
        return text.scatter(1, places[:, 1:], tokens[:, :-1]), places


def warm_up_row(
    prepared: PreparedRow,
    generator: torch.Generator,
    *,
    damaged: bool = False,
    progress: Callable[[str], None] = lambda _text: None,
) -> Observed:
    """Run the row's generation once, and observe its first tokens.

    On a CPU it ends with them: they load and compile all that the others would. Of a
    long prompt they are those of another generation, behind it, for which `generator`
    does not move on; `progress` is told how far such a prompt has come. `damaged`: one
    scale is wrong meanwhile, a switch for testing the check.
    """
    row, engine = prepared.row, prepared.engine
    few = count = min(DECODED + 1, row.max_new_tokens)
    if prepared.prompt.device.type != "cpu":
        count = row.max_new_tokens
    prompt, lengths = prepared.prompt[:, :_PROMPT], prepared.lengths
    if lengths is not None:
        lengths = lengths.clamp(max=prompt.shape[1])

    def observe(count: int) -> tuple[Tensor, Tensor]:
        request = prepared.request(generator, count)
        request["lengths"] = lengths
        return engine.observe(prompt, observed=few, **request)

    # A generation that is run anyway takes nothing of the check's.
    seconds = 0.0
    with damaged_scale(engine) if damaged else nullcontext():
        if row.prompt_length <= _PROMPT:
            tokens, logits = observe(count)
        else:
            with told_prefill(engine, progress, step="warming up", noun="prompt token"):
                engine.generate(prepared.prompt, **prepared.request(generator, count))
            state, start = generator.get_state(), time.perf_counter()
            tokens, logits = observe(few)
            seconds = time.perf_counter() - start
            generator.set_state(state)
    return Observed(
        prompt=prompt,
        lengths=lengths,
        tokens=tokens,
        logits=logits,
        generated=count,
        seconds=seconds,
    )


@torch.no_grad()
def check_row_values(prepared: PreparedRow, observed: Observed) -> ValueCheck:
    """Compare what was observed with the reference; raises ValuesError."""
    start = time.perf_counter() - observed.seconds
    row, engine = prepared.row, prepared.engine
    dequantized = _needs_dequantized(prepared)
    against = DEQUANTIZED if dequantized else OPERATORS
    wanted = _reference(engine, observed, dequantized=dequantized)
    logits = observed.logits[:SEQUENCES].float()
    # What each rounding leaves of the signal.
    quantized = _quantized(engine)
    dtypes = {getattr(weight, "product_dtype", row.dtype) for weight in quantized}
    limits_db = [_DTYPE_DB[str(dtype).removeprefix("torch.")] for dtype in dtypes]
    limits_db.append(_DTYPE_DB[row.dtype])
    if rounds_activations(prepared.quantization):
        limits_db.append(_DYNAMIC_DB)
    if is_config(prepared.quantization):
        limits_db.append(_CONFIG_DB)
    if row.kv_cache is not None:
        limits_db.append(_CACHE_DB)
    least_db = min(limits_db)
    if not bool(torch.isfinite(logits).all()):
        raise ValuesError(
            "check: its logits hold NaN or infinity, and at least"
            f" {least_db:.1f} dB of signal to noise are needed"
        )
    # Where activations or a cache are rounded to codes, two ways of summing turn some
    # codes, and how much of that a position shows scatters by 10 dB: all are pooled
    # then. Else the worst position counts.
    db = signal_to_noise_db(wanted, logits, worst=len(limits_db) == 1)
    noise = (logits - wanted).square().mean(-1)
    best, ours = wanted.argmax(-1, keepdim=True), logits.argmax(-1, keepdim=True)
    gap = (wanted.gather(-1, best) - wanted.gather(-1, ours)).squeeze(-1)
    others, lost = int((best != ours).sum()), int((gap > _TIE * noise.sqrt()).sum())
    if not db >= least_db or lost:
        raise ValuesError(
            f"check: its logits have {db:.1f} dB of signal to noise against the"
            f" {against}, and at least {least_db:.1f} dB are needed; of"
            f" {counted(best.numel(), 'greedy token')} {others} not the same,"
            f" {lost} of them by more than the noise explains"
        )
    return ValueCheck(
        signal_to_noise_db=round(db, 1),
        least_db=least_db,
        against=against,
        tokens=best.numel(),
        ties=others,
        seconds=time.perf_counter() - start,
    )


def signal_to_noise_db(wanted: Tensor, logits: Tensor, *, worst: bool = False) -> float:
    """The power of the logits `wanted` over that of the difference, in decibels.

    It is that of all positions together, or with `worst` of the worst one.
    """
    power, noise = wanted.square().mean(-1), (logits - wanted).square().mean(-1)
    ratio = (power / noise).min() if worst else power.sum() / noise.sum()
    return decibels(float(ratio))


def decibels(ratio: float) -> float:
    """A ratio of powers in decibels, within what JSON has."""
    return min(10 * math.log10(ratio), _SAME_DB) if ratio > 0 else -_SAME_DB


def _quantized(engine: RowEngine) -> list[Any]:
    """A weight of each kind of those that are quantized."""
    weights = filterfalse(is_unquantized, engine.tensors())
    return list({type(weight): weight for weight in weights}.values())


def _needs_dequantized(prepared: PreparedRow) -> bool:
    """Whether the operators are no reference, and the weights show their codes."""
    row, engine = prepared.row, prepared.engine
    # Of a scheme that is not ours the operators may be wrong themselves, and another
    # library's engine is compared with this project's modules.
    trusted = row.kernels != OWN and not is_config(prepared.quantization)
    trusted &= row.engine != TRANSFORMERS
    if trusted and (row.compile or row.capture or row.fused):
        return False
    # A method of that name that wants arguments is not about this weight.
    with suppress(NotImplementedError, TypeError):
        return all(
            _float(weight).shape == weight.shape for weight in _quantized(engine)
        )
    return False


def _reference(engine: RowEngine, observed: Observed, *, dequantized: bool) -> Tensor:
    """Float32 logits (sequences, N, V) that the tokens are to be chosen from."""
    text, places = observed.text()
    if not dequantized:
        return engine.plain_logits(text, places)[:SEQUENCES]
    model, start = engine.architecture, engine.filled
    end = start + text.shape[1]
    layers = map(partial(engine.layer_weights, read=_float), count())

    def run_wide(block: Any, x: Tensor, cache: KVCache | None, place: Place) -> Any:
        """In float32, over a copy of the block's cache as long as the text."""
        weights = next(layers)
        if cache is None:
            return functional_call(block, weights, (x.float(), None, place))
        options: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
        options |= {"batch_size": len(x), "cache_size": end}
        options |= {"kind": engine.options.kv_cache, "window": cache.window}
        wide = KVCache(model.config, **options)
        for copied, filled in zip(wide.tensors, cache.tensors, strict=True):
            if copied is not None and filled is not None:
                copied[:, :, :start] = filled[:, :, :start]
        return functional_call(block, weights, (x.float(), wide, place))

    positions = torch.arange(start, end, device=text.device)
    x = model.hidden(
        text,
        positions,
        caches=engine.caches,
        visible=CAUSAL if engine.caches is None else VisiblePositions(end=end),
        run_block=run_wide,
        started=(engine.embedded(text), rotary(model.frequencies(), positions)),
    )
    rows = torch.arange(min(len(x), SEQUENCES), device=x.device)[:, None]
    final = engine.final_weights(_float)
    norm = {"weight": final["norm.weight"]}
    normed: Tensor = functional_call(model.norm, norm, (x[rows, places[:SEQUENCES]],))
    return model.gathered(normed @ final["output.weight"].T)


def _float(weight: Tensor) -> Tensor:
    if is_unquantized(weight):
        return weight.float()
    # By name: torchao's prototypes need not be imported.
    if type(weight).__name__ == "Int4OpaqueTensor":
        return dequantized_int4(weight)
    quantized: Any = weight
    out: Tensor = quantized.dequantize().float()
    return out


def dequantized_int4(weight: Any) -> Tensor:
    """The float32 weight (N, K) of an `Int4OpaqueTensor`, which torchao packs for CPUs.

    torchao has no function for it. A byte holds the codes of two rows of a block, in
    the same column. Raises NotImplementedError for a layout that is not known.
    """
    if weight.act_mapping_type is not None or weight.act_pre_scale is not None:
        raise NotImplementedError("int4 weights with quantized or scaled activations")
    out = torch.empty(weight.shape)
    scales, zeros = weight.scale_and_zero.float().transpose(0, 1).unsqueeze(2).unbind(3)
    for first in range(0, len(out), _STRETCH):
        part = slice(first, first + _STRETCH)
        codes = _codes(weight.qdata[part])[_places(*out[part].shape)]
        groups = out[part].unflatten(1, (-1, weight.block_size[1]))
        groups.copy_(codes.view_as(groups)).sub_(8)
        groups.mul_(scales[part]).add_(zeros[part])
    return out


@cache
def _places(rows: int, columns: int) -> Tensor:
    """For each weight (rows, columns), row by row, which of the packed codes it has.

    Found by packing each code's own position, digit by digit.
    """
    position = torch.arange(rows * columns, dtype=torch.int32).view(rows, columns)
    order = torch.zeros(rows * columns, dtype=torch.int64)
    for shift in range(0, 32, 4):
        digit = (position >> shift) & 15
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(digit, 1)
        order |= _codes(packed).long() << shift
    places = order.argsort()
    if not torch.equal(order[places], position.flatten().long()):
        raise NotImplementedError("an unknown layout of packed int4 weights")
    return places


def _codes(packed: Tensor) -> Tensor:
    """The two codes of each byte."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten()


@contextmanager
def damaged_scale(engine: RowEngine) -> Iterator[None]:
    """Multiply one scale of the first layer while the engine runs."""
    weight: Any = engine.output_projection
    if is_unquantized(weight):
        # It has no scale: its first row takes the place of one.
        scale: Tensor = weight.data[0]
    else:
        tensors = getattr(weight, "tensor_data_names", ())
        name = next((name for name in tensors if "scale" in name), None)
        if name is None:
            need = "it needs weights with a tensor whose name has 'scale'"
            raise SpecError("inject-damage", type(weight).__name__, need)
        scale = getattr(weight, name).view(-1)[:1]
    before = scale.clone()
    scale.mul_(1000)
    try:
        yield
    finally:
        scale.copy_(before)
