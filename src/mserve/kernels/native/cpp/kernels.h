// All ops for one instruction set. A translation unit defines MSERVE_ISA (the namespace), sets the
// compiler's target and includes this file after the standard headers, so that nothing of the
// standard library is compiled for a machine that may not be there.

namespace mserve {
namespace MSERVE_ISA {

#include "vec.h"

#include "e4m3.h"
#include "cache_codes.h"
#include "dot.h"
#include "packed.h"
#include "int8.h"
#include "linear_int8.h"
#include "linear.h"
#include "moe.h"
#include "norm.h"
#include "panel.h"
#include "pointwise.h"
#include "draw.h"
#include "read.h"
#include "route.h"
#include "direct.h"
#include "select_blocks.h"
#include "softmax.h"
#include "attend_block.h"
#include "attention.h"
#include "write_kv.h"

extern const Kernels kernels{
    read,
    linear,
    moe,
    rms_norm,
    norm_rope,
    mean_squares,
    write_kv,
    embedding,
    rope_angles,
    activate,
    residual_sum,
    draw,
    route,
    select_blocks,
    attention,
};

}  // namespace MSERVE_ISA
}  // namespace mserve
