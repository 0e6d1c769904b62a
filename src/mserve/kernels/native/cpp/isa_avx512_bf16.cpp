#include "isa.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi,bmi2")
#define MSERVE_ISA avx512_bf16
#define MSERVE_VEC_AVX512
#define MSERVE_BF16_PAIRS
#define MSERVE_VNNI
#include "kernels.h"
#endif
