// Attention of queries to the filled positions of a cache, for an operator to run.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace llama_perf {

// Keys and values, (B, H, S, D), and their codes' scales, (B, H, S), or null.
struct Cache {
  const at::Tensor &k, &v;
  c10::BFloat16 *k_scale, *v_scale;

  Cache(const at::Tensor& keys, const at::Tensor& values) : Cache(keys, values, {}, {}) {}
  Cache(const at::Tensor& keys, const at::Tensor& values,
        const std::optional<at::Tensor>& key_scales,
        const std::optional<at::Tensor>& value_scales)
      : k(keys), v(values), k_scale(nullptr), v_scale(nullptr) {
    if (key_scales) k_scale = key_scales->mutable_data_ptr<c10::BFloat16>();
    if (value_scales) v_scale = value_scales->mutable_data_ptr<c10::BFloat16>();
  }
};

// Queries and the result are (B * T, query heads, D); row r attends to the first
// `lengths[r]` positions of sequence r / T, to the last `window` of them if that is not 0.
void attend(const float* queries, int64_t query_heads, const Cache& cache,
            const std::vector<int64_t>& lengths, int64_t window, float* out);

}  // namespace llama_perf
