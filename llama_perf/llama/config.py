"""The shape of a model of Llama's family: Llama, Mistral, Qwen2, Qwen3, SmolLM3.

Knows neither tensors nor files: `llama_perf.checkpoints.config` reads `config.json` and
its like, and `llama_perf.llama.presets` has the shapes of published models.
"""

import math
from dataclasses import dataclass, fields, replace

from llama_perf.errors import SpecError
from llama_perf.rows.bounds import BOUNDS

# More than any model has. Sizes are 32-bit numbers to kernels and file formats, and a
# damaged number of layers must not keep a reader busy.
MAX_SIZE, MAX_LAYERS = 2**31 - 1, 1000
QK_NORMS = ("attention.q_norm.weight", "attention.k_norm.weight")
# What ranks share evenly. So they do n_heads, a multiple of n_kv_heads.
_SHARED = ("n_kv_heads", "intermediate_size", "vocab_size")
_CUT_BY_COLUMNS = ("attention.wo", "feed_forward.w2")
# Well within float32, in which the model computes.
_MAX_NUMBER = 1e30


def check_whole(field: str, value: object, most: int = MAX_SIZE) -> None:
    """Raise SpecError unless `value` is a whole number from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        raise SpecError(field, value, f"allowed: a whole number, 1 to {most}")


def check_number(field: str, value: object) -> None:
    """Raise SpecError unless `value` is a number above 0, within float32."""
    is_number = type(value) in (int, float)
    if not is_number or not 0 < value <= _MAX_NUMBER:  # type: ignore[operator]
        allowed = f"allowed: a number, more than 0 and at most {_MAX_NUMBER:g}"
        raise SpecError(field, value, allowed)


def _check_fields(record: "ModelConfig | RopeScaling") -> None:
    for field in fields(record):
        value = getattr(record, field.name)
        if field.type is int:
            most = MAX_LAYERS if field.name == "n_layers" else MAX_SIZE
            check_whole(field.name, value, most)
        elif field.type is float:
            check_number(field.name, value)
        elif field.type is bool and type(value) is not bool:
            raise SpecError(field.name, value, "allowed: true or false")


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3.1's frequency scaling ("llama3" in Hugging Face's configurations)."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        _check_fields(self)
        low, high = self.low_freq_factor, self.high_freq_factor
        if high <= low:
            allowed = f"allowed: more than low_freq_factor {low}"
            raise SpecError("high_freq_factor", high, allowed)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of a model of Llama's family, in the names of Meta's reference code.

    `context` is the number of positions the model was trained for. Queries, keys and
    values have a bias with `qkv_bias`, the attention's output with `output_bias`, the
    three linears of the feed-forward with `mlp_bias`. With `qk_norm` each head of
    queries and keys is normalized before it is rotated.

    With a `sliding_window` of W a token attends to itself and to the W - 1 positions
    before it, in the layers of `window_layers`; None are all layers. The layers of
    `nope_layers` rotate nothing. Both count from 0.

    Where `ranks` share a model, heads and `intermediate_size` are those of one of them:
    see `of_rank`.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    intermediate_size: int
    vocab_size: int
    head_dim: int
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    context: int = 2048
    tied_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    window_layers: tuple[int, ...] | None = None
    nope_layers: tuple[int, ...] = ()
    ranks: int = 1

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.sliding_window is not None:
            check_whole("sliding_window", self.sliding_window)
        elif self.window_layers is not None:
            need = "layers with a window need a sliding_window"
            raise SpecError("window_layers", self.window_layers, need)
        for name in ("window_layers", "nope_layers"):
            layers = getattr(self, name) or ()
            known = set(range(self.n_layers))
            if not known.issuperset(layers) or list(layers) != sorted(set(layers)):
                allowed = f"allowed: ascending numbers of layers below {self.n_layers}"
                raise SpecError(name, layers, allowed)
        if self.n_heads % self.n_kv_heads:
            allowed = f"it must divide the number of heads, {self.n_heads}"
            raise SpecError("n_kv_heads", self.n_kv_heads, allowed)
        if self.head_dim % 2:
            raise SpecError("head_dim", self.head_dim, "RoPE needs an even one")

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer, None where a token sees all before it."""
        layers = self.window_layers
        return self.sliding_window if layers is None or layer in layers else None

    def cache_window(self, layer: int, cache_size: int) -> int:
        """The window of a layer over a cache; 0 where it is no shorter than that."""
        window = self.window(layer) or 0
        return window if window < cache_size else 0

    def first_layers(self, count: int) -> "ModelConfig":
        """The same with its first `count` layers only."""
        layers, nope = self.window_layers, self.nope_layers
        return replace(
            self,
            n_layers=count,
            window_layers=layers and tuple(i for i in layers if i < count),
            nope_layers=tuple(layer for layer in nope if layer < count),
        )

    def of_rank(self, ranks: int) -> "ModelConfig":
        """What one of `ranks` has of this model; raises SpecError."""
        if ranks == 1:
            return self
        assert self.ranks == 1, "the whole model's"
        sizes = {name: getattr(self, name) for name in _SHARED}
        for name, size in sizes.items():
            if size % ranks:
                most, common = (
                    int(BOUNDS["tensor_parallel"].most),
                    math.gcd(*sizes.values()),
                )
                fit = [
                    str(count) for count in range(1, most + 1) if common % count == 0
                ]
                problem = f"{name}, {size}, is no multiple of it"
                problem = f"{problem}; allowed: {', '.join(fit)}"
                raise SpecError("tensor_parallel", ranks, problem)
        return replace(
            self,
            n_heads=self.n_heads // ranks,
            n_kv_heads=self.n_kv_heads // ranks,
            intermediate_size=self.intermediate_size // ranks,
            ranks=ranks,
        )

    def cut_of(self, linear: str) -> str | None:
        """What a rank has of the weight of a linear, such as "attention.wo".

        "rows" or "columns" of it; None where no other rank has a part.
        """
        if self.ranks == 1:
            return None
        return "columns" if linear in _CUT_BY_COLUMNS else "rows"

    @property
    def output_size(self) -> int:
        """Rows of the output layer, of one rank."""
        return self.vocab_size // self.ranks

    @property
    def of_one_layer(self) -> "ModelConfig":
        """The same with one layer only, with a window if any layer has one."""
        return replace(self, n_layers=1, window_layers=None, nope_layers=())

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(N, K) of each linear of a block, by its name, in the model's order."""
        dim, hidden = self.dim, self.intermediate_size
        return {
            "attention.wqkv": (self.qkv_size, dim),
            "attention.wo": (dim, self.n_heads * self.head_dim),
            "feed_forward.w1": (hidden, dim),
            "feed_forward.w3": (hidden, dim),
            "feed_forward.w2": (dim, hidden),
        }

    @property
    def linear_names(self) -> list[str]:
        """The names of all linears of the model."""
        layers = range(self.n_layers)
        return [f"layers.{n}.{name}" for n in layers for name in self.linears] + [
            "output"
        ]

    @property
    def vectors(self) -> dict[str, int]:
        """The size of each bias and norm of a block, by its name, in the model's order.

        None of them is quantized.
        """
        biased = {"wqkv": self.qkv_bias, "wo": self.output_bias}
        sizes = {
            f"{name}.bias": rows
            for name, (rows, _) in self.linears.items()
            if biased.get(name.removeprefix("attention."), self.mlp_bias)
        }
        if self.qk_norm:
            sizes |= dict.fromkeys(QK_NORMS, self.head_dim)
        return sizes | {"attention_norm.weight": self.dim, "ffn_norm.weight": self.dim}


def short_name(linear: str) -> str:
    """A name of `linear_names` without its layer, such as "feed_forward.w1"."""
    return linear.split(".", 2)[-1]
