// Products of float32 tokens with one block of a packed weight, y = x W^T. The formulas
// are those of kernels/row_scaled.py, grouped.py and sparse.py.
//
// A block, sixteen rows, is decoded once for `kTokens` tokens, one or four.

#pragma once

#include <algorithm>
#include <utility>

#include "codes.h"

namespace llama_perf {

// What a product knows: a weight, and tokens as float32 (`tokens`, `columns`), where
// both are multiples of what is multiplied at a time. `out` is (M, rows).
struct Product {
  const int32_t* words;
  const void* scale;
  const void* zero;
  int64_t rows, blocks, words_of_block, units, groups, group;
  bool half_scales;  // otherwise bfloat16
  bool packed_zeros;
  const float* x;
  const float* x_sums;  // of each group, (tokens, groups)
  int64_t tokens, columns;
  float* out;
  int64_t out_tokens;

  const int32_t* block_words(int64_t block) const {
    return words + block * words_of_block * kLanes;
  }

  void store(int64_t block, int64_t token, Floats y) const {
    if (token >= out_tokens) return;
    const int64_t first = block * kLanes;
    const int64_t count = std::min<int64_t>(kLanes, rows - first);
    std::memcpy(out + token * rows + first, &y, count * sizeof(float));
  }

  // 16-bit scales, or zeros, of a group.
  Floats of_group(const void* from, int64_t block, int64_t at) const {
    const int64_t place = (block * groups + at) * kLanes;
    if (half_scales) return load_floats(static_cast<const c10::Half*>(from) + place);
    return load_floats(static_cast<const c10::BFloat16*>(from) + place);
  }
};

// Sums of `kTokens` tokens. One token has several, so that no addition waits for the
// one before.
template <int kTokens>
struct Sums {
  static constexpr int kParts = kTokens == 1 ? 4 : 1;
  Floats parts[kTokens][kParts] = {};

  template <int part>
  void add(Floats values, const float* x, int64_t columns) {
    for (int token = 0; token < kTokens; token++)
      parts[token][part % kParts] += values * x[token * columns];
  }

  Floats of(int token) const {
    Floats sum = parts[token][0];
    for (int part = 1; part < kParts; part++) sum += parts[token][part];
    return sum;
  }
};

template <int kBits, Decode kDecode, int kTokens, int... slots>
inline void add_unit(Sums<kTokens>& sums, const Unit<kBits>& unit, const float* x,
                     int64_t columns, std::integer_sequence<int, slots...>) {
  (sums.template add<slots>(decode<kBits, kDecode, slots>(unit), x + slots, columns), ...);
}

constexpr auto kSlots = std::make_integer_sequence<int, kUnit>();

// y = s * sum over k of x[k] * v(c[k])
template <int kBits, Decode kDecode, int kTokens>
void row_scaled(const Product& p, int64_t block, int64_t token) {
  const int32_t* words = p.block_words(block);
  const float* x = p.x + token * p.columns;
  Sums<kTokens> sums;
  for (int64_t unit = 0; unit < p.units; unit++, x += kUnit)
    add_unit<kBits, kDecode>(sums, Unit<kBits>(words, unit, p.units), x, p.columns, kSlots);
  Floats scale = load<Floats>(static_cast<const float*>(p.scale) + block * kLanes);
  if (kDecode == kFloat8) scale *= kFloat8Sums;
  for (int i = 0; i < kTokens; i++) p.store(block, token + i, sums.of(i) * scale);
}

template <int kBits, int... slots>
inline void unpack(const Unit<kBits>& unit, Floats* values,
                   std::integer_sequence<int, slots...>) {
  ((values[slots] = decode<kBits, kUnsigned, slots>(unit)), ...);
}

// The zeros of a block's groups, eight groups at a time, less the middle of the codes.
template <int kBits>
struct Zeros {
  const Product& p;
  int64_t block;
  Floats some[kUnit];

  Floats of(int64_t group) {
    if (!p.packed_zeros) return p.of_group(p.zero, block, group);
    if (group % kUnit == 0) {
      const int64_t units = (p.groups + kUnit - 1) / kUnit;
      const int64_t words = words_of(units);
      const int32_t* from = static_cast<const int32_t*>(p.zero) + block * words * kLanes;
      unpack(Unit<kBits>(from, group / kUnit, units), some, kSlots);
    }
    return some[group % kUnit];
  }

  static int64_t words_of(int64_t units) {
    int64_t words = 0;
    for (int plane : {8, 4, 2, 1})
      if (kBits & plane) words += plane_words(plane, units);
    return words;
  }
};

// y = sum over g of (sum of x * c - z * sum of x) * s, or + z * sum of x for offsets
template <int kBits, int kTokens>
void grouped(const Product& p, int64_t block, int64_t token) {
  const int32_t* words = p.block_words(block);
  const float* x = p.x + token * p.columns;
  const int64_t units = p.group / kUnit;
  Floats totals[kTokens] = {};
  Zeros<kBits> zeros{p, block, {}};
  for (int64_t group = 0; group < p.groups; group++) {
    Sums<kTokens> sums;
    for (int64_t unit = group * units; unit < (group + 1) * units; unit++, x += kUnit)
      add_unit<kBits, kUnsigned>(sums, Unit<kBits>(words, unit, p.units), x, p.columns,
                                 kSlots);
    const Floats scale = p.of_group(p.scale, block, group), zero = zeros.of(group);
    for (int i = 0; i < kTokens; i++) {
      const float x_sum = p.x_sums[(token + i) * p.groups + group];
      if (p.packed_zeros)
        totals[i] += (sums.of(i) - zero * x_sum) * scale;
      else
        totals[i] += sums.of(i) * scale + zero * x_sum;
    }
  }
  for (int i = 0; i < kTokens; i++) p.store(block, token + i, totals[i]);
}

// The same where a unit lies in several groups.
template <int kBits, int kTokens>
void finely_grouped(const Product& p, int64_t block, int64_t token) {
  const int32_t* words = p.block_words(block);
  const float* x = p.x + token * p.columns;
  Sums<kTokens> sums;
  Zeros<kBits> zeros{p, block, {}};
  Floats values[kUnit], scale{}, zero{};
  for (int64_t column = 0; column < p.groups * p.group; column++) {
    if (column % kUnit == 0)
      unpack(Unit<kBits>(words, column / kUnit, p.units), values, kSlots);
    if (column % p.group == 0) {
      scale = p.of_group(p.scale, block, column / p.group);
      zero = zeros.of(column / p.group);
    }
    const Floats value = values[column % kUnit];
    sums.template add<0>(p.packed_zeros ? (value - zero) * scale : value * scale + zero,
                         x + column, p.columns);
  }
  for (int i = 0; i < kTokens; i++) p.store(block, token + i, sums.of(i));
}

// A stored value of 2:4 codes times the column of its quad that it is for: quad
// `slot / 2` of sixteen columns `x`.
template <int slot>
inline Floats picked(Ints place, const float* x) {
  constexpr int quad = slot / 2 * 4;
  if constexpr (kTables) return look_up(load<Floats>(x), (place & 3) | quad);
  const Floats none{};
  const Floats low = place == 0 ? none + x[quad] : none + x[quad + 1];
  const Floats high = place == 2 ? none + x[quad + 2] : none + x[quad + 3];
  return place < 2 ? low : high;
}

template <int slot, int kTokens>
inline void add_stored(Sums<kTokens>& sums, const Unit<6>& unit, const float* x,
                       int64_t columns) {
  const Floats value = decode_nibble<slot, true>(unit.nibbles);
  const Ints place = unit.pairs >> (2 * slot) & 3;
  for (int token = 0; token < kTokens; token++)
    sums.parts[token][slot % Sums<kTokens>::kParts] +=
        value * picked<slot>(place, x + token * columns);
}

template <int kTokens, int... slots>
inline void add_sparse(Sums<kTokens>& sums, const Unit<6>& unit, const float* x,
                       int64_t columns, std::integer_sequence<int, slots...>) {
  (add_stored<slots>(sums, unit, x, columns), ...);
}

// y = sum over g of s * sum over stored values of x[place] * (c - 8)
template <int kTokens>
void sparse(const Product& p, int64_t block, int64_t token) {
  const int32_t* words = p.block_words(block);
  const float* x = p.x + token * p.columns;
  const int64_t units = p.group / (2 * kUnit);
  Floats totals[kTokens] = {};
  for (int64_t group = 0; group < p.groups; group++) {
    Sums<kTokens> sums;
    const int64_t last = std::min((group + 1) * units, p.units);
    for (int64_t unit = group * units; unit < last; unit++, x += 2 * kUnit)
      add_sparse(sums, Unit<6>(words, unit, p.units), x, p.columns, kSlots);
    const Floats scale = p.of_group(p.scale, block, group);
    for (int i = 0; i < kTokens; i++) totals[i] += sums.of(i) * scale;
  }
  for (int i = 0; i < kTokens; i++) p.store(block, token + i, totals[i]);
}

}  // namespace llama_perf
