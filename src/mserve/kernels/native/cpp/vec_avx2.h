// AVX2 and FMA.

constexpr int kLanes = 8;
// Of dot_tile: 12 sums, three operands of one side and one of the other fill the 16 registers.
constexpr int kTileSums = 12;
// Of int8_tile, whose products need a register before they are added.
constexpr int kInt8TileRows = 2;

struct F32 {
  __m256 v;
};

inline F32 zero() { return {_mm256_setzero_ps()}; }
inline F32 set1(float x) { return {_mm256_set1_ps(x)}; }
inline F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 neg(F32 a) { return sub(zero(), a); }
// A NaN in the second operand is the result.
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 round(F32 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32 power_of_two(F32 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
inline F32 zero_where_less(F32 x, F32 bound, F32 value) {
  return {_mm256_andnot_ps(_mm256_cmp_ps(x.v, bound.v, _CMP_LT_OQ), value.v)};
}

inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first n lanes of `a`, the rest of `other`; n may be negative.
inline F32 first_or(F32 a, int64_t n, F32 other) {
  return {_mm256_blendv_ps(other.v, a.v, _mm256_castsi256_ps(first(n)))};
}

inline F32 widen(__m128i halves) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))};
}
inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F32 load(const bf16* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// The first n elements, the rest zero; reads nothing beyond them.
inline F32 load(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first(n))}; }
inline F32 load(const bf16* p, int64_t n) {
  bf16 copy[8] = {};
  std::memcpy(copy, p, size_t(n < 8 ? n : 8) * sizeof(bf16));
  return load(copy);
}

inline __m128i narrow(F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
inline void store(bf16* p, F32 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a)); }
inline void store(float* p, F32 a, int64_t n) { _mm256_maskstore_ps(p, first(n), a.v); }
inline void store(bf16* p, F32 a, int64_t n) {
  bf16 copy[8];
  store(copy, a);
  std::memcpy(p, copy, size_t(n < 8 ? n : 8) * sizeof(bf16));
}

// The four sums over lanes, in an order that does not depend on the other three.
inline void store_sums(float* p, F32 a, F32 b, F32 c, F32 d) {
  const __m256 ab = _mm256_hadd_ps(a.v, b.v), cd = _mm256_hadd_ps(c.v, d.v);
  const __m256 halves = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
inline float sum(F32 a) {
  float sums[4];
  store_sums(sums, a, a, a, a);
  return sums[0];
}
inline float max_of(F32 a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

template <class T>
struct Dot {
  using V = F32;
  static constexpr int kStep = 8;
  static V load(const T* p) { return MSERVE_ISA::load(p); }
  static V load(const T* p, int64_t n) { return MSERVE_ISA::load(p, n); }
  static F32 multiply_add(V a, V b, F32 c) { return fma(a, b, c); }
};

// Transposes r as 8 rows of 8 dwords.
inline void transpose(__m256i r[8]) {
  __m256i t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2x128_si256(r[i], r[4 + i], 0x20);
    t[4 + i] = _mm256_permute2x128_si256(r[i], r[4 + i], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

// Rows of 32 bytes become steps of 8 dwords: dword k of row i goes to to[k * stride + i]. Rows from
// `rows` on count as zero and are not read.
inline void transpose_dwords(uint32_t* to, int64_t stride, const void* from, int64_t row_bytes,
                             int64_t rows) {
  __m256i r[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    r[i] = i < rows ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(
                          static_cast<const char*>(from) + i * row_bytes))
                    : _mm256_setzero_si256();
  transpose(r);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * stride), r[i]);
}

// The same for 16 bf16 of each row, taken apart into 16 steps of fp32; of two the odd one first.
inline void transpose_split(float* to, int64_t stride, const bf16* from, int64_t row_stride,
                            int64_t rows) {
  __m256i r[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    r[i] = i < rows
               ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * row_stride))
               : _mm256_setzero_si256();
  transpose(r);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m256i odd = _mm256_and_si256(r[i], _mm256_set1_epi32(int(0xffff0000u)));
    _mm256_storeu_ps(to + 2 * i * stride, _mm256_castsi256_ps(odd));
    const __m256i even = _mm256_slli_epi32(r[i], 16);
    _mm256_storeu_ps(to + (2 * i + 1) * stride, _mm256_castsi256_ps(even));
  }
}

#define MSERVE_FAST_TRANSPOSE

// Integers of one byte, rounded and saturated.
inline void store_int8(int8_t* p, F32 a) {
  const __m256i wide = _mm256_cvtps_epi32(a.v);
  const __m128i halves =
      _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
}

struct I32 {
  __m256i v;
};

inline I32 add(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
// The four sums over lanes.
inline void store_sums(int32_t* p, I32 a, I32 b, I32 c, I32 d) {
  const __m256i halves =
      _mm256_hadd_epi32(_mm256_hadd_epi32(a.v, b.v), _mm256_hadd_epi32(c.v, d.v));
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
}

struct Int8Dot {
  using V = __m256i;
  static constexpr int kStep = 16;
  static constexpr int32_t kWeightShift = 0;
  static I32 zero() { return {_mm256_setzero_si256()}; }
  static V load(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static V weights(const int8_t* p) { return load(p); }
  static V weights(const int8_t* p, int64_t n) {
    int8_t copy[kStep] = {};
    std::memcpy(copy, p, size_t(n));
    return load(copy);
  }
  static I32 multiply_add(V x, V weights, I32 c) {
    return {_mm256_add_epi32(c.v, _mm256_madd_epi16(x, weights))};
  }
};

// Inlined by force: called within what is inlined so, gcc takes it for a function without effect.
[[gnu::always_inline]] inline void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
