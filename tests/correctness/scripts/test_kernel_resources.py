"""The Triton kernels compiled without a card, and the tables of docs/kernels.md."""

import os
import re
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from llama_perf.kernels.decode_state import DecodeState
from llama_perf.kernels.triton.launch_sampling import SamplingKernel
from llama_perf.llama.presets import preset
from scripts.doc_tables.__main__ import tables
from scripts.studies import compile_only
from scripts.studies import kernel_resources as kernels
from scripts.studies.product_times import shapes


def choose(top_k: int) -> None:
    """From the largest vocabulary."""
    meta = torch.device("meta")
    fed = DecodeState.room(1, 300, ragged=False, device=meta)
    SamplingKernel(temperature=0.8, top_k=top_k)(kernels.empty(1, 128256), fed)


ATTENTION = list(product(kernels.MODELS, kernels.DTYPES, kernels.CACHES))
# What launches a kernel: a function and its arguments; and the architectures.
CASES = [
    (
        kernels.launch_product,
        product(kernels.PRODUCTS, (1, 16, 64), [4096], [4096]),
        [90],
    ),
    (kernels.launch_fused, product(kernels.FUSED[::2], kernels.KERNELS), [90]),
    (kernels.launch_attention, ATTENTION[::4], [80]),
    # The most that are joined are 512.
    (choose, [(200,), (512,)], kernels.CAPABILITIES),
]


@pytest.mark.parametrize(
    ("work", "words", "capability"),
    [(work, *case) for work, words, on in CASES for case in product(words, on)],
)
def test_a_kernel_compiles_without_spills(
    work: Callable[..., object], words: tuple[Any, ...], capability: int
) -> None:
    (taken,) = compile_only.compiled(partial(work, *words), capability)
    assert 0 < taken.registers <= 255
    assert taken.spilled_bytes == 0


def test_the_shapes_are_those_of_the_two_models() -> None:
    first, second = (set(shapes(preset(model)).values()) for model in kernels.MODELS)
    assert first >= {(4096, 11008), (12288, 4096), (32000, 4096)}
    assert second >= {(6144, 4096), (4096, 14336), (128256, 4096)}


@pytest.mark.parametrize("name", ["kernels", "fused", "attention"])
def test_the_document_has_every_kernel_and_no_spill(name: str) -> None:
    (table,) = tables(name)
    rows = table.documented()
    assert list(rows) == list(table.keys)
    assert {cell.split(", ")[1] for row in rows.values() for cell in row} == {"0"}


def copied_from(ttgir: str) -> set[str]:
    """The kernel's arguments that addresses of asynchronous copies are made of."""
    sources: dict[str, set[str]] = {}
    for line in ttgir.splitlines():
        names = re.findall(r"%([\w-]+)", line.split(" loc(")[0])
        made = re.match(r"\s*%([\w-]+)(?::\d+)? =", line)
        if "iter_args" in line:
            for name, start in re.findall(r"%([\w-]+) = %([\w-]+)", line):
                sources.setdefault(name, set()).add(start)
        elif made:
            sources.setdefault(made[1], set()).update(names[1:])
    arguments = {*re.findall(r"%(\w+): !tt.ptr", ttgir)}
    copies = re.findall(r"async_copy_global_to_local %([\w-]+)", ttgir)
    found, reached = [*copies], {*copies}
    while found:
        for name in sources.get(found.pop(), set()) - reached:
            reached.add(name)
            found.append(name)
    # Of the second weight they have the same names and a number.
    return {re.sub(r"_?\d+$", "", name) for name in reached & arguments}


@pytest.mark.parametrize("name", kernels.FUSED)
def test_a_dependent_kernel_copies_only_weights_before_it_waits(name: str) -> None:
    """What the kernel in front writes is loaded behind the wait."""
    (made,) = compile_only.compiled(partial(kernels.launch_fused, name, "gate"), 90)
    assert {"codes"} <= copied_from(made.ttgir) <= {"codes", "scale", "zero", "norm"}
    start = made.ptx.index("griddepcontrol.launch_dependents")
    first, wait = made.ptx.index("cp.async"), made.ptx.index("griddepcontrol.wait")
    assert start < first < wait < made.ptx.index("ld.global")


@pytest.mark.parametrize("capability", [80, 90])
def test_all_layers_ask_for_weights_before_they_wait(capability: int) -> None:
    """The four products do; attention waits first, since it reads what is written."""
    work = partial(kernels.launch_layers, "int4wo-64", kernels.MODELS[0])
    (made,) = compile_only.compiled(work, capability)
    touched = re.findall(
        r"cp\.async\.c[ag]|ld\.relaxed\.gpu|st\.global|atom\.global|ld\.global\S*",
        made.ptx,
    )
    waits = [place for place, it in enumerate(touched) if it.startswith("ld.relaxed")]
    assert len(waits) == 5
    asked = []
    for wait in waits:
        before = touched[:wait]
        start = max(place for place, it in enumerate(before) if it[:2] in ("st", "at"))
        # Since the last phase's end: addresses and the number of positions.
        loads = {it for it in before[start + 1 :] if it.startswith("ld")}
        assert loads <= {"ld.global.b64"}
        asked.append(before[-1].startswith("cp.async"))
    assert asked == [True, False, True, True, True]
    assert kernels.spills_in_loops(made) == 0


@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_a_register_of_quads_is_one_word(tokens: int) -> None:
    """The assembly takes bytes to be those of a word, in their order."""
    work = partial(kernels.launch_fused, "sparse-marlin", "down", tokens=tokens)
    (made,) = compile_only.compiled(work, 90)
    layouts = dict(re.findall(r"^(#\w+) = #ttg\.(\w+<.*>)$", made.ttgir, re.M))
    pattern = (
        r'inline_asm ".*(?:prmt|mov\.b32 \$0, \$1;).*packed_element = ([248]) .*?'
        r" : tensor<[^,]*, (#\w+>|#ttg\.dot_op<[^>]*>)"
    )
    found = re.findall(pattern, made.ttgir)
    assert len(found) == 3
    for pack, name in found:
        layout = layouts.get(name.rstrip(">"), name)
        if width := re.search(r"kWidth = (\d+)", layout):
            assert int(width[1]) % int(pack) == 0
        else:
            wanted = ", ".join(f"[0, 0, {2**bit}]" for bit in range(int(pack) // 2))
            assert layout.startswith(f"linear<{{register = [{wanted}, ")


def test_before_sm_90_no_kernel_waits() -> None:
    (made,) = compile_only.compiled(partial(kernels.launch_fused, "fp6", "gate"), 80)
    assert "cp.async" in made.ptx
    assert "griddepcontrol" not in made.ptx
