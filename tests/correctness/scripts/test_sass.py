"""Instructions counted in the machine code of kernels written by hand."""

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from scripts.studies import sass
from scripts.studies.compile_only import ptxas
from scripts.studies.sass import (
    CARDS,
    ISSUE,
    Loop,
    cap,
    disassemble,
    main_loop,
    pipe_of,
)

# Each pass: loads, two float products, one of halves, a logic operation, a barrier.
LOOP = """
.version 8.7
.target sm_80
.address_size 64
.visible .entry by_hand(.param .u64 data, .param .u32 count)
{
    .reg .pred p; .reg .b32 n, a, b, h, i; .reg .b64 at; .reg .f32 f, g, x;
    ld.param.u64 at, [data]; ld.param.u32 n, [count];
    mov.u32 i, 0; mov.f32 f, 0f00000000; mov.f32 g, 0f3F800000; mov.u32 h, 0;
$again:
    .pragma "nounroll";
    ld.global.v2.u32 {a, b}, [at];
    mov.b32 x, a;
    fma.rn.f32 f, x, x, f;
    fma.rn.f32 g, f, x, g;
    fma.rn.f16x2 h, a, b, h;
    lop3.b32 h, h, a, b, 0x96;
    bar.sync 0;
    add.u64 at, at, 4096;
    add.u32 i, i, 1;
    setp.lt.u32 p, i, n;
    @p bra $again;
    st.global.f32 [at], f; st.global.f32 [at + 64], g; st.global.u32 [at + 128], h;
    ret;
}
"""


def assembled(ptx: str, capability: int, folder: Path) -> str:
    cubin = folder / "by_hand.cubin"
    command: list[str | Path] = [ptxas(capability), "--gpu-name", f"sm_{capability}"]
    command += ["/dev/stdin", "-o", cubin]
    subprocess.run(command, input=ptx, text=True, check=True)
    return disassemble(cubin.read_bytes())


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_a_loop_by_hand_has_the_instructions_that_were_written(
    capability: int, tmp_path: Path
) -> None:
    text = assembled(LOOP.replace("sm_80", f"sm_{capability}"), capability, tmp_path)
    loop = main_loop(text)
    counted = loop.pipes
    assert not loop.unrolled
    assert not loop.asynchronous
    assert (counted["float"], counted["half"], counted["tensor"]) == (2, 1, 0)
    # A load for each pass and no store; one barrier.
    assert (counted["memory"], counted["barrier"]) == (1, 1)
    # The written logic operation and the loop's own addition and comparison.
    assert 1 <= counted["integer"] <= 6
    assert counted[ISSUE] == len(loop.instructions) <= 20


def test_a_kernel_without_a_loop_is_counted_as_a_whole(tmp_path: Path) -> None:
    straight = LOOP.replace("@p bra $again;", "").replace('.pragma "nounroll";', "")
    loop = main_loop(assembled(straight, 80, tmp_path))
    assert loop.unrolled
    assert loop.pipes["memory"] == 4
    assert loop.pipes["float"] == 2


def test_the_narrowest_pipe_sets_the_cap() -> None:
    card = CARDS["H200"]
    # 4.8 TB/s over 132 multiprocessors at 1.9 GHz.
    assert card.bytes_a_clock == pytest.approx(19.14, abs=0.01)
    mixed = Loop(["FFMA"] * 60 + ["LOP3.LUT"] * 20 + ["LDG.E.128"] * 4)
    # Four warps: 84 instructions take 84 clocks, 20 of the integer pipe 40.
    assert (mixed.clocks(card, 4), mixed.narrowest(card)) == (84, ISSUE)
    assert cap(mixed, card, warps=4, weight_bytes=84 * 19.14) == pytest.approx(
        100, 1e-3
    )
    integers = Loop(["LOP3.LUT"] * 60 + ["FFMA"] * 20)
    assert (integers.clocks(card, 4), integers.narrowest(card)) == (120, "integer")
    # An A100 starts half as many float instructions in a clock.
    assert Loop(["FFMA"] * 80).clocks(CARDS["A100"], 4) == 160
    tensor = Loop(["HMMA.16816.F32"] * 8 + ["LDS.64"] * 8)
    assert tensor.narrowest(card) == "tensor"


@pytest.mark.parametrize(
    ("name", "pipe"),
    [
        ("HMMA.16816.F32", "tensor"),
        ("HADD2", "half"),
        ("IMAD.WIDE.U32", "multiply"),
        ("IADD3.X", "integer"),
        ("ISETP.NE.AND", "integer"),
        ("LDGSTS.E.BYPASS.128", "memory"),
        ("LDGDEPBAR", "barrier"),
        ("BAR.SYNC.DEFER_BLOCKING", "barrier"),
        ("DEPBAR.LE", "barrier"),
        ("LDSM.16.M88.4", "memory"),
        ("I2FP.F32.S32", "special"),
        ("UIADD3", "other"),
        ("BRA", "other"),
    ],
)
def test_instructions_go_to_their_pipes(name: str, pipe: str) -> None:
    assert pipe_of(name) == pipe


def test_every_card_has_a_rate_for_every_pipe() -> None:
    for card in CARDS.values():
        assert card.issue.keys() == {ISSUE, *sass._PIPES} - {"barrier"}
