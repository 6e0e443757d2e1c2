"""A model's name or path -> its weights -> a model, layer by layer.

The modules start on the meta device, one layer's
weights are read, moved, quantized, and only then the next are read. The peak is the
quantized model plus one layer. A layer is read and quantized in a memory pool that is
freed afterwards. Knows neither rows nor engines.
"""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llama_perf.checkpoints.find import check_model, find_checkpoint, open_weights
from llama_perf.checkpoints.reader import SyntheticWeights, WeightsReader
from llama_perf.checkpoints.saved import check_usable
from llama_perf.checkpoints.sharded import sharded
from llama_perf.checkpoints.tokenizers.files import tokenizer_of
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.devices.device import KINDS, check_device, device_of
from llama_perf.devices.ranks import from_every_rank, own_rank
from llama_perf.errors import SpecError
from llama_perf.llama.memory_segments import ScratchPool
from llama_perf.llama.presets import preset
from llama_perf.llama.transformer import Transformer, is_unquantized
from llama_perf.quantize.apply import Quantizer
from llama_perf.rows.choices import DTYPE_TOKENS, check_choice

KEPT_BYTES, KEPT_SHARE = 10**9, 0.25
"""Weights that are kept for a run, at most: bytes, and a share of free memory.

SmolLM2 has 0.54 GB in float32. A larger model's rows take much longer than reading it.
"""


def open_model(
    model: str, *, checkpoints: Path | None, dtype: torch.dtype, device: torch.device
) -> tuple[WeightsReader, Path | None]:
    """The weights of a path, of a model's name, or synthetic ones of a preset.

    Returns the reader of all of them, and the path of the checkpoint, None for
    synthetic weights. Raises WeightsError, or SpecError for a name that means nothing
    or for a dtype or device that saved weights were not made for.
    """
    path = find_checkpoint(model, checkpoints=checkpoints)
    if path is None:
        notes = check_model(model)
        config = preset(model)
        return SyntheticWeights(config, dtype=dtype, device=device, notes=notes), None
    reader = open_weights(path)
    if reader.saved is not None:
        check_usable(reader.saved, path=path, dtype=dtype, device=device)
    return reader, path


@dataclass(kw_only=True)
class OpenedModel:
    """The model that was opened last, with its tokenizer, for rows that have the same.

    In the process of one of several ranks it is the share of that rank.
    With `keep` a small one's weights are read at once and kept. Dequantizing SmolLM2
    takes longer than a sample of most of its rows, so a run does it once, and
    `WeightsReader.read_s` says what it took.
    """

    checkpoints: Path | None = None
    keep: bool = False
    unquantized: WeightsReader | None = None
    """Its weights where they are kept unquantized, or made up and no larger."""
    _asked: tuple[str, torch.dtype, torch.device] | None = None
    _opened: tuple[WeightsReader, Path | None] | None = None
    _tokenizer: Tokenizer | None = None

    def __call__(
        self, model: str, *, dtype: torch.dtype, device: torch.device
    ) -> tuple[WeightsReader, Path | None]:
        """See `open_model`; with `keep` also raises TokenizerError.

        Raises SpecError for a model that the ranks cannot share.
        """
        asked = (model, dtype, device)
        if self._opened is None or self._asked != asked:
            # The weights of two models are never there at once.
            self._opened = self._tokenizer = self.unquantized = None
            start = time.perf_counter()
            reader, path = open_model(
                model, checkpoints=self.checkpoints, dtype=dtype, device=device
            )
            reader = sharded(reader, own_rank())
            opened = reader, path
            if self.keep:
                if may_keep(reader.kept_bytes, device):
                    reader.keep()
                    self.unquantized = reader
                self._tokenizer = _tokenizer_of(*opened)
                reader.read_s = time.perf_counter() - start
            self._asked, self._opened = asked, opened
        return self._opened

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the model that was opened last; raises TokenizerError."""
        assert self._opened is not None, "a model is opened first"
        self._tokenizer = self._tokenizer or _tokenizer_of(*self._opened)
        return self._tokenizer


def _tokenizer_of(reader: WeightsReader, path: Path | None) -> Tokenizer | None:
    return None if path is None else tokenizer_of(path, reader.config.vocab_size)


def may_keep(needed_bytes: float, device: torch.device) -> bool:
    """Whether to keep weights of so many bytes for later rows.

    Not on CUDA, where a layer is quantized as soon as it arrives. Ranks keep theirs
    side by side, or none does: one that keeps nothing would exchange scales with ranks
    that do not quantize again.
    """
    if device.type != "cpu":
        return False
    of_ranks = from_every_rank((needed_bytes, device_of(device).free_memory_bytes()))
    needed, free = zip(*of_ranks, strict=True)
    return bool(sum(needed) <= min(KEPT_BYTES, min(free) * KEPT_SHARE))


def load_model(
    path_or_preset: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
) -> Transformer:
    """A model from a checkpoint, from a model's name, or synthetic from a preset.

    A checkpoint is a folder, a `model.pth` or a `.gguf`; a name may be `owner/name` of
    a model in the hub cache. Warns of what is to be known of the weights, such as that
    they are synthetic for want of a download. Raises WeightsError for a checkpoint that
    is missing or damaged, SpecError for an unknown name, dtype or device, NotRunnable
    where the device is not here.
    """
    wanted = parse_dtype(str(dtype).removeprefix("torch."))
    try:
        target = torch.device(device)
    except RuntimeError:
        target = torch.device("meta")
    if target.type not in KINDS:
        raise SpecError("device", str(device), f"allowed: {', '.join(sorted(KINDS))}")
    check_device(target.type)
    reader, _ = open_model(
        str(path_or_preset), checkpoints=None, dtype=wanted, device=target
    )
    for note in reader.notes:
        warnings.warn(note, stacklevel=2)
    return build_model(reader, dtype=wanted, device=target)


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype of a field's value; raises SpecError."""
    check_choice("dtype", name, tuple(DTYPE_TOKENS))
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def build_model(
    reader: WeightsReader,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantizer: Quantizer | None = None,
) -> Transformer:
    """Read, move and quantize one layer after the other."""
    with torch.device("meta"):
        model = Transformer(reader.config)
    model.origin = reader.origin

    def assign(module: nn.Module, weights: dict[str, Tensor], name: str = "") -> None:
        """Move the weights into the module, and quantize it if it has a name."""
        moved = {key: _moved(weight, dtype, device) for key, weight in weights.items()}
        module.load_state_dict(moved, assign=True)
        if quantizer is not None and name:
            quantizer(module, name)
        if device.type != "cpu":
            return
        # A copy even of what stays as it is: a tensor that stays on a mapped file would
        # be read from the disk while a row is timed.
        for key, parameter in module.named_parameters():
            if is_unquantized(parameter) and parameter.is_set_to(weights[key]):
                parameter.data = parameter.data.clone()

    assign(model.tok_embeddings, {"weight": reader.embedding()})
    packed = quantizer is not None or model.origin.scheme is not None
    scratch = ScratchPool(device if packed else torch.device("cpu"))
    for index, layer in enumerate(model.layers):
        with scratch.allocate():
            assign(layer, reader.layer(index), f"layers.{index}")
        # Layers are alike.
        scratch.move_out(layer, room_for=0 if index else len(model.layers))
    with scratch.allocate():
        final = reader.final()
        assign(model.norm, {"weight": final.pop("norm.weight")})
        if "output.weight" in final:
            assign(model.output, {"weight": final.pop("output.weight")}, "output")
        else:
            model.output.weight = model.tok_embeddings.weight
            if quantizer is not None:
                quantizer(model.output, "output")
    scratch.move_out(model.norm)
    if model.output.weight is not model.tok_embeddings.weight:
        scratch.move_out(model.output)
    return model.requires_grad_(False).eval()


def _moved(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if is_unquantized(tensor):
        return tensor.to(device=device, dtype=dtype)
    # Of quantized ones `.to` heeds no `copy`.
    moved = (tensor.clone() if device.type == "cpu" else tensor).to(device, dtype)
    # Another processor may have saved it in a layout that this one multiplies slowly.
    laid_out_for = getattr(moved, "laid_out_for", lambda _: moved)
    laid_out: Tensor = laid_out_for(device)
    return laid_out
