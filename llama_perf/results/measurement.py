"""The figures that one row measured, and the facts that explain them.

They are the ceiling, the GPU's state, what else the machine did, the operators of a
step, autoquant's choices and the check of values. Imports no torch.
"""

from statistics import median, quantiles

from llama_perf.errors import SpecError, check_not_negative, check_positive
from llama_perf.results.ranks import Ranks
from llama_perf.results.token_times import percentile_ms
from llama_perf.strict_json import record
from llama_perf.words import counted

GB = 1e9
_NOT_NEGATIVE = (
    *("bandwidth_gb_s", "peak_memory_bytes", "model_size_bytes"),
    *("peak_allocated_bytes", "build_s", "warm_up_s", "warm_ups", "graph_breaks"),
    *("compilations", "injected_slowdown", "repeated_steps", "decode_steps"),
)


@record
class LinearChoice:
    """The format that autoquant chose for the linear layers of one shape.

    `products` are pairs (tokens, count) of one generation. `total_ms` has the time of
    all of them for each format that fits; `reused` times are those of an earlier run.
    """

    out_features: int
    in_features: int
    products: tuple[tuple[int, int], ...]
    chosen: str
    total_ms: dict[str, float]
    reused: bool


@record
class CardState:
    """The state of a GPU at one moment; None for what the driver does not report.

    `limited_by` also has what lowered the clock since the state before.
    """

    clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    limited_by: tuple[str, ...] = ()


@record
class Ceiling:
    """The speed of the device, measured before the rows of a run.

    `launch_us` is the time from one kernel of a captured graph to the next,
    `dependent_launch_us` the same by programmatic dependent launch. None: the device
    has no such thing, or it was not measured.
    """

    read_gb_s: float
    copy_gb_s: float | None = None
    launch_us: float | None = None
    dependent_launch_us: float | None = None

    def __post_init__(self) -> None:
        check_positive("read_gb_s", self.read_gb_s)

    @property
    def bandwidth_gb_s(self) -> float:
        """The faster of reading and copying."""
        return max(self.read_gb_s, self.copy_gb_s or 0.0)

    @property
    def summary(self) -> str:
        """All of it in one line."""
        words = [f"{self.read_gb_s:.1f} GB/s read"]
        if self.copy_gb_s is not None:
            words.append(f"{self.copy_gb_s:.1f} GB/s copied")
        if self.launch_us is not None:
            words.append(f"{self.launch_us:.2f} us from kernel to kernel")
        if self.dependent_launch_us is not None:
            words.append(f"{self.dependent_launch_us:.2f} us by dependent launch")
        return ", ".join(words)


@record
class OperatorTime:
    """An operator in a decoding step: its calls, and its own ms under a profiler."""

    name: str
    calls: float
    ms: float


@record
class StepWork:
    """The calls of a decoding step, and the operators that take longest.

    `host_waits` counts how often a step waits for a value on the host.
    """

    calls: float
    ms: float
    operators: tuple[OperatorTime, ...]
    host_waits: float | None = None


@record
class ValueCheck:
    """How close a row's logits are to those of the same weights run another way.

    `signal_to_noise_db` must be `least_db` or more. At `ties` of `tokens` positions
    another token was the greedy one, by less than the error. `against` names the other
    way.
    """

    signal_to_noise_db: float
    least_db: float
    against: str
    tokens: int
    ties: int
    seconds: float


@record
class Closeness:
    """How close a row comes to its unquantized twin: the same row, nothing quantized.

    Both read `text`, of `tokens` tokens, and are compared at each position: `db` is
    the signal to noise of the row's logits, `kl_nats` the mean Kullback-Leibler
    divergence of its distribution from the twin's, `top1_share` the share of positions
    where both have the same most probable token. `perplexity` is the row's on the text,
    `twin_perplexity` its twin's. Of `greedy_tokens` that the row generated greedily,
    the first `same_greedy_tokens` are the twin's as well.
    """

    db: float
    kl_nats: float
    top1_share: float
    perplexity: float
    twin_perplexity: float
    greedy_tokens: int
    same_greedy_tokens: int
    tokens: int
    text: str
    seconds: float

    def __post_init__(self) -> None:
        for name in ("tokens", "perplexity", "twin_perplexity"):
            check_positive(name, getattr(self, name))
        for name in ("seconds", "greedy_tokens", "same_greedy_tokens"):
            check_not_negative(name, getattr(self, name))
        if not 0 <= self.top1_share <= 1:
            raise SpecError("top1_share", self.top1_share, "allowed: 0 to 1")
        if self.same_greedy_tokens > self.greedy_tokens:
            allowed = f"allowed: at most greedy_tokens, {self.greedy_tokens}"
            raise SpecError("same_greedy_tokens", self.same_greedy_tokens, allowed)

    @property
    def perplexity_ratio(self) -> float:
        """The row's perplexity over its twin's."""
        return self.perplexity / self.twin_perplexity


@record
class MemoryParts:
    """What a row's tensors take of its peak: weights with the embedding, and caches.

    `cache_bytes` are those of the KV cache, with a mask where the row has one.
    """

    weights_bytes: int
    cache_bytes: int

    def __post_init__(self) -> None:
        for name in ("weights_bytes", "cache_bytes"):
            check_not_negative(name, getattr(self, name))


@record
class SystemLoad:
    """What else the machine did in the `seconds` in which a row took its samples.

    The row had `threads` threads, on any of `cores` cores. Other processes took the
    time of `other_cores` of these, and `steal_share` of their time went to others than
    this virtual machine. `load_average` is the system's own, of the last minute, and so
    also of what the row did before. None: the system does not say.
    """

    seconds: float
    cores: int
    threads: int
    other_cores: float
    steal_share: float | None = None
    load_average: float | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "cores", "threads"):
            check_positive(name, getattr(self, name))

    @property
    def lost_share(self) -> float:
        """The share of its threads' time in which the row has no core left for them.

        Other processes first take the cores that the row leaves free.
        """
        return max(self.other_cores - (self.cores - self.threads), 0.0) / self.threads

    @property
    def summary(self) -> str:
        """All of it in words."""
        cores = counted(self.cores, "core")
        words = [f"other processes took {self.other_cores:.1f} of {cores}"]
        if self.steal_share is not None:
            words.append(f"steal {self.steal_share:.0%}")
        if self.load_average is not None:
            words.append(f"load average {self.load_average:.1f}")
        return ", ".join(words)


@record
class Measurement:
    """The figures of one row. Speeds are medians over its samples; a GB is 10^9 bytes.

    `tok_s` counts all new tokens of the batch over the whole generation, with its
    prefill, as the reference does; `decode_tok_s` leaves out the prefill and the first
    token. `bandwidth_gb_s` is model size x tok/s of one sequence, also as in the
    reference. On CUDA the peaks are the allocator's reserved and allocated bytes. On a
    CPU they are the growth of the process's resident set while the row exists, and the
    bytes that its tensors ask for (`measure/step_profile.py`).

    `weights` names the source of the weights; `weights_notes` say in a line each what
    is to be known of it, such as files that were not read.

    With an `injected_slowdown`, `repeated_steps` counts the steps that were decoded a
    second time, and `decode_steps` the others, from the first timed generation on.

    `compile_s` is what the first generation took longer than as many tokens of a
    sample, None unless all its code was compiled anew. `warm_ups` generations came
    before the samples.

    There are fewer samples than `num_samples` if all would take longer than
    `samples_budget_s`. `card` has the GPU's states before the first sample and after
    each; `neighbours` are other processes that computed on the GPU. `load` is what else
    the machine did meanwhile, None where the samples took too little time to know.

    `token_ns` has, for each sample, the time between each new token and the one before
    it, without the first; a baseline leaves it out. `closeness_db` is the signal to
    noise of the row's logits against the unquantized model's, None where that was not
    at hand. `closeness` compares the row with its unquantized twin over a text, where
    that was asked for. `memory` says what of the peak the weights and caches are.
    `ranks` are those that shared the model: the times are then the slowest one's, the
    peaks the largest, model size and bandwidths the sums.
    """

    tok_s: float
    bandwidth_gb_s: float
    peak_memory_bytes: int
    model_size_bytes: int
    weights: str
    weights_notes: tuple[str, ...] | None = None
    decode_tok_s: float | None = None
    time_to_first_token_s: float | None = None
    device_bandwidth_gb_s: float | None = None
    ceiling: Ceiling | None = None
    peak_allocated_bytes: int | None = None
    build_peak_bytes: int | None = None
    build_s: float | None = None
    warm_up_s: float | None = None
    warm_ups: int | None = None
    compile_s: float | None = None
    graph_breaks: int | None = None
    compilations: int | None = None
    injected_slowdown: float = 0.0
    repeated_steps: int | None = None
    decode_steps: int | None = None
    autoquant: tuple[LinearChoice, ...] | None = None
    step: StepWork | None = None
    check: ValueCheck | None = None
    closeness_db: float | None = None
    closeness: Closeness | None = None
    memory: MemoryParts | None = None
    ranks: Ranks | None = None
    joules_per_token: float | None = None
    card: tuple[CardState, ...] | None = None
    card_problem: str | None = None
    neighbours: tuple[str, ...] | None = None
    load: SystemLoad | None = None
    samples_budget_s: float | None = None
    sample_ns: tuple[int, ...] = ()
    first_token_ns: tuple[int, ...] = ()
    token_ns: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        check_positive("tok_s", self.tok_s)
        for name in _NOT_NEGATIVE:
            if (value := getattr(self, name)) is not None:
                check_not_negative(name, value)
        for name in ("device_bandwidth_gb_s", "decode_tok_s", "time_to_first_token_s"):
            if (value := getattr(self, name)) is not None:
                check_positive(name, value)
        for sample_ns in self.token_ns or ():
            check_not_negative("token_ns", min(sample_ns, default=0))

    @property
    def best_closeness_db(self) -> float | None:
        """The closeness over a text where it was measured, else the quick one."""
        return self.closeness_db if self.closeness is None else self.closeness.db

    @property
    def trend(self) -> float | None:
        """How much longer the first sample took than the median of the others."""
        first, *others = self.sample_ns or (0,)
        return first / median(others) - 1 if others else None

    @property
    def sample_spread(self) -> float | None:
        """How far apart the samples lie: their middle half, as a share of the median.

        It is the distance of the quartiles, which one slow sample among several hardly
        moves. None with fewer than two samples.
        """
        if len(self.sample_ns) < 2:
            return None
        first, middle, third = quantiles(self.sample_ns, n=4, method="inclusive")
        return (third - first) / middle

    @property
    def token_p50_ms(self) -> float | None:
        """The median of `token_ns`, of all samples together; None: too few tokens."""
        return percentile_ms(self.token_ns, 50)

    @property
    def token_p90_ms(self) -> float | None:
        """Their 90th percentile."""
        return percentile_ms(self.token_ns, 90)

    @property
    def token_p99_ms(self) -> float | None:
        """Their 99th percentile."""
        return percentile_ms(self.token_ns, 99)

    @property
    def device_bandwidth_share(self) -> float | None:
        """Model bandwidth over the bandwidth measured in the same run."""
        if self.device_bandwidth_gb_s is None:
            return None
        return self.bandwidth_gb_s / self.device_bandwidth_gb_s
