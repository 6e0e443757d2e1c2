// What is kept between calls: hidden states in any dtype, keys and values in a cache's,
// whose codes are those of kernels/cache_codes.py.

#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "attention.h"

namespace llama_perf {

// Calls `use` with a pointer to the elements of a tensor of floats.
template <typename Use>
void with_floats(const at::Tensor& tensor, const Use& use) {
  void* data = tensor.mutable_data_ptr();
  switch (tensor.scalar_type()) {
    case at::kBFloat16: return use(static_cast<c10::BFloat16*>(data));
    case at::kHalf: return use(static_cast<c10::Half*>(data));
    default: return use(static_cast<float*>(data));
  }
}

inline std::vector<float> floats_of(const at::Tensor& tensor) {
  std::vector<float> values(tensor.numel());
  with_floats(tensor, [&](const auto* from) {
    std::copy_n(from, values.size(), values.begin());
  });
  return values;
}

inline void put(const std::vector<float>& values, const at::Tensor& tensor) {
  with_floats(tensor, [&](auto* to) { std::copy(values.begin(), values.end(), to); });
}

// The bits of e4m3 next to `code`, which is at most 448; ties to even.
inline uint8_t float8_of(float code) {
  const auto bits = std::bit_cast<int32_t>(code);
  const int32_t size = bits & 0x7FFFFFFF, sign = bits >> 24 & 0x80;
  // Below 2**-6 codes are multiples of 2**-9.
  const int32_t small = static_cast<int32_t>(std::nearbyint(std::abs(code) * 512));
  const int32_t normal = ((size + 0x7FFFF + (size >> 20 & 1)) >> 20) - ((127 - 7) << 3);
  return static_cast<uint8_t>((std::abs(code) < 0x1p-6f ? small : normal) | sign);
}

// A head's values as codes, and their scale.
inline void store_codes(const float* values, int64_t width, bool are_int8, uint8_t* codes,
                        c10::BFloat16* scale) {
  float peak = 0;
  for (int64_t at = 0; at < width; at++) peak = std::max(peak, std::abs(values[at]));
  peak = std::max(peak / (are_int8 ? 127.0f : 448.0f), std::numeric_limits<float>::min());
  // Rounded up to a bfloat16.
  const auto bits = (std::bit_cast<uint32_t>(peak) + 0xFFFF) & 0xFFFF0000;
  const auto divisor = std::bit_cast<float>(bits);
  *scale = divisor;
  for (int64_t at = 0; at < width; at++) {
    const float code = values[at] / divisor;
    codes[at] = are_int8 ? static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(code)))
                         : float8_of(code);
  }
}

// Writes keys and values, each (H, D), at a position of a sequence.
inline void store(const Cache& cache, int64_t sequence, int64_t position, const float* k,
                  const float* v) {
  const int64_t heads = cache.k.size(1), width = cache.k.size(3);
  for (int64_t head = 0; head < heads; head++, k += width, v += width) {
    const int64_t place = (sequence * heads + head) * cache.k.size(2) + position;
    if (cache.k_scale) {
      const bool are_int8 = cache.k.scalar_type() == at::kChar;
      const auto codes = [&](const at::Tensor& tensor) {
        return static_cast<uint8_t*>(tensor.mutable_data_ptr()) + place * width;
      };
      store_codes(k, width, are_int8, codes(cache.k), cache.k_scale + place);
      store_codes(v, width, are_int8, codes(cache.v), cache.v_scale + place);
      continue;
    }
    with_floats(cache.k, [&](auto* to) { std::copy_n(k, width, to + place * width); });
    with_floats(cache.v, [&](auto* to) { std::copy_n(v, width, to + place * width); });
  }
}

}  // namespace llama_perf
