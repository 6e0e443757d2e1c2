// `llama_perf::packed_product` on a CPU: tokens times packed weights, in float32.
//
// More than four tokens decode a block of the weight again, while its words are in the
// processor's cache.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "blocks.h"
#include "threads.h"

namespace llama_perf {
namespace {

using at::Tensor;

// Chunks that a thread takes in one product: fewer cost less, more share better.
constexpr int64_t kChunksOfThread = 4;
// Columns of a sparse weight that share a scale.
constexpr int64_t kSparseGroup = 128;

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
