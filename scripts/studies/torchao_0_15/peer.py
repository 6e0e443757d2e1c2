"""torchao 0.15's own `generate.py` and this project's, on one small checkpoint.

Makes the checkpoint both read and the environment of torchao 0.15, runs one side's
command in a process of its own and reads its samples. Knows no tables and no medians
across processes.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sentencepiece
import torch

from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.llama.config import ModelConfig
from llama_perf.rows.spec import RowSpec

ROOT = Path(__file__).resolve().parents[3]
TORCHAO = "0.15.0"
MODEL = "Small-Llama-2-4x1024"
CONFIG = ModelConfig(
    dim=1024,
    n_layers=4,
    n_heads=16,
    n_kv_heads=16,
    intermediate_size=2816,
    vocab_size=2048,
    head_dim=64,
)
PROMPT = "Hello, my name is"
"""The default of both commands; six tokens, as Llama 2's tokenizer makes of it."""

# torchao finds a model's shape by its name in a table of its own, so the name is
# entered there; the rest is its file, run as `python generate.py` would.
_LAUNCH = f"""\
import runpy, sys
from torchao._models.llama import model
model.transformer_configs[{MODEL!r}] = dict(
    n_layer={CONFIG.n_layers}, n_head={CONFIG.n_heads}, dim={CONFIG.dim},
    vocab_size={CONFIG.vocab_size},
)
sys.argv[0] = "generate.py"
runpy.run_module("torchao._models.llama.generate", run_name="__main__", alter_sys=True)
"""
_STDLIB = ("argparse", "inspect", "pathlib", "subprocess", "tarfile", "typing")
_ERROR = re.compile(r"^(?:llama-perf: error|[\w.]*(?:Error|Exception)): .*", re.M)
_SAMPLES = {
    "torchao": re.compile(
        r"^Sample \d+ \| overall time (?P<total>[\d.]+) s .*"
        r"\| prefill time (?P<first>[\d.]+) s",
        re.M,
    ),
    "llama-perf": re.compile(
        r"^Time for inference \d+: .* sec total, (?P<rate>[\d.]+) tokens/sec,"
        r" time to first token (?P<first>[\d.]+) ms",
        re.M,
    ),
}
SIDES = tuple(_SAMPLES)


row_of = partial(
    RowSpec,
    model=MODEL,
    dtype="float32",
    device="cpu",
    compile=True,
    max_new_tokens=100,
    num_samples=3,
)
"""A row that both sides run, with these defaults."""


def name_of(row: RowSpec) -> str:
    """The row's name in the table."""
    words = [row.quantization or "none", "compiled" if row.compile else "eager"]
    if row.max_new_tokens > 100:
        words.append(f"{row.max_new_tokens} tokens")
    if row.cache_size is not None:
        words.append(f"cache {row.cache_size}")
    if row.kv_cache_quantization:
        words.append("int8 KV")
    return ", ".join(words)


def _flags(row: RowSpec) -> list[str]:
    """The flags that both sides take."""
    flags = ["--device", row.device, "--precision", row.dtype]
    for name in ("num_samples", "max_new_tokens", "quantization", "cache_size"):
        if (value := getattr(row, name)) is not None:
            flags += [f"--{name}", str(value)]
    switches = ("compile", "kv_cache_quantization")
    return flags + [f"--{name}" for name in switches if getattr(row, name)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """One generation: tokens/s of all of it and of its decoding, first token in ms."""

    tok_s: float
    decode_tok_s: float
    first_token_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """One side's process: its samples, or why there are none; its text."""

    rates: tuple[Rates, ...] = ()
    problem: str | None = None
    output: str = ""


def make_checkpoint(folder: Path) -> Path:
    """A seeded Llama in float32 and its tokenizer in `folder`; the path of its weights.

    The vocabulary is learnt from modules of Python's library and from the prompt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = Path(sysconfig.get_path("stdlib"))
    texts = [(library / f"{name}.py").read_text(encoding="utf-8") for name in _STDLIB]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    tokenizer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # Often enough to become words of the vocabulary.
        sentence_iterator=iter([PROMPT] * 400 + [line for line in lines if line]),
        model_writer=tokenizer,
        vocab_size=CONFIG.vocab_size,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(tokenizer.getvalue())
    names = ("dim", "n_layers", "n_heads", "vocab_size")
    shape = {name: getattr(CONFIG, name) for name in names}
    params = json.dumps(shape | {"multiple_of": 256})
    (folder / "params.json").write_text(params, encoding="utf-8")
    drawn = SyntheticWeights(CONFIG, dtype=torch.float32, device=torch.device("cpu"))
    weights = {"tok_embeddings.weight": drawn.embedding(), **drawn.final()}
    for index in range(CONFIG.n_layers):
        layer = drawn.layer(index).items()
        weights |= {f"layers.{index}.{name}": value for name, value in layer}
    path = folder / "model.pth"
    torch.save(weights, path)
    return path


def make_environment(folder: Path) -> Path:
    """The Python of an environment in `folder` with torchao 0.15 and torch as here."""
    python = folder / "bin" / "python"
    ask = "from importlib.metadata import version; print(version('torchao'))"
    if python.exists():
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
        if done.stdout.strip() == TORCHAO:
            return python
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    install += ["--disable-pip-version-check", f"torchao=={TORCHAO}"]
    install += [f"torch=={torch.__version__.split('+')[0]}"]
    # torchao 0.15 names none of what its generate.py imports.
    install += ["numpy", "sentencepiece", "setuptools", "tiktoken"]
    subprocess.run(install, check=True)
    return python


def command(side: str, row: RowSpec, weights: Path, python: Path) -> list[str]:
    """The command of a side; `python` is that of torchao 0.15's environment."""
    common = ["--checkpoint_path", str(weights), *_flags(row)]
    if side == "llama-perf":
        start = [sys.executable, "-m", "llama_perf", "generate"]
        return [*start, *common, "--kernels", "native"]
    if row.quantization == "sparse-marlin":
        common += ["--sparsity", "semi-structured"]
    return [str(python), "-c", _LAUNCH, *common]


def shown_command(side: str, row: RowSpec) -> str:
    """The command as a reader would type it."""
    flags = shlex.join(["--checkpoint_path", f"{MODEL}/model.pth", *_flags(row)])
    if side == "llama-perf":
        return f"llama-perf generate --kernels native {flags}"
    return f"python generate.py {flags}"


def run(
    side: str, argv: Sequence[str], row: RowSpec, cache: Path, limit_s: float
) -> Ran:
    """Run a side's command; `cache` keeps what its compiler made."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT) if side == "llama-perf" else "",
        # Threads that spin while they wait starve others on a shared machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / side),
    }
    try:
        done = subprocess.run(
            argv,
            cwd=cache,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return Ran(problem=f"stopped after {limit_s:.0f} s")
    rates = read_samples(side, done.stdout, row.max_new_tokens)
    if done.returncode:
        errors = _ERROR.findall(done.stdout)
        problem = errors[-1] if errors else f"exit code {done.returncode}"
    elif len(rates) == row.num_samples:
        return Ran(rates=rates, output=done.stdout)
    else:
        problem = f"{len(rates)} samples instead of {row.num_samples}"
    return Ran(problem=problem, output=done.stdout)


def read_samples(side: str, output: str, max_new_tokens: int) -> tuple[Rates, ...]:
    """The samples a side printed.

    A decoding rate counts the tokens after the first and the time after it, on both
    sides alike: torchao prints one that counts the first token too.
    """
    rates = []
    for match in _SAMPLES[side].finditer(output):
        numbers = {name: float(text) for name, text in match.groupdict().items()}
        if side == "torchao":
            total_s, first_s = numbers["total"], numbers["first"]
        else:
            total_s = max_new_tokens / numbers["rate"]
            first_s = numbers["first"] / 1e3
        sample = Rates(
            tok_s=max_new_tokens / total_s,
            decode_tok_s=(max_new_tokens - 1) / (total_s - first_s),
            first_token_ms=first_s * 1e3,
        )
        rates.append(sample)
    return tuple(rates)


def text_of(output: str) -> str:
    """The first text that a side generated from the prompt, but for a line break."""
    lines = output.splitlines()
    return next((line for line in lines if line.startswith(PROMPT)), "")
