"""Writing a model into a folder that is read like any other checkpoint.

`model.pth` holds the state dict with its quantized tensors, `config.json` the shape of
the model and, in the field `llama_perf`, the scheme, the kernels, the dtype and the
versions it was saved with; the tokenizer lies in the same folder if one is given. The
folder appears whole or not at all. Knows no scheme and none of its tensors; reading is
`llama_perf.checkpoints.pth`'s.
"""

import io
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from llama_perf.checkpoints.archive import content
from llama_perf.checkpoints.config import to_hugging_face
from llama_perf.checkpoints.find import find_checkpoint
from llama_perf.checkpoints.saved import CONTENT_KEY, FORMAT, KEY, SAVED_KERNELS, Saved
from llama_perf.checkpoints.saved_tensors import kernels_of
from llama_perf.checkpoints.tokenizers import files
from llama_perf.devices.device import package_version
from llama_perf.errors import SaveError, SpecError, TokenizerError
from llama_perf.files import check_new_folder
from llama_perf.llama.transformer import (
    Origin,
    Transformer,
    check_transformer,
    is_unquantized,
)
from llama_perf.quantize.apply import make_quantizer
from llama_perf.quantize.registry import import_all
from llama_perf.rows.schemes import AUTOQUANT, UNQUANTIZED, Scheme


def save_model(
    model: Transformer,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    scheme: str | None = None,
) -> Path:
    """Save `model`, quantized or not, for `load_model(folder)`; returns the folder.

    `tokenizer` is a tokenizer's file, or the path or name of a checkpoint that has one;
    without it the folder has no text. `scheme` names how the weights were quantized
    where that was not done by `quantize_model`, but by torchao's `quantize_`. Raises
    SpecError for a folder that is not empty or cannot be written, TokenizerError for a
    tokenizer that is not the model's, SaveError for tensors that cannot be stored or a
    full disk.
    """
    check_transformer(model)
    target = Path(folder)
    check_new_folder("folder", target)
    saved = _describe(model, scheme)
    source = None
    if tokenizer is not None:
        found = find_checkpoint(str(tokenizer)) or Path(tokenizer)
        source = _tokenizer_file(found, model)
    check_savable(model.parameters())
    path = target.absolute()
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", dir=path.parent
        ) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            with (made / "model.pth").open("wb") as file:
                torch.save(model.state_dict(), file)
            fields = {
                **to_hugging_face(model.config),
                KEY: {
                    name: value
                    for name, value in asdict(saved).items()
                    # Older versions do not know it.
                    if name != "modules" or value is not None
                },
                CONTENT_KEY: content(made / "model.pth"),
            }
            text = json.dumps(fields, indent=2) + "\n"
            (made / "config.json").write_text(text, encoding="utf-8")
            if source is not None:
                files.copy_tokenizer(source, made)
            # What a rename makes visible must be on the disk by then.
            for written in (*made.iterdir(), made):
                handle = os.open(written, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            made.replace(target)
    except (OSError, RuntimeError) as error:
        # Where a write fails torch raises an error of its own after it.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        reason = _first_line(cause or error)
        raise SaveError(f"{target}: cannot be written: {reason}") from None
    return target


def _describe(model: Transformer, scheme: str | None) -> Saved:
    origin = model.origin or Origin(weights="unknown")
    packed = [weight for weight in model.parameters() if not is_unquantized(weight)]
    if scheme is not None:
        Scheme.parse(scheme, field="scheme")
        if not packed or origin.scheme not in (None, scheme):
            reason = f"the model is {origin.scheme or 'not quantized'}"
            raise SpecError("scheme", scheme, reason)
        native = all(kernels_of(weight) == "native" for weight in packed)
        kernels = "native" if native else "torchao"
        origin = replace(origin, scheme=scheme, kernels=kernels)
    if packed and origin.scheme is None:
        made = f"{type(packed[0]).__name__} weights that quantize_model did not make"
        raise SpecError("scheme", None, f"the model has {made}: give the scheme")
    return Saved(
        format=FORMAT,
        weights=origin.weights,
        scheme=origin.scheme,
        kernels=origin.kernels,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        torch=torch.__version__,
        torchao=package_version("torchao"),
        llama_perf=package_version("llama-perf"),
        modules=origin.modules,
    )


def _tokenizer_file(tokenizer: Path, model: Transformer) -> Path:
    weights = os.path.isdir(tokenizer) or tokenizer.suffix in {".gguf", ".pth"}
    path = files.find_tokenizer(tokenizer) if weights else tokenizer
    if path is None:
        raise TokenizerError(f"{tokenizer}: no tokenizer in this checkpoint")
    files.load_tokenizer(path, vocab_size=model.config.vocab_size)
    return path


def check_savable(tensors: Iterable[Tensor]) -> None:
    """Raise SaveError unless each kind of tensor survives saving and safe loading.

    Tries the smallest of each class, in memory.
    """
    packed = [tensor.detach() for tensor in tensors if not is_unquantized(tensor)]
    packed.sort(key=Tensor.numel, reverse=True)
    smallest = {type(tensor): tensor for tensor in packed}
    if smallest:
        import_all()
    for kind, tensor in smallest.items():
        if library := getattr(kind, "library", None):
            allowed = f"allowed: those of {' and '.join(SAVED_KERNELS)} kernels"
            raise SaveError(f"weights of {library} cannot be saved; {allowed}")
        buffer = io.BytesIO()
        try:
            torch.save(tensor, buffer)
            buffer.seek(0)
            again = type(torch.load(buffer, weights_only=True))
            if again is not kind:
                raise TypeError(f"loaded as {again.__name__}")
        except Exception as error:  # pickling and unpickling fail in many ways
            reason = f"tensors cannot be saved: {_first_line(error)}"
            raise SaveError(f"{kind.__name__} {reason}") from None


def check_scheme_savable(
    scheme: str, *, kernels: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise SaveError naming `scheme` unless its tensors can be saved.

    Quantizes one small layer, so that a run need not be over before one knows; one in
    each scheme that autoquant may choose.
    """
    for name in AUTOQUANT.get(scheme, (scheme,)):
        if name == UNQUANTIZED:
            continue
        columns = (Scheme.parse(name).group_size or 64) * 16
        probe = nn.Linear(columns, 64, bias=False, device=device, dtype=dtype)
        probe.requires_grad_(False)
        quantize = make_quantizer(name, kernels=kernels, device=device, dtype=dtype)
        quantize(nn.ModuleDict({"probe": probe}), "probe")
        try:
            check_savable([probe.weight])
        except SaveError as error:
            raise SaveError(f"scheme {name} on {kernels} kernels: {error}") from None


def _first_line(error: BaseException) -> str:
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__
