// `llama_perf::packed_product` on a CPU: tokens times packed weights, in float32. The
// formulas are those of kernels/row_scaled.py, grouped.py and sparse.py.
//
// A block of sixteen rows is decoded once for up to four tokens. More tokens decode it
// again while its words are in the processor's cache.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <utility>
#include <vector>

#include "codes.h"
#include "threads.h"

namespace llama_perf {
namespace {

using at::Tensor;

// Chunks that a thread takes in one product: fewer cost less, more share better.
constexpr int64_t kChunksOfThread = 4;
// Columns of a sparse weight that share a scale.
constexpr int64_t kSparseGroup = 128;

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
  const Floats value = decode_nibble<slot>(unit.nibbles);
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

using BlockProduct = void (*)(const Product&, int64_t block, int64_t token);
// For one token, and for four.
using Kernels = std::array<BlockProduct, 2>;

template <int kBits>
Kernels kernels_of_groups(int64_t group) {
  if (group % kUnit == 0) return {grouped<kBits, 1>, grouped<kBits, 4>};
  return {finely_grouped<kBits, 1>, finely_grouped<kBits, 4>};
}

Kernels kernels_of(int64_t format, int64_t bits, int64_t decode, int64_t group) {
  if (format == kSparse) return {sparse<1>, sparse<4>};
  if (decode == kInt8) return {row_scaled<8, kInt8, 1>, row_scaled<8, kInt8, 4>};
  if (decode == kFp6) return {row_scaled<6, kFp6, 1>, row_scaled<6, kFp6, 4>};
  if (decode == kFloat8) return {row_scaled<8, kFloat8, 1>, row_scaled<8, kFloat8, 4>};
  switch (bits) {
    case 1: return kernels_of_groups<1>(group);
    case 2: return kernels_of_groups<2>(group);
    case 3: return kernels_of_groups<3>(group);
    case 4: return kernels_of_groups<4>(group);
    case 5: return kernels_of_groups<5>(group);
    case 6: return kernels_of_groups<6>(group);
    case 7: return kernels_of_groups<7>(group);
    default: return kernels_of_groups<8>(group);
  }
}

// Calls `work(first, last)` for ranges of `count` items on all threads.
template <typename Work>
void share(int64_t count, const Work& work) {
  const int threads = at::get_num_threads();
  const int64_t step = std::max<int64_t>(count / (threads * kChunksOfThread), 1);
  Threads::run((count + step - 1) / step, threads, [&](int64_t chunk) {
    work(chunk * step, std::min((chunk + 1) * step, count));
  });
}

// Tokens as float32 in rows of `columns`, a multiple of what x has, times `factor`; the
// number of rows is one or a multiple of four. What is added are zeros.
Tensor padded(const Tensor& x, int64_t columns, float factor) {
  const Tensor wide = x.to(at::kFloat).contiguous();
  const int64_t tokens = wide.size(0), width = wide.size(1);
  const int64_t rows = tokens == 1 ? 1 : (tokens + 3) / 4 * 4;
  if (rows == tokens && columns == width && factor == 1) return wide;
  Tensor out = at::zeros({rows, columns}, wide.options());
  const float* from = wide.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t column = 0; column < width; column++)
      to[token * columns + column] = from[token * width + column] * factor;
  return out;
}

std::vector<float> group_sums(const Tensor& x, int64_t groups, int64_t group) {
  std::vector<float> sums;
  for (int64_t token = 0; token < x.size(0); token++)
    for (int64_t at = 0; at < groups; at++) {
      const float* from = x.const_data_ptr<float>() + token * x.size(1) + at * group;
      float sum = 0;
      for (int64_t column = 0; column < group; column++) sum += from[column];
      sums.push_back(sum);
    }
  return sums;
}

template <typename Element>
float dot(const Element* weight, const float* x, int64_t columns) {
  constexpr int kParts = 4;
  Floats parts[kParts] = {};
  int64_t column = 0;
  for (; column + kParts * kLanes <= columns; column += kParts * kLanes)
    for (int part = 0; part < kParts; part++) {
      const int64_t at = column + part * kLanes;
      parts[part] += load_floats(weight + at) * load<Floats>(x + at);
    }
  const Floats sums = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  float sum = 0;
  for (int lane = 0; lane < kLanes; lane++) sum += sums[lane];
  for (; column < columns; column++) sum += static_cast<float>(weight[column]) * x[column];
  return sum;
}

// y[n] = sum over k of x[k] * w[n, k]
template <typename Element>
void float_product(const Tensor& x, const Tensor& weight, Tensor& out) {
  const int64_t rows = weight.size(0), columns = weight.size(1);
  const Element* from = weight.const_data_ptr<Element>();
  const float* tokens = x.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  share(rows, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
      for (int64_t token = 0; token < out.size(0); token++)
        to[token * rows + row] = dot(from + row * columns, tokens + token * columns, columns);
  });
}

// Four int8 columns of a lane times those of a token, which are one int32.
inline Ints add_bytes(Ints sums, Ints word, int32_t x) {
#if defined(__AVX512VNNI__)
  // The instruction takes unsigned values from one side: 128 more than the code's.
  const __m512i codes = _mm512_xor_si512((__m512i)word, _mm512_set1_epi8(-128));
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, codes, _mm512_set1_epi32(x));
#else
  for (int byte = 0; byte < 4; byte++)
    sums += (word << (24 - 8 * byte) >> 24) * static_cast<int8_t>(x >> (8 * byte));
  return sums;
#endif
}

#if defined(__AVX512VNNI__)
constexpr int32_t kByteOffset = 128;
#else
constexpr int32_t kByteOffset = 0;
#endif

// y[m, n] = x_scale[m] * s[n] * sum over k of x[m, k] * c[n, k], the sums exact
void int8_product(const Tensor& x, const Tensor& codes, const Tensor& scale,
                  const Tensor& x_scale, Tensor& out) {
  const int64_t tokens = x.size(0), width = x.size(1), rows = out.size(1);
  const int64_t words = codes.size(1);
  std::vector<int32_t> x_words(tokens * words), offsets(tokens);
  for (int64_t token = 0; token < tokens; token++) {
    const int8_t* from = x.const_data_ptr<int8_t>() + token * width;
    std::memcpy(&x_words[token * words], from, width);
    for (int64_t column = 0; column < width; column++) offsets[token] += from[column];
  }
  const float* x_scales = x_scale.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  share(codes.size(0), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; block++) {
      const int32_t* from = codes.const_data_ptr<int32_t>() + block * words * kLanes;
      const Floats scales = load<Floats>(scale.const_data_ptr<float>() + block * kLanes);
      const int64_t count = std::min<int64_t>(kLanes, rows - block * kLanes);
      for (int64_t token = 0; token < tokens; token++) {
        Ints parts[4] = {};
        const int32_t* of_token = &x_words[token * words];
        int64_t word = 0;
        for (; word + 4 <= words; word += 4)
          for (int part = 0; part < 4; part++)
            parts[part] = add_bytes(parts[part], load<Ints>(from + (word + part) * kLanes),
                                    of_token[word + part]);
        for (; word < words; word++)
          parts[0] = add_bytes(parts[0], load<Ints>(from + word * kLanes), of_token[word]);
        const Ints sums = (parts[0] + parts[1]) + (parts[2] + parts[3]);
        const Floats y =
            to_floats(sums - kByteOffset * offsets[token]) * x_scales[token] * scales;
        std::memcpy(to + token * rows + block * kLanes, &y, count * sizeof(float));
      }
    }
  });
}

// See kernels/products.py. `numbers` are rows and the fields of a Layout.
Tensor packed_product(const Tensor& x, const Tensor& codes, const Tensor& scale,
                      const Tensor& zero, at::IntArrayRef numbers, at::ScalarType dtype,
                      const std::optional<Tensor>& x_scale) {
  const int64_t rows = numbers[0], columns = numbers[1], format = numbers[2];
  const int64_t bits = numbers[3], decode = numbers[4], group = numbers[5];
  Tensor out = at::empty({x.size(0), rows}, x.options().dtype(at::kFloat));
  if (x_scale) {
    int8_product(x.contiguous(), codes, scale, x_scale->contiguous(), out);
    return out.to(dtype);
  }
  if (format == kFloatWeight) {
    const Tensor wide = x.to(at::kFloat).contiguous();
    switch (codes.scalar_type()) {
      case at::kBFloat16: float_product<c10::BFloat16>(wide, codes, out); break;
      case at::kHalf: float_product<c10::Half>(wide, codes, out); break;
      default: float_product<float>(wide, codes, out);
    }
    return out.to(dtype);
  }
  const int64_t stored = format == kSparse ? columns / 2 : columns;
  const int64_t units = (stored + kUnit - 1) / kUnit;
  Product p{};
  p.words = codes.const_data_ptr<int32_t>();
  p.scale = scale.const_data_ptr();
  p.zero = zero.const_data_ptr();
  p.rows = rows, p.blocks = codes.size(0), p.words_of_block = codes.size(1);
  p.units = units, p.group = format == kSparse ? kSparseGroup : group;
  p.groups = p.group ? (columns + p.group - 1) / p.group : 0;
  p.half_scales = scale.scalar_type() == at::kHalf;
  p.packed_zeros = numbers[6] == kPacked;
  const float factor = decode == kFloat8 ? kFloat8Tokens : 1;
  const Tensor tokens = padded(x, units * (format == kSparse ? 2 : 1) * kUnit, factor);
  p.x = tokens.const_data_ptr<float>(), p.columns = tokens.size(1);
  const auto x_sums = group_sums(tokens, format == kSparse ? 0 : p.groups, p.group);
  p.x_sums = x_sums.data();
  p.out = out.mutable_data_ptr<float>(), p.out_tokens = out.size(0);
  const auto [one_token, four_tokens] = kernels_of(format, bits, decode, group);
  share(p.blocks, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; block++)
      if (tokens.size(0) == 1)
        one_token(p, block, 0);
      else
        for (int64_t token = 0; token < tokens.size(0); token += 4)
          four_tokens(p, block, token);
  });
  return out.to(dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(llama_perf, CPU, library) {
  library.impl("packed_product", TORCH_FN(packed_product));
}

}  // namespace llama_perf
