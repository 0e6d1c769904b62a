// AVX-512 F, BW, DQ, VL; with MSERVE_BF16_PAIRS also AVX512_BF16.

constexpr int kLanes = 16;
// Of dot_tile: 24 sums and their operands fit in 32 registers.
constexpr int kTileSums = 24;
constexpr int kInt8TileRows = kTileSums / 4;

struct F32 {
  __m512 v;
};

inline F32 zero() { return {_mm512_setzero_ps()}; }
inline F32 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 neg(F32 a) { return sub(zero(), a); }
// A NaN in the second operand is the result.
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 round(F32 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32 power_of_two(F32 n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}
inline F32 zero_where_less(F32 x, F32 bound, F32 value) {
  return {_mm512_mask_mov_ps(value.v, _mm512_cmp_ps_mask(x.v, bound.v, _CMP_LT_OQ),
                             _mm512_setzero_ps())};
}

inline __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : __mmask16((1u << n) - 1); }
// The first n lanes of `a`, the rest of `other`; n may be negative.
inline F32 first_or(F32 a, int64_t n, F32 other) {
  return {_mm512_mask_mov_ps(other.v, first(n > 0 ? n : 0), a.v)};
}

inline F32 widen(__m256i halves) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32 load(const bf16* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// The first n elements, the rest zero; reads nothing beyond them.
inline F32 load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline F32 load(const bf16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }

inline __m256i narrow(F32 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
inline void store(bf16* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a));
}
inline void store(float* p, F32 a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
inline void store(bf16* p, F32 a, int64_t n) { _mm256_mask_storeu_epi16(p, first(n), narrow(a)); }

// The four sums over lanes, pairing lane i with i + 8, then + 4, + 2, + 1.
inline void store_sums(float* p, F32 a, F32 b, F32 c, F32 d) {
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44),
                                  _mm512_shuffle_f32x4(a.v, b.v, 0xee));
  const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c.v, d.v, 0x44),
                                  _mm512_shuffle_f32x4(c.v, d.v, 0xee));
  __m512 quads = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88),
                               _mm512_shuffle_f32x4(ab, cd, 0xdd));
  quads = _mm512_add_ps(quads, _mm512_permute_ps(quads, 0x4e));
  quads = _mm512_add_ps(quads, _mm512_permute_ps(quads, 0xb1));
  _mm_storeu_ps(p, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, quads)));
}
// Sums of lane i and i + 8 of x, then of y; of the quarters of x's halves, then of y's; and of the
// quarters' pairs of lanes two apart.
inline F32 sum_halves(F32 x, F32 y) {
  return {_mm512_add_ps(_mm512_mask_blend_ps(0xff00, x.v, y.v),
                        _mm512_shuffle_f32x4(x.v, y.v, 0x4e))};
}
inline F32 sum_quarters(F32 x, F32 y) {
  return {_mm512_add_ps(_mm512_shuffle_f32x4(x.v, y.v, 0x88),
                        _mm512_shuffle_f32x4(x.v, y.v, 0xdd))};
}
inline F32 sum_pairs(F32 x, F32 y) {
  return {_mm512_add_ps(_mm512_mask_blend_ps(0xcccc, x.v, y.v),
                        _mm512_shuffle_ps(x.v, y.v, 0x4e))};
}
// to[r * stride + c] = the sum over the lanes of element c of row r, for four rows of four, paired in
// the same order: together they take a third less work. Inlined, or the sums leave their registers.
[[gnu::always_inline]] inline void store_sums(float* to, int64_t stride, const F32 (&a)[4],
                                              const F32 (&b)[4], const F32 (&c)[4],
                                              const F32 (&d)[4]) {
  const F32 first = sum_pairs(sum_quarters(sum_halves(a[0], b[0]), sum_halves(c[0], d[0])),
                              sum_quarters(sum_halves(a[1], b[1]), sum_halves(c[1], d[1])));
  const F32 last = sum_pairs(sum_quarters(sum_halves(a[2], b[2]), sum_halves(c[2], d[2])),
                             sum_quarters(sum_halves(a[3], b[3]), sum_halves(c[3], d[3])));
  const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(first.v, last.v, 0x88),
                                   _mm512_shuffle_ps(first.v, last.v, 0xdd));
  _mm_storeu_ps(to, _mm512_castps512_ps128(all));
  _mm_storeu_ps(to + stride, _mm512_extractf32x4_ps(all, 1));
  _mm_storeu_ps(to + 2 * stride, _mm512_extractf32x4_ps(all, 2));
  _mm_storeu_ps(to + 3 * stride, _mm512_extractf32x4_ps(all, 3));
}
inline float sum(F32 a) {
  float sums[4];
  store_sums(sums, a, a, a, a);
  return sums[0];
}
inline float max_of(F32 a) { return _mm512_reduce_max_ps(a.v); }

template <class T>
struct Dot;

template <>
struct Dot<float> {
  using V = F32;
  static constexpr int kStep = 16;
  static V load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static V load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static F32 multiply_add(V a, V b, F32 c) { return fma(a, b, c); }
};

#if defined(MSERVE_BF16_PAIRS)
template <>
struct Dot<bf16> {
  using V = __m512bh;
  static constexpr int kStep = 32;
  static V load(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static V load(const bf16* p, int64_t n) {
    const __mmask32 mask = n >= 32 ? 0xffffffffu : (1u << n) - 1;
    return (__m512bh)_mm512_maskz_loadu_epi16(mask, p);
  }
  static F32 multiply_add(V a, V b, F32 c) { return {_mm512_dpbf16_ps(c.v, a, b)}; }
};
#else
template <>
struct Dot<bf16> {
  using V = F32;
  static constexpr int kStep = 16;
  static V load(const bf16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static V load(const bf16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
  static F32 multiply_add(V a, V b, F32 c) { return fma(a, b, c); }
};
#endif

// Integers of one byte, rounded and saturated.
inline void store_int8(int8_t* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

struct I32 {
  __m512i v;
};

inline I32 add(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
// The four sums over lanes.
inline void store_sums(int32_t* p, I32 a, I32 b, I32 c, I32 d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a.v, b.v),
                                      _mm512_unpackhi_epi32(a.v, b.v));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c.v, d.v),
                                      _mm512_unpackhi_epi32(c.v, d.v));
  const __m512i all =
      _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

#if defined(MSERVE_VNNI)
// The instruction wants one side without a sign: weights meet it as w + kWeightShift.
struct Int8Dot {
  using V = __m512i;
  static constexpr int kStep = 64;
  static constexpr int32_t kWeightShift = 128;
  static I32 zero() { return {_mm512_setzero_si512()}; }
  static V weights(const int8_t* p) { return shifted(_mm512_loadu_si512(p)); }
  static V weights(const int8_t* p, int64_t n) {
    return shifted(_mm512_maskz_loadu_epi8((uint64_t(1) << n) - 1, p));
  }
  static V load(const int8_t* p) { return _mm512_loadu_si512(p); }
  static I32 multiply_add(V x, V weights, I32 c) {
    // By hand: around the intrinsic gcc 12 copies sums and keeps some in memory, at half the speed.
    asm("vpdpbusd %2, %1, %0" : "+v"(c.v) : "v"(weights), "vm"(x));
    return c;
  }

 private:
  static V shifted(V weights) { return _mm512_xor_si512(weights, _mm512_set1_epi8(-128)); }
};
#else
struct Int8Dot {
  using V = __m512i;
  static constexpr int kStep = 32;
  static constexpr int32_t kWeightShift = 0;
  static I32 zero() { return {_mm512_setzero_si512()}; }
  static V load(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static V weights(const int8_t* p) { return load(p); }
  static V weights(const int8_t* p, int64_t n) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8((1u << n) - 1, p));
  }
  static I32 multiply_add(V x, V weights, I32 c) {
    return {_mm512_add_epi32(c.v, _mm512_madd_epi16(x, weights))};
  }
};
#endif

// Inlined by force: called within what is inlined so, gcc takes it for a function without effect.
[[gnu::always_inline]] inline void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

// Turns 16 rows of 16 dwords into 16 columns.
inline void transpose(__m512i r[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i low = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    t[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(high, high2, 0x88);
    t[8 + i] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    t[12 + i] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// to[step * stride + lane] = dword `step` of row `lane`, for 16 steps and 16 lanes; rows from `rows`
// on are taken as zero and not read.
inline void transpose_dwords(uint32_t* to, int64_t stride, const void* from, int64_t row_bytes,
                             int64_t rows) {
  __m512i r[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    r[i] = i < rows ? _mm512_loadu_si512(static_cast<const char*>(from) + i * row_bytes)
                    : _mm512_setzero_si512();
  transpose(r);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * stride, r[i]);
}

// The same for 32 bf16 of each row, taken apart into 32 steps of fp32; of two the odd one first.
inline void transpose_split(float* to, int64_t stride, const bf16* from, int64_t row_stride,
                            int64_t rows) {
  __m512i r[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    r[i] = i < rows ? _mm512_loadu_si512(from + i * row_stride) : _mm512_setzero_si512();
  transpose(r);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    _mm512_storeu_si512(to + 2 * i * stride,
                        _mm512_and_si512(r[i], _mm512_set1_epi32(int(0xffff0000u))));
    _mm512_storeu_si512(to + (2 * i + 1) * stride, _mm512_slli_epi32(r[i], 16));
  }
}

#define MSERVE_FAST_TRANSPOSE
