// The ops as a table of functions, one table per instruction set.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "pool.h"
#include "types.h"

namespace mserve {

struct Kernels {
  void (*read)(const ReadArgs&);
  void (*linear)(const LinearArgs&);
  void (*moe)(const MoeArgs&);
  void (*rms_norm)(const NormArgs&);
  void (*norm_rope)(const NormRopeArgs&);
  void (*mean_squares)(const MeanSquaresArgs&);
  void (*write_kv)(const WriteArgs&);
  void (*embedding)(const EmbeddingArgs&);
  void (*rope_angles)(const AnglesArgs&);
  void (*activate)(const ActivateArgs&);
  void (*residual_sum)(const ResidualArgs&);
  void (*draw)(const DrawArgs&);
  void (*route)(const RouteArgs&);
  void (*select_blocks)(const SelectArgs&);
  void (*attention)(const AttentionArgs&);
};

namespace plain {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
#endif

}  // namespace mserve
