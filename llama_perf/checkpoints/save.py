"""Writing a model into a folder that is read like any other checkpoint.

`model.pth` holds the state dict with its quantized tensors, `config.json` the shape of
the model and what it was saved in (`llama_perf.checkpoints.saved`), beside the
tokenizer where one is given. The folder appears whole or not at all. Knows no scheme
and none of its tensors; reading is `llama_perf.checkpoints.pth`'s.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from llama_perf.checkpoints.config import to_hugging_face
from llama_perf.checkpoints.saved import KEY, Saved, import_tensors
from llama_perf.checkpoints.tokenizers.tokenizer import (
    check_vocabulary,
    copy_tokenizer,
    find_tokenizer,
    load_tokenizer,
)
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
from llama_perf.rows.schemes import AUTOQUANT, UNQUANTIZED, Scheme


def save_model(
    model: Transformer,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    scheme: str | None = None,
) -> Path:
    """Save `model`, quantized or not, for `load_model(folder)`; returns the folder.

    `tokenizer` is a tokenizer's file, or the checkpoint that has one; without it the
    folder has no text. `scheme` names how the weights were quantized where that was
    not done by `quantize_model`, but by torchao's `quantize_`. Raises SpecError for a
    folder that is not empty or cannot be written, TokenizerError for a tokenizer that
    is not the model's, SaveError for tensors that cannot be stored or a full disk.
    """
    check_transformer(model)
    target = Path(folder)
    check_new_folder("folder", target)
    saved = _describe(model, scheme)
    source = None if tokenizer is None else _tokenizer_file(Path(tokenizer), model)
    check_savable(model.parameters())
    parent = target.absolute().parent
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{target.absolute().name}.", dir=parent))
        try:
            _write(made, model, saved, source)
            made.replace(target)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except (OSError, RuntimeError) as error:
        # Where a write fails torch raises an error of its own after it.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        reason = _first_line(cause or error)
        raise SaveError(f"{target}: cannot be written: {reason}") from None
    return target


def _write(made: Path, model: Transformer, saved: Saved, source: Path | None) -> None:
    with (made / "model.pth").open("wb") as file:
        torch.save(model.state_dict(), file)
    fields = {**to_hugging_face(model.config), KEY: asdict(saved)}
    text = json.dumps(fields, indent=2) + "\n"
    (made / "config.json").write_text(text, encoding="utf-8")
    if source is not None:
        copy_tokenizer(source, made)
    # What a rename makes visible must be on the disk by then.
    for path in (*made.iterdir(), made):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    made.chmod(0o755)


def _describe(model: Transformer, scheme: str | None) -> Saved:
    origin = model.origin or Origin(weights="unknown")
    packed = [
        parameter for parameter in model.parameters() if not is_unquantized(parameter)
    ]
    if scheme is not None:
        Scheme.parse(scheme, field="scheme")
        if not packed or origin.scheme not in (None, scheme):
            had = origin.scheme or "not quantized"
            raise SpecError("scheme", scheme, f"the model is {had}")
        origin = replace(origin, scheme=scheme, kernels=_kernels(packed))
    if packed and origin.scheme is None:
        raise SpecError(
            "scheme",
            None,
            f"the model has {type(packed[0]).__name__} weights that quantize_model did"
            " not make: give the scheme",
        )
    return Saved(
        weights=origin.weights,
        scheme=origin.scheme,
        kernels=origin.kernels,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        torch=torch.__version__,
        torchao=package_version("torchao"),
        llama_perf=package_version("llama-perf"),
    )


def _kernels(packed: list[nn.Parameter]) -> str:
    from llama_perf.quantize.packed_tensor import PackedTensor

    return "native" if all(isinstance(p, PackedTensor) for p in packed) else "torchao"


def _tokenizer_file(tokenizer: Path, model: Transformer) -> Path:
    weights = tokenizer.is_dir() or tokenizer.suffix in {".gguf", ".pth"}
    path = find_tokenizer(tokenizer) if weights else tokenizer
    if path is None:
        raise TokenizerError(f"{tokenizer}: no tokenizer in this checkpoint")
    check_vocabulary(load_tokenizer(path), model.config.vocab_size, source=str(path))
    return path


def check_savable(tensors: Iterable[Tensor]) -> None:
    """Raise SaveError unless each kind of tensor survives saving and safe loading.

    Tries the smallest of each class, in memory.
    """
    kinds: dict[type, Tensor] = {}
    for tensor in tensors:
        smallest = kinds.get(type(tensor.data))
        if not is_unquantized(tensor) and (
            smallest is None or tensor.numel() < smallest.numel()
        ):
            kinds[type(tensor.data)] = tensor.detach()
    if kinds:
        import_tensors()
    for kind, tensor in kinds.items():
        buffer = io.BytesIO()
        try:
            torch.save(tensor, buffer)
            buffer.seek(0)
            again = type(torch.load(buffer, weights_only=True))
        except Exception as error:  # pickling and unpickling fail in many ways
            raise _not_savable(kind, _first_line(error)) from None
        if again is not kind:
            raise _not_savable(kind, f"loaded as {again.__name__}")


def _not_savable(kind: type, reason: str) -> SaveError:
    return SaveError(f"{kind.__name__} tensors cannot be saved: {reason}")


def check_scheme_savable(
    scheme: str, *, kernels: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise SaveError naming `scheme` unless its tensors can be saved.

    Quantizes one small layer, so that a run need not be over before one knows; one in
    each scheme that autoquant may choose.
    """
    if scheme in AUTOQUANT:
        for name in AUTOQUANT[scheme]:
            if name != UNQUANTIZED:
                check_scheme_savable(name, kernels=kernels, device=device, dtype=dtype)
        return
    columns = (Scheme.parse(scheme).group_size or 64) * 16
    probe = nn.Linear(columns, 64, bias=False, device=device, dtype=dtype)
    probe.requires_grad_(False)
    quantize = make_quantizer(scheme, kernels=kernels, device=device, dtype=dtype)
    quantize(nn.ModuleDict({"probe": probe}), "probe")
    try:
        check_savable([probe.weight])
    except SaveError as error:
        raise SaveError(f"scheme {scheme} on {kernels} kernels: {error}") from None


def _first_line(error: BaseException) -> str:
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__
