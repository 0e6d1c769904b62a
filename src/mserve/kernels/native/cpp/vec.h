// Registers of one instruction set. Included once per instruction set, inside its namespace.
//
//   F32          kLanes floats; arithmetic, exp, sums in a fixed order
//   Dot<T>       one load of T as an operand of multiply-and-add: kStep elements of T that meet
//                in kLanes sums. Two bf16 per lane where the hardware multiplies bf16 pairs
//                (AVX-512 BF16), one otherwise.
//   I32          lanes of integer sums
//   Int8Dot      the same as Dot for signed bytes, with exact sums
//
// Everything above this file is written once against these names.

#if defined(MSERVE_VEC_AVX512)
#include "vec_avx512.h"
#elif defined(MSERVE_VEC_AVX2)
#include "vec_avx2.h"
#else
#include "vec_plain.h"
#endif

// What products of T are taken of: T where the hardware multiplies pairs of it. Elsewhere floats,
// or every product would have to widen both of its sides again.
template <class T>
using Operand = std::conditional_t<Dot<T>::kStep == kLanes, float, T>;

template <class T>
inline typename Dot<T>::V load_operand(const T* p) {
  return Dot<T>::load(p);
}
template <class T>
inline typename Dot<T>::V load_operand(const T* p, int64_t n) {
  return Dot<T>::load(p, n);
}

inline int32_t sum(I32 a) {
  int32_t sums[4];
  store_sums(sums, a, a, a, a);
  return sums[0];
}

template <class T>
inline void to_floats(float* to, const T* from, int64_t count) {
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) store(to + k, load(from + k));
  if (k < count) store(to + k, load(from + k, count - k), count - k);
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest, ties to even; a NaN stays a NaN.
inline bf16 to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

inline void put(float* to, float x) { *to = x; }
inline void put(bf16* to, float x) { *to = to_bf16(x); }

// e^x within 2 ulp for results above the smallest normal float; 0 below it, e^88 from 88 on.
// NaN stays NaN.
inline F32 exp(F32 x) {
  const F32 bounded = max(set1(-87.3365f), min(set1(88.0f), x));
  const F32 n = round(mul(bounded, set1(1.44269504f)));
  // ln 2 in two parts, the first with trailing zeros, so that n * ln 2 loses nothing
  F32 r = fma(n, set1(-0.693145752f), bounded);
  r = fma(n, set1(-1.42860677e-6f), r);
  F32 p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return zero_where_less(x, set1(-87.3365f), mul(p, power_of_two(n)));
}

inline F32 sigmoid(F32 x) { return div(set1(1.0f), add(set1(1.0f), exp(neg(x)))); }
