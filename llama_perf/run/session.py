"""The core call: rows -> results, one at a time.

The pytest plugin and the command line are thin over this. A row that cannot run, or
breaks, becomes a result with its reason and the next row runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

import torch

from llama_perf.devices.device import check_device, device_of, run_device
from llama_perf.errors import NotRunnable, UserError
from llama_perf.llama.compiler import compiler_settings
from llama_perf.measure.device_ceiling import measure_ceiling
from llama_perf.measure.environment import collect
from llama_perf.measure.memory import MemoryMeter
from llama_perf.measure.prepare import prepare
from llama_perf.measure.step_profile import load_profiler
from llama_perf.measure.timing import (
    MeasureOptions,
    Progress,
    measure,
    without_retained,
)
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Ceiling, Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunOptions


class Session:
    """One run on one machine: its environment, its bandwidth, its rows.

    `devices` are those of the whole run, where `rows` are only some of it.
    """

    def __init__(
        self,
        rows: Sequence[RowSpec],
        *,
        options: RunOptions,
        devices: Iterable[str] | None = None,
    ) -> None:
        self.rows = list(rows)
        self.options = options
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        wanted = {row.device for row in rows} if devices is None else set(devices)
        self.device = run_device(wanted)
        # fp32 means fp32: TF32 would be another row's work under this row's name.
        torch.set_float32_matmul_precision("highest")
        self.environment: Environment = collect(self.device)
        self._ceilings: dict[str, Ceiling] = {}

    def ceiling(self, device: torch.device) -> Ceiling:
        """What bounds a row on the device today, measured once a run."""
        if device.type not in self._ceilings:
            self._ceilings[device.type] = measure_ceiling(device)
        return self._ceilings[device.type]

    def run_row(
        self, row: RowSpec, *, progress: Progress = lambda _text: None
    ) -> RowResult:
        """Build and measure one row; whatever happens is in the result."""
        try:
            measurement = self._measure(row, progress)
        except NotRunnable as error:
            return RowResult(
                id=row.id, row=row, status=Status.NOT_RUN, reason=str(error)
            )
        except UserError as error:
            return _invalid(row, str(error))
        except torch.OutOfMemoryError as error:
            return _invalid(row, f"out of memory: {_first_line(error)}")
        except Exception as error:
            reason = f"{type(error).__name__}: {_first_line(error)}"
            if row.upstream_issue is None:
                return _invalid(row, reason)
            reason = f"broken upstream, {row.upstream_issue}: {reason}"
            return RowResult(id=row.id, row=row, status=Status.NOT_RUN, reason=reason)
        return RowResult(
            id=row.id, row=row, status=Status.MEASURED, measurement=measurement
        )

    def _measure(self, row: RowSpec, progress: Progress) -> Measurement:
        device = check_device(row.device)
        used = device_of(device)
        ceiling = self.ceiling(device)
        slowdown = self.options.slowdown(row.id)
        with compiler_settings():
            progress("building")
            if not used.profiled_after_samples:
                # Else it would count as the row's memory.
                load_profiler()
            meter = MemoryMeter(device)
            prepared = prepare(
                row,
                checkpoints=self.options.checkpoints,
                slowdown=slowdown,
                notify=progress,
            )
            try:
                measurement = measure(
                    prepared,
                    meter=meter,
                    ceiling=ceiling,
                    options=MeasureOptions(
                        slowdown=slowdown,
                        damaged=self.options.damaged(row.id),
                        count_work=True,
                        samples_budget_s=used.samples_budget_s,
                    ),
                    progress=progress,
                )
            finally:
                del prepared
                used.release_memory()
        return without_retained(measurement, meter.retained_bytes())

    def run(self) -> Iterator[RowResult]:
        """All rows in their order."""
        for row in self.rows:
            yield self.run_row(row)


def _invalid(row: RowSpec, reason: str) -> RowResult:
    return RowResult(id=row.id, row=row, status=Status.INVALID, reason=reason)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    # The compiler's "backend='inductor' raised:" tells nothing without the next one.
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
