"""What a fused step launches on a card, through Triton's real JIT, without one.

Also what its machine code (SASS) does before the dependent wait. A kernel that may
start before the one in front of it ends must touch no memory that that one still
writes. So every kernel waits, and before that only prefetches weights.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama_perf.llama.presets import preset
from tests.correctness.support.kernel_samples import FORMATS, sample
from tests.correctness.support.launches import Launches, end_processes, generation

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from llama_perf.kernels.triton import launch_fused, launch_products
from llama_perf.kernels.triton.launch import aligned
from scripts.studies.compile_only import assemble
from scripts.studies.sass import NVDISASM, code_lines, disassemble

LAYERS = 2
# What a step launches.
LAYER = ("project_heads", "attend_in_splits", "project", "project", "project")
STEP = ["start", *LAYER * LAYERS, "project", "choose"]
LLAMA_2, LLAMA_3 = "Llama-2-7b-chat-hf", "Meta-Llama-3-8B"
# The wait in machine code, and letting the next kernel start.
WAIT, LET_START = "ACQBULK", "PREEXIT"
# Global memory, or any that might be; constants (LDC) and prefetches (CCTL) are none.
# Copies to shared memory (LDGSTS) are of weights: test_kernel_resources.py looks.
MEMORY = r"(LD|LDG|ST|STG|ATOM|ATOMG|RED|REDG|UBLK\w+|UTMA\w+)\b"
BRANCH = r"(BRA|BRX|BRXU|JMP|JMX|CALL|RET|EXIT|BSSY|BSYNC|BREAK)\b"
# Rows share kernels.
assembled = cache(assemble)
disassembled = pytest.mark.skipif(
    not NVDISASM.exists(), reason="no nvdisasm in Triton's package"
)


def kernels(launches: Launches) -> list[str]:
    return [launch.kernel for launch in launches]


def first(step: Launches, kernel: str) -> Any:
    return next(launch for launch in step if launch.kernel == kernel)


@pytest.fixture(scope="module", autouse=True)
def _processes_end() -> Iterator[None]:
    yield
    end_processes()


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        # Every scheme and both ways to choose a token; int8dq, whose kernels have most
        # parts, with heads of their own and with shared ones.
        *((LLAMA_2, {"temperature": temperature}) for temperature in (0.8, 0.0)),
        (LLAMA_3, {"temperature": 0.8}),
        *((LLAMA_2, {"quantization": scheme}) for scheme in ("int8wo", "int8dq")),
        *((LLAMA_3, {"quantization": scheme}) for scheme in ("int8dq", "int4wo-64")),
    ],
    ids=str,
)
def test_a_step_is_five_launches_a_layer_and_three(
    model: str, fields: dict[str, Any]
) -> None:
    """Torch's operators would be among them."""
    step = generation(model, **fields).step
    assert kernels(step) == STEP
    assert all(launch.dependent for launch in step)


@pytest.mark.parametrize(
    ("model", "capability"), [(LLAMA_2, 90), (LLAMA_3, 90), (LLAMA_2, 80)], ids=str
)
def test_all_layers_of_a_step_are_one_launch(model: str, capability: int) -> None:
    """Whose programs fit the card at once, as its barriers need; a prompt has five."""
    processors = {90: 132, 80: 108}[capability]
    generated = generation(
        model,
        quantization="int4wo-64",
        fused="persistent",
        capability=capability,
        multiprocessors=processors,
    )
    assert kernels(generated.step) == ["start", "run_layers", "project", "choose"]
    assert Counter(kernels(generated.first))["project_heads"] == LAYERS
    together = [launch for launch in generated.step if launch.together]
    assert together == [first(generated.step, "run_layers")]
    assert together[0].grid == (4 * processors, 1, 1)
    assert not together[0].dependent


@pytest.mark.parametrize(("scheme", "capability"), [("int4wo-64", 90), ("int8wo", 80)])
def test_a_step_of_ranks_adds_behind_their_sums(scheme: str, capability: int) -> None:
    """At a share's shapes; the sums launch nothing here, where there are no others."""
    generated = generation(
        "Llama-3.1-70B",
        quantization=scheme,
        tensor_parallel=8,
        capability=capability,
        multiprocessors={90: 132, 80: 108}[capability],
    )
    layer = [*LAYER[:3], "add_", *LAYER[3:], "add_"]
    assert kernels(generated.step) == [*STEP[:1], *layer * LAYERS, *STEP[-2:]]
    for made in generated.code.values():
        _, spilled_bytes = assembled(made.ptx, capability)
        assert spilled_bytes == 0, made.kernel


@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_a_known_length_of_prompt_is_one_graph(temperature: float) -> None:
    """Outside it the prompt is copied, a seed drawn, and every token returned."""
    generated = generation(LLAMA_2, temperature=temperature)
    outside = ["random_"] * (temperature > 0) + ["copy_", "clone", "clone"]
    assert kernels(generated.outside) == outside
    # A prompt's attention is the library's.
    counts = Counter(kernels(generated.first))
    assert Counter(STEP).items() - counts.items() == {("attend_in_splits", LAYERS)}


def test_as_many_programs_run_as_the_card_has_processors_for() -> None:
    """Attention in twice as many as it has; products in four times, in splits of K.

    Before sm_90 no launch is dependent.
    """
    heads, dim = preset(LLAMA_2).n_heads, preset(LLAMA_2).dim
    for capability, processors in ((90, 132), (80, 108), (90, 66)):
        card = {"capability": capability, "multiprocessors": processors}
        step = generation(LLAMA_2, **card).step
        attention, output = first(step, "attend_in_splits"), first(step, "project")
        # One program a head more than attend: it prefetches what the next kernel reads.
        assert attention.grid[:2] == (heads, 2 * processors // heads + 1)
        blocks = dim // 16
        # Unquantized weights are multiplied 16 rows a program.
        assert output.grid[:2] == (blocks, 4 * processors // blocks)
        assert {launch.dependent for launch in step} == {capability >= 90}


def test_a_short_cache_leaves_programs_for_what_the_next_kernel_reads() -> None:
    """On an H200 a step of Llama-3-8B is 1.16 times as fast as with 32 programs."""
    attention = first(generation(LLAMA_3).step, "attend_in_splits")
    # 256 positions are four stretches for every one of 8 heads.
    assert attention.grid[:2] == (8, 2 * 132 // 8)


def test_tokens_are_moved_to_where_several_can_be_loaded_at_once() -> None:
    shifted = torch.arange(18, dtype=torch.bfloat16).view(1, 18)[:, 1:17]
    assert shifted.is_contiguous()
    assert shifted.data_ptr() % 16
    moved = aligned(shifted)
    assert moved.data_ptr() % 16 == 0
    assert torch.equal(moved, shifted)
    assert aligned(moved) is moved
    assert aligned(moved.view(4, 4).T).is_contiguous()


@pytest.mark.parametrize(
    ("format", "dtype", "most"),
    [
        *(("int8", dtype, 16) for dtype in (torch.float16, torch.bfloat16, torch.int8)),
        ("sparse", torch.bfloat16, 16),
        # No tensor cores multiply these as few tokens, or not faster.
        *(("int8", torch.float32, 8), ("sparse", torch.float32, 8)),
        *(("int4-32", torch.bfloat16, 8), ("uintx-5-8", torch.float16, 8)),
    ],
    ids=str,
)
def test_tensor_cores_multiply_up_to_sixteen_tokens_as_few(
    format: str, dtype: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []

    def note(kernel: Any, *_how: Any) -> None:
        launched.append(kernel.fn.__name__)

    monkeypatch.setattr(launch_products, "run", note)
    (known,) = (it for it in FORMATS if it.name == format)
    rounded = dtype == torch.int8
    for tokens in (8, 9, 16, 17):
        x, weight = sample(known, (tokens, 16, 320), torch.float32)
        scales = torch.ones((tokens, 1)) if rounded else None
        launch_products.product(x.to(dtype), weight, torch.float32, scales)
    few, many = (f"{it}_tokens{'_int8' * rounded}" for it in ("few", "many"))
    assert launched == [few if it <= most else many for it in (8, 9, 16, 17)]


def test_the_cards_key_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = iter([SimpleNamespace(key="card")])
    monkeypatch.setattr(launch_fused, "device_of", lambda _device: next(gpus))
    launch_fused._card_key.cache_clear()
    for _ in range(3):
        assert launch_fused._card_key(torch.device("cuda")) == "card"
    launch_fused._card_key.cache_clear()


@cache
def instructions(cubin: bytes) -> list[str]:
    """The instructions of its kernel in their order, with their predicates."""
    return code_lines(disassemble(cubin))


def wrong_before_the_wait(code: list[str]) -> list[str]:
    """Instructions that must not stand before the dependent wait, or that none waits.

    Every program must reach the wait: before it nothing branches and nothing ends.
    """
    if WAIT not in code:
        return ["it does not wait"]
    before = [re.sub(r"^@!?U?P\w+\s+", "", line) for line in code[: code.index(WAIT)]]
    return [line for line in before if re.match(f"{MEMORY}|{BRANCH}", line)]


@disassembled
@pytest.mark.parametrize(
    ("model", "scheme", "capability"),
    [
        *((LLAMA_2, scheme, 90) for scheme in (None, "int8dq")),
        *((LLAMA_3, scheme, 90) for scheme in ("int4wo-64", "int8dq")),
        # Columns of `down` that fill no step: the last split has fewer.
        (LLAMA_2, "sparse-marlin", 90),
        (LLAMA_2, "int8dq", 80),
    ],
)
def test_every_kernel_of_a_fused_row_waits_before_it_touches_memory(
    model: str, scheme: str | None, capability: int
) -> None:
    """From sm_90 on; before it none is launched so. None spills."""
    card = {90: 132, 80: 108}[capability]
    generated = generation(
        model, quantization=scheme, capability=capability, multiprocessors=card
    )
    assert {code.kernel for code in generated.code.values()} == set(STEP)
    early = capability >= 90
    for code in generated.code.values():
        sass = instructions(code.cubin)
        wanted = [] if early else ["it does not wait"]
        assert wrong_before_the_wait(sass) == wanted, code.kernel
        assert (LET_START in sass) == early, code.kernel
        _, spilled_bytes = assembled(code.ptx, capability)
        assert spilled_bytes == 0, code.kernel


@disassembled
@pytest.mark.parametrize("model", ["Qwen3-0.6B", "Mistral-7B-v0.1"])
def test_norms_of_heads_and_windows_are_in_the_same_launches(model: str) -> None:
    generated = generation(model, cache_size=8192)
    assert kernels(generated.step) == STEP
    for code in generated.code.values():
        assert wrong_before_the_wait(instructions(code.cubin)) == [], code.kernel
        assert assembled(code.ptx, 90)[1] == 0, code.kernel


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types.
def hasty(x, out, WHEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Loads, stores or ends before its wait, or does not wait at all."""
    gdc_launch_dependents()
    if WHEN == "loads":
        tl.store(out, tl.load(x))
    elif WHEN == "stores":
        tl.store(out, 1)
    elif WHEN == "counts":
        tl.atomic_add(out, 1)
    elif WHEN == "sometimes" and tl.program_id(0) == 0:
        return
    if WHEN != "never":
        gdc_wait()
    tl.store(out, tl.load(x))


FOUND = {"loads": "LDG", "stores": "STG", "counts": "ATOM", "sometimes": "EXIT"}


@disassembled
@pytest.mark.parametrize(
    ("when", "wrong"), [*FOUND.items(), ("never", "it does not wait"), ("right", None)]
)
def test_a_kernel_that_does_not_wait_is_found(when: str, wrong: str | None) -> None:
    signature = {"x": "*i32", "out": "*i32", "WHEN": "constexpr"}
    source = ASTSource(fn=hasty, signature=signature, constexprs={"WHEN": when})
    options = {"launch_pdl": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    reported = wrong_before_the_wait(instructions(made.asm["cubin"]))
    assert wrong in " ".join(reported) if wrong else not reported, reported
