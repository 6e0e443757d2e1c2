"""RowSpec -> PreparedRow: the one place that knows both quantization and the engine."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from llama_perf.checkpoints.hub import find_snapshot
from llama_perf.checkpoints.load import (
    OpenedModel,
    build_model,
    open_model,
    parse_dtype,
)
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.checkpoints.sharded import sharded
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.devices.all_reduce import choose_all_reduce
from llama_perf.devices.device import check_device, device_of
from llama_perf.devices.ranks import Rank, from_every_rank, own_rank
from llama_perf.errors import NotRunnable, TooLarge, UserError
from llama_perf.files import is_absent
from llama_perf.kernels import cpp_library
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions, Request, Sampling
from llama_perf.llama.presets import preset, preset_name
from llama_perf.llama.row_engine import RowEngine
from llama_perf.measure.environment import broken_upstream, build_problem
from llama_perf.measure.predict import RowBytes, predict
from llama_perf.measure.prefill_progress import told_prefill
from llama_perf.peers.transformers_model import check_installed, import_transformers
from llama_perf.quantize.apply import (
    Quantizer,
    chosen_schemes,
    make_quantizer,
    quantized_already,
    record_scheme,
)
from llama_perf.quantize.autoquant.choose import choose
from llama_perf.quantize.libraries import LIBRARIES, import_library
from llama_perf.quantize.plugins import installed_scheme
from llama_perf.results.measurement import LinearChoice
from llama_perf.rows.modules import ModuleFilter
from llama_perf.rows.schemes import AUTOQUANT
from llama_perf.rows.spec import RowSpec
from llama_perf.rows.transformers_fields import TRANSFORMERS
from llama_perf.words import counted

OpenModel = Callable[..., tuple[WeightsReader, Path | None]]

# The reference's default prompt, and what follows it where a row wants more tokens.
PROMPT = (
    "Hello, my name is Ada, and I keep the lighthouse at the end of the long pier."
    " Every evening I climb the stairs, trim the lamp, and write down the ships that"
    " pass, the colour of the water and the direction of the wind."
)


@dataclass(frozen=True, kw_only=True)
class PreparedRow:
    """A row that is ready to run. `prompt` is int64 (batch, prompt_length).

    Of a ragged row sequence i of it is its first lengths[i] tokens, int64 (batch,).
    `filling`, int64 (batch, fill), is in its first positions, None where nothing is.
    `autoquant` is what an autoquant row's linears run on, None for other rows.
    `unquantized` are the weights before quantization, where they are at hand;
    `weights_notes` say what is to be known of how they were found.
    """

    row: RowSpec
    engine: RowEngine
    prompt: Tensor
    weights: str
    build_s: float
    lengths: Tensor | None = None
    filling: Tensor | None = None
    autoquant: tuple[LinearChoice, ...] | None = None
    unquantized: WeightsReader | None = None
    weights_notes: tuple[str, ...] = ()

    @property
    def model_size_bytes(self) -> int:
        """Bytes of the weights that a token reads."""
        return self.engine.model.weight_bytes()

    @property
    def quantization(self) -> str | None:
        """The scheme of the weights: the row's, or the one they were saved in."""
        origin = self.engine.model.origin
        return None if origin is None else origin.scheme

    def copy(self) -> Self:
        """The row with weights and caches of its own; nothing is quantized again."""
        return replace(self, engine=self.engine.copy())

    def request(
        self, generator: torch.Generator | None = None, count: int | None = None
    ) -> Request:
        """What its engine is asked for: `count` tokens, the row's number where None.

        They are drawn from `generator`.
        """
        temperature, top_k = self.row.temperature, self.row.top_k
        return Request(
            max_new_tokens=self.row.max_new_tokens if count is None else count,
            lengths=self.lengths,
            sampling=Sampling(
                temperature=temperature, top_k=top_k, generator=generator
            ),
        )


def prepare_row(
    row: RowSpec,
    *,
    checkpoints: Path | None = None,
    opened: OpenedModel | None = None,
    slowdown: float = 0.0,
    prompt: Tensor | None = None,
    notify: Callable[[str], None] = lambda _text: None,
    progress: Callable[[str], None] = lambda _text: None,
) -> PreparedRow:
    """Build what `row` asks for.

    Its model is `opened` with that of other rows, or else looked for in `checkpoints`.
    `prompt`, int64 (batch_size, prompt_length), takes the place of the row's own. The
    row's `fill` positions are filled here, so that no sample has to. `progress` is
    called with each step that takes long; `notify` with a line where an earlier run's
    times are used, for a cache longer than the model was trained for, and for what is
    to be known of the weights.
    Raises NotRunnable where this machine or this version cannot run it, WeightsError
    or TokenizerError for a damaged checkpoint, SpecError for fields that do not fit
    the model.
    """
    start = time.perf_counter()
    device, dtype = check_device(row.device), parse_dtype(row.dtype)
    opened = opened or OpenedModel(checkpoints=checkpoints)
    if device.type == "cpu" and (problem := cpp_library.load()) is not None:
        notify(f"{problem}; products and attention run in plain torch, slower")
    quantizer, reader = _open_row(row, dtype, device, opened)
    context = reader.config.context
    if row.allocated_positions > context:
        notify(
            f"a cache of {row.allocated_positions} positions is longer than"
            f" the {context} that this model was trained for"
        )
    for note in reader.notes:
        notify(note)
    if row.fill or prompt is None:
        text = _row_text(row, reader.config.vocab_size, opened.tokenizer())
    if prompt is None:
        prompt = text[:, : row.prompt_length].contiguous()
    choices = None
    if row.quantization in AUTOQUANT:
        choices = choose(row, reader.config, notify=notify, progress=progress)
        quantizer = make_quantizer(
            row.quantization,
            kernels=row.kernels,
            device=device,
            dtype=dtype,
            schemes=chosen_schemes(choices),
        )
    filling = text[:, : row.fill] if row.fill else None
    if own_rank().count > 1:
        values = row.batch_size * reader.config.dim
        choose_all_reduce(values, dtype, device, captured=row.capture)
    build: Any = {"dtype": dtype, "device": device, "quantizer": quantizer}
    engine: RowEngine
    if row.engine == TRANSFORMERS:
        engine = _transformers_engine(row, reader, slowdown=slowdown, **build)
    else:
        own = installed_scheme(row.quantization)
        own_product = own.fused_product if own is not None and row.fused else None
        options = EngineOptions.of(row, own_product=own_product, slowdown=slowdown)
        ours = engine = Engine(build_model(reader, **build), options)
        if filling is not None:
            progress(f"filling {counted(row.fill, 'position')}")
            with told_prefill(engine, progress, step="filling", noun="position"):
                ours.fill(filling)
    if row.quantization is not None:
        record_scheme(
            engine.model,
            scheme=row.quantization,
            kernels=row.kernels,
            modules=row.modules,
        )
    lengths = None
    if row.ragged:
        # From one token to the prompt's length, evenly.
        steps = torch.arange(row.batch_size, device=device) * (row.prompt_length - 1)
        lengths = 1 + steps // (row.batch_size - 1)
    engine.check_prompt(prompt, max_new_tokens=row.max_new_tokens, lengths=lengths)
    return PreparedRow(
        row=row,
        engine=engine,
        prompt=prompt.to(device),
        lengths=lengths,
        filling=filling,
        weights=reader.source,
        autoquant=choices,
        unquantized=opened.unquantized,
        weights_notes=reader.notes,
        build_s=time.perf_counter() - start + reader.read_s,
    )


def _transformers_engine(
    row: RowSpec, reader: WeightsReader, *, slowdown: float, **build: Any
) -> RowEngine:
    """Imports transformers, which takes seconds: only such a row waits for it."""
    from llama_perf.peers.transformers_engine import TransformersEngine
    from llama_perf.peers.transformers_model import build_transformers_model

    if slowdown:
        raise UserError(
            f"inject-slowdown: engine {TRANSFORMERS!r} cannot repeat its steps"
        )
    model = build_transformers_model(reader, **build)
    return TransformersEngine(model, EngineOptions.of(row))


def load_libraries(row: RowSpec) -> None:
    """Import the libraries that `row` needs and others do not; raises NotRunnable."""
    if row.engine == TRANSFORMERS:
        import_transformers()
    if row.kernels in LIBRARIES:
        import_library(row.kernels)


def check_runnable(row: RowSpec, *, open_model: OpenModel = open_model) -> None:
    """Raise what `prepare` would raise; `open_model` may keep what it opens."""
    device, dtype = check_device(row.device), parse_dtype(row.dtype)
    _open_row(row, dtype, device, partial(open_model, checkpoints=None))


def predict_row(row: RowSpec) -> RowBytes:
    """The memory that `row` will take, wherever it runs: see `predict`.

    Reads no weights; of a checkpoint that `row` names by its path it reads the shape.
    Raises as `prepare` does for a model or a scheme that is not known.
    """
    is_here = not is_absent(Path(row.model)) or find_snapshot(row.model) is not None
    if preset_name(row.model) is not None and not is_here:
        return predict(row, preset(row.model))
    dtype, device = parse_dtype(row.dtype), torch.device(row.device)
    reader, _ = open_model(row.model, checkpoints=None, dtype=dtype, device=device)
    return predict(_row_as_run(row, reader), reader.config)


def _open_row(
    row: RowSpec, dtype: torch.dtype, device: torch.device, open_model: OpenModel
) -> tuple[Quantizer | None, WeightsReader]:
    _check_built(row)
    if row.engine == TRANSFORMERS:
        check_installed()
    quantizer = None
    if row.quantization is not None:
        quantizer = make_quantizer(
            row.quantization,
            kernels=row.kernels,
            device=device,
            dtype=dtype,
            selected=ModuleFilter.parse(row.modules),
        )
    reader, _ = open_model(row.model, dtype=dtype, device=device)
    as_run = _row_as_run(row, reader)
    _check_built(as_run)
    if row.ranks != reader.config.ranks:
        # This process is no rank: it is only asked whether the row can run.
        reader = sharded(reader, Rank(0, row.ranks))
    if row.compile and as_run.kernels == "torchao":
        from llama_perf.quantize.torchao_schemes import check_compiled

        check_compiled(str(as_run.quantization), device)
    if row.compile and as_run.quantization == "llm-int8":
        raise NotRunnable(
            "llm-int8 chooses columns by their values, which torch.compile cannot:"
            " leave out compile"
        )
    _check_memory(as_run, reader, device)
    return quantizer, reader


def _row_as_run(row: RowSpec, reader: WeightsReader) -> RowSpec:
    """`row` with the scheme that its checkpoint was saved in, if it was."""
    origin = reader.origin
    if origin.scheme is None:
        return row
    if row.quantization is not None:
        raise quantized_already(row.quantization, origin)
    return replace(
        row,
        quantization=origin.scheme,
        kernels=str(origin.kernels),
        modules=origin.modules,
    )


def _check_built(row: RowSpec) -> None:
    if problem := build_problem(row) or broken_upstream(row):
        raise NotRunnable(problem)


def _check_memory(row: RowSpec, reader: WeightsReader, device: torch.device) -> None:
    predicted = predict(row, reader.config)
    # Asked before any rank takes some, so that all decide alike.
    free = min(from_every_rank(device_of(device).free_memory_bytes()))
    together = row.ranks_of_a_device
    needed = predicted.peak_bytes * together
    of_ranks = f", {together} ranks together" if together > 1 else ""
    if needed > free:
        batch = f", batch_size={row.batch_size}" if row.batch_size > 1 else ""
        raise TooLarge(
            f"needs {needed / 1e9:.1f} GB{of_ranks} (KV cache"
            f" {predicted.cache_bytes / 1e9:.1f} GB at cache_size="
            f"{row.allocated_positions}{batch}); {free / 1e9:.1f} GB free",
            needed_bytes=needed,
            free_bytes=free,
        )


def _row_text(row: RowSpec, vocab_size: int, tokenizer: Tokenizer | None) -> Tensor:
    """Ids (batch, length) of a text as long as the row's prompt or its filling.

    Without a tokenizer they are drawn.
    """
    length = max(row.prompt_length, row.fill)
    if tokenizer is None:
        seeded = torch.Generator().manual_seed(0)
        drawn = torch.randint(vocab_size, (length,), generator=seeded)
        return drawn.repeat(row.batch_size, 1)
    ids = tokenizer.encode(PROMPT)
    rest = tokenizer.encode(PROMPT, bos=False)
    ids += rest * (length // len(rest))
    return torch.tensor(ids).repeat(row.batch_size, 1)
