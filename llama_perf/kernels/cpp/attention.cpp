// `llama_perf::decode_attention` on a CPU: one query a sequence attends to the filled
// positions of a cache, y = softmax(q K^T / sqrt(D)) V, in float32. The caches' codes
// are those of kernels/cache_codes.py.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <bit>
#include <cmath>
#include <vector>

#include "codes.h"
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
  float sum = 0;
  for (int lane = 0; lane < kLanes; lane++) sum += sums[lane];
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

struct Cache {
  const Tensor &k, &v;
  const c10::BFloat16 *k_scale, *v_scale;  // null where the cache has no codes
};

// Query `query`, (D,), of one head over `length` positions; scores has room for them.
template <typename Element>
void attend(const float* query, const Cache& cache, int64_t head, int64_t length,
            std::vector<float>& scores, float* out) {
  const int64_t positions = cache.k.size(2), width = cache.k.size(3);
  const auto* keys = static_cast<const Element*>(cache.k.const_data_ptr());
  const auto* values = static_cast<const Element*>(cache.v.const_data_ptr());
  const int64_t first = head * positions;
  const float root = std::sqrt(static_cast<float>(width));
  float largest = -INFINITY, sum = 0;
  for (int64_t at = 0; at < length; at++) {
    float score = dot(query, keys + (first + at) * width, width) / root;
    if (cache.k_scale) score *= static_cast<float>(cache.k_scale[first + at]);
    scores[at] = score;
    largest = std::max(largest, score);
  }
  for (int64_t at = 0; at < length; at++) {
    scores[at] = std::exp(scores[at] - largest);
    sum += scores[at];
  }
  std::fill_n(out, width, 0.0f);
  for (int64_t at = 0; at < length; at++) {
    float weight = scores[at] / sum;
    if (cache.v_scale) weight *= static_cast<float>(cache.v_scale[first + at]);
    add(weight, values + (first + at) * width, out, width);
  }
}

using Attend = decltype(&attend<float>);

Attend attend_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kChar: return attend<int8_t>;
    case at::kByte: return attend<Float8>;
    case at::kHalf: return attend<c10::Half>;
    case at::kBFloat16: return attend<c10::BFloat16>;
    default: return attend<float>;
  }
}

// See kernels/attention.py.
Tensor decode_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::optional<Tensor>& k_scale,
                        const std::optional<Tensor>& v_scale, const Tensor&,
                        const Tensor& filled) {
  const int64_t heads = k.size(1), width = k.size(3), groups = q.size(2) / heads;
  const Tensor queries = q.to(at::kFloat).contiguous();
  Tensor out = at::empty(q.sizes(), queries.options());
  Cache cache{k, v, nullptr, nullptr};
  if (k_scale) {
    cache.k_scale = k_scale->const_data_ptr<c10::BFloat16>();
    cache.v_scale = v_scale->const_data_ptr<c10::BFloat16>();
  }
  const int64_t* lengths = filled.const_data_ptr<int64_t>();
  const bool alike = filled.size(0) == 1;
  const Attend attend = attend_of(k.scalar_type());
  const int64_t all = k.size(0) * heads;
  int64_t longest = 0;
  for (int64_t at = 0; at < filled.size(0); at++) longest = std::max(longest, lengths[at]);
  const bool alone = all * longest * width < kAlone;
  Threads::run(all, alone ? 1 : at::get_num_threads(), [&](int64_t head) {
    const int64_t length = lengths[alike ? 0 : head / heads];
    std::vector<float> scores(length);
    for (int64_t query = head * groups; query < (head + 1) * groups; query++)
      attend(queries.const_data_ptr<float>() + query * width, cache, head, length, scores,
             out.mutable_data_ptr<float>() + query * width);
  });
  return out.to(q.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(llama_perf, CPU, library) {
  library.impl("decode_attention", TORCH_FN(decode_attention));
}

}  // namespace llama_perf
