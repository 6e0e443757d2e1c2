"""`generate --save`: where a quantized model goes, and whether it can go there."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_perf.checkpoints.load import parse_dtype
from llama_perf.checkpoints.open import find_checkpoint
from llama_perf.checkpoints.save import check_scheme_savable, save_model
from llama_perf.checkpoints.tokenizers.tokenizer import find_tokenizer
from llama_perf.devices.device import check_device
from llama_perf.errors import SpecError
from llama_perf.files import check_new_folder
from llama_perf.measure.prepare import Prepared
from llama_perf.rows.spec import RowSpec


def check_save(arguments: argparse.Namespace, row: RowSpec) -> None:
    """Raise, before anything is measured, where `save` would fail after it."""
    if row.quantization is None:
        raise SpecError("save", True, "it saves a quantized model: give --quantization")
    if arguments.interactive:
        raise SpecError("save", True, "not with --interactive")
    check_new_folder("save", saved_folder(row))
    if row.kernels == "torchao":
        # Whose tensors are not ours to test.
        check_scheme_savable(
            row.quantization,
            kernels=row.kernels,
            device=check_device(row.device),
            dtype=parse_dtype(row.dtype),
        )


def saved_folder(row: RowSpec) -> Path:
    """`<model>-<scheme>-<kernels>` in the working directory."""
    path = Path(row.model).absolute()
    named = path.parent if path.suffix == ".pth" else path
    name = named.stem if named.suffix == ".gguf" else named.name
    return Path(f"{name}-{row.quantization}-{row.kernels}")


def save(prepared: Prepared) -> None:
    """Save what was measured, with its checkpoint's tokenizer; prints the folder."""
    row = prepared.row
    checkpoint = find_checkpoint(row.model)
    tokenizer = None if checkpoint is None else find_tokenizer(checkpoint)
    folder = save_model(prepared.engine.model, saved_folder(row), tokenizer=tokenizer)
    print(f"saved: {folder.absolute()}")
