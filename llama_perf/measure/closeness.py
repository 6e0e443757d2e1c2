"""How close a row's logits are to those of the model before it was quantized.

`measure_closeness` has a row and its twin, the same row with nothing quantized, read a
text. So its figures have what the row's scheme and its quantized cache cost. Both
round to the row's dtype, in another order.

`closeness_db` is a quick figure of every row. Its reference runs operator by operator
in float32 over the text that the value check observed, with the weights as they were
read, one layer after another, and no KV cache. So it has all that the row rounds:
weights, activations, its cache, its dtype.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from llama_perf.checkpoints.load import parse_dtype
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.errors import NotRunnable
from llama_perf.llama.layers import rotary
from llama_perf.llama.options import GREEDY
from llama_perf.llama.row_engine import RowEngine
from llama_perf.measure.closeness_text import LEAST_TOKENS, Text
from llama_perf.measure.distributions import ComparedLogits, is_best
from llama_perf.measure.prepare import PreparedRow
from llama_perf.measure.twin import Twin
from llama_perf.measure.value_check import SEQUENCES, Observed, signal_to_noise_db
from llama_perf.results.measurement import Closeness
from llama_perf.words import counted

GREEDY_TOKENS = 64
"""Tokens that the row generates greedily, at most."""
# Positions that are compared at a time: float64 logits of 128 thousand tokens take
# 33 MB a side.
_COMPARED = 32
# Seconds from one report of progress to the next.
_INTERVAL_S = 1.0


@torch.no_grad()
def closeness_db(prepared: PreparedRow, observed: Observed) -> float | None:
    """The signal to noise of what was observed, over all its positions together.

    None where the unquantized weights are not at hand, and for a row with positions
    that were filled before, which the reference would have to read as well.
    """
    weights, model = prepared.unquantized, prepared.engine.architecture
    if weights is None or prepared.engine.filled:
        return None
    text, places = (part[:SEQUENCES] for part in observed.text())
    positions = torch.arange(text.shape[1], device=text.device)
    embedding = weights.embedding().float()
    layers = map(weights.layer, range(model.config.n_layers))

    def run_unquantized(block: torch.nn.Module, *arguments: object) -> Tensor:
        layer = {name: weight.float() for name, weight in next(layers).items()}
        out: Tensor = functional_call(block, layer, arguments)
        return out

    x = model.hidden(
        text,
        positions,
        run_block=run_unquantized,
        started=(embedding[text], rotary(model.frequencies(), positions)),
    )
    final = {name: weight.float() for name, weight in weights.final().items()}
    x = x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))
    norm = {"weight": final["norm.weight"]}
    normed: Tensor = functional_call(model.norm, norm, (x,))
    wanted = model.gathered(normed @ final.get("output.weight", embedding).T)
    return round(signal_to_noise_db(wanted, observed.logits[:SEQUENCES].float()), 1)


@torch.no_grad()
def measure_closeness(
    prepared: PreparedRow,
    reader: WeightsReader,
    text: Text,
    *,
    progress: Callable[[str], None] = lambda _text: None,
    notify: Callable[[str], None] = lambda _text: None,
) -> Closeness:
    """Compare a row with its unquantized twin, whose weights are those of `reader`.

    The row reads the text as it would generate it: a prompt, then one token at a time.
    The twin reads it at once, layer by layer. `notify` gets a line where less of the
    text is read than was asked for.

    Raises NotRunnable where there is no twin or no room for a text, ValuesError for
    logits that are no numbers.
    """
    start = time.perf_counter()
    if reader.origin.scheme is not None:
        raise NotRunnable(
            "closeness: the weights before quantization are not at hand; these are"
            f" {reader.origin.summary}"
        )
    text, prompt_length = _fitting(prepared, text, notify)
    ids, device = text.ids, prepared.prompt.device
    logits, greedy = _row_side(prepared, ids.to(device), prompt_length, progress)
    filled = ids[:0] if prepared.filling is None else prepared.filling[-1].cpu()
    twin = Twin(
        reader, dtype=parse_dtype(prepared.row.dtype), device=device, progress=progress
    )
    read = torch.cat((filled, ids[:-1]))
    at = len(filled) + prompt_length
    of_text, of_greedy = twin.states(read, greedy[:-1].cpu(), at)
    # The prompt's last token is in front of both.
    of_text, of_greedy = of_text[at - 1 :], torch.cat((of_text[at - 1 : at], of_greedy))
    following = ids[prompt_length:].to(device)
    head, compared = twin.head(), ComparedLogits()
    for first in range(0, len(logits), _COMPARED):
        part = slice(first, first + _COMPARED)
        compared.add(logits[part].to(device), head(of_text[part]), following[part])
    same = is_best(head(of_greedy), greedy[:, None])
    return Closeness(
        db=round(compared.db, 2),
        kl_nats=_rounded(compared.kl_nats),
        top1_share=_rounded(compared.top1_share),
        perplexity=_rounded(compared.perplexity),
        twin_perplexity=_rounded(compared.twin_perplexity),
        greedy_tokens=len(greedy),
        same_greedy_tokens=int(same.cumprod(0).sum()),
        tokens=len(ids),
        text=text.summary,
        seconds=round(time.perf_counter() - start, 2),
    )


def _rounded(value: float) -> float:
    """To five digits: a baseline is reviewed by people."""
    return float(f"{value:.5g}")


def _fitting(
    prepared: PreparedRow, text: Text, notify: Callable[[str], None]
) -> tuple[Text, int]:
    """As much of the text as the row reads, and how much of that is its prompt."""
    row, engine = prepared.row, prepared.engine
    count = len(text.ids)
    if row.cache_size is not None:
        room = engine.cache_size - row.fill
        if room < LEAST_TOKENS:
            raise NotRunnable(
                f"closeness: cache_size: {row.cache_size} has room for"
                f" {counted(room, 'token')} of a text; at least {LEAST_TOKENS} are"
                " needed"
            )
        if room < count:
            notify(
                f"closeness: {room} of the {count} tokens of the text are read:"
                f" cache_size: {row.cache_size} has no room for more"
            )
            text = text.first(room)
    return text, min(row.prompt_length, len(text.ids) // 2)


def _row_side(
    prepared: PreparedRow,
    ids: Tensor,
    prompt_length: int,
    progress: Callable[[str], None],
) -> tuple[Tensor, Tensor]:
    """The row's logits in front of each further token, and the tokens it generates.

    Logits are (T, V) on the CPU. Of a batch, every sequence reads the text, and the
    last one, which has the longest prompt of a ragged one, is looked at.
    """
    row, lengths = prepared.row, prepared.lengths
    if lengths is not None:
        lengths = lengths.clamp(max=prompt_length)
    engine, count = _engine(prepared, len(ids), prompt_length), len(ids) - prompt_length
    text = ids.repeat(row.batch_size, 1)
    logits, told_s = [], time.monotonic()
    for step_logits in engine.read(text, prompt_length, lengths=lengths):
        logits.append(step_logits[-1].cpu())
        if time.monotonic() - told_s >= _INTERVAL_S:
            told_s = time.monotonic()
            progress(f"closeness: {len(logits)} of {counted(count, 'token')}")
    room = engine.cache_size - engine.filled - prompt_length
    tokens = engine.generate(
        text[:, :prompt_length],
        max_new_tokens=min(GREEDY_TOKENS, room),
        lengths=lengths,
        sampling=GREEDY,
    )
    return torch.stack(logits), tokens[-1, prompt_length:]


def _engine(prepared: PreparedRow, count: int, prompt_length: int) -> RowEngine:
    """The row's engine, or one like it whose cache has room for so many tokens."""
    row, engine = prepared.row, prepared.engine
    needed = row.fill + max(count, prompt_length + GREEDY_TOKENS)
    if row.cache_size is not None or needed <= engine.cache_size:
        return engine
    engine = engine.longer(needed)
    if prepared.filling is not None:
        engine.fill(prepared.filling)
    return engine
