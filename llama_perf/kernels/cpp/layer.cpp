// `llama_perf::decode_layer` and its halves on a CPU: a transformer's layer over a few
// tokens, in float32. What they compute is in kernels/layer.py.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
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

// Biases and norms of heads, float32, in this order; one that is not there is empty. A
// layer without any has none of them.
enum { kQkvBias, kOutputBias, kGateBias, kUpBias, kDownBias, kQueryNorm, kKeyNorm };

struct Extra {
  at::TensorList tensors;

  const float* of(int64_t index) const {
    const bool there = !tensors.empty() && tensors[index].numel() > 0;
    return there ? tensors[index].const_data_ptr<float>() : nullptr;
  }
};

// Adds a bias to each of the rows of `width` values; null is none.
void add_bias(Values& rows, const float* bias, int64_t width) {
  if (!bias) return;
  for (size_t first = 0; first + width <= rows.size(); first += width)
    for (int64_t at = 0; at < width; at++) rows[first + at] += bias[at];
}

// Normalizes some heads in place; a null weight is no norm.
void norm_heads(float* heads, int64_t count, int64_t width, const float* weight,
                float eps) {
  if (!weight) return;
  for (float* head = heads; head < heads + count * width; head += width) {
    const float scale = 1 / std::sqrt(dot(head, head, width) / width + eps);
    for (int64_t at = 0; at < width; at++) head[at] *= scale * weight[at];
  }
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

// Tokens: `batch` sequences, `length` of each, `dim` values a token.
struct Shape {
  explicit Shape(const Tensor& x)
      : batch(x.size(0)), length(x.size(1)), dim(x.size(2)), tokens(batch * length) {}

  int64_t batch, length, dim, tokens;
};

// What the attention adds to `hidden`; it writes the cache.
Values attention_of(const Values& hidden, const Shape& shape, at::TensorList cached,
                    const Layer& layer, at::TensorList rotary, const Tensor& positions,
                    double eps, const Extra& vectors, int64_t window) {
  const int64_t tokens = shape.tokens, length = shape.length, dim = shape.dim;
  const Weight wqkv = layer.linear(0), wo = layer.linear(1);
  const Cache cache = cached.size() > 2 ? Cache{cached[0], cached[1], cached[2], cached[3]}
                                        : Cache{cached[0], cached[1]};
  const int64_t kv_heads = cache.k.size(1), width = cache.k.size(3);
  const int64_t heads = wo.columns() / width;

  const Values normal = normed(hidden, layer.norm(0), dim, eps);
  Values qkv(tokens * wqkv.rows()), queries(tokens * wo.columns());
  run({product_of(wqkv, normal.data(), tokens, qkv.data())});

  add_bias(qkv, vectors.of(kQkvBias), wqkv.rows());

  const bool rotates = !rotary.empty();
  const float* cos = rotates ? rotary[0].const_data_ptr<float>() : nullptr;
  const float* sin = rotates ? rotary[1].const_data_ptr<float>() : nullptr;
  const int64_t* at = positions.const_data_ptr<int64_t>();
  // Sequences at the same positions have one row of each for all.
  const int64_t rows = positions.numel();
  std::vector<int64_t> lengths(tokens);
  for (int64_t token = 0; token < tokens; token++) {
    const int64_t row = token % rows, angle = row * (width / 2);
    float* q = &qkv[token * wqkv.rows()];
    float* k = q + heads * width;
    norm_heads(q, heads, width, vectors.of(kQueryNorm), eps);
    norm_heads(k, kv_heads, width, vectors.of(kKeyNorm), eps);
    if (rotates) rotate(q, heads + kv_heads, width, cos + angle, sin + angle);
    std::copy(q, k, &queries[token * wo.columns()]);
    store(cache, token / length, at[row], k, k + kv_heads * width);
    lengths[token] = at[row] + 1;
  }

  Values attended(queries.size()), added(hidden.size());
  attend(queries.data(), heads, cache, lengths, window, attended.data());
  run({product_of(wo, attended.data(), tokens, added.data())});
  add_bias(added, vectors.of(kOutputBias), dim);
  return added;
}

// What the feed-forward layer adds to `hidden`.
Values feed_forward_of(const Values& hidden, const Shape& shape, const Layer& layer,
                       double eps, const Extra& vectors) {
  const int64_t tokens = shape.tokens, dim = shape.dim;
  const Weight gate = layer.linear(2), up = layer.linear(3), down = layer.linear(4);
  const Values normal = normed(hidden, layer.norm(1), dim, eps);
  Values added(hidden.size());
  Values gated(in_lanes(tokens * gate.rows())), upward(gated.size());
  run({product_of(gate, normal.data(), tokens, gated.data()),
       product_of(up, normal.data(), tokens, upward.data())});
  add_bias(gated, vectors.of(kGateBias), gate.rows());
  add_bias(upward, vectors.of(kUpBias), up.rows());
  activate(gated, upward);
  run({product_of(down, gated.data(), tokens, added.data())});
  add_bias(added, vectors.of(kDownBias), dim);
  return added;
}

// The operators; see kernels/layer.py.
void decode_layer(const Tensor& x, at::TensorList cached, at::TensorList tensors,
                  at::TensorList rotary, const Tensor& positions, at::IntArrayRef numbers,
                  double eps, at::TensorList extra, int64_t window) {
  const Shape shape(x);
  const Layer layer{tensors, numbers};
  const Extra vectors{extra};
  Values hidden = floats_of(x);
  add(hidden, attention_of(hidden, shape, cached, layer, rotary, positions, eps, vectors,
                           window));
  add(hidden, feed_forward_of(hidden, shape, layer, eps, vectors));
  put(hidden, x);
}

Tensor layer_attention(const Tensor& x, at::TensorList cached, at::TensorList tensors,
                        at::TensorList rotary, const Tensor& positions,
                        at::IntArrayRef numbers, double eps, at::TensorList extra,
                        int64_t window) {
  Tensor out = at::empty(x.sizes(), x.options());
  put(attention_of(floats_of(x), Shape(x), cached, Layer{tensors, numbers}, rotary,
                   positions, eps, Extra{extra}, window),
      out);
  return out;
}

Tensor layer_feed_forward(const Tensor& x, at::TensorList tensors,
                           at::IntArrayRef numbers, double eps, at::TensorList extra) {
  Tensor out = at::empty(x.sizes(), x.options());
  put(feed_forward_of(floats_of(x), Shape(x), Layer{tensors, numbers}, eps, Extra{extra}),
      out);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(llama_perf, CPU, library) {
  library.impl("decode_layer", TORCH_FN(decode_layer));
  library.impl("layer_attention", TORCH_FN(layer_attention));
  library.impl("layer_feed_forward", TORCH_FN(layer_feed_forward));
}

}  // namespace llama_perf
