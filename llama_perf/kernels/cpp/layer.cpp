// `llama_perf::decode_layer` on a CPU: a transformer's layer over a few tokens, in
// float32. What it computes is in kernels/layer.py.

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "attention.h"
#include "exponential.h"
#include "products.h"
#include "stored.h"

namespace llama_perf {
namespace {

using at::Tensor;
using Values = std::vector<float>;

// Fields of a weight's numbers.
constexpr int64_t kNumbers = 8;

struct Layer {
  at::TensorList tensors;
  at::IntArrayRef numbers;

  const float* norm(int64_t index) const { return tensors[index].const_data_ptr<float>(); }

  Weight linear(int64_t index) const {
    const int64_t at = 2 + 3 * index;
    return {tensors[at], tensors[at + 1], tensors[at + 2],
            numbers.slice(kNumbers * index, kNumbers)};
  }
};

Values normed(const Values& x, const float* weight, int64_t dim, float eps) {
  Values out(x.size());
  for (size_t first = 0; first < x.size(); first += dim) {
    const float* from = x.data() + first;
    const float scale = 1 / std::sqrt(dot(from, from, dim) / dim + eps);
    for (int64_t at = 0; at < dim; at++) out[first + at] = from[at] * scale * weight[at];
  }
  return out;
}

// Rotates the pairs (2i, 2i + 1) of some heads in place.
void rotate(float* heads, int64_t count, int64_t width, const float* cos, const float* sin) {
  for (float* pair = heads; pair < heads + count * width; pair += width)
    for (int64_t at = 0; at < width / 2; at++) {
      const float even = pair[2 * at], odd = pair[2 * at + 1];
      pair[2 * at] = even * cos[at] - odd * sin[at];
      pair[2 * at + 1] = odd * cos[at] + even * sin[at];
    }
}

// silu(gate) * up, into `gate`, whose size is a multiple of the lanes, as that of `up`.
void activate(Values& gate, const Values& up) {
  for (size_t at = 0; at < gate.size(); at += kLanes) {
    const Floats x = load<Floats>(&gate[at]);
    const Floats y = x / (1.0f + exponential(-x)) * load<Floats>(&up[at]);
    std::memcpy(&gate[at], &y, sizeof y);
  }
}

// x += y
void add(Values& x, const Values& y) {
  for (size_t at = 0; at < x.size(); at++) x[at] += y[at];
}

// See kernels/layer.py.
void decode_layer(const Tensor& x, at::TensorList cached, at::TensorList tensors,
                  at::TensorList rotary, const Tensor& positions, at::IntArrayRef numbers,
                  double eps) {
  const int64_t batch = x.size(0), length = x.size(1), dim = x.size(2);
  const int64_t tokens = batch * length;
  const Layer layer{tensors, numbers};
  const Weight wqkv = layer.linear(0), wo = layer.linear(1), gate = layer.linear(2);
  const Weight up = layer.linear(3), down = layer.linear(4);
  const Cache cache = cached.size() > 2 ? Cache{cached[0], cached[1], cached[2], cached[3]}
                                        : Cache{cached[0], cached[1]};
  const int64_t kv_heads = cache.k.size(1), width = cache.k.size(3);
  const int64_t heads = wo.columns() / width;

  Values hidden = floats_of(x);
  Values normal = normed(hidden, layer.norm(0), dim, eps);
  Values qkv(tokens * wqkv.rows()), queries(tokens * wo.columns());
  run({product_of(wqkv, normal.data(), tokens, qkv.data())});

  const float* cos = rotary[0].const_data_ptr<float>();
  const float* sin = rotary[1].const_data_ptr<float>();
  const int64_t* at = positions.const_data_ptr<int64_t>();
  // Sequences at the same positions have one row of each for all.
  const int64_t rows = positions.numel();
  std::vector<int64_t> lengths(tokens);
  for (int64_t token = 0; token < tokens; token++) {
    const int64_t row = token % rows, angle = row * (width / 2);
    float* q = &qkv[token * wqkv.rows()];
    float* k = q + heads * width;
    rotate(q, heads + kv_heads, width, cos + angle, sin + angle);
    std::copy(q, k, &queries[token * wo.columns()]);
    store(cache, token / length, at[row], k, k + kv_heads * width);
    lengths[token] = at[row] + 1;
  }

  Values attended(queries.size()), added(hidden.size());
  attend(queries.data(), heads, cache, lengths, attended.data());
  run({product_of(wo, attended.data(), tokens, added.data())});
  add(hidden, added);

  normal = normed(hidden, layer.norm(1), dim, eps);
  Values gated(in_lanes(tokens * gate.rows())), upward(gated.size());
  run({product_of(gate, normal.data(), tokens, gated.data()),
       product_of(up, normal.data(), tokens, upward.data())});
  activate(gated, upward);
  run({product_of(down, gated.data(), tokens, added.data())});
  add(hidden, added);
  put(hidden, x);
}

}  // namespace

TORCH_LIBRARY_IMPL(llama_perf, CPU, library) {
  library.impl("decode_layer", TORCH_FN(decode_layer));
}

}  // namespace llama_perf
