"""Triton building blocks: stored values of a 2:4 weight to the columns of its quads.

A byte of the plane of four bits is a quad: the later value in its lower nibble, the
earlier one in its upper nibble. A nibble of the plane of two bits says where they go:
later + 4 * earlier, one of 1, 2, 3, 6, 7 and 11. In a selector of `prmt` it chooses a
byte of masks: 1 to 7 bytes 1 to 7, and 11 the upper bit of byte 3, eight times.
"""

import triton
import triton.language as tl

from llama_perf.kernels.triton.launch import INTERPRETED

# $4 is the word of four quads, $5 where they go. l and e are the later and the earlier
# values, in the upper nibbles of their bytes. A byte of a masks what is in column 1:
# its upper nibble the earlier value, the lower one the later value. A byte of b masks
# the later value in column 3, above, and the earlier one in column 2, below. What they
# leave is in column 0, if it is the earlier value, or in column 2.
_COLUMNS = """{ .reg .b32 l, e, a, b, t;
    shl.b32 l, $4, 4; and.b32 l, l, 0xf0f0f0f0; and.b32 e, $4, 0xf0f0f0f0;
    prmt.b32 a, 0x00000f00, 0xf0f00000, $5; prmt.b32 b, 0xf0000000, 0xf0000000, $5;
    and.b32 $3, e, a; shl.b32 t, a, 4; lop3.b32 $1, l, t, $3, 0xea;
    lop3.b32 $2, l, t, b, 0x10; and.b32 $3, l, b; shl.b32 t, b, 4;
    lop3.b32 $0, e, a, t, 0x10; lop3.b32 $2, e, t, $2, 0xea; }"""


@triton.constexpr_function
def columns_of_quads() -> str:
    """PTX from a word of four quads, and where they go, to a word for each column."""
    return _COLUMNS


@triton.jit
def quad_columns(quads, places):
    """The four columns of quads, int8: sixteen times the values, 0 where pruned.

    `quads` are uint8, whole words of four along the last axis. `places`, int32, has in
    its lower bits a nibble for each quad of the word that an element is of.
    """
    if INTERPRETED:
        return _interpreted(quads, places)
    ASM: tl.constexpr = columns_of_quads()
    return tl.inline_asm_elementwise(
        ASM, "=&r,=&r,=&r,=&r,r,r,r,r,r", [quads, places],
        dtype=(tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def _interpreted(quads, places):
    nibble = places >> (tl.arange(0, quads.shape[2]) % 4 * 4)[None, None, :]
    later, earlier = quads.to(tl.int32) & 15, quads.to(tl.int32) >> 4
    columns = ()
    for COLUMN in tl.static_range(4):
        value = tl.where((nibble & 3) == COLUMN, later, 0)
        value |= tl.where(((nibble >> 2) & 3) == COLUMN, earlier, 0)
        columns = columns + ((value << 4).to(tl.int8),)  # type: ignore[assignment]
    return columns
