// `llama_perf::packed_product` on a CPU: tokens times packed weights, in float32.
//
// More than four tokens decode a block of the weight again, while its words are in the
// processor's cache.

#include "products.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "blocks.h"
#include "threads.h"

namespace llama_perf {
namespace {

using at::Tensor;

// Chunks that a thread takes in one loop: fewer cost less, more share better. With one
// thread late, two leave the others waiting for a quarter of its work at most.
constexpr int64_t kChunksOfThread = 2;
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

// Rows of tokens that are multiplied: one, or fours.
int64_t rows_of(int64_t tokens) { return tokens == 1 ? 1 : (tokens + 3) / 4 * 4; }

// Tokens (`tokens`, `width`) in rows of `columns`, a multiple of what they have, times
// `factor`; the number of rows is one or a multiple of four. What is added are zeros.
// Empty where the tokens are such already.
std::vector<float> padded(const float* x, int64_t tokens, int64_t width, int64_t columns,
                          float factor) {
  const int64_t rows = rows_of(tokens);
  if (rows == tokens && columns == width && factor == 1) return {};
  std::vector<float> out(rows * columns);
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t column = 0; column < width; column++)
      out[token * columns + column] = x[token * width + column] * factor;
  return out;
}

// Behind `sums` those of a token's groups.
void add_group_sums(const float* x, const Product& p, std::vector<float>& sums) {
  for (int64_t at = 0; at < p.groups; at++, x += p.group) {
    Floats parts{};
    int64_t column = 0;
    for (; column + kLanes <= p.group; column += kLanes) parts += load<Floats>(x + column);
    float sum = sum_of(parts);
    for (; column < p.group; column++) sum += x[column];
    sums.push_back(sum);
  }
}

// y[n] = sum over k of x[k] * w[n, k]
template <typename Element>
Parts float_product(const Weight& weight, const float* x, int64_t tokens, float* out) {
  const int64_t rows = weight.rows(), columns = weight.columns();
  const Element* from = weight.codes.const_data_ptr<Element>();
  return {rows, [=](int64_t first, int64_t last) {
            for (int64_t row = first; row < last; row++)
              for (int64_t token = 0; token < tokens; token++)
                out[token * rows + row] =
                    dot(from + row * columns, x + token * columns, columns);
          }};
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

Ints int8_sums(const int32_t* codes, const int32_t* x, int64_t words) {
  Ints parts[4] = {};
  int64_t word = 0;
  for (; word + 4 <= words; word += 4)
    for (int part = 0; part < 4; part++)
      parts[part] = add_bytes(parts[part], load<Ints>(codes + (word + part) * kLanes),
                              x[word + part]);
  for (; word < words; word++)
    parts[0] = add_bytes(parts[0], load<Ints>(codes + word * kLanes), x[word]);
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

// y[m, n] = x_scale[m] * s[n] * sum over k of x[m, k] * c[n, k], the sums exact
Parts int8_product(const Weight& weight, const int8_t* x, std::vector<float> x_scales,
                   float* out) {
  const int64_t tokens = x_scales.size(), width = weight.columns(), rows = weight.rows();
  const int64_t blocks = weight.codes.size(0), words = weight.codes.size(1);
  std::vector<int32_t> x_words(tokens * words), offsets(tokens);
  for (int64_t token = 0; token < tokens; token++) {
    const int8_t* from = x + token * width;
    std::memcpy(&x_words[token * words], from, width);
    for (int64_t column = 0; column < width; column++) offsets[token] += from[column];
  }
  const int32_t* codes = weight.codes.const_data_ptr<int32_t>();
  const float* scale = weight.scale.const_data_ptr<float>();
  return {blocks, [=, x_words = std::move(x_words), offsets = std::move(offsets),
                   x_scales = std::move(x_scales)](int64_t first, int64_t last) {
            for (int64_t block = first; block < last; block++) {
              const int32_t* from = codes + block * words * kLanes;
              const Floats scales = load<Floats>(scale + block * kLanes);
              const int64_t count = std::min<int64_t>(kLanes, rows - block * kLanes);
              for (int64_t token = 0; token < tokens; token++) {
                const Ints sums = int8_sums(from, &x_words[token * words], words);
                const Floats y = to_floats(sums - kByteOffset * offsets[token]) *
                                 x_scales[token] * scales;
                std::memcpy(out + token * rows + block * kLanes, &y, count * sizeof(float));
              }
            }
          }};
}

// By tokens rounded as quantize_tokens of kernels/products.py rounds them.
Parts rounded_product(const Weight& weight, const float* x, int64_t tokens, float* out) {
  const int64_t width = weight.columns();
  std::vector<int8_t> values(tokens * width);
  std::vector<float> scales(tokens);
  for (int64_t token = 0; token < tokens; token++) {
    const float* from = x + token * width;
    float peak = 0;
    for (int64_t column = 0; column < width; column++)
      peak = std::max(peak, std::abs(from[column]));
    const float scale = std::max(peak / 127, std::numeric_limits<float>::min());
    for (int64_t column = 0; column < width; column++)
      values[token * width + column] = static_cast<int8_t>(
          std::nearbyint(std::clamp(from[column] / scale, -127.0f, 127.0f)));
    scales[token] = scale;
  }
  return int8_product(weight, values.data(), std::move(scales), out);
}

Parts decoded_product(const Weight& weight, const float* x, int64_t tokens, float* out) {
  const bool is_sparse = weight.format() == kSparse;
  const int64_t columns = weight.columns(), stored = is_sparse ? columns / 2 : columns;
  const int64_t units = (stored + kUnit - 1) / kUnit;
  Product p{};
  p.words = weight.codes.const_data_ptr<int32_t>();
  p.scale = weight.scale.const_data_ptr();
  p.zero = weight.zero.const_data_ptr();
  p.rows = weight.rows(), p.blocks = weight.codes.size(0);
  p.words_of_block = weight.codes.size(1), p.units = units;
  p.group = is_sparse ? kSparseGroup : weight.group();
  p.groups = p.group ? (columns + p.group - 1) / p.group : 0;
  p.half_scales = weight.scale.scalar_type() == at::kHalf;
  p.packed_zeros = weight.zero_kind() == kPacked;
  p.columns = units * (is_sparse ? 2 : 1) * kUnit;
  p.out = out, p.out_tokens = tokens;
  const float factor = weight.decode() == kFloat8 ? kFloat8Tokens : 1;
  auto own = padded(x, tokens, columns, p.columns, factor);
  const float* padded_x = own.empty() ? x : own.data();
  const int64_t rows = rows_of(tokens);
  std::vector<float> sums;
  if (!is_sparse)
    for (int64_t row = 0; row < rows; row++)
      add_group_sums(padded_x + row * p.columns, p, sums);
  const auto [one_token, four_tokens] =
      kernels_of(weight.format(), weight.bits(), weight.decode(), weight.group());
  const BlockProduct multiply = rows == 1 ? one_token : four_tokens;
  return {p.blocks, [=, own = std::move(own), sums = std::move(sums)](
                        int64_t first, int64_t last) {
            Product here = p;
            here.x = own.empty() ? x : own.data(), here.x_sums = sums.data();
            for (int64_t block = first; block < last; block++)
              for (int64_t token = 0; token < rows; token += 4)
                multiply(here, block, token);
          }};
}

// See kernels/products.py. `numbers` are rows and the fields of a Layout.
Tensor packed_product(const Tensor& x, const Tensor& codes, const Tensor& scale,
                      const Tensor& zero, at::IntArrayRef numbers, at::ScalarType dtype,
                      const std::optional<Tensor>& x_scale) {
  const Weight weight{codes, scale, zero, numbers};
  const int64_t tokens = x.size(0);
  Tensor out = at::empty({tokens, weight.rows()}, x.options().dtype(at::kFloat));
  float* to = out.mutable_data_ptr<float>();
  if (x_scale) {
    const Tensor values = x.contiguous(), scales = x_scale->contiguous();
    const float* first = scales.const_data_ptr<float>();
    run({int8_product(weight, values.const_data_ptr<int8_t>(), {first, first + tokens}, to)});
  } else {
    const Tensor wide = x.to(at::kFloat).contiguous();
    run({product_of(weight, wide.const_data_ptr<float>(), tokens, to)});
  }
  return out.to(dtype);
}

}  // namespace

Parts product_of(const Weight& weight, const float* x, int64_t tokens, float* out) {
  if (weight.rounds_tokens()) return rounded_product(weight, x, tokens, out);
  if (weight.format() != kFloatWeight) return decoded_product(weight, x, tokens, out);
  switch (weight.codes.scalar_type()) {
    case at::kBFloat16: return float_product<c10::BFloat16>(weight, x, tokens, out);
    case at::kHalf: return float_product<c10::Half>(weight, x, tokens, out);
    default: return float_product<float>(weight, x, tokens, out);
  }
}

void run(std::initializer_list<Parts> loops) {
  int64_t count = 0;
  for (const Parts& parts : loops) count += parts.count;
  const int threads = at::get_num_threads();
  const int64_t step = std::max<int64_t>(count / (threads * kChunksOfThread), 1);
  Threads::run((count + step - 1) / step, threads, [&](int64_t chunk) {
    int64_t first = chunk * step, last = std::min(first + step, count);
    for (const Parts& parts : loops) {
      if (first < parts.count && last > 0)
        parts.work(std::max<int64_t>(first, 0), std::min(last, parts.count));
      first -= parts.count, last -= parts.count;
    }
  });
}

TORCH_LIBRARY_IMPL(llama_perf, CPU, library) {
  library.impl("packed_product", TORCH_FN(packed_product));
}

}  // namespace llama_perf
