import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.kernels import packing

BITS = st.integers(1, 8)
SIZES = st.integers(1, 70)


@given(bits=BITS, rows=SIZES, columns=SIZES, seed=st.integers(0, 99))
def test_packing_and_unpacking_gives_the_codes_back(
    bits: int, rows: int, columns: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=draw).int()
    packed = packing.pack(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (-(-rows // 16), packing.words(bits, columns), 16)
    unpacked = packing.unpack(packed, bits, columns)
    assert torch.equal(packing.from_lanes(unpacked, rows), codes)
    padded = packing.unpack(packed, bits, 8 * packing.units(columns))
    assert not padded[:, columns:].any(), "the padding is zeros"


@pytest.mark.parametrize("bits", range(1, 9))
def test_full_words_take_no_bit_more(bits: int) -> None:
    assert sum(packing.planes(bits)) == bits
    # 11008 of Llama-2's feed-forward layers too.
    for columns in (4096, 11008):
        assert packing.words(bits, columns) * 32 == bits * columns


def test_where_a_code_lies() -> None:
    codes = torch.zeros((18, 16), dtype=torch.int32)
    codes[17, 9] = 0b101011
    packed = packing.pack(codes, 6)
    # Words 0 and 1: the 4-bit plane, columns 8 to 15 in the second; 2: the 2-bit plane.
    assert packed[1, 1, 1] == 0b1011 << 4
    assert packed[1, 2, 1] == 0b10 << 18
    assert packed.count_nonzero() == 2


@given(rows=SIZES, columns=SIZES)
def test_lanes_hold_sixteen_rows_side_by_side(rows: int, columns: int) -> None:
    values = torch.arange(rows * columns).view(rows, columns)
    blocks = packing.to_lanes(values)
    assert blocks.is_contiguous()
    assert blocks.shape == (-(-rows // 16), columns, 16)
    assert torch.equal(packing.from_lanes(blocks, rows), values)
