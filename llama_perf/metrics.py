"""The metrics of a row: one table, from which limits, verdicts and reports follow.

A metric that is added to `METRICS` is judged by its rule, may be set under `limits` by
a user, and has a column in a report if it asks for one.
"""

from llama_perf.metric import Column, LimitField, Metric, Rule

MIN_LOSS = 0.01
"""The loss of speed, as a share, below which none counts, however small the noise."""

FOUND = "found 9 in 10"
"""The header of the loss of speed that a run finds nine times in ten."""

# The meanings of limits. `tok_s` holds for a baseline with too few processes; the CPU's
# is that of a shared machine: docs/gate-why.md has the measurements.
_LEAST = "loss of speed that never counts, however small the noise"
_LOSS = "loss of speed, if the baseline has fewer than 3 processes"
_PEAK = "growth of reserved bytes; of resident memory on a CPU"
# A resident set varies by so many.
_BYTES = "growth of the peak, in bytes, that never counts"
_CALLS = "growth of kernels in a decoding step; of operators on a CPU"
_MORE = "how many more are allowed"
_COMPILING = "growth, if both compiled anew"
_SECONDS = "growth of the time to compile, in seconds, that never counts"
_FARTHER = "loss of dB; none counts above 60 dB"
_DIVERGING = "growth of the Kullback-Leibler divergence"
_ON_TEXT = "growth on the text"
_NATS = "its growth, in nats, that never counts"

TOK_S = Metric(
    "tok/s",
    "tok_s",
    Rule.SPEED,
    Column("tok/s", "tok/s", 2),
    more_is_better=True,
    digits=2,
    limits=(
        LimitField("least_loss", _LEAST, MIN_LOSS, is_loss=True),
        LimitField("tok_s", _LOSS, 0.05, {"cpu": 0.25}, is_loss=True),
    ),
)
PEAK_MEMORY = Metric(
    "peak memory",
    "peak_memory_bytes",
    Rule.PEAK,
    Column(*("peak", "peak GB", 2), scale=1e-9, change=("peak-change", "peak memory")),
    limits=(
        LimitField("peak_memory", _PEAK, 0.01, {"cpu": 0.10}),
        LimitField("peak_memory_bytes", _BYTES, 0, {"cpu": 32_000_000}, integral=True),
    ),
)

METRICS = (
    TOK_S,
    Metric(
        "spread of the samples",
        "sample_spread",
        Rule.SHOWN,
        # Beside the speed that it belongs to, before that one's change.
        Column("spread", "spread %", 1, scale=100, change=("change", TOK_S.title)),
    ),
    Metric(
        "decode tok/s",
        "decode_tok_s",
        Rule.REPORTED,
        Column("decode", "decode tok/s", 2),
        more_is_better=True,
        digits=2,
    ),
    Metric(
        "time to first token (s)",
        "time_to_first_token_s",
        Rule.REPORTED,
        Column("first-token", "first token ms", 1, scale=1e3),
        digits=4,
    ),
    *(
        Metric(
            f"time of a token, {percent}th percentile (ms)",
            f"token_p{percent}_ms",
            Rule.SHOWN,
            Column(f"token-p{percent}", f"token p{percent} ms", 2, is_usual=False),
        )
        for percent in (50, 90, 99)
    ),
    Metric("model bandwidth", "bandwidth_gb_s", Rule.SHOWN, Column("gb/s", "GB/s", 2)),
    Metric(
        "share of the device's bandwidth",
        "device_bandwidth_share",
        Rule.SHOWN,
        Column("bandwidth", "% of bandwidth", 1, scale=100),
    ),
    PEAK_MEMORY,
    Metric(
        "time of the ranks' sums a token (us)",
        "ranks.all_reduce_us",
        Rule.SHOWN,
        Column("all-reduce", "all-reduce us", 0, is_usual=None),
    ),
    Metric(
        "the ranks' sums a token",
        "ranks.all_reduce_bytes",
        Rule.SHOWN,
        Column("all-reduce-kb", "all-reduce KB", 1, scale=1e-3, is_usual=None),
    ),
    Metric(
        "weights with the embedding",
        "memory.weights_bytes",
        Rule.SHOWN,
        Column("weights", "weights GB", 3, scale=1e-9, is_usual=False),
    ),
    Metric(
        "caches and mask",
        "memory.cache_bytes",
        Rule.SHOWN,
        Column("cache", "cache GB", 3, scale=1e-9, is_usual=False),
    ),
    # Allocated bytes, the model's size and the calls of a step hardly vary.
    Metric(
        "allocated memory",
        "peak_allocated_bytes",
        Rule.GROWTH,
        limits=(LimitField("allocated_memory", "growth of tensors", 0.01),),
    ),
    Metric(
        "model size",
        "model_size_bytes",
        Rule.GROWTH,
        Column("model", "model GB", 2, scale=1e-9),
        limits=(LimitField("model_size", "growth", 0.001),),
    ),
    Metric(
        "calls a step",
        "step.calls",
        Rule.WORK,
        digits=0,
        limits=(LimitField("calls", _CALLS, 0.01),),
    ),
    Metric(
        "host synchronisations a token",
        "step.host_waits",
        Rule.COUNT,
        digits=1,
        limits=(LimitField("host_waits", _MORE, 0, integral=True),),
    ),
    # Loose: docs/gate-why.md has how much it varies.
    Metric(
        "time to compile (s)",
        "compile_s",
        Rule.GROWTH,
        digits=1,
        limits=(
            LimitField("compile_time", _COMPILING, 1.0),
            LimitField("compile_time_s", _SECONDS, 10, integral=True),
        ),
    ),
    *(
        Metric(
            name.replace("_", " "),
            name,
            Rule.COUNT,
            digits=0,
            limits=(LimitField(name, _MORE, 0, integral=True),),
        )
        for name in ("graph_breaks", "compilations")
    ),
    Metric(
        "signal to noise of the value check",
        "check.signal_to_noise_db",
        Rule.SHOWN,
        Column("check", "check dB", 0),
    ),
    Metric("closeness to the unquantized model", "closeness_db", Rule.SHOWN),
    # Over a text, where it was asked for: docs/gate-why.md has how much they vary.
    Metric(
        "closeness to the twin (dB)",
        "closeness.db",
        Rule.CLOSENESS,
        Column(
            *("closeness", "closeness dB", 1),
            change=("closeness-change", "closeness to the twin (dB)"),
            is_usual=None,
            fallback="closeness_db",
        ),
        more_is_better=True,
        digits=2,
        limits=(LimitField("closeness_db", _FARTHER, 1.0, unit="dB", of_drawn=2.0),),
        difference="dB",
        flat_name="text_closeness_db",
    ),
    Metric(
        "divergence from the twin (nats)",
        "closeness.kl_nats",
        Rule.CLOSENESS,
        Column("kl", "KL nats", 4, is_usual=False),
        digits=5,
        limits=(
            LimitField("closeness_kl", _DIVERGING, 0.10, of_drawn=0.40),
            LimitField("closeness_kl_nats", _NATS, 0.0002, unit="nats"),
        ),
    ),
    Metric(
        "perplexity",
        "closeness.perplexity",
        Rule.CLOSENESS,
        Column("perplexity", "perplexity", 2, is_usual=False),
        digits=2,
        limits=(LimitField("closeness_perplexity", _ON_TEXT, 0.02, of_drawn=0.06),),
    ),
    Metric(
        "perplexity by the twin's",
        "closeness.perplexity_ratio",
        Rule.CLOSENESS,
        Column("perplexity-ratio", "perplexity ratio", 3, is_usual=False),
    ),
    Metric(
        "share of the twin's top-1 tokens",
        "closeness.top1_share",
        Rule.CLOSENESS,
        Column("top1", "top-1 %", 1, scale=100, is_usual=False),
        more_is_better=True,
    ),
    Metric(
        "greedy tokens like the twin's",
        "closeness.same_greedy_tokens",
        Rule.CLOSENESS,
        Column("greedy", "same greedy tokens", 0, is_usual=False),
        more_is_better=True,
        digits=0,
    ),
)
LIMIT_FIELDS = {limit.name: limit for metric in METRICS for limit in metric.limits}


def metrics_by(*rules: Rule) -> list[Metric]:
    """The metrics that are compared by any of `rules`."""
    return [metric for metric in METRICS if metric.rule in rules]
