// e4m3 codes (one sign, four exponent, three fraction bits; no infinities, 0x7f and 0xff NaN) as
// floating-point registers, and the powers of two that scale them. Every code is exact in bf16.

// 2^(scale - 127); 255 is NaN, 0 a subnormal float.
inline float power_of_scale(uint8_t scale) {
  uint32_t bits = uint32_t(scale) << 23;
  if (scale == 0) bits = 0x00400000u;
  if (scale == 255) bits = 0x7fc00000u;
  float power;
  std::memcpy(&power, &bits, 4);
  return power;
}

// load_e4m3(p) gives kLanes codes as floats, load_e4m3(p, n) the first n, the rest zero. Shifted to
// the place of a half-precision number a code reads 2^-8 of its value, subnormals included; the
// hardware turns subnormal halves into floats at no extra cost, which it does not for floats.
#if defined(MSERVE_VEC_AVX512)
inline F32 widen_e4m3(__m128i codes) {
  const __m256i words = _mm256_cvtepu8_epi16(codes);
  const __m256i size = _mm256_and_si256(words, _mm256_set1_epi16(0x7f));
  const __mmask16 nan = _mm256_cmpeq_epi16_mask(size, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_xor_si256(words, size), 8);
  __m256i half = _mm256_or_si256(_mm256_slli_epi16(size, 7), sign);
  half = _mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(0x7fff));
  return {_mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f))};
}
inline F32 load_e4m3(const uint8_t* p) {
  return widen_e4m3(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F32 load_e4m3(const uint8_t* p, int64_t n) {
  return widen_e4m3(_mm_maskz_loadu_epi8(first(n), p));
}
#elif defined(MSERVE_VEC_AVX2)
inline F32 load_e4m3(const uint8_t* p) {
  const __m128i words = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i size = _mm_and_si128(words, _mm_set1_epi16(0x7f));
  const __m128i nan = _mm_cmpeq_epi16(size, _mm_set1_epi16(0x7f));
  const __m128i sign = _mm_slli_epi16(_mm_xor_si128(words, size), 8);
  __m128i half = _mm_or_si128(_mm_slli_epi16(size, 7), sign);
  half = _mm_or_si128(half, _mm_and_si128(nan, _mm_set1_epi16(0x7fff)));
  return {_mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f))};
}
inline F32 load_e4m3(const uint8_t* p, int64_t n) {
  uint8_t copy[8] = {};
  std::memcpy(copy, p, size_t(n < 8 ? n : 8));
  return load_e4m3(copy);
}
#else
inline float e4m3_value(uint8_t code) {
  const int size = code & 0x7f, exponent = size >> 3, fraction = size & 7;
  const uint32_t nan = 0x7fc00000u;
  float value;
  if (size == 0x7f)
    std::memcpy(&value, &nan, 4);
  else if (exponent == 0)
    value = float(fraction) * 0x1p-9f;
  else
    value = float(8 + fraction) * float(1 << exponent) * 0x1p-10f;
  return code & 0x80 ? -value : value;
}
inline F32 load_e4m3(const uint8_t* p, int64_t n) {
  F32 r = zero();
  for (int i = 0; i < kLanes && i < n; ++i) r.v[i] = e4m3_value(p[i]);
  return r;
}
inline F32 load_e4m3(const uint8_t* p) { return load_e4m3(p, kLanes); }
#endif

#if defined(MSERVE_BF16_PAIRS)
// One half of the bf16 numbers that the codes 0 to 127 stand for.
struct E4m3Bytes {
  alignas(64) uint8_t bytes[128];
};
constexpr E4m3Bytes e4m3_bytes(int shift) {
  E4m3Bytes table{};
  for (int size = 0; size < 128; ++size) {
    int bits = (120 << 7) + (size << 4);  // the exponent's bias goes from 7 to 127
    if (size == 127) bits = 0x7fc0;
    if (size < 8) {  // a subnormal: fraction * 2^-9
      int top = size > 3 ? 2 : size > 1 ? 1 : 0;
      bits = size == 0 ? 0 : ((118 + top) << 7) | (size - (1 << top)) << (7 - top);
    }
    table.bytes[size] = uint8_t(bits >> shift);
  }
  return table;
}
constexpr E4m3Bytes kE4m3Low = e4m3_bytes(0), kE4m3High = e4m3_bytes(8);

struct Bf16x64 {
  __m512i low, high;  // the first and the last 32
  __m512bh part(int i) const { return (__m512bh)(i == 0 ? low : high); }
};

// The compiler must not rebuild a constant from a scalar in every turn of a loop.
inline __m512i kept(__m512i constant) {
  asm("" : "+v"(constant));
  return constant;
}

struct Exponents {
  int16_t words[256];
};
// What multiplying by 2^(scale - 127) adds to a bf16 number's bits.
constexpr Exponents exponents() {
  Exponents table{};
  for (int scale = 0; scale < 256; ++scale) table.words[scale] = int16_t((scale - 127) * 128);
  return table;
}
constexpr Exponents kExponents = exponents();

// Whether 2^(scale - 127) leaves every code but 0 and NaN a normal bf16 number.
constexpr uint8_t kLeastScale = 10, kMostScale = 246;
inline bool stays_normal(uint8_t scale) { return scale >= kLeastScale && scale <= kMostScale; }
inline bool stay_normal(const uint8_t* scales, int64_t count) {
  const __m512i least = _mm512_set1_epi8(char(kLeastScale));
  const __m512i range = _mm512_set1_epi8(char(kMostScale - kLeastScale));
  __mmask64 outside = 0;
  for (int64_t i = 0; i < count; i += 64) {
    const int64_t left = count - i;
    const __mmask64 there = left >= 64 ? ~__mmask64(0) : (__mmask64(1) << left) - 1;
    const __m512i above = _mm512_sub_epi8(_mm512_maskz_loadu_epi8(there, scales + i), least);
    outside |= _mm512_mask_cmpgt_epu8_mask(there, above, range);
  }
  return outside == 0;
}

// Codes to bf16, 64 at a time, by looking up both bytes of each. Holds the tables in registers.
struct E4m3Decoder {
  using Value = bf16;
  static constexpr int64_t kCodes = 64;  // at a time
  static constexpr bool saw_nan() { return false; }  // those that were did come out as NaN

  E4m3Decoder() {}  // written out: an implicit one is not compiled for this instruction set
  const __m512i low0 = kept(_mm512_load_si512(kE4m3Low.bytes));
  const __m512i low1 = kept(_mm512_load_si512(kE4m3Low.bytes + 64));
  const __m512i high0 = kept(_mm512_load_si512(kE4m3High.bytes));
  const __m512i high1 = kept(_mm512_load_si512(kE4m3High.bytes + 64));
  // so that interleaving bytes within 128-bit lanes leaves the values in their order
  const __m512i lanes = kept(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
  const __m512i sign = kept(_mm512_set1_epi8(int8_t(0x80)));
  const __m512i one = kept(_mm512_set1_epi8(1));
  const __m512i below_nan = kept(_mm512_set1_epi8(int8_t(253)));

  Bf16x64 values(const uint8_t* from) const { return values(_mm512_loadu_si512(from)); }
  Bf16x64 values(__m512i codes) const {
    const __m512i apart = _mm512_permutexvar_epi64(lanes, codes);
    const __m512i low = _mm512_permutex2var_epi8(low0, apart, low1);
    const __m512i size = _mm512_permutex2var_epi8(high0, apart, high1);
    const __m512i high = _mm512_ternarylogic_epi32(size, apart, sign, 0xf8);  // size | apart & sign
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  }

  // Under two scales that stay normal. Multiplying by a power of two adds to the exponent of all
  // but zeros and NaN.
  Bf16x64 values(const uint8_t* from, const uint8_t* scales) const {
    const __m512i codes = _mm512_loadu_si512(from);
    const Bf16x64 plain = values(codes);
    // twice the code, less one: the sign is shifted out, 0 becomes 255 and NaN 253
    const __m512i twice = _mm512_sub_epi8(_mm512_add_epi8(codes, codes), one);
    const __mmask64 numbers = _mm512_cmplt_epu8_mask(twice, below_nan);
    const __m512i first = _mm512_set1_epi16(kExponents.words[scales[0]]);
    const __m512i second = _mm512_set1_epi16(kExponents.words[scales[1]]);
    return {
        _mm512_mask_add_epi16(plain.low, __mmask32(numbers), plain.low, first),
        _mm512_mask_add_epi16(plain.high, __mmask32(numbers >> 32), plain.high, second)};
  }
};

inline void store(bf16* to, Bf16x64 values) {
  _mm512_storeu_si512(to, values.low);
  _mm512_storeu_si512(to + 32, values.high);
}
#define MSERVE_E4M3_DECODER
#elif defined(MSERVE_VEC_AVX2)
// A code's bits in the place of a float's read 2^-kCodePower of its value, a subnormal of a subnormal.
constexpr uint32_t kCodePower = 120;
constexpr uint8_t kMostScale = 254 - kCodePower;

// 2^(scale - 127 + kCodePower), where that is a float: looked up, a factor costs one load, worked out
// five operations.
struct ScalePowers {
  uint32_t bits[256];
};
constexpr ScalePowers scale_powers() {
  ScalePowers table{};
  for (uint32_t scale = 0; scale <= kMostScale; ++scale)
    table.bits[scale] = (scale + kCodePower) << 23;
  return table;
}
constexpr ScalePowers kScalePowers = scale_powers();
inline bool stays_normal(uint8_t scale) { return scale <= kMostScale; }
inline bool stay_normal(const uint8_t* scales, int64_t count) {
  uint8_t most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, scales[i]);
  return stays_normal(most);
}

struct F32x32 {
  F32 parts[4];
  F32 part(int i) const { return parts[i]; }
};
inline void store(float* to, const F32x32& values) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) store(to + i * kLanes, values.parts[i]);
}

// Codes to floats, 32 at a time, every fourth in one register: so the bytes of a dword need shifts,
// not shuffles, to become floats, and the factor that a group has anyway puts their exponents right.
struct E4m3Decoder {
  using Value = float;
  static constexpr int64_t kCodes = 32;

  E4m3Decoder() {}  // written out: an implicit one is not compiled for this instruction set

  [[gnu::always_inline]] F32x32 values(const uint8_t* from) {
    return times(from, kScalePowers.bits[127]);
  }
  [[gnu::always_inline]] F32x32 values(const uint8_t* from, const uint8_t* scale) {
    return times(from, kScalePowers.bits[*scale]);
  }
  // Whether any code was NaN, which came out as a number: 0x7f, the largest byte with a sign, or 0xff,
  // the largest without.
  bool saw_nan() const {
    const __m256i plus = _mm256_cmpeq_epi8(most_signed_, _mm256_set1_epi8(0x7f));
    const __m256i minus = _mm256_cmpeq_epi8(most_unsigned_, _mm256_set1_epi8(-1));
    const __m256i nan = _mm256_or_si256(plus, minus);
    return !_mm256_testz_si256(nan, nan);
  }

 private:
  __m256i most_signed_ = _mm256_setzero_si256(), most_unsigned_ = _mm256_setzero_si256();

  [[gnu::always_inline]] F32x32 times(const uint8_t* from, uint32_t factor_bits) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256 factor = _mm256_castsi256_ps(_mm256_set1_epi32(int(factor_bits)));
    most_signed_ = _mm256_max_epi8(most_signed_, codes);
    most_unsigned_ = _mm256_max_epu8(most_unsigned_, codes);
    const __m256i high = _mm256_srai_epi16(codes, 4);  // the sign stays at the top of its word
    const __m256i low = _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 4);
    return {{value(_mm256_slli_epi32(low, 16), factor), value(_mm256_slli_epi32(high, 16), factor),
             value(low, factor), value(high, factor)}};
  }
  [[gnu::always_inline]] static F32 value(__m256i bits, __m256 factor) {
    const __m256i code = _mm256_and_si256(bits, _mm256_set1_epi32(int(0x87f00000u)));
    return {_mm256_mul_ps(_mm256_castsi256_ps(code), factor)};
  }
};
#define MSERVE_E4M3_DECODER
#endif

// Operands that meet decoded values lie in the decoder's order: arrange() puts a row into it.
#if defined(MSERVE_VEC_AVX2)
constexpr bool kArranges = true;
// Of each whole group of 32, every fourth together.
inline void arrange(float* row, int64_t count) {
  for (int64_t k = 0; k + E4m3Decoder::kCodes <= count; k += E4m3Decoder::kCodes, row += 32) {
    __m256 r[4], pairs[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row + 4 * i)),
                                  _mm_loadu_ps(row + 4 * i + 16), 1);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      _mm256_storeu_ps(row + 16 * i, _mm256_shuffle_ps(pairs[i], pairs[2 + i], 0x44));
      _mm256_storeu_ps(row + 16 * i + 8, _mm256_shuffle_ps(pairs[i], pairs[2 + i], 0xee));
    }
  }
}
#else
constexpr bool kArranges = false;
template <class T>
inline void arrange(T*, int64_t) {}
#endif
