"""The Triton kernels compiled without a card, and the table of docs/kernels.md."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from llama_perf.kernels.triton import launch_sampling
from llama_perf.kernels.triton.sampling import choose
from llama_perf.llama.presets import preset
from scripts.doc_tables.document import rows_between
from scripts.studies.kernel_resources import attention, fused, products, resources
from scripts.studies.kernel_resources.fused import Case


@pytest.mark.parametrize("variant", products.VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("tokens", [1, 64])
def test_a_kernel_compiles_without_spills(
    variant: products.Variant, tokens: int
) -> None:
    taken = products.compile_one(variant, tokens, 4096, 4096, 90)
    assert 0 < taken.registers <= 255
    assert taken.spilled_bytes == 0


def test_the_shapes_are_those_of_the_two_models() -> None:
    assert {(4096, 11008), (12288, 4096), (32000, 4096)} <= set(products.shapes())
    assert {(6144, 4096), (4096, 14336), (128256, 4096)} <= set(products.shapes())


def test_the_document_has_every_kernel_and_no_spill() -> None:
    rows = resources.documented(products.PLACE)
    assert list(rows) == [
        (variant.name, tokens)
        for variant in products.VARIANTS
        for tokens in products.TOKENS
    ]
    assert {cell.split(", ")[1] for row in rows.values() for cell in row} == {"0"}


@pytest.mark.parametrize(
    "variant", attention.VARIANTS[::4], ids=lambda variant: "-".join(variant.cells)
)
def test_the_attention_kernel_compiles_without_spills(
    variant: attention.Variant,
) -> None:
    taken = attention.compile_one(variant, 80)
    assert 0 < taken.registers <= 255
    assert taken.spilled_bytes == 0


def test_the_document_has_every_attention_kernel_and_no_spill() -> None:
    rows = rows_between(*attention.PLACE)
    assert [tuple(row[:3]) for row in rows] == [
        variant.cells for variant in attention.VARIANTS
    ]
    assert {cell.split(", ")[1] for row in rows for cell in row[3:]} == {"0"}


@pytest.mark.parametrize("variant", fused.FUSED[::2], ids=lambda variant: variant.name)
@pytest.mark.parametrize("kernel", fused.KERNELS)
def test_a_fused_kernel_compiles_without_spills(
    variant: products.Variant, kernel: str
) -> None:
    config = preset("Meta-Llama-3-8B")
    case = Case(variant=variant, kernel=kernel, config=config)
    taken = fused.compile_one(case, 90)
    assert 0 < taken.registers <= 255
    assert taken.spilled_bytes == 0


def test_the_document_has_every_fused_kernel_and_no_spill() -> None:
    rows = resources.documented(fused.PLACE)
    assert list(rows) == [
        (variant.name, tokens) for variant in fused.FUSED for tokens in fused.TOKENS
    ]
    assert {cell.split(", ")[1] for row in rows.values() for cell in row} == {"0"}


def test_a_dependent_kernel_asks_for_its_weights_before_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    assemble = resources.assemble

    def keep(ptx: str, capability: int) -> tuple[int, int]:
        seen.append(ptx)
        return assemble(ptx, capability)

    monkeypatch.setattr(resources, "assemble", keep)
    config = preset("Meta-Llama-3-8B")
    for variant in (fused.BFLOAT16, fused.FUSED[1]):
        for capability in (80, 90):
            case = Case(variant=variant, kernel="gate", config=config)
            fused.compile_one(case, capability)
    for before_sm_90, dependent in (seen[:2], seen[2:]):
        assert "griddepcontrol" not in before_sm_90
        first = dependent.index("prefetch.global.L2")
        start = dependent.index("griddepcontrol.launch_dependents")
        wait = dependent.index("griddepcontrol.wait")
        # The first load of an activation or a weight stands behind.
        assert first < start < wait < dependent.index("ld.global")


@pytest.mark.parametrize("capability", resources.CAPABILITIES)
@pytest.mark.parametrize("top_k", [200, 512])
def test_the_choice_of_a_token_compiles_without_spills(
    top_k: int, capability: int
) -> None:
    """Of the largest vocabulary, and of the most that are joined."""
    how = launch_sampling.launch(
        vocabulary=128256, temperature=0.8, top_k=top_k, dtype=torch.bfloat16
    )
    assert how is not None
    early = resources.starts_early(capability)
    places = ("token", "position", "history", "count", "seed")
    kernel = resources.Kernel(
        function=choose,
        pointers={
            "logits": "*bf16",
            **dict.fromkeys(places, "*i64"),
            "scores": "*fp32",
            "values": "*fp32",
            "columns": "*i32",
            "split_counter": "*i32",
        },
        floats=("INVERSE",),
        sizes={"V": True, "S": False, "TOP": False},
        constants={**how.constants, "BATCH": 1, "RAGGED": False, "DEPENDENT": early},
        warps=how.warps,
        stages=how.stages,
        dependent=early,
    )
    taken = resources.compile_kernel(kernel, capability)
    assert 0 < taken.registers <= 255
    assert taken.spilled_bytes == 0
