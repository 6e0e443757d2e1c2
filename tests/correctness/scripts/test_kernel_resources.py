"""The Triton kernels compiled without a card, and the tables of docs/kernels.md."""

import os
from functools import partial
from itertools import product

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from llama_perf.kernels.decode_state import DecodeState
from llama_perf.kernels.triton.launch_sampling import SamplingKernel
from scripts.doc_tables.document import rows_between
from scripts.studies.kernel_resources import resources, tables


def choose(top_k: int) -> None:
    """From the largest vocabulary."""
    meta = torch.device("meta")
    fed = DecodeState.room(1, 300, ragged=False, device=meta)
    SamplingKernel(temperature=0.8, top_k=top_k)(tables.empty(1, 128256), fed)


NAMES, FUSED = tables.PRODUCTS, tables.FUSED[::2]
ATTENTION = list(tables.TABLES["attention"].rows.values())[::4]
# What launches a kernel, and the architecture.
CASES = [
    *((partial(tables.launch_product, it, 1, 4096, 4096), 90) for it in NAMES),
    *((partial(tables.launch_product, it, 64, 4096, 4096), 90) for it in NAMES),
    *(
        (partial(tables.launch_fused, *row), 90)
        for row in product(FUSED, tables.KERNELS)
    ),
    *((work, 80) for work in ATTENTION),
    # The most that are joined are 512.
    *((partial(choose, 200), capability) for capability in tables.CAPABILITIES),
    *((partial(choose, 512), capability) for capability in tables.CAPABILITIES),
]


@pytest.mark.parametrize(
    ("work", "capability"), CASES, ids=lambda it: str(getattr(it, "args", it))
)
def test_a_kernel_compiles_without_spills(work: tables.Work, capability: int) -> None:
    (taken,) = resources.compiled(work, capability)
    assert 0 < taken.registers <= 255
    assert taken.spilled_bytes == 0


def test_the_shapes_are_those_of_the_two_models() -> None:
    assert {(4096, 11008), (12288, 4096), (32000, 4096)} <= set(tables.shapes())
    assert {(6144, 4096), (4096, 14336), (128256, 4096)} <= set(tables.shapes())


@pytest.mark.parametrize("table", tables.TABLES.values(), ids=tables.TABLES)
def test_the_document_has_every_kernel_and_no_spill(table: tables.Table) -> None:
    rows, first = rows_between(*table.place), len(table.headers)
    assert [tuple(row[:first]) for row in rows] == list(table.rows)
    assert {cell.split(", ")[1] for row in rows for cell in row[first:]} == {"0"}


def test_a_dependent_kernel_asks_for_its_weights_before_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    assemble = resources.assemble

    def keep(ptx: str, capability: int) -> tuple[int, int]:
        seen.append(ptx)
        return assemble(ptx, capability)

    monkeypatch.setattr(resources, "assemble", keep)
    for name in ("bfloat16", "int8wo"):
        for capability in (80, 90):
            resources.compiled(partial(tables.launch_fused, name, "gate"), capability)
    for before_sm_90, dependent in (seen[:2], seen[2:]):
        assert "griddepcontrol" not in before_sm_90
        first = dependent.index("prefetch.global.L2")
        start = dependent.index("griddepcontrol.launch_dependents")
        wait = dependent.index("griddepcontrol.wait")
        # The first load of an activation or a weight stands behind.
        assert first < start < wait < dependent.index("ld.global")
