#include "isa.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define MSERVE_ISA avx2
#define MSERVE_VEC_AVX2
#include "kernels.h"
#endif
