"""The weights of a checkpoint, in whichever format its files are.

Each format hands in its names, its shapes and how a tensor, or a part of it, is read.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from llama_perf.checkpoints.cut import Cut, Shape
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.devices.ranks import Rank
from llama_perf.errors import SpecError, UserError, WeightsError
from llama_perf.rows.choices import DTYPE_TOKENS
from llama_perf.words import counted

# Tables and caches that models of this family registered as buffers and saved.
_BUFFERS = re.compile(
    r"rope\.freqs|freqs_cis|freqs_cos|freqs_sin|causal_mask|mask"
    r"|layers\.\d+\.attention\.(inner_attention\.rope\.freqs|kv_cache\.[kv]_cache"
    r"|kv_cache\.[kv]_cache_scale)"
    r"|model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
    r"|rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight"
)


@dataclass(kw_only=True)
class StoredWeights(WeightsReader):
    """The WeightsReader of a checkpoint.

    `names` maps Meta's names, without `.weight` or `.bias`, to the checkpoint's own,
    those of a block without the `layers.N.` that is `<block>.N.` there; a name that is
    not in it is the same. `shapes` has every tensor of the checkpoint under its own
    name, in torch's order of dimensions, and `read(own_name, cut)` gives one of them,
    or a part of it. `config_from` says in errors where the configuration was found.
    `files` hold the tensors: reading a map of one that was cut since would end the
    process. `check_data(rank)` raises WeightsError for damage that reading does not
    find; of several ranks each looks at a part. `check_cut(own_name, cut)` raises
    UserError for a quantized tensor that cannot be cut so.

    Every tensor's name and shape is checked here, before any data is read. Raises
    WeightsError if one is missing, has another shape than the configuration wants, or
    has no place in such a model.
    """

    path: Path
    config_from: str
    shapes: Mapping[str, Shape]
    read: Callable[[str, Cut], Tensor]
    names: Mapping[str, str]
    block: str
    files: Collection[Path]
    check_data: Callable[[Rank], object] = lambda _rank: None
    check_cut: Callable[[str, Cut], object] = lambda _name, _cut: None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._is_checked = self._repeats_embedding = False
        self._sizes: list[tuple[Path, int]] = [
            (path, _size(path)) for path in self.files
        ]
        wanted: dict[str, Shape] = {}
        for name, shape in self._shapes():
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
            f" {counted(self.config.n_layers, 'layer')}",
        )

    def check_cuts(self) -> None:
        """See `WeightsReader.check_cuts`."""
        for name, shape in self._shapes():
            for own in self._parts(name, shape) if self.saved else ():
                try:
                    self.check_cut(own, self._cut(name))
                except UserError as error:
                    problem = f"{self.path}: {own}: {error}"
                    ranks = self.rank.count
                    raise SpecError("tensor_parallel", ranks, problem) from None

    @property
    def kept_bytes(self) -> float:
        """See `WeightsReader.kept_bytes`: nothing of what `save_model` wrote."""
        return math.inf if self.saved else super().kept_bytes

    def keep(self) -> None:
        """See `WeightsReader.keep`."""
        # What repeats the embedding is not kept.
        self._check_repeated()
        self.read, self.is_kept = cache(self.read), True
        for name, shape in self._shapes():
            self._weight(name, shape)

    def final(self) -> dict[str, Tensor]:
        """See `WeightsReader.final`; an output layer that is repeated must be alike."""
        self._check_repeated()
        return super().final()

    def _check_repeated(self) -> None:
        """Raise WeightsError if a tied model's output layer is not its embedding."""
        (own,) = self._parts("output.weight", ())
        is_repeated = self.whole.tied_embeddings and not self.own_output
        if self._repeats_embedding or not is_repeated or own not in self.shapes:
            return
        (embedding, shape), cut = self._embedding_shape, self._cut("output.weight")
        output = self._tensor("output.weight", shape, cut)
        if not torch.equal(output, self._tensor(embedding, shape, cut)):
            (embedding,) = self._parts(embedding, shape)
            raise WeightsError(
                f"{self.path}: {own} differs from {embedding}, which"
                f" {self.config_from} ties to it; allowed: the same values"
            )
        self._repeats_embedding = True

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
        config = self.whole
        heads = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
        return {
            own(f"attention.w{part}"): (count * config.head_dim, *shape[1:])
            for part, count in heads.items()
        }

    def _tensor(self, name: str, shape: Shape, cut: Cut) -> Tensor:
        self._check_sizes()
        if not self._is_checked:
            self.check_data(self.rank)
            self._is_checked = True
        parts, start = [], 0
        for own, (rows, *_) in self._parts(name, shape).items():
            part_cut = cut.within(0, start, start + rows)
            assert part_cut is not None, "a rank has heads of all three"
            start += rows
            parts.append(self.read(own, part_cut))
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
