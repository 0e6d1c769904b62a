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

// How weights are stored: values of the op's dtype, packed (packed.h), or integers (int8.h).
enum class Format : int { kPlain = 0, kMxfp8 = 1, kFp8Block = 2, kInt8 = 3, kInt8Static = 4 };

// A matrix, or a stack of them, contiguous; no scales where the format has none.
struct Stored {
  const void *values, *scales;
};

// A type as an argument.
template <class T>
struct Tag {
  using Type = T;
};

enum class Activation : int { kSilu = 0, kSwigluOai = 1 };

// How gate and up become one value. The last three matter for kSwigluOai only.
struct ActivationArgs {
  Activation kind;
  float alpha, limit, beta;
};

struct ReadArgs {
  const float* x;
  int64_t count;
};

// y[m, n] = sum_k x[m, k] * w[n, k]
struct LinearArgs {
  const void* x;  // [rows, inner] of dtype, row stride x_stride
  Stored w;       // [outer, inner]
  const int64_t* part_rows;  // [parts]: heights of the parts of w, outer in all
  void* y;        // [rows, outer] of out_dtype, row stride y_stride
  int64_t parts, rows, outer, inner, x_stride, y_stride;
  DType dtype, out_dtype;
  Format format;
};

// Routed experts, and the shared one if there is one, of every row of x.
struct MoeArgs {
  const void* x;              // [rows, hidden] of dtype
  Stored gate_up;         // [experts, 2 * inner, hidden]: gate rows, then up rows
  Stored down;            // [experts, hidden, inner]
  Stored shared_gate_up;  // [2 * shared_inner, hidden], or null
  Stored shared_down;     // [hidden, shared_inner], or null
  const int64_t* expert_ids;  // [rows, chosen]; an id outside this rank's range is skipped
  const float* weights;       // [rows, chosen]
  void* out;                  // [rows, hidden] of out_dtype
  int64_t rows, hidden, inner, shared_inner, experts, first_expert, chosen;
  DType dtype, out_dtype;
  Format format;
  ActivationArgs activation;
};

// How the KV cache stores values: of the op's dtype, or shorter (cache_codes.h).
enum class Cached : int { kPlain = 0, kE4m3 = 1, kInt8 = 2, kBFloat16 = 3 };

// One kind of plane of the KV cache: a block's part is [heads, kBlockTokens, width], contiguous,
// and under kInt8 a factor for each of its vectors in [heads, kBlockTokens]. Strides between blocks.
struct Plane {
  void* data;
  float* factors;
  int64_t block_stride, factor_stride;
  Cached form;
};

constexpr int64_t kBlockTokens = 128;

// Spans of `length` consecutive tokens each, against the blocks of their contexts.
struct Spans {
  const int64_t* blocks;     // [spans, num_blocks] ids by logical number
  const int64_t* positions;  // [spans, length]
  int64_t spans, length, num_blocks;
};

// Causal attention: over all blocks, or over the chosen ones.
struct AttentionArgs {
  const void* query;  // [spans, length, heads, width] of dtype, token stride query_stride
  Plane key, value;   // [.., groups, kBlockTokens, width], both of one form
  const int64_t* chosen;  // [spans, length, groups, chosen_width] ascending, then -1; or null
  void* out;              // [spans, length, heads, width], contiguous
  Spans at;
  int64_t query_stride, heads, groups, width, chosen_width;
  float scale;
  DType dtype;
};

// The blocks that each token and group may read.
struct SelectArgs {
  const void* query;  // [spans, length, groups, width] of dtype, token stride query_stride
  Plane key;          // [.., 1, kBlockTokens, width]
  int64_t* chosen;    // [spans, length, groups, chosen_width], written
  Spans at;
  int64_t query_stride, groups, width, chosen_width, local_blocks, init_blocks;
  DType dtype;
};

enum class Norm : int {
  kRoundThenMultiply = 0,  // M2: x / rms rounded to dtype, times a weight of dtype, rounded
  kOnePlusWeight = 1,      // M3: x / rms * (1 + weight), weight in fp32, rounded once
};

struct NormArgs {
  const void* x;       // [rows, width] of dtype
  const void* weight;  // [width] of dtype, or fp32 for kOnePlusWeight
  void* out;           // like x
  int64_t rows, width;
  float eps;
  Norm kind;
  DType dtype;
};

// Heads normed and turned by their token's angles, in one pass.
struct NormRopeArgs {
  const void* x;             // [tokens, heads, width] of dtype, token stride x_stride
  const void* weight;        // [heads, width], typed as the kind of norm says
  const float* mean_square;  // of each token, mean_square_stride apart, for kRoundThenMultiply;
                             // kOnePlusWeight takes every head's own
  const float *cosine, *sine;  // [tokens, turned]
  void* out;                   // [tokens, heads, width], contiguous
  int64_t tokens, heads, width, turned, x_stride, mean_square_stride;
  float eps;
  Norm kind;
  DType dtype;
};

// means[t] = sums of squares of x[t, :split] and x[t, split:width], over first_count and
// last_count values, most of which other ranks may hold.
struct MeanSquaresArgs {
  const void* x;  // [tokens, width] of dtype, row stride x_stride
  float* means;   // [tokens, 2]
  int64_t tokens, split, width, x_stride, first_count, last_count;
  DType dtype;
};

// New tokens' keys or values into their slots of a plane [.., heads, kBlockTokens, width].
struct WriteArgs {
  Plane plane;
  const void* x;         // [tokens, heads, width] of dtype, token stride x_stride
  const int64_t* slots;  // [tokens]: block * kBlockTokens + offset
  int64_t tokens, heads, width, x_stride;
  DType dtype;
};

// out[t] = weight[ids[t]]
struct EmbeddingArgs {
  const int64_t* ids;  // [tokens]
  const void* weight;  // [height, width] of dtype
  void* out;           // [tokens, width]
  int64_t tokens, height, width;
  DType dtype;
};

struct AnglesArgs {
  const int64_t* positions;  // [tokens]
  const float* frequencies;  // [turned]
  float *cosine, *sine;      // [tokens, turned], written
  int64_t tokens, turned;
};

// out = x + y
struct ResidualArgs {
  const void *x, *y;  // [rows, width] of dtype
  void* out;
  int64_t rows, width;
  DType dtype;
};

// The gated activation of gate x[r, :width] and up x[r, width:].
struct ActivateArgs {
  const void* x;  // [rows, 2 * width] of dtype
  void* out;      // [rows, width]
  int64_t rows, width;
  DType dtype;
  ActivationArgs activation;
};

// The highest score of each row and a token: that one, or one drawn by chance. Arrays are [rows].
struct DrawArgs {
  const float* scores;        // [rows, width]
  const double* temperature;  // 0: the highest
  const int64_t* top_k;       // 0: all
  const double *top_p, *min_p;
  const uint64_t* seeds;
  const int64_t* positions;
  float* highest;
  int64_t* ids;
  int64_t rows, width;
};

// Which experts a token goes to.
struct RouteArgs {
  const void* x;      // [tokens, hidden] of dtype
  const float* gate;  // [experts, hidden]
  const float* bias;  // [experts]
  int64_t* ids;       // [tokens, chosen], ascending
  float* weights;     // [tokens, chosen]
  int64_t tokens, hidden, experts, chosen;
  float scale;
  DType dtype;
};

}  // namespace mserve
