"""Figures of rows on a card that does not exist, for `scripts.studies.made_up_run`.

They follow from the bytes of a row's weights and cache, the card's bandwidth, and a
share of it that each scheme reaches; all scatter is drawn from a seed.
"""

import math
import random
from dataclasses import dataclass
from functools import cache
from statistics import median

from llama_perf.results.measurement import (
    GB,
    CardState,
    Ceiling,
    Closeness,
    LinearChoice,
    Measurement,
    MemoryParts,
    OperatorTime,
    StepWork,
    ValueCheck,
)
from llama_perf.rows.spec import RowSpec

SEED = 20260102
CEILING_GB_S = 3350.0
_SAMPLES_BUDGET_S = 20.0


@dataclass(frozen=True, slots=True)
class _Scheme:
    """Bits of a weight, the share of the bandwidth, dB that its rounding leaves."""

    bits: float
    share: float
    closeness_db: float = math.inf


_SCHEMES = {
    "none": _Scheme(16.0, 0.86),
    "int8wo": _Scheme(8.0, 0.78, 37.5),
    "int8dq": _Scheme(8.0, 0.72, 26.0),
    "fp6": _Scheme(6.0, 0.63, 24.5),
    "int4wo-64": _Scheme(4.5, 0.56, 19.5),
    "uintx-4-64": _Scheme(4.3, 0.47, 18.7),
    "uintx-2-8": _Scheme(4.25, 0.42, 8.1),
    "sparse-marlin": _Scheme(3.13, 0.44, 4.3),
    "autoquant": _Scheme(8.0, 0.76, 33.0),
    "autoquant-int4": _Scheme(6.87, 0.66, 22.5),
}
_CACHE_DB = 41.0
_TWIN_PERPLEXITY = 9.127
_DTYPE_DB = {"bfloat16": 34.6, "float16": 50.8, "float32": 110.0}
_DRAW = random.Random(SEED)
# Times of tokens by the usual one: one in two hundred takes much longer.
_TOKENS = [1 + abs(_DRAW.gauss(0, 0.006)) for _ in range(398)] + [1.2, 1.7]


@dataclass(frozen=True, slots=True)
class _Model:
    """Weights in the linear layers, in the embedding, bytes of a 16-bit cache."""

    linear_weights: int
    embedding_weights: int
    position_bytes: int


_LLAMA_2 = _Model(6_607_343_616, 131_072_000, 524_288)
_LLAMA_3 = _Model(7_504_924_672, 525_336_576, 131_072)

_FUSED = ("project", "attend_in_splits", "project_heads", "choose", "start")
_TORCHAO = {
    "int8wo": "triton_red_fused_int8_weight_only_mm_4",
    "int8dq": "void cutlass::Kernel<int8_gemm_dequantize>",
    "int4wo-64": "void at::native::tinygemm_m16n8k16_chunk_kernel<ALayout_RM>",
}
_COMPILED = (
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80",
    "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0",
    "triton_poi_fused__unsafe_view_mul_silu_5",
    "triton_poi_fused_index_copy_split_with_sizes_transpose_view_2",
    "triton_poi_fused_add_view_6",
)
_EAGER = (
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80",
    "void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl_nocast>",
    "void at::native::reduce_kernel<512, 1, at::native::MeanOps<float>>",
    "void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda>",
    "void at::native::index_elementwise_kernel<128, 4, index_copy_kernel_impl>",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a process had otherwise than the baseline's.

    That is shares of time and of bytes, and dB of closeness.
    """

    time: float = 0.0
    closeness_db: float = 0.0
    peak: float = 0.0
    bandwidth: float = 0.0
    neighbours: tuple[str, ...] = ()


UNCHANGED = Change()


@cache
def measurement(row: RowSpec, process: str, change: Change = UNCHANGED) -> Measurement:
    """The row's figures in one process, whose name chooses its scatter."""
    draw = random.Random(f"{SEED}:{row.id}:{process}")
    scheme = _SCHEMES[row.quantization or "none"]
    of_dtype = 2 if row.dtype == "float32" else 1
    model = _LLAMA_2 if "2" in row.model.split("-") else _LLAMA_3
    scale = of_dtype if row.quantization is None else 1
    model_bytes = round(model.linear_weights * scheme.bits / 8 * scale)
    embedding_bytes = model.embedding_weights * 2 * of_dtype
    position_bytes = model.position_bytes * of_dtype * row.batch_size
    if row.kv_cache is not None:
        position_bytes = round(position_bytes * 0.516)
    cache_bytes = position_bytes * row.allocated_positions
    if row.attention == "sdpa" and not row.linear_causal_mask:
        cache_bytes += row.allocated_positions**2
    read_bytes = model_bytes + position_bytes * (
        row.allocated_positions if row.attention == "sdpa" else row.positions
    )
    ceiling = CEILING_GB_S * (1 + draw.gauss(0, 0.002)) * (1 + change.bandwidth)
    step_ms, step = _step(row, read_bytes / (ceiling * GB * scheme.share), change)
    apart = random.Random(f"{SEED}:{row.id}").uniform(0.001, 0.006)
    step_ms *= 1 + draw.gauss(0, apart)
    first_ns = round((9 + 0.03 * row.prompt_length * row.batch_size) * 1e6)
    token_ns, first_token_ns = [], []
    generation_s = step_ms * row.max_new_tokens / 1e3
    fitting = max(2, int(_SAMPLES_BUDGET_S / generation_s))
    for _ in range(min(row.num_samples, fitting)):
        slowed_ns = step_ms * 1e6 * (1 + abs(draw.gauss(0, 0.002)))
        longer = draw.choices(_TOKENS, k=row.max_new_tokens - 1)
        token_ns.append(tuple(round(slowed_ns * share) for share in longer))
        first_token_ns.append(round(first_ns * (1 + abs(draw.gauss(0, 0.004)))))
    decode_ns = [sum(times) for times in token_ns]
    sample_ns = [*map(sum, zip(decode_ns, first_token_ns, strict=True))]
    tok_s = row.batch_size * row.max_new_tokens * 1e9 / median(sample_ns)
    workspace_bytes = 96_000_000 + 1_500_000 * row.batch_size
    workspace_bytes += round(change.peak * (model_bytes + cache_bytes))
    weights_bytes = model_bytes + embedding_bytes
    allocated_bytes = weights_bytes + cache_bytes + workspace_bytes
    watts = 380 + 220 * min(1.0, model_bytes / 15e9) + draw.gauss(0, 4)
    return Measurement(
        tok_s=tok_s,
        decode_tok_s=row.batch_size * (row.max_new_tokens - 1) * 1e9 / median(decode_ns)
        if row.max_new_tokens > 1
        else None,
        time_to_first_token_s=median(first_token_ns) / 1e9,
        bandwidth_gb_s=model_bytes * tok_s / row.batch_size / GB,
        device_bandwidth_gb_s=ceiling,
        ceiling=Ceiling(
            read_gb_s=ceiling,
            copy_gb_s=ceiling * 0.95,
            launch_us=1.1,
            dependent_launch_us=0.6,
        ),
        peak_memory_bytes=allocated_bytes + 2**21 * (6 + allocated_bytes // 10**9),
        peak_allocated_bytes=allocated_bytes,
        build_peak_bytes=allocated_bytes + model.linear_weights * 2,
        build_s=round(2 + model_bytes / 4e9 + draw.random(), 3),
        warm_up_s=round(0.4 + generation_s, 3),
        warm_ups=1,
        graph_breaks=0,
        compilations=0,
        model_size_bytes=model_bytes,
        weights="synthetic",
        autoquant=_choices(row, step_ms),
        step=step,
        check=ValueCheck(
            signal_to_noise_db=round(33 + draw.gauss(0, 0.5), 1),
            least_db=14.0,
            against="operators",
            tokens=9,
            ties=0,
            seconds=0.09,
        ),
        closeness_db=round(_closeness_db(row, scheme) + change.closeness_db, 1),
        closeness=_closeness(row, _closeness_db(row, scheme) + change.closeness_db),
        memory=MemoryParts(weights_bytes=weights_bytes, cache_bytes=cache_bytes),
        joules_per_token=round(watts * step_ms / 1e3 / row.batch_size, 4),
        card=tuple(
            CardState(
                clock_mhz=1860,
                memory_clock_mhz=2619,
                temperature_c=round(51 + draw.random() * 4),
                power_w=round(watts + draw.gauss(0, 3), 1),
            )
            for _ in range(len(sample_ns) + 1)
        ),
        neighbours=change.neighbours or None,
        samples_budget_s=_SAMPLES_BUDGET_S,
        sample_ns=tuple(sample_ns),
        first_token_ns=tuple(first_token_ns),
        token_ns=tuple(token_ns) if row.max_new_tokens > 1 else None,
    )


def _closeness_db(row: RowSpec, scheme: _Scheme) -> float:
    """What all that a row rounds leaves; the same for rows of the same weights."""
    noises_db = [scheme.closeness_db, _DTYPE_DB[row.dtype]]
    noises_db += [] if row.kv_cache is None else [_CACHE_DB]
    weights = f"{row.model}:{row.quantization}:{row.dtype}:{row.kernels}"
    scatter_db = random.Random(f"{SEED}:{weights}").gauss(0, 0.3)
    return scatter_db - 10 * math.log10(sum(10 ** (-one / 10) for one in noises_db))


def _closeness(row: RowSpec, db: float) -> Closeness | None:
    """A closeness of so many dB, as SmolLM2's schemes have it; None: unquantized."""
    if not row.is_quantized:
        return None
    kl_nats = 4.5 * 10 ** (-db / 10)
    return Closeness(
        db=round(db, 2),
        kl_nats=round(kl_nats, 5),
        top1_share=round(1 - min(0.65 * math.sqrt(kl_nats), 0.98), 3),
        perplexity=round(_TWIN_PERPLEXITY * (1 + 0.9 * kl_nats), 3),
        twin_perplexity=_TWIN_PERPLEXITY,
        greedy_tokens=64,
        same_greedy_tokens=int(64 * math.exp(-5 * math.sqrt(kl_nats))),
        tokens=470,
        text="built-in",
        seconds=14.0,
    )


def _step(row: RowSpec, read_s: float, change: Change) -> tuple[float, StepWork]:
    """The ms of a decoding step, and what a profiler sees of it.

    A longer time is that of its first operator.
    """
    read_ms = read_s * 1e3
    names: tuple[str, ...] = _FUSED
    calls: tuple[int, ...] = (97, 32, 32, 1, 1)
    shares: tuple[float, ...] = (0.7, 0.16, 0.13, 0.008, 0.002)
    if row.fused:
        outside_ms, profiled = 0.9, 1.3
        all_calls, stored = 163, 1.0
    else:
        product = "nvjet_sm90_tst_64x8_64x16_2x1_v_bz_TNT"
        if row.kernels == "torchao":
            product = _TORCHAO[row.quantization or ""]
        elif row.quantization is not None:
            product = "few_tokens"
        names = (product, *(_COMPILED if row.compile else _EAGER))
        calls, shares = (129, 32, 65, 32, 64, 32), (0.66, 0.14, 0.07, 0.05, 0.04, 0.02)
        outside_ms = 1.4 if row.capture else 21.0
        profiled, all_calls, stored = 1.0, 459 if row.compile else 1811, 0.98
    longer = 1 + change.time * (read_ms + outside_ms) / (read_ms * shares[0])
    times_ms = [share * read_ms * profiled for share in shares]
    times_ms[0] *= longer
    operators = tuple(
        OperatorTime(name=name, calls=float(count), ms=round(ms, 4))
        for name, count, ms in zip(names, calls, times_ms, strict=True)
    )
    step_ms = (read_ms + outside_ms) * (1 + change.time)
    together_ms = sum(operator.ms for operator in operators)
    work = StepWork(
        calls=float(all_calls),
        ms=round(together_ms / stored, 4),
        operators=tuple(sorted(operators, key=lambda operator: -operator.ms)),
        host_waits=0.0,
    )
    return step_ms, work


def _choices(row: RowSpec, step_ms: float) -> tuple[LinearChoice, ...] | None:
    if not (row.quantization or "").startswith("autoquant"):
        return None
    shapes = ((12288, 4096), (4096, 4096), (11008, 4096), (4096, 11008))
    times = {"none": 1.9, "int8wo": 1.05, "int8dq": 1.1}
    if row.quantization == "autoquant-int4":
        times["int4wo-64-hqq"] = 0.98
    return tuple(
        LinearChoice(
            out_features=rows,
            in_features=columns,
            products=((row.prompt_length, 32), (1, 32 * (row.max_new_tokens - 1))),
            chosen=min(times, key=lambda name: times[name]),
            total_ms={
                name: round(step_ms * 50 * time, 2) for name, time in times.items()
            },
            reused=False,
        )
        for rows, columns in shapes
    )
