"""Launches of the fused products, timed on the card in use: `llama-perf tune`.

Each distinct product of the rows asked for (format, N, K, tokens, one weight or the
pair of gate and up) is run with every candidate as one captured graph over more copies
of the weight than the second-level cache holds, as in a model. The rule's own launch is
timed as well and stays unless another is faster by more than the clock's noise.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product as combinations

import torch
from torch import Tensor, nn

from llama_perf.devices.device import device_of
from llama_perf.errors import NotRunnable
from llama_perf.kernels.launch_table import Choice, launch_key
from llama_perf.kernels.packing import LANES
from llama_perf.kernels.weight import FLOATS, Packed
from llama_perf.llama.config import preset
from llama_perf.llama.decode_step import capture_graph, warm_up
from llama_perf.llama.layers import Linear
from llama_perf.measure.device_ceiling import best_seconds
from llama_perf.rows.schemes import AUTOQUANT, UNQUANTIZED
from llama_perf.rows.spec import FUSED_TOKENS, RowSpec

Time = Callable[[Choice | None], float]
"""Seconds of one product launched so; None: by the rule."""
# A gain below this is the clock's.
MIN_GAIN = 0.02
# Each candidate is compiled, which takes longer than timing it: few of them.
_SPLITS = (1, 2, 4, 8)
_WARPS = (4, 8)
_STAGES = 2
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Product:
    """What is multiplied: `tokens` by `weights` alike of (rows, columns)."""

    scheme: str | None
    dtype: torch.dtype
    tokens: int
    rows: int
    columns: int
    weights: int = 1


def products(rows: Sequence[RowSpec]) -> list[Product]:
    """Products of a step or short prompt of fused `rows`; all that autoquant tries."""
    fused: list[Product] = []
    for row in rows:
        if not row.fused:
            continue
        dtype: torch.dtype = getattr(torch, row.dtype)
        name, config = row.quantization, preset(row.model)
        schemes = (name,) if name is None else AUTOQUANT.get(name, (name,))
        prompt = row.prompt_length * row.batch_size
        counts = {row.batch_size, *({prompt} if prompt <= FUSED_TOKENS else ())}
        qkv, output, gate, _, down = config.linears.values()
        head = (config.vocab_size, config.dim)
        shapes = ((*qkv, 1), (*output, 1), (*gate, 2), (*down, 1), (*head, 1))
        fused += (
            Product(None if scheme == UNQUANTIZED else scheme, dtype, tokens, *shape)
            for scheme, tokens in combinations(schemes, sorted(counts))
            for shape in shapes
        )
    return list(dict.fromkeys(fused))


def candidates(unquantized: bool) -> Iterator[Choice]:
    """Every launch that is tried; times of 0."""
    units = (16, 32, 64) if unquantized else (32, 64, 128)
    for block_u, splits, warps in combinations(units, _SPLITS, _WARPS):
        launch = {"block_u": block_u, "splits": splits, "warps": warps}
        yield Choice(**launch, stages=_STAGES, us=0.0, rule_us=0.0)


def best(tried: Sequence[Choice], time: Time) -> Choice | None:
    """The fastest of `tried`, None where the rule is as fast within `MIN_GAIN`.

    The rule and the fastest are timed again in turn, so that a clock that changed
    meanwhile decides nothing.
    """
    first = time(None)
    seconds = {choice: time(choice) for choice in tried}
    fastest = min(seconds, key=seconds.__getitem__, default=None)
    if fastest is None or seconds[fastest] >= first:
        return None
    pairs = [(time(None), time(fastest)) for _ in range(_ROUNDS)]
    rule, ours = (min(times) for times in zip(*pairs, strict=True))
    if ours > rule * (1 - MIN_GAIN):
        return None
    return replace(fastest, us=round(ours * 1e6, 2), rule_us=round(rule * 1e6, 2))


def tune(
    wanted: Sequence[Product],
    device: torch.device,
    *,
    keep: Callable[[str, Choice], None],
    notify: Callable[[str], None] = lambda _text: None,
) -> int:
    """Time every product; `keep` is handed each choice as it is made; their count."""
    if device.type != "cuda":
        raise NotRunnable(f"tune: it needs a CUDA device, not {device.type}")
    count = 0
    for number, product in enumerate(wanted, start=1):
        packed = _packed(product, device)
        key = launch_key(packed, product.tokens, weights=product.weights)
        tried = list(candidates(packed.format == FLOATS))
        faster = best(tried, _clock(product, packed))
        chosen = "the rule"
        if faster is not None:
            keep(key, faster)
            count += 1
            chosen = f"{faster.us} us where the rule takes {faster.rule_us}"
        notify(f"[{number}/{len(wanted)}] {key}: {chosen}")
    return count


def _packed(product: Product, device: torch.device) -> Packed:
    from llama_perf.llama.fused import packed
    from llama_perf.quantize.apply import make_quantizer

    with device:
        linear = Linear(product.columns, product.rows).to(product.dtype)
    linear.requires_grad_(False)
    holder = nn.ModuleDict({"linear": linear})
    if product.scheme is not None:
        quantize = make_quantizer(
            product.scheme, kernels="native", device=device, dtype=product.dtype
        )
        quantize(holder, "tuned")
    return packed(holder.get_parameter("linear.weight"), "tuned")


def _clock(product: Product, weight: Packed) -> Time:
    """Of products with copies of `weight` one behind the other, in one graph."""
    from triton.runtime.errors import OutOfResources

    from llama_perf.kernels.triton.launch_fused import (
        NO_PEAKS,
        Norm,
        any_peaks,
        fused_launch,
        project,
        project_gated,
    )

    device, tokens = weight.codes.device, product.tokens
    used = device_of(device)
    fitting = 2 * used.cache_bytes() // max(weight.codes.nbytes, 1)
    count = max(fitting + 1, 2) * product.weights
    parts = ("codes", "scale", "zero")
    copies = [
        replace(weight, **{part: getattr(weight, part).clone() for part in parts})
        for _ in range(count)
    ]
    x = torch.randn(tokens, product.columns, dtype=product.dtype, device=device)
    counter = torch.zeros(-(-product.rows // LANES), dtype=torch.int32, device=device)

    # In a step every product gets the peaks from the kernel before it.
    peaks = any_peaks(device) if weight.dynamic else NO_PEAKS
    norm = Norm(weight=x[0], eps=0.0)
    run: Callable[..., Tensor] = project_gated if product.weights == 2 else project

    def seconds(choice: Choice | None) -> float:
        launch = fused_launch(weight, tokens, weights=product.weights, tuned=choice)

        def work() -> None:
            for first in range(0, count, product.weights):
                weights = (*copies[first : first + product.weights], counter)
                run(x, *weights, norm=norm, peaks=peaks, launch=launch)

        try:
            warm_up(work)
            graph = capture_graph(work)
        except (RuntimeError, OutOfResources):
            # Too many registers or too much shared memory for this card.
            return float("inf")
        return best_seconds(used, graph.replay)[0] / (count // product.weights)

    return seconds
