// Packed codes as float32: a unit, eight columns of sixteen rows, at a time. The layout
// of the words is that of kernels/packing.py, the values of the codes are those of
// kernels/row_scaled.py and sparse.py. Knows no scales.
//
// A vector has a lane for each of sixteen rows. GCC and Clang compile it to the widest
// registers that the processor has: AVX-512, two of AVX2, four of NEON.

#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace llama_perf {

constexpr int kLanes = 16;
constexpr int kUnit = 8;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

// As in kernels/weight.py.
enum Format { kFloatWeight, kCodes, kSparse };
enum Decode { kUnsigned, kInt8, kFp6, kFloat8 };
enum Zero { kPacked = 2, kOffset = 3 };

template <typename Vector, typename Element>
inline Vector load(const Element* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

// The multiple of the lanes that holds `count`.
constexpr int64_t in_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

inline float sum_of(Floats values) {
  float sum = 0;
  for (int lane = 0; lane < kLanes; lane++) sum += values[lane];
  return sum;
}

inline Floats to_floats(Ints ints) { return __builtin_convertvector(ints, Floats); }

// Sixteen values of a type of 16 bits, or of float32, side by side.
template <typename Element>
inline Floats load_floats(const Element* from) {
  if constexpr (std::is_same_v<Element, float>) return load<Floats>(from);
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  if constexpr (std::is_same_v<Element, c10::Half>) return (Floats)_mm512_cvtph_ps(bits);
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#else
  Floats values;
  for (int lane = 0; lane < kLanes; lane++) values[lane] = static_cast<float>(from[lane]);
  return values;
#endif
}

// Tables of sixteen floats, looked up by the lowest bits of each lane: four of them in
// one table, five in two.
#if defined(__AVX512F__)
constexpr bool kTables = true;
inline Floats look_up(Floats table, Ints index) {
  return (Floats)_mm512_permutexvar_ps((__m512i)index, (__m512)table);
}
inline Floats look_up(Floats lower, Floats upper, Ints index) {
  return (Floats)_mm512_permutex2var_ps((__m512)lower, (__m512i)index, (__m512)upper);
}
#else
// Other processors compute what would be looked up.
constexpr bool kTables = false;
inline Floats look_up(Floats, Ints) { return Floats{}; }
inline Floats look_up(Floats, Floats, Ints) { return Floats{}; }
#endif

// Words that a block has of a plane of `plane` bits, in `units` units.
constexpr int64_t plane_words(int plane, int64_t units) {
  return (units * kUnit * plane + 31) / 32;
}

// The words of a unit's codes of `kBits`, plane by plane.
template <int kBits>
struct Unit {
  Ints low{}, high{}, nibbles{}, pairs{}, ones{};

  // `words` are those of a block with `units` units.
  Unit(const int32_t* words, int64_t unit, int64_t units) {
    const auto at = [&](int64_t word) { return load<Ints>(words + word * kLanes); };
    if constexpr (kBits == 8) low = at(2 * unit), high = at(2 * unit + 1);
    if constexpr (kBits & 4) {
      nibbles = at(unit);
      words += plane_words(4, units) * kLanes;
    }
    if constexpr (kBits & 2) {
      pairs = at(unit / 2) >> static_cast<int>(16 * (unit % 2));
      words += plane_words(2, units) * kLanes;
    }
    if constexpr (kBits & 1) ones = at(unit / 4) >> static_cast<int>(8 * (unit % 4));
  }

  // The byte of the column `slot`, its sign copied down.
  template <int slot>
  Ints byte() const {
    return (slot < 4 ? low : high) << (24 - 8 * (slot % 4)) >> 24;
  }

  // The code of the column `slot`.
  template <int slot>
  Ints code() const {
    if constexpr (kBits == 8) return byte<slot>() & 255;
    Ints all{};
    if constexpr (kBits & 4) all = nibbles >> (4 * slot) & 15;
    constexpr int before_pairs = kBits & 4, before_ones = kBits & 6;
    if constexpr (kBits & 2) all |= (pairs >> (2 * slot) & 3) << before_pairs;
    if constexpr (kBits & 1) all |= (ones >> slot & 1) << before_ones;
    return all;
  }
};

// A decoded float8 is 2**-120 of its value. Tokens are scaled up by one part of that,
// sums by the rest, so that no product is too small for its digits.
constexpr float kFloat8Tokens = 0x1p64f, kFloat8Sums = 0x1p56f;

// What is subtracted from unsigned codes before they are multiplied: their middle. Sums
// of smaller terms are more exact.
template <int kBits>
constexpr int kMiddle = 1 << (kBits - 1);

constexpr Floats kNibbles = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
// The values of fp6 codes without their sign.
constexpr Floats kSmallFp6 = {0,   .0625, .125, .1875, .25, .3125, .375, .4375,
                              .5,  .625,  .75,  .875,  1,   1.25,  1.5,  1.75};
constexpr Floats kLargeFp6 = {2, 2.5, 3,  3.5, 4,  5,  6,  7,
                              8, 10,  12, 14,  16, 20, 24, 28};

constexpr Floats kSignedNibbles = {0,  1,  2,  3,  4,  5,  6,  7,
                                   -8, -7, -6, -5, -4, -3, -2, -1};

// Codes of four bits less 8, or in two's complement.
template <int slot, bool is_signed = false>
inline Floats decode_nibble(Ints nibbles) {
  if constexpr (kTables)
    return look_up(is_signed ? kSignedNibbles : kNibbles, nibbles >> (4 * slot));
  if constexpr (is_signed) return to_floats(nibbles << (28 - 4 * slot) >> 28);
  return to_floats((nibbles >> (4 * slot) & 15) - 8);
}

// The values of a unit's column `slot`; of unsigned codes less their middle.
template <int kBits, Decode kDecode, int slot>
inline Floats decode(const Unit<kBits>& unit) {
  if constexpr (kDecode == kInt8) {
    return to_floats(unit.template byte<slot>());
  } else if constexpr (kDecode == kFloat8) {
    // Sign, exponent and mantissa in the places of a float32's.
    const Ints bits = (slot < 4 ? unit.low : unit.high) << (24 - 8 * (slot % 4)) >> 4;
    return (Floats)(bits & static_cast<int32_t>(0x87F00000));
  } else if constexpr (kDecode == kFp6) {
    const Ints code = unit.template code<slot>();
    Floats size = look_up(kSmallFp6, kLargeFp6, code);
    if constexpr (!kTables) {
      // A float32 of exponent E - 3 with the two bits of M first; not for E = 0.
      const Ints bits = code & 31;
      const Floats subnormal = to_floats(bits) * 0.0625f;
      size = bits < 4 ? subnormal : (Floats)((bits << 21) + (124 << 23));
    }
    // The sign lies with the next of four codes.
    constexpr int sign = 2 * (slot & ~3) + (2 * slot + 3) % 8;
    return (Floats)((Ints)size | (unit.pairs << (31 - sign) & INT32_MIN));
  } else if constexpr (kBits == 4) {
    return decode_nibble<slot>(unit.nibbles);
  } else {
    return to_floats(unit.template code<slot>() - kMiddle<kBits>);
  }
}

}  // namespace llama_perf
