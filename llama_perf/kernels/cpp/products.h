// Products of float32 tokens with a weight, y = x W^T, for an operator to run. What they
// are is in kernels/products.py.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <initializer_list>

#include "codes.h"

namespace llama_perf {

// A weight as of kernels/weight.py; `numbers` are its rows and the fields of its Layout.
struct Weight {
  const at::Tensor &codes, &scale, &zero;
  at::IntArrayRef numbers;

  int64_t rows() const { return numbers[0]; }
  int64_t columns() const { return numbers[1]; }
  int64_t format() const { return numbers[2]; }
  int64_t bits() const { return numbers[3]; }
  int64_t decode() const { return numbers[4]; }
  int64_t group() const { return numbers[5]; }
  int64_t zero_kind() const { return numbers[6]; }
  // Without the last field tokens are never rounded.
  bool rounds_tokens() const { return numbers.size() > 7 && numbers[7]; }
};

// A loop whose `count` steps may run in any order, some at a time, on any thread.
struct Parts {
  int64_t count;
  std::function<void(int64_t first, int64_t last)> work;
};

// What writes `out`, (tokens, rows), of `x`, (tokens, columns). Both, and the weight, must
// live until it has run.
Parts product_of(const Weight& weight, const float* x, int64_t tokens, float* out);

// Runs all loops at once on all threads.
void run(std::initializer_list<Parts> loops);

// The sum of the products of floats of any dtype with float32.
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
  float sum = sum_of((parts[0] + parts[1]) + (parts[2] + parts[3]));
  for (; column < columns; column++) sum += static_cast<float>(weight[column]) * x[column];
  return sum;
}

}  // namespace llama_perf
