"""A small Llama with its tokenizer in a folder, the same each time it is made."""

import io
import json
import sysconfig
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.llama.config import ModelConfig


def _config(width: int) -> ModelConfig:
    return ModelConfig(
        dim=width,
        n_layers=4,
        n_heads=width // 64,
        n_kv_heads=width // 64,
        # Two thirds of four times the width, as Llama 2 has it, in steps of 256.
        intermediate_size=-(-8 * width // (3 * 256)) * 256,
        vocab_size=2048,
        head_dim=64,
    )


MODEL, NARROW = "Small-Llama-2-4x1024", "Small-Llama-2-4x256"
CONFIGS = {MODEL: _config(1024), NARROW: _config(256)}
PROMPT = "Hello, my name is"
"""The default of both commands; six tokens, as Llama 2's tokenizer makes of it."""
_STDLIB = ("argparse", "inspect", "pathlib", "subprocess", "tarfile", "typing")


def make_checkpoint(folder: Path, model: str = MODEL) -> Path:
    """A seeded Llama in float32 and its tokenizer in `folder`; the path of its weights.

    The vocabulary is learnt from modules of Python's library and from the prompt.
    """
    config = CONFIGS[model]
    folder.mkdir(parents=True, exist_ok=True)
    library = Path(sysconfig.get_path("stdlib"))
    texts = [(library / f"{name}.py").read_text(encoding="utf-8") for name in _STDLIB]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    tokenizer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # Often enough to become words of the vocabulary.
        sentence_iterator=iter([PROMPT] * 400 + [line for line in lines if line]),
        model_writer=tokenizer,
        vocab_size=config.vocab_size,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(tokenizer.getvalue())
    names = ("dim", "n_layers", "n_heads", "vocab_size")
    shape = {name: getattr(config, name) for name in names}
    params = json.dumps(shape | {"multiple_of": 256})
    (folder / "params.json").write_text(params, encoding="utf-8")
    how: Any = {"dtype": torch.float32, "device": torch.device("cpu")}
    built = build_model(SyntheticWeights(config, **how), **how)
    path = folder / "model.pth"
    torch.save(dict(built.state_dict()), path)
    return path
