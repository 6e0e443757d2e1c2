"""PTX that unpacks codes for tensor cores, executed instruction by instruction."""

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter takes no PTX", allow_module_level=True)

import torch

from llama_perf.kernels import row_scaled
from llama_perf.kernels.triton import tile_codes
from llama_perf.kernels.weight import FLOAT8, FP6, INT8, UNSIGNED

SIGNED_NIBBLE = tile_codes.INT4.value
WORD = 0xFFFFFFFF


def halves(register: int) -> np.ndarray:
    """The two float16 of a register."""
    return np.array([register], dtype=np.uint32).view(np.float16)


def from_halves(values: np.ndarray) -> int:
    return int(values.astype(np.float16).view(np.uint32)[0])


def bytes_chosen(low: int, high: int, selector: int) -> int:
    """As `prmt.b32`: of a selector's upper bit the sign of the byte eight times."""
    pool, result = low | high << 32, 0
    for index in range(4):
        chosen = selector >> 4 * index & 15
        byte = pool >> 8 * (chosen & 7) & 255
        if chosen & 8:
            byte = 255 * (byte >> 7)
        result |= byte << 8 * index
    return result


def logic(a: int, b: int, c: int, table: int) -> int:
    """As `lop3.b32`."""
    result = 0
    for row in range(8):
        if table >> row & 1:
            terms = (
                (value if row >> place & 1 else ~value)
                for value, place in zip((a, b, c), (2, 1, 0), strict=True)
            )
            result |= np.bitwise_and.reduce([term & WORD for term in terms])
    return int(result)


def fused(a: int, b: int, c: int) -> int:
    """Exact in float64 before the one rounding."""
    wide = [halves(register).astype(np.float64) for register in (a, b, c)]
    return from_halves(wide[0] * wide[1] + wide[2])


INSTRUCTIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "shl.b32": lambda a, count: a << count & WORD,
    "shr.b32": lambda a, count: a >> count,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "mul.lo.u32": lambda a, b: a * b & WORD,
    "lop3.b32": logic,
    "prmt.b32": bytes_chosen,
    "add.f16x2": lambda a, b: from_halves(halves(a) + halves(b)),
    "fma.rn.f16x2": fused,
}


def execute(text: str, results: int, *operands: int) -> list[int]:
    """The registers $0, $1 ... that `text` writes, of the next ones that it reads."""
    registers = {f"${results + index}": value for index, value in enumerate(operands)}
    for line in text.strip().strip("{}").split(";"):
        if not line.strip() or ".reg" in line:
            continue
        name, rest = line.split(None, 1)
        target, *sources = re.split(r",\s*", rest.strip())
        values = [
            registers[it] if it in registers else int(it, 0) & WORD for it in sources
        ]
        registers[target] = INSTRUCTIONS[name](*values)
    return [registers[f"${index}"] for index in range(results)]


def planes_of(codes: np.ndarray, bits: int) -> list[int]:
    """A register for each plane: pieces of codes (2, slots), a row for each half."""
    registers, low = [], 0
    for plane in (8, 4, 2, 1):
        if bits & plane:
            pieces = codes >> low & 2**plane - 1
            places = plane * np.arange(codes.shape[1]) + 16 * np.arange(2)[:, None]
            registers.append(int((pieces.astype(np.int64) << places).sum()))
            low += plane
    return registers


@pytest.mark.parametrize(
    ("bits", "decode"),
    [
        *((bits, UNSIGNED) for bits in range(1, 9)),
        *((8, INT8), (8, FLOAT8), (6, FP6), (4, SIGNED_NIBBLE)),
    ],
)
def test_every_code_of_every_column_becomes_its_value(bits: int, decode: int) -> None:
    slots = 16 // tile_codes.widest_plane(bits)
    generator = np.random.default_rng(bits)
    every = generator.permutation(np.arange(2**bits).repeat(2 * slots))
    texts = [tile_codes.decoding(bits, decode, slot) for slot in range(slots)]
    for codes in every.reshape(-1, 2, slots):
        stored = codes
        if decode == FP6:
            # The sign of a code lies with the next of four.
            stored = codes & 31 | np.roll(codes & 32, 1, axis=1)
        planes = planes_of(stored, bits)
        if decode == FP6:
            # As `widened` has the plane of two bits: each byte twice.
            pieces = planes[1] & 255 | planes[1] >> 8 & 0xFF00
            planes[1] = execute(tile_codes.widening(True), 2, pieces)[0]
        for slot, text in enumerate(texts):
            (register,) = execute(text, 1, *planes)
            expected = value_of(codes[:, slot], bits, decode)
            np.testing.assert_array_equal(halves(register), expected)


def value_of(codes: np.ndarray, bits: int, decode: int) -> Any:
    """Those of the formats, as tile_codes has them: 2**-12 or 2**-8 of a float."""
    words = torch.tensor(codes, dtype=torch.int32)
    if decode == FP6:
        return row_scaled.decode_fp6(words).numpy() / 4096
    if decode == FLOAT8:
        return row_scaled.decode_float8(words).numpy() / 256
    if decode in (INT8, SIGNED_NIBBLE):
        return codes - (codes >> bits - 1 << bits)
    return codes - 2 ** (bits - 1)


def test_bytes_are_widened() -> None:
    assert execute(tile_codes.widening(False), 2, 0x44332211) == [0x220011, 0x440033]
    twice = execute(tile_codes.widening(True), 2, 0x44332211)
    assert twice == [0x22221111, 0x44443333]


def test_zeros_are_put_back_at_every_pattern() -> None:
    # The later column first; a quad beyond the weight's columns has nothing but zeros.
    patterns = np.array([(1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (3, 2), (0, 0)])
    generator = np.random.default_rng(0)
    for _ in range(300):
        # Of two registers the two quads of both halves.
        pattern = generator.integers(0, 7, (2, 2, 2))
        values = generator.integers(0, 16, (2, 2, 2, 2)) * (pattern < 6)[..., None]
        places = patterns[pattern]
        shifts = 4 * np.arange(4).reshape(2, 2) + 16 * np.arange(2)[:, None, None]
        stored = (values.astype(np.int64) << shifts).sum(axis=(1, 2, 3))
        # A byte for each half.
        shifts = 2 * np.arange(4).reshape(2, 2) + 8 * np.arange(4).reshape(2, 2, 1, 1)
        text = tile_codes.zeros_put_back()
        placed = int((places.astype(np.int64) << shifts).sum())
        columns = execute(text, 4, *map(int, stored), placed)
        for column, group, half, quad in np.ndindex(4, 2, 2, 2):
            kept = np.where(places == column, values, 0).sum(axis=3)
            shift = 16 * half + 8 * quad + 4 * (column % 2)
            nibble = columns[2 * (column // 2) + group] >> shift & 15
            assert nibble == kept[group, half, quad]
