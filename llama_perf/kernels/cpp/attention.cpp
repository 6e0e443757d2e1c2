// `llama_perf::decode_attention` on a CPU: one query a sequence attends to the filled
// positions of a cache, y = softmax(q K^T / sqrt(D)) V, in float32. The caches' codes
// are those of kernels/cache_codes.py.

#include "attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <bit>
#include <cmath>

#include "exponential.h"
#include "threads.h"

namespace llama_perf {
namespace {

using at::Tensor;

// Values of a cache below which other threads would cost more than they take over.
constexpr int64_t kAlone = 1 << 16;

// A type for each kind of cache: floats, or codes of eight bits.
struct Float8 {
  uint8_t bits;
};

inline float value_of(Float8 code) {
  const int32_t bits = static_cast<int8_t>(code.bits) << 20 & 0x87F00000;
  return std::bit_cast<float>(bits) * 0x1p120f;
}
template <typename Element>
float value_of(Element value) {
  return static_cast<float>(value);
}

template <typename Element>
inline Floats values_of(const Element* from) {
  if constexpr (sizeof(Element) > 1) {
    return load_floats(from);
  } else {
    typedef int8_t Bytes __attribute__((vector_size(16)));
    const Ints codes = __builtin_convertvector(load<Bytes>(from), Ints);
    if constexpr (std::is_same_v<Element, int8_t>) return to_floats(codes);
    const Ints bits = codes << 20 & static_cast<int32_t>(0x87F00000);
    return (Floats)bits * 0x1p120f;
  }
}

template <typename Element>
float dot(const float* query, const Element* key, int64_t width) {
  Floats sums{};
  int64_t at = 0;
  for (; at + kLanes <= width; at += kLanes)
    sums += load<Floats>(query + at) * values_of(key + at);
  float sum = sum_of(sums);
  for (; at < width; at++) sum += query[at] * value_of(key[at]);
  return sum;
}

// out += weight * values
template <typename Element>
void add(float weight, const Element* values, float* out, int64_t width) {
  int64_t at = 0;
  for (; at + kLanes <= width; at += kLanes) {
    const Floats sum = load<Floats>(out + at) + weight * values_of(values + at);
    std::memcpy(out + at, &sum, sizeof sum);
  }
  for (; at < width; at++) out[at] += weight * value_of(values[at]);
}

// Query `query`, (D,), over `length` positions of the cache's rows from `first` on;
// `scores` has room for them in sixteens.
template <typename Element>
void attend_head(const float* query, const Cache& cache, int64_t first, int64_t length,
                 float* scores, float* out) {
  const int64_t width = cache.k.size(3);
  const auto* keys = static_cast<const Element*>(cache.k.const_data_ptr());
  const auto* values = static_cast<const Element*>(cache.v.const_data_ptr());
  const float root = std::sqrt(static_cast<float>(width));
  float largest = -INFINITY;
  for (int64_t at = 0; at < length; at++) {
    float score = dot(query, keys + (first + at) * width, width) / root;
    if (cache.k_scale) score *= static_cast<float>(cache.k_scale[first + at]);
    scores[at] = score;
    largest = std::max(largest, score);
  }
  std::fill(scores + length, scores + in_lanes(length), -INFINITY);
  Floats sums{};
  for (int64_t at = 0; at < length; at += kLanes) {
    const Floats powers = exponential(load<Floats>(scores + at) - largest);
    std::memcpy(scores + at, &powers, sizeof powers);
    sums += powers;
  }
  const float sum = sum_of(sums);
  std::fill_n(out, width, 0.0f);
  for (int64_t at = 0; at < length; at++) {
    float weight = scores[at] / sum;
    if (cache.v_scale) weight *= static_cast<float>(cache.v_scale[first + at]);
    add(weight, values + (first + at) * width, out, width);
  }
}

using Attend = decltype(&attend_head<float>);

Attend attend_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kChar: return attend_head<int8_t>;
    case at::kByte: return attend_head<Float8>;
    case at::kHalf: return attend_head<c10::Half>;
    case at::kBFloat16: return attend_head<c10::BFloat16>;
    default: return attend_head<float>;
  }
}

// See kernels/attention.py.
Tensor decode_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::optional<Tensor>& k_scale,
                        const std::optional<Tensor>& v_scale, const Tensor&,
                        const Tensor& filled, int64_t window) {
  const Tensor queries = q.to(at::kFloat).contiguous();
  Tensor out = at::empty(q.sizes(), queries.options());
  const int64_t* first = filled.const_data_ptr<int64_t>();
  std::vector<int64_t> lengths(first, first + filled.size(0));
  if (lengths.size() == 1) lengths.resize(q.size(0), lengths[0]);
  attend(queries.const_data_ptr<float>(), q.size(2), {k, v, k_scale, v_scale}, lengths,
         window, out.mutable_data_ptr<float>());
  return out.to(q.scalar_type());
}

}  // namespace

void attend(const float* queries, int64_t query_heads, const Cache& cache,
            const std::vector<int64_t>& lengths, int64_t window, float* out) {
  const int64_t heads = cache.k.size(1), width = cache.k.size(3);
  const int64_t positions = cache.k.size(2), most = window ? window : positions;
  const int64_t groups = query_heads / heads, rows = lengths.size();
  const int64_t tokens = rows / cache.k.size(0);
  const Attend attend = attend_of(cache.k.scalar_type());
  const int64_t longest = std::min(most, *std::max_element(lengths.begin(), lengths.end()));
  const bool alone = rows * heads * longest * width < kAlone;
  Threads::run(rows * heads, alone ? 1 : at::get_num_threads(), [&](int64_t at) {
    const int64_t row = at / heads, head = row / tokens * heads + at % heads;
    const int64_t length = std::min(most, lengths[row]);
    const int64_t first = head * positions + lengths[row] - length;
    std::vector<float> scores(in_lanes(length));
    for (int64_t query = at * groups; query < (at + 1) * groups; query++)
      attend(queries + query * width, cache, first, length, scores.data(),
             out + query * width);
  });
}

TORCH_LIBRARY_IMPL(llama_perf, CPU, library) {
  library.impl("decode_attention", TORCH_FN(decode_attention));
}

}  // namespace llama_perf
