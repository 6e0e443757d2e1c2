"""One row after another in this process: a row -> its result.

A row that cannot run, or breaks, becomes a result with its reason. Knows nothing of
other processes, and no baseline.
"""

import gc
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from llama_perf.checkpoints.load import OpenedModel, may_keep, parse_dtype
from llama_perf.devices.device import check_device, device_of, run_device
from llama_perf.devices.processor import use_own_cores
from llama_perf.errors import NotRunnable, SchemeError, UserError
from llama_perf.files import check_temporary_folder
from llama_perf.kernels import cpp_library
from llama_perf.llama.compiler import compiler_settings, load_compiler
from llama_perf.llama.decode_step import InjectedSteps
from llama_perf.measure.closeness import measure_closeness
from llama_perf.measure.closeness_text import text_of
from llama_perf.measure.device_ceiling import measure_ceiling
from llama_perf.measure.environment import collect, compiler_problem
from llama_perf.measure.predict import predict
from llama_perf.measure.prepare import PreparedRow, load_libraries, prepare_row
from llama_perf.measure.ranks import over_ranks, start_together
from llama_perf.measure.step_profile import load_profiler
from llama_perf.measure.timing import (
    Progress,
    RowMemoryMeter,
    calibrate_slowdown,
    measure_row,
    time_row,
)
from llama_perf.measure.value_check import damaged_scale, warm_up_row
from llama_perf.quantize.scheme_faults import first_line, scheme_faults
from llama_perf.results.closeness_report import ClosenessResult
from llama_perf.results.measurement import Closeness, Measurement
from llama_perf.results.run import Environment, RowResult, Status
from llama_perf.rows.schemes import package_of
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.worker_protocol import NOTE

T = TypeVar("T")


class Session:
    """The machine as the rows of a run find it, and what it measured of it once.

    `devices` are those of all rows of the run; they decide which device it describes.
    """

    def __init__(self, devices: Iterable[str], *, options: RunRequest) -> None:
        self.options = options
        check_temporary_folder()
        use_own_cores()
        self.device = run_device(set(devices))
        # With TF32, a row of float32 would do other work than its name says.
        torch.set_float32_matmul_precision("highest")
        self.environment: Environment = collect(self.device)
        self.ceiling = cache(measure_ceiling)
        """A device's bandwidth and other limits, measured once."""
        self._opened = OpenedModel(checkpoints=options.checkpoints, keep=True)
        self._model: tuple[str, ...] = ()
        self._resident: tuple[PreparedRow, torch.Generator] | None = None
        self._settings = ExitStack()
        # The first build of a small quantized row; later builds are its copies.
        self._quantized: PreparedRow | None = None
        self._injected: dict[str, InjectedSteps] = {}

    def run_row(
        self, row: RowSpec, *, progress: Progress = lambda _text: None
    ) -> RowResult:
        """Build and measure one row; a row that breaks is a result as well."""
        self.forget()
        self._quantized = None
        ended = _attempt(row, lambda: self._measure(row, progress))
        if isinstance(ended, RowResult):
            return ended
        return RowResult(id=row.id, row=row, status=Status.MEASURED, measurement=ended)

    def closeness(
        self,
        row: RowSpec,
        *,
        text: Path | None = None,
        tokens: int | None = None,
        progress: Progress = lambda _text: None,
    ) -> ClosenessResult:
        """Compare a row with its unquantized twin over `tokens` of the file `text`.

        Without a file it is the built-in text. A row that breaks is a result as well.
        """
        self.forget()
        self._quantized = None
        result = ClosenessResult(id=row.id, row=row, status=Status.MEASURED)
        ended = _attempt(row, lambda: self._closeness(row, text, tokens, progress))
        if isinstance(ended, RowResult):
            return replace(result, status=ended.status, reason=ended.reason)
        weights, closeness = ended
        return replace(result, weights=weights, closeness=closeness)

    def load(self, row: RowSpec) -> RowResult | tuple[int, ...]:
        """Load what a row needs and later rows share."""
        return _attempt(row, lambda: self._load(row, check_device(row.device)))

    def prepare(
        self, row: RowSpec, *, progress: Progress = lambda _text: None
    ) -> RowResult | tuple[int, ...]:
        """Build a row, warm it up and keep it; a row that breaks ends with a result."""
        self.forget()
        return _attempt(row, lambda: self._prepare(row, progress))

    def sample(self) -> RowResult | tuple[int, ...]:
        """Run a generation of the row that is kept; its nanoseconds."""
        assert self._resident is not None, "a row was prepared"
        prepared, generator = self._resident
        return _attempt(prepared.row, lambda: (time_row(prepared, generator).total_ns,))

    def forget(self) -> tuple[int, ...]:
        """Free the row that is kept, if there is one."""
        if self._resident is not None:
            device = device_of(self._resident[0].row.device)
            self._resident = None
            self._settings.close()
            device.release_memory()
        return ()

    def _prepare(self, row: RowSpec, progress: Progress) -> tuple[int, ...]:
        device, slowdown = check_device(row.device), self.options.slowdown(row.id)
        with ExitStack() as settings:
            settings.enter_context(
                compiler_settings(
                    used=row.compile, package=package_of(row.quantization)
                )
            )
            progress("building")
            self._load(row, device)
            gc.freeze()
            prepared = self._built(row, slowdown)
            generator = torch.Generator(device=device).manual_seed(0)
            warm_up_row(prepared, generator, progress=progress)
            if slowdown:
                # What is owed carries over to the next time that the row is built.
                if row.id not in self._injected:
                    calibrate_slowdown(prepared, generator)
                    self._injected[row.id] = prepared.engine.injected
                prepared.engine.injected = self._injected[row.id]
            self._resident = prepared, generator
            self._settings = settings.pop_all()
        return ()

    def _built(self, row: RowSpec, slowdown: float) -> PreparedRow:
        """The row as it was built before, with its own memory, or else a new one."""
        if self._quantized is not None and self._quantized.row == row:
            return self._quantized.copy()
        self._quantized = None
        prepared = prepare_row(row, opened=self._opened, slowdown=slowdown)
        # Kept with the row, they would be there beside another model's.
        prepared = replace(prepared, unquantized=None)
        model = prepared.engine.model
        # To quantize takes longer than to copy.
        if prepared.quantization is not None and may_keep(
            predict(row, model.config).peak_bytes, model.device
        ):
            self._quantized = prepared
        return prepared

    def _load(self, row: RowSpec, device: torch.device) -> tuple[()]:
        """Load the libraries and the model of `row`.

        If a row loaded these, they would count as the row's memory.
        """
        used = device_of(device)
        # It would look through all that is loaded, time and again.
        gc.disable()
        try:
            if not used.profiled_after_samples:
                load_profiler()
            if used.kind == "cpu":
                cpp_library.load()
            if row.compile and compiler_problem(row.device) is None:
                load_compiler(device)
            # Building the row reports what is wrong with it.
            with suppress(UserError, NotRunnable):
                load_libraries(row)
                self._opened(row.model, dtype=parse_dtype(row.dtype), device=device)
        finally:
            gc.enable()
        return ()

    def _closeness(
        self, row: RowSpec, text: Path | None, tokens: int | None, progress: Progress
    ) -> tuple[str, Closeness]:
        device = check_device(row.device)

        def notify(line: str) -> None:
            progress(f"{NOTE}{line}")

        with compiler_settings(used=row.compile, package=package_of(row.quantization)):
            progress("building")
            self._load(row, device)
            prepared = prepare_row(
                row, opened=self._opened, notify=notify, progress=progress
            )
            reader, _ = self._opened(
                row.model, dtype=parse_dtype(row.dtype), device=device
            )
            read = text_of(
                self._opened.tokenizer(),
                reader.config.vocab_size,
                file=text,
                tokens=tokens,
            )
            is_damaged = self.options.damaged(row.id)
            engine, told = prepared.engine, {"progress": progress, "notify": notify}
            try:
                with damaged_scale(engine) if is_damaged else nullcontext():
                    compared = measure_closeness(prepared, reader, read, **told)
                return prepared.weights, compared
            finally:
                del prepared, engine
                device_of(device).release_memory()

    def _measure(self, row: RowSpec, progress: Progress) -> Measurement:
        device = check_device(row.device)
        used = device_of(device)
        # All ranks measure it at once.
        start_together()
        ceiling = self.ceiling(device)
        with compiler_settings(
            used=row.compile,
            cold=self.options.cold_compile,
            package=package_of(row.quantization),
        ):
            progress("building")
            self._load(row, device)
            # What is there already outlives the row, and looking through it takes as
            # long as a sample. Another model's weights may be garbage among it.
            model = row.model, row.dtype, row.device
            if model != self._model:
                gc.unfreeze()
                self._model = model
            meter = RowMemoryMeter(device)
            gc.freeze()
            prepared = prepare_row(
                row,
                opened=self._opened,
                slowdown=self.options.slowdown(row.id),
                notify=lambda text: progress(f"{NOTE}{text}"),
                progress=progress,
            )
            try:
                measurement = measure_row(
                    prepared,
                    meter=meter,
                    damaged=self.options.damaged(row.id),
                    with_work=True,
                    samples_budget_s=used.samples_budget_s,
                    progress=progress,
                )
                if measurement.injected_slowdown:
                    # It is calibrated now, also for when the row is built again.
                    self._injected.setdefault(row.id, prepared.engine.injected)
            finally:
                del prepared
                used.release_memory()
        # What the process kept of the peaks when the row was gone is not the row's.
        kept_bytes = meter.retained_bytes()
        build_peak_bytes = (measurement.build_peak_bytes or 0) - kept_bytes
        own = replace(
            measurement,
            ceiling=ceiling,
            device_bandwidth_gb_s=ceiling.bandwidth_gb_s,
            peak_memory_bytes=max(measurement.peak_memory_bytes - kept_bytes, 0),
            build_peak_bytes=max(build_peak_bytes, 0),
        )
        return over_ranks(own)


def _attempt(row: RowSpec, work: Callable[[], T]) -> RowResult | T:
    """What `work` gives, or the result of a row that cannot run or that breaks."""
    try:
        with scheme_faults(row.quantization):
            return work()
    except NotRunnable as error:
        status, reason = Status.NOT_RUN, str(error)
    except torch.OutOfMemoryError as error:
        status, reason = Status.INVALID, f"out of memory: {first_line(error)}"
    except Exception as error:
        status, reason = Status.INVALID, str(error)
        is_ours = isinstance(error, UserError)
        if not is_ours:
            reason = f"{type(error).__name__}: {first_line(error)}"
        known = not is_ours or isinstance(error, SchemeError)
        if known and row.upstream_issue is not None:
            status = Status.NOT_RUN
            reason = f"broken upstream, {row.upstream_issue}: {reason}"
    return RowResult(id=row.id, row=row, status=status, reason=reason)
