"""Meta's `consolidated.00.pth`, `.01.pth`, ...: the parts of one model, merged.

Each part is what one of Meta's processes held. A tensor, or what is wanted of it, is
merged when it is read, so that no more than one is in memory. Knows which tensors are
split and how, and not how a file is read.

Column-parallel projections are split by their output channels, row-parallel ones by
their input channels. The embedding of Llama 1 and 2 is split by its width, that of
Llama 3 by its vocabulary. All else is in every part.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llama_perf.checkpoints import config as configs
from llama_perf.checkpoints.cut import WHOLE, Cut, Shape
from llama_perf.checkpoints.hub import folder_name
from llama_perf.checkpoints.pth import EMBEDDING, PthFile, embedding_rows, open_file
from llama_perf.checkpoints.stored import StoredWeights
from llama_perf.devices.ranks import Rank
from llama_perf.errors import MissingFileError, WeightsError
from llama_perf.files import entries
from llama_perf.words import shown

CONSOLIDATED = "consolidated.*.pth"
"""A glob of the names of these files."""
_SPLIT_BY = (
    (0, re.compile(r"output\.weight|layers\.\d+\..*\.(w[qkv]|w[13])\.weight")),
    (1, re.compile(r"layers\.\d+\.(attention\.wo|feed_forward\.w2)\.weight")),
)


def parts_of(folder: Path) -> list[Path]:
    """The `consolidated.NN.pth` of a folder in their order; [] if it has none.

    Raises WeightsError where one is missing from the row of numbers.
    """
    found: dict[int, Path] = {}
    inside = entries(folder, error=WeightsError)
    paths = [path for path in inside if path.match(CONSOLIDATED)]
    for path in paths:
        number = re.fullmatch(r"consolidated\.(\d\d)\.pth", path.name)
        if number is None and len(paths) == 1:
            return paths
        if number is None:
            raise WeightsError(
                f"{folder}: the file {shown(path.name)} is not allowed; allowed:"
                " consolidated.00.pth, consolidated.01.pth, ..."
            )
        found[int(number[1])] = path
    for wanted in range(max(found, default=-1)):
        if wanted not in found:
            last = found[max(found)].name
            raise MissingFileError(
                f"{folder}: consolidated.{wanted:02}.pth is missing; the last one is"
                f" {last}"
            )
    return [found[number] for number in sorted(found)]


def open_consolidated(paths: Sequence[Path]) -> StoredWeights:
    """Open the parts of a model; raises WeightsError.

    Its configuration is looked for in their folder.
    """
    folder, n_parts = paths[0].parent, len(paths)
    parts = [open_file(path, None) for path in paths]
    tensors = parts[0].tensors
    for part in parts[1:]:
        _check_alike(parts[0], part)
    config, config_from = configs.folder_config(
        folder, vocab_size=lambda: embedding_rows(tensors, paths[0])
    )
    if "output.weight" in tensors:
        config = replace(config, tied_embeddings=False)

    def split_by(name: str) -> int | None:
        """The dimension by which a tensor is split, None for one in every part."""
        if name == EMBEDDING:
            width = tensors[name].shape[-1:]
            return 1 if [size * n_parts for size in width] == [config.dim] else 0
        return next((dim for dim, names in _SPLIT_BY if names.fullmatch(name)), None)

    def read(name: str, cut: Cut = WHOLE) -> Tensor:
        if (dim := split_by(name)) is not None:
            size = tensors[name].shape[dim]
            of_parts = (
                (part, cut.within(dim, at * size, (at + 1) * size))
                for at, part in enumerate(parts)
            )
            needed = [own.of(part.read(name)) for part, own in of_parts if own]
            return torch.cat(needed, dim)
        pieces = [part.read(name) for part in parts]
        for path, piece in zip(paths, pieces, strict=True):
            if not torch.equal(piece, pieces[0]):
                raise WeightsError(
                    f"{path}: {name}: other values than in {paths[0].name} are not"
                    " allowed; allowed: the same in every part"
                )
        return cut.copied_from(pieces[0])

    def check_data(rank: Rank) -> None:
        for part in parts:
            part.check_data(rank)

    def merged_shape(name: str) -> Shape:
        shape = list(tensors[name].shape)
        dim = split_by(name)
        if dim is not None and dim < len(shape):
            shape[dim] *= n_parts
        return tuple(shape)

    return StoredWeights(
        path=folder,
        source=f"pth:{folder_name(folder)}",
        config=config,
        config_from=f"{config_from}, for {n_parts} parts together,",
        shapes={name: merged_shape(name) for name in tensors},
        read=read,
        names={},
        block="layers",
        files=paths,
        check_data=check_data,
    )


def _check_alike(first: PthFile, part: PthFile) -> None:
    """Raise WeightsError unless a part has the first one's tensors and their shapes."""
    for one, other, problem in (
        (first, part, "is missing"),
        (part, first, "is not allowed"),
    ):
        for name in one.tensors:
            if name not in other.tensors:
                raise WeightsError(
                    f"{part.path}: the tensor {name} {problem}; allowed: those of"
                    f" {first.path.name}"
                )
    for name, tensor in part.tensors.items():
        wanted = first.tensors[name]
        for what, own, allowed in (
            ("shape", tuple(tensor.shape), tuple(wanted.shape)),
            ("dtype", _dtype(tensor), _dtype(wanted)),
        ):
            if own != allowed:
                raise WeightsError(
                    f"{part.path}: {name}: {what} {own} is not allowed; allowed:"
                    f" {allowed}, as in {first.path.name}"
                )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
