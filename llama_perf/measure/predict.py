"""The memory that a row will take, from the shape of its model alone.

Counts the weights as they are packed, caches and mask as the engine allocates them, and
what else is alive (`working_bytes`). It does not know how an allocator rounds,
nor what the operators of a library take inside: torchao's may unpack whole weights.
"""

from dataclasses import dataclass
from functools import cache

import torch

from llama_perf.devices.device import device_of
from llama_perf.kernels.packing import LANES
from llama_perf.llama.config import ModelConfig, short_name
from llama_perf.measure.own_bytes import own_bytes
from llama_perf.measure.working_bytes import cache_and_working_bytes
from llama_perf.quantize.autoquant.choose import candidates
from llama_perf.quantize.autoquant.timing import Product, weight_bytes
from llama_perf.quantize.libraries import LIBRARIES
from llama_perf.quantize.registry import config_for
from llama_perf.rows.modules import EVERY_LINEAR, ModuleFilter
from llama_perf.rows.schemes import AUTOQUANT, OWN, UNQUANTIZED, Scheme
from llama_perf.rows.spec import RowSpec

# torchao's int4 for CUDA pads N and K to multiples of these.
_TILE_ROWS, _TILE_COLUMNS = 8, 1024
# Of torchao, schemes that only a GPU can build: whether they fit is not checked here.
_BUILT_ONLY_ON_CUDA = ("int4wo", "float8dq-tensor", "float8dq-row")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBytes:
    """Bytes that a row takes.

    `cache_bytes` are those of all positions allocated, with the mask where the row's
    attention keeps one; on a CPU pages of it that are never written take no memory.
    `embedding_bytes` are 0 where the output layer, part of the model's size, shares
    the embedding. With `is_bound` they are no less than what the row takes: its scheme
    cannot be tried here, and the weights count as if they were unquantized.
    """

    model_size_bytes: int
    embedding_bytes: int
    cache_bytes: int
    working_bytes: int
    is_bound: bool = False

    @property
    def peak_bytes(self) -> int:
        """All of it."""
        fixed = self.model_size_bytes + self.embedding_bytes + self.cache_bytes
        return fixed + self.working_bytes


def predict(row: RowSpec, config: ModelConfig) -> RowBytes:
    """The bytes that `row` takes with a model of this shape, those of one rank.

    `config` is the whole model's or a rank's. A rank's rows of a tied embedding count
    twice: as its output layer too.
    The choice of autoquant depends on the device: here it chooses the fewest bytes.
    Raises SpecError for a scheme that does not fit the shape, NotRunnable for one that
    is not built.
    """
    if config.ranks == 1:
        config = config.of_rank(row.ranks)
    dtype: torch.dtype = getattr(torch, row.dtype)
    scheme, on = row.quantization, {"kernels": row.kernels, "device": row.device}
    selected = ModuleFilter.parse(row.modules)
    quantizes_output = scheme is not None and selected.selects("output")
    tied = config.tied_embeddings and not quantizes_output
    model_size_bytes = model_bytes(config, scheme, dtype=dtype, selected=selected, **on)
    cache_bytes, working_bytes = cache_and_working_bytes(config, row)
    return RowBytes(
        model_size_bytes=model_size_bytes,
        embedding_bytes=0 if tied else config.vocab_size * config.dim * dtype.itemsize,
        cache_bytes=cache_bytes,
        working_bytes=working_bytes + device_of(row.device).library_bytes,
        is_bound=_is_bound(row, config, dtype),
    )


def _is_bound(row: RowSpec, config: ModelConfig, dtype: torch.dtype) -> bool:
    """Whether a config of the row's own cannot be tried on the model's widths."""
    name = row.quantization
    if name is None or Scheme.parse(name, kernels=row.kernels).family != OWN:
        return False
    return any(
        own_bytes(name, rows, columns, dtype, row.device) is None
        for rows, columns in config.linears.values()
    )


def model_bytes(
    config: ModelConfig,
    scheme: str | None,
    *,
    kernels: str = "native",
    dtype: torch.dtype,
    device: str = "cpu",
    selected: ModuleFilter = EVERY_LINEAR,
) -> int:
    """Bytes of the weights that a token reads, as `kernels` keep them on `device`.

    Only the `selected` linears are quantized. Counted as `Transformer.weight_bytes`
    does, without the embedding. Raises as `predict`.
    """
    selected.check(config.linear_names)
    shapes = {**config.linears, "output": (config.output_size, config.dim)}
    linears = {name: shapes[short_name(name)] for name in config.linear_names}
    parsed = None if scheme is None else Scheme.parse(scheme, kernels=kernels)
    unchecked = parsed is not None and (
        # They need not be installed where sizes are asked for.
        kernels in LIBRARIES
        or (kernels == "torchao" and parsed.family in _BUILT_ONLY_ON_CUDA)
    )
    if parsed is not None and parsed.family != OWN and not unchecked:
        cpu = torch.device("cpu")
        built = config_for(parsed, kernels=kernels, device=cpu, dtype=dtype)
        # It imports torchao, which `config_for` does quietly.
        from llama_perf.quantize.packed_tensor import check_shapes

        quantized = {
            path: shape for path, shape in linears.items() if selected.selects(path)
        }
        cut = {p for p in quantized if config.cut_of(short_name(p)) == "columns"}
        check_shapes(parsed, built, quantized, device=cpu, cut_by_columns=cut)

    @cache
    def linear_bytes(name: str | None, shape: tuple[int, ...]) -> int:
        rows, columns = shape
        if name is None or name == UNQUANTIZED:
            return rows * columns * dtype.itemsize
        scheme = Scheme.parse(name, kernels=kernels)
        if scheme.family == OWN:
            own = own_bytes(scheme.name, rows, columns, dtype, device)
            return linear_bytes(None, shape) if own is None else own
        if kernels == "torchao":
            return _torchao_bytes(scheme, rows, columns, dtype, device)
        if kernels in LIBRARIES:
            return _library_bytes(scheme, rows, columns, dtype)
        if name not in AUTOQUANT:
            return _strip_bytes(name, columns) * -(-rows // LANES)
        return min(linear_bytes(tried, shape) for tried in candidates(name, columns))

    weights = sum(
        linear_bytes(scheme if selected.selects(path) else None, shape)
        for path, shape in linears.items()
    )
    vectors = config.n_layers * sum(config.vectors.values()) + config.dim
    return weights + vectors * dtype.itemsize


@cache
def _strip_bytes(scheme: str, columns: int) -> int:
    """Bytes of LANES rows of a native weight, which are packed together."""
    product = Product(tokens=1, rows=LANES, columns=columns)
    return weight_bytes(scheme, product, torch.device("cpu"))


def _torchao_bytes(
    scheme: Scheme, rows: int, columns: int, dtype: torch.dtype, device: str
) -> int:
    if scheme.family == "int4wo":
        assert scheme.group_size is not None, f"{scheme.name} has no group size"
        if device == "cuda":
            rows = -(-rows // _TILE_ROWS) * _TILE_ROWS
            columns = -(-columns // _TILE_COLUMNS) * _TILE_COLUMNS
        # A scale and a zero for every group.
        groups = rows * (columns // scheme.group_size)
        return rows * columns // 2 + 2 * groups * dtype.itemsize
    # float8 has a float32 scale for each row or for the weight, int8 an int8 zero too.
    scales = 1 if scheme.family == "float8dq-tensor" else rows
    return rows * columns + scales * (5 if scheme.family.startswith("int8") else 4)


def _library_bytes(scheme: Scheme, rows: int, columns: int, dtype: torch.dtype) -> int:
    """Bytes as gemlite and bitsandbytes keep a weight.

    A bitsandbytes that multiplies four bits fast on a CPU has scales of half the size.
    """
    if scheme.family in ("nf4", "fp4"):
        return rows * columns // 2 + 4 * rows * columns // 64
    if scheme.group_size is not None:
        # A scale and a zero for every group.
        groups = rows * columns // scheme.group_size
        bits = scheme.bits or 4
        return rows * columns * bits // 8 + 2 * groups * dtype.itemsize
    return rows * columns + 4 * rows
