// Words shared by every translation unit: element types and the arguments of each op.
//
// Sizes and strides count elements, never bytes. A pointer named `x` of an op is not written.
#pragma once

#include <cstdint>

namespace mserve {

struct bf16 {
  uint16_t bits;
};

enum class DType : int { kBFloat16 = 0, kFloat32 = 1 };

enum class Activation : int { kSilu = 0, kSwigluOai = 1 };

// How gate and up become one value. The last three matter for kSwigluOai only.
struct ActivationArgs {
  Activation kind;
  float alpha, limit, beta;
};

// y[m, n] = sum_k x[m, k] * w[n, k]
struct LinearArgs {
  const void* x;  // [rows, inner] of dtype, row stride x_stride
  const void* w;  // [outer, inner] of dtype, contiguous
  void* y;        // [rows, outer] of out_dtype, row stride y_stride
  int64_t rows, outer, inner, x_stride, y_stride;
  DType dtype, out_dtype;
};

// Routed experts, and the shared one if there is one, of every row of x.
struct MoeArgs {
  const void* x;              // [rows, hidden] of dtype
  const void* gate_up;        // [experts, 2 * inner, hidden]: gate rows, then up rows
  const void* down;           // [experts, hidden, inner]
  const void* shared_gate_up;  // [2 * shared_inner, hidden], or null
  const void* shared_down;     // [hidden, shared_inner], or null
  const int64_t* expert_ids;  // [rows, chosen]; an id outside this rank's range is skipped
  const float* weights;       // [rows, chosen]
  void* out;                  // [rows, hidden] of out_dtype
  int64_t rows, hidden, inner, shared_inner, experts, first_expert, chosen;
  DType dtype, out_dtype;
  ActivationArgs activation;
};

}  // namespace mserve
