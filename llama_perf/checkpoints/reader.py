"""Weights, read from a checkpoint or made up: one face for every source.

Names are Meta's (`tok_embeddings.weight`, `layers.0.attention.wqkv.weight`, ...) and
query and key rows are in the order of RoPE on interleaved pairs. A checkpoint's
tensors come on the CPU in the dtype they are stored in (GGUF's in float32, since it
stores most of them quantized); synthetic ones in the dtype and on the device asked
for. Quantized tensors come only from what `save_model` wrote. Knows no file format:
each hands in its names, its shapes and how a tensor is read.
"""

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from llama_perf.checkpoints.saved import Saved
from llama_perf.errors import WeightsError
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.transformer import Origin
from llama_perf.rows.choices import DTYPE_TOKENS
from llama_perf.words import counted

Shape = tuple[int, ...]

# Tables and caches that models of this family registered as buffers and saved.
_BUFFERS = re.compile(
    r"rope\.freqs|freqs_cis|freqs_cos|freqs_sin|causal_mask|mask"
    r"|layers\.\d+\.attention\.(inner_attention\.rope\.freqs|kv_cache\.[kv]_cache"
    r"|kv_cache\.[kv]_cache_scale)"
    r"|model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
    r"|rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight"
)


def layer_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """The names and shapes of one block's weights, in the model's order."""
    for name, shape in config.linears.items():
        yield f"{name}.weight", shape
    for name, size in config.vectors.items():
        yield name, (size,)


@dataclass(kw_only=True)
class WeightsReader:
    """A checkpoint, or a generator of synthetic weights.

    Every call reads anew, so one layer at a time is in memory; after `keep` all are. A
    tensor may alias a private map of the file: writing to it never reaches the file,
    and whoever measures copies it, or the disk is read while the clock runs.
    """

    config: ModelConfig
    source: str
    """The weights as a result records them: "synthetic", or "<format>:<name>".

    The name is the file's for a GGUF, else the folder's. A folder of `save_model` says
    what is in it: "pth:<name> (int8wo, native, from gguf:<file>)".
    """
    saved: Saved | None = None
    """The record that `save_model` wrote with the weights; None for all others."""
    own_output: bool = False
    """Whether a tied model has an output layer: its own was quantized and saved."""
    read_s: float = 0.0
    """What opening and reading took, where it was done once for several rows."""
    notes: tuple[str, ...] = ()
    """What a user should know of the choice of these weights, a line each."""

    @property
    def origin(self) -> Origin:
        """The origin of a model with these weights."""
        return Origin(weights=self.source) if self.saved is None else self.saved.origin

    @property
    def kept_bytes(self) -> float:
        """The most that `keep` takes; infinite where nothing may be kept."""
        return math.inf

    def keep(self) -> None:
        """Read every tensor now and keep it for later calls."""
        raise NotImplementedError

    def embedding(self) -> Tensor:
        """`tok_embeddings.weight`, (vocab_size, dim)."""
        config = self.config
        return self._tensor("tok_embeddings.weight", (config.vocab_size, config.dim))

    def layer(self, index: int) -> dict[str, Tensor]:
        """The weights of one block by `layer_shapes`' names, those inside the block."""
        assert 0 <= index < self.config.n_layers, f"there is no layer {index}"
        return {
            name: self._tensor(f"layers.{index}.{name}", shape)
            for name, shape in layer_shapes(self.config)
        }

    def final(self) -> dict[str, Tensor]:
        """`norm.weight` (dim,) and, unless tied, `output.weight` (vocab_size, dim)."""
        return {name: self._tensor(name, shape) for name, shape in self._final_shapes()}

    def _final_shapes(self) -> Iterator[tuple[str, Shape]]:
        config = self.config
        yield "norm.weight", (config.dim,)
        if self.own_output or not config.tied_embeddings:
            yield "output.weight", (config.vocab_size, config.dim)

    def _tensor(self, name: str, shape: Shape) -> Tensor:
        raise NotImplementedError


@dataclass(kw_only=True)
class StoredWeights(WeightsReader):
    """The WeightsReader of a checkpoint.

    `names` maps Meta's names, without `.weight` or `.bias`, to the checkpoint's own,
    those of a block without the `layers.N.` that is `<block>.N.` there; a name that is
    not in it is the same. `shapes` has every tensor of the checkpoint under its own
    name, in torch's order of dimensions, and `read(own_name)` gives one of them.
    `config_from` says in errors where the configuration was found. `files` hold the
    tensors: reading a map of one that was cut since would end the process.

    Every tensor's name and shape is checked here, before any data is read. Raises
    WeightsError if one is missing, has another shape than the configuration wants, or
    has no place in such a model.
    """

    path: Path
    config_from: str
    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]
    names: Mapping[str, str]
    block: str
    files: Collection[Path]

    def __post_init__(self) -> None:
        self._sizes: list[tuple[Path, int]] = [
            (path, _size(path)) for path in self.files
        ]
        config = self.config
        wanted = self._parts("tok_embeddings.weight", (config.vocab_size, config.dim))
        for index in range(config.n_layers):
            for name, shape in layer_shapes(config):
                wanted |= self._parts(f"layers.{index}.{name}", shape)
        for name, shape in self._final_shapes():
            wanted |= self._parts(name, shape)
        self._refuse(
            [name for name in wanted if name not in self.shapes],
            f"is missing; {self.config_from} wants it",
        )
        for name, shape in wanted.items():
            if self.shapes[name] != shape:
                raise WeightsError(
                    f"{self.path}: {name}: shape {self.shapes[name]} is not"
                    f" allowed; {self.config_from} wants {shape}"
                )
        # A tied model's file may repeat its embedding as the output layer: see `final`.
        known = {*wanted, *self._parts("output.weight", ())}
        self._refuse(
            [n for n in self.shapes if n not in known and not _BUFFERS.fullmatch(n)],
            f"is not allowed; {self.config_from} wants no such tensor in a model of"
            f" {counted(config.n_layers, 'layer')}",
        )

    @property
    def kept_bytes(self) -> float:
        """See `WeightsReader.kept_bytes`: in float32, unless their type is saved."""
        return math.inf if self.saved else 4 * sum(map(math.prod, self.shapes.values()))

    def keep(self) -> None:
        """See `WeightsReader.keep`."""
        self._check_sizes()
        self.read = cache(self.read)
        for name in self.shapes:
            self.read(name)

    def final(self) -> dict[str, Tensor]:
        """See `WeightsReader.final`; an output layer that is repeated must be alike."""
        config = self.config
        (own,) = self._parts("output.weight", ())
        if config.tied_embeddings and not self.own_output and own in self.shapes:
            shape = (config.vocab_size, config.dim)
            if not torch.equal(self._tensor("output.weight", shape), self.embedding()):
                (embedding,) = self._parts("tok_embeddings.weight", shape)
                raise WeightsError(
                    f"{self.path}: {own} differs from {embedding}, which"
                    f" {self.config_from} ties to it; allowed: the same values"
                )
        return super().final()

    def _check_sizes(self) -> None:
        for path, size in self._sizes:
            if _size(path) != size:
                raise WeightsError(f"{path}: it was changed since it was opened")

    def _refuse(self, names: list[str], problem: str) -> None:
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise WeightsError(f"{self.path}: the tensor {names[0]}{more} {problem}")

    def _parts(self, name: str, shape: Shape) -> dict[str, Shape]:
        """The checkpoint's tensors that make up a weight: QKV may be in three."""
        _, index, inner = name.split(".", 2) if "layers." in name else ("", "", name)
        start = f"{self.block}.{index}." if index else ""

        def own(stem: str) -> str:
            return f"{start}{self.names.get(stem, stem)}.{kind}"

        stem, _, kind = inner.rpartition(".")
        if stem != "attention.wqkv" or own(stem) in self.shapes:
            return {own(stem): shape}
        config = self.config
        heads = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
        return {
            own(f"attention.w{part}"): (count * config.head_dim, *shape[1:])
            for part, count in heads.items()
        }

    def _tensor(self, name: str, shape: Shape) -> Tensor:
        self._check_sizes()
        parts = []
        for own in self._parts(name, shape):
            parts.append(self.read(own))
            dtype = str(parts[-1].dtype).removeprefix("torch.")
            if dtype not in DTYPE_TOKENS:
                raise WeightsError(
                    f"{self.path}: {own}: dtype {dtype} is not allowed; allowed:"
                    f" {', '.join(DTYPE_TOKENS)}"
                )
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None


@dataclass
class SyntheticWeights(WeightsReader):
    """The WeightsReader of a model that has no file.

    Made directly on `device` in `dtype`. The values depend on the tensor's name,
    its shape, the dtype and the device's type, not on the order of reading; a
    CUDA device's differ from the CPU's. Normal, with standard deviation
    1 / sqrt(fan-in) for projections and 1 / sqrt(dim) for the embedding, so that
    logits have a standard deviation near 1 whether it is tied or not. Norms are near 1,
    biases near 0.
    """

    config: ModelConfig
    _: KW_ONLY
    dtype: torch.dtype
    device: torch.device
    source: str = "synthetic"

    @property
    def kept_bytes(self) -> float:
        """See `WeightsReader.kept_bytes`: what all of them would take in float32."""
        config = self.config
        layer = sum(math.prod(shape) for _, shape in layer_shapes(config))
        final = sum(math.prod(shape) for _, shape in self._final_shapes())
        return 4 * (config.vocab_size * config.dim + config.n_layers * layer + final)

    def keep(self) -> None:
        """See `WeightsReader.keep`: they are made anew, which takes no longer."""

    def _tensor(self, name: str, shape: Shape) -> Tensor:
        # The 0 is part of the name so that the values stay those of earlier versions.
        digest = hashlib.sha256(f"0:{name}".encode()).digest()
        generator = torch.Generator(device=self.device)
        # torch takes 63 bits everywhere.
        generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        if len(shape) == 1:
            mean, spread = (0.0, 0.1) if name.endswith(".bias") else (1.0, 0.02)
            return tensor.normal_(mean, spread, generator=generator)
        std = 1 / math.sqrt(shape[1])
        if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")):
            # These add to the residual stream, twice a layer; scaled so that the sum
            # over all layers keeps the variance of one (GPT-2's initialisation).
            std /= math.sqrt(2 * self.config.n_layers)
        return tensor.normal_(0.0, std, generator=generator)
