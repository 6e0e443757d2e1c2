"""Rows, measurements and baselines made up for the tests of the gate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from llama_perf.gate import verdict
from llama_perf.gate.evidence import Confirmation, Trial
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.results import baselines
from llama_perf.results.baselines import Baseline, baseline_row
from llama_perf.results.measurement import Closeness, LinearChoice, Measurement
from llama_perf.results.ranks import RankFigures, Ranks
from llama_perf.results.run import Comparison, Environment, Report, RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import to_json

GB = 10**9
CPU_ROW = RowSpec(model="tiny", dtype="float32", device="cpu")
OTHER = replace(CPU_ROW, compile=True)
CUDA_ROW = RowSpec(model="tiny")
INT8_CPU = replace(CPU_ROW, quantization="int8wo")
ENVIRONMENT = Environment(
    device_key="cpu-some-2c",
    device_name="Some CPU",
    device_memory_bytes=24_000_000_000,
    threads=2,
    driver=None,
    cuda=None,
    platform="Linux 6 x86_64",
    python="3.11.7",
    torch="2.13.0",
    torchao="0.18.0",
    triton=None,
    llama_perf="0.1.0",
    commit="0123456789ab",
    float32_matmul_precision="highest",
)
MEASUREMENT = Measurement(
    tok_s=100.0,
    decode_tok_s=110.0,
    time_to_first_token_s=0.05,
    bandwidth_gb_s=10.0,
    device_bandwidth_gb_s=20.0,
    peak_memory_bytes=1_000_000_000,
    model_size_bytes=500_000_000,
    weights="synthetic",
    sample_ns=(1_950_000_000, 2_050_000_000),
    first_token_ns=(50_000_000, 51_000_000),
)

SHARED_ROW = replace(CPU_ROW, tensor_parallel=2)
RANKS = Ranks(
    backend="gloo",
    all_reduce="gloo",
    all_reduces=4,
    all_reduce_bytes=512,
    all_reduce_us=80.0,
    each=tuple(
        RankFigures(
            device="Some CPU",
            peak_memory_bytes=peak,
            model_size_bytes=250_000_000,
            device_bandwidth_gb_s=10.0,
            sample_ns=times,
        )
        for peak, times in (
            (900_000_000, (1_950_000_000, 2_000_000_000)),
            (1_000_000_000, (1_940_000_000, 2_050_000_000)),
        )
    ),
)
"""Those of MEASUREMENT, of SHARED_ROW."""

CLOSENESS = Closeness(
    db=12.0,
    kl_nats=0.3,
    top1_share=0.66,
    perplexity=20.0,
    twin_perplexity=15.0,
    greedy_tokens=32,
    same_greedy_tokens=8,
    tokens=470,
    text="built-in:0123456789ab",
    seconds=2.0,
)

# The tok/s of processes that hardly differ.
ALIKE = (99.0, 100.0, 101.0, 99.5, 100.5)
RECORDED = "2026-01-02T03:04:05+00:00"
# The end of a reason if the baseline has one process of the row.
FIXED_LIMIT = (
    "; fixed limit: the baseline has 1 of the 3 processes from which noise is estimated"
)


def chosen(name: str, *, columns: int = 64, reused: bool = False) -> LinearChoice:
    """What autoquant chose for weights of 128 rows."""
    times = {"none": 4.0, "int8wo": 2.5, "int4wo-64-hqq": 1.25}
    if columns % 64:
        del times["int4wo-64-hqq"]
    return LinearChoice(
        out_features=128,
        in_features=columns,
        products=((6, 30), (1, 450)),
        chosen=name,
        total_ms=times,
        reused=reused,
    )


def figures_of(row: RowSpec, **changes: Any) -> Measurement:
    """MEASUREMENT, changed, with samples from which its tok/s follow.

    There are none if they would take less than a nanosecond.
    """
    tok_s = changes.get("tok_s", MEASUREMENT.tok_s)
    middle_ns = round(row.batch_size * row.max_new_tokens * 1e9 / tok_s)
    apart_ns = middle_ns // 40
    times = (middle_ns - apart_ns, middle_ns + apart_ns) if middle_ns else ()
    return replace(MEASUREMENT, **{"sample_ns": times} | changes)


def measured(row: RowSpec = CPU_ROW, **changes: Any) -> RowResult:
    """A row that ended MEASURED with MEASUREMENT, changed."""
    figures = figures_of(row, **changes)
    return RowResult(id=row.id, row=row, status=Status.MEASURED, measurement=figures)


def close(row: RowSpec = INT8_CPU, **changes: Any) -> RowResult:
    """A quantized row that was measured with CLOSENESS, changed."""
    return measured(row, closeness=replace(CLOSENESS, **changes))


def unmeasured(status: Status, reason: str, row: RowSpec = CPU_ROW) -> RowResult:
    return RowResult(id=row.id, row=row, status=status, reason=reason)


def report_of(*results: RowResult, **changes: Any) -> Report:
    usual: dict[str, Any] = {"environment": ENVIRONMENT, "selected": len(results)}
    return Report(started=RECORDED, results=results, **(usual | changes))


def baseline_of(*results: RowResult, **changes: Any) -> Baseline:
    """A baseline that holds the measured ones among `results`."""
    environment = replace(ENVIRONMENT, **changes)
    return baselines.of_report(report_of(*results, environment=environment))


def baseline_of_processes(
    values: Mapping[RowSpec, Sequence[Any]],
    metric: str = "tok_s",
    *,
    environment: Environment = ENVIRONMENT,
    bandwidths: Sequence[float] = (20.0,) * 20,
    **changes: Any,
) -> Baseline:
    """A baseline of these tok/s, or another metric's, one for each process of a row.

    `bandwidths` are those of the device in each process; `changes` are in all of them.
    """
    rows = []
    for row, figures in values.items():
        processes = (
            figures_of(
                row, device_bandwidth_gb_s=bandwidth, **{metric: figure, **changes}
            )
            for figure, bandwidth in zip(figures, bandwidths, strict=False)
        )
        rows.append(baseline_row(row, *processes))
    return Baseline(recorded=RECORDED, environment=environment, rows=tuple(rows))


def stored_in(folder: Path, baseline: Baseline) -> Path:
    """The file of the baseline in a folder of baselines."""
    path = baselines.path_of(folder, baseline.environment.device_key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(baseline), encoding="utf-8")
    return path


def compare(
    result: RowResult,
    baseline: Baseline | None,
    *,
    environment: Environment | None = None,
    fresh: Sequence[Trial] | None = None,
    **options: Any,
) -> Comparison:
    """`verdict.compare` with a baseline that is prepared for this row only.

    `fresh` are the processes of a confirmation without pairs, None if it was off.
    """
    prepared = None if baseline is None else SpeedBaseline(baseline, environment)
    confirmation = None if fresh is None else Confirmation(fresh=fresh)
    return verdict.compare(result, prepared, confirmation=confirmation, **options)


Edit = Mapping[str, object]
"""New values by the dotted names of fields."""


def row_edit(row: RowSpec, *, number: int = 0) -> Edit:
    """The edit of a baseline that puts `row`, its id and its fingerprint in a row."""
    fields = {
        f"row.{name}": value for name, value in asdict(row).items() if value is not None
    }
    fields |= {"id": row.id, "fingerprint": row.fingerprint}
    return {f"rows.{number}.{name}": value for name, value in fields.items()}


def edited(path: Path, edit: Edit) -> Path:
    """The JSON file, in which fields were edited by hand."""
    document: Any = json.loads(path.read_text(encoding="utf-8"))
    for dotted, value in edit.items():
        *parents, last = (
            int(part) if part.isdigit() else part for part in dotted.split(".")
        )
        reduce(getitem, parents, document)[last] = value
    # Beyond any float, which Python does not write.
    text = json.dumps(document).replace('"1e999"', "1e999")
    path.write_text(text, encoding="utf-8")
    return path
