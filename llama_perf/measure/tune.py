"""Launches of the fused products, timed on the card in use: `llama-perf tune`.

Each distinct product of the rows asked for (format, N, K, tokens, one weight or the
pair of gate and up) is run with every candidate as one captured graph over more copies
of the weight than the second-level cache holds, as in a model. The rule's own launch is
timed as well and stays unless another is faster by more than the clock's noise.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product as combinations

import torch

from llama_perf.devices.cuda import capture_graph, warm_up
from llama_perf.devices.device import device_of
from llama_perf.errors import NotRunnable
from llama_perf.kernels.launch_table import Choice, launch_key
from llama_perf.kernels.weight import FLOATS, Packed
from llama_perf.llama.config import ModelConfig, short_name
from llama_perf.llama.presets import preset
from llama_perf.measure.device_ceiling import best_seconds
from llama_perf.quantize.autoquant.timing import How, Product, operator, weight_copies
from llama_perf.rows.modules import ModuleFilter
from llama_perf.rows.schemes import AUTOQUANT, UNQUANTIZED
from llama_perf.rows.spec import FUSED_TOKENS, RowSpec
from llama_perf.words import counted

Time = Callable[[Choice | None], float]
"""Seconds of one product launched so; None: by the rule."""
# A gain below this is the clock's.
MIN_GAIN = 0.02
# Each candidate is compiled, which takes longer than timing it: few of them.
_SPLITS = (1, 2, 4, 8)
_WARPS = (4, 8)
_STAGES = 2
_ROUNDS = 4
# One kernel for both.
_GATE_AND_UP = ("feed_forward.w1", "feed_forward.w3")


def products(rows: Sequence[RowSpec]) -> list[tuple[str, Product]]:
    """A scheme and a product of each step or short prompt of fused `rows` for a GPU.

    Of a row of autoquant they are all that it tries.
    """
    fused: list[tuple[str, Product]] = []
    for row in rows:
        if not row.fused or row.device == "cpu":
            continue
        name = row.quantization or UNQUANTIZED
        config = preset(row.model).of_rank(row.ranks)
        prompt = row.prompt_length * row.batch_size
        counts = {row.batch_size, *({prompt} if prompt <= FUSED_TOKENS else ())}
        linears = {**config.linears, "output": (config.output_size, config.dim)}
        schemes = _schemes(row, config)
        dtype: torch.dtype = getattr(torch, row.dtype)
        for scheme, tokens, (linear, (n, k)) in combinations(
            AUTOQUANT.get(name, (name, UNQUANTIZED)), sorted(counts), linears.items()
        ):
            if name not in AUTOQUANT and scheme not in schemes[linear]:
                continue
            how: How = "fused gate" if linear in _GATE_AND_UP else "fused"
            wanted = Product(tokens=tokens, rows=n, columns=k, dtype=dtype, how=how)
            fused.append((scheme, wanted))
    return list(dict.fromkeys(fused))


def _schemes(row: RowSpec, config: ModelConfig) -> dict[str, set[str]]:
    """The schemes of each linear, over all layers."""
    name, selected = row.quantization or UNQUANTIZED, ModuleFilter.parse(row.modules)
    selected.check(config.linear_names)
    schemes: dict[str, set[str]] = {}
    for path in config.linear_names:
        own = name if selected.selects(path) else UNQUANTIZED
        schemes.setdefault(short_name(path), set()).add(own)
    return schemes


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


def title(scheme: str, product: Product) -> str:
    """The product in words, such as "int8wo 4096 x 14336, 1 token, fused gate"."""
    tokens = counted(product.tokens, "token")
    return f"{scheme} {product.rows} x {product.columns}, {tokens}, {product.how}"


def tune(
    scheme: str, product: Product, device: torch.device
) -> tuple[str, Choice | None]:
    """Time one product; its key in the table, and its launch where one beats the rule.

    Raises NotRunnable where `device` is no CUDA device.
    """
    if device.type != "cuda":
        raise NotRunnable(f"tune: it needs a CUDA device, not {device.type}")
    copies = weight_copies(scheme, product, device)
    first = copies[0][0]
    key = launch_key(first, product.tokens, product.dtype, weights=len(copies[0]))
    return key, best(list(candidates(first.format == FLOATS)), _clock(product, copies))


def _clock(product: Product, copies: Sequence[tuple[Packed, ...]]) -> Time:
    """Of products with the copies one behind the other, in one graph."""
    from triton.runtime.errors import OutOfResources

    from llama_perf.kernels.triton.launch_fused import Norm
    from llama_perf.kernels.triton.launch_products import few_launch

    first, tokens = copies[0], product.tokens
    device = first[0].codes.device
    x = torch.randn(tokens, product.columns, dtype=product.dtype, device=device)
    norm, run = Norm(weight=x[0], eps=0.0), operator(product, device)

    def seconds(choice: Choice | None) -> float:
        launch = few_launch(
            first[0],
            tokens,
            product.dtype,
            weights=len(first),
            fused=True,
            tuned=choice,
        )

        def work() -> None:
            for weights in copies:
                run(x, *weights, norm=norm, launch=launch)

        try:
            warm_up(work)
            graph = capture_graph(work)
        except (RuntimeError, OutOfResources):
            # Too many registers or too much shared memory for this card.
            return float("inf")
        return best_seconds(device_of(device), graph.replay)[0] / len(copies)

    return seconds
