// Values of the KV cache that are shorter than those of the op: bf16 under fp32, or one byte each,
// as e4m3 numbers or as integers whose vector has a factor beside it. All are exact in bf16, so
// products are taken with the codes, and a factor meets a sum of products (keys) or a probability
// (values): one multiplication per key instead of one per element.
//
// Writing rounds as the reference does, in fp32, to nearest and ties to even.

constexpr float kLargestE4m3 = 448.0f, kLargestInt8 = 127.0f;

// load_int8(p) gives kLanes integers as floats, load_int8(p, n) the first n, the rest zero.
#if defined(MSERVE_VEC_AVX512)
inline F32 load_int8(const uint8_t* p, int64_t n) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)))};
}
inline F32 load_int8(const uint8_t* p) { return load_int8(p, kLanes); }
#elif defined(MSERVE_VEC_AVX2)
inline F32 load_int8(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}
inline F32 load_int8(const uint8_t* p, int64_t n) {
  uint8_t copy[8] = {};
  std::memcpy(copy, p, size_t(n < 8 ? n : 8));
  return load_int8(copy);
}
#else
inline F32 load_int8(const uint8_t* p, int64_t n) {
  F32 r = zero();
  for (int i = 0; i < kLanes && i < n; ++i) r.v[i] = float(int8_t(p[i]));
  return r;
}
inline F32 load_int8(const uint8_t* p) { return load_int8(p, kLanes); }
#endif

#if defined(MSERVE_BF16_PAIRS)
constexpr E4m3Bytes int8_bytes(int shift) {
  E4m3Bytes table{};
  for (int size = 1; size < 128; ++size) {
    int top = 0;
    while (size >> (top + 1)) ++top;
    table.bytes[size] = uint8_t((((127 + top) << 7) | (size - (1 << top)) << (7 - top)) >> shift);
  }
  return table;
}
constexpr E4m3Bytes kInt8Low = int8_bytes(0), kInt8High = int8_bytes(8);

struct BytePairs {
  alignas(64) uint8_t first[64], second[64];
};
// Where the two bytes of a dword's first pair of codes are, and of its second: in a register of
// low bytes, and one of high bytes after it.
constexpr BytePairs byte_pairs() {
  BytePairs table{};
  for (int i = 0; i < 64; ++i) {
    const int code = i / 4 * 4 + i % 4 / 2, high = i % 2 * 64;
    table.first[i] = uint8_t(code + high);
    table.second[i] = uint8_t(code + 2 + high);
  }
  return table;
}
constexpr BytePairs kBytePairs = byte_pairs();

// Codes to bf16 by looking up both bytes of each. Holds the tables in registers.
template <Cached kForm>
struct CodeLookup {
  static constexpr bool kInteger = kForm == Cached::kInt8;
  CodeLookup() {}  // written out: an implicit one is not compiled for this instruction set
  const __m512i low0 = kept(_mm512_load_si512((kInteger ? kInt8Low : kE4m3Low).bytes));
  const __m512i low1 = kept(_mm512_load_si512((kInteger ? kInt8Low : kE4m3Low).bytes + 64));
  const __m512i high0 = kept(_mm512_load_si512((kInteger ? kInt8High : kE4m3High).bytes));
  const __m512i high1 = kept(_mm512_load_si512((kInteger ? kInt8High : kE4m3High).bytes + 64));
  const __m512i sign = kept(_mm512_set1_epi8(int8_t(0x80)));

  void halves(__m512i codes, __m512i& low, __m512i& high) const {
    const __m512i size = kInteger ? _mm512_abs_epi8(codes) : codes;
    low = _mm512_permutex2var_epi8(low0, size, low1);
    high = _mm512_permutex2var_epi8(high0, size, high1);
    high = _mm512_ternarylogic_epi32(high, codes, sign, 0xf8);  // high | codes & sign
  }

  // The four codes of every dword as two dwords: its first pair, and its second.
  void split(__m512i codes, __m512i& first, __m512i& second) const {
    __m512i low, high;
    halves(codes, low, high);
    first = _mm512_permutex2var_epi8(low, _mm512_load_si512(kBytePairs.first), high);
    second = _mm512_permutex2var_epi8(low, _mm512_load_si512(kBytePairs.second), high);
  }

  // 64 codes of one row and 64 of the next: column i of both is dword i % 16 of register i / 16.
  void interleave(__m512i even, __m512i odd, __m512i columns[4]) const {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    even = _mm512_permutexvar_epi32(order, even);
    odd = _mm512_permutexvar_epi32(order, odd);
    __m512i low, high;
    halves(_mm512_unpacklo_epi8(even, odd), low, high);
    columns[0] = _mm512_unpacklo_epi8(low, high);
    columns[1] = _mm512_unpackhi_epi8(low, high);
    halves(_mm512_unpackhi_epi8(even, odd), low, high);
    columns[2] = _mm512_unpacklo_epi8(low, high);
    columns[3] = _mm512_unpackhi_epi8(low, high);
  }
};
#endif

template <Cached kForm, class T>
inline void expand(T* to, const uint8_t* codes, int64_t count) {
  int64_t k = 0;
#if defined(MSERVE_BF16_PAIRS)
  if constexpr (std::is_same_v<T, bf16>) {
    const CodeLookup<kForm> lookup;
    const __m512i lanes = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (; k + 64 <= count; k += 64) {
      __m512i low, high;
      lookup.halves(_mm512_permutexvar_epi64(lanes, _mm512_loadu_si512(codes + k)), low, high);
      _mm512_storeu_si512(to + k, _mm512_unpacklo_epi8(low, high));
      _mm512_storeu_si512(to + k + 32, _mm512_unpackhi_epi8(low, high));
    }
  }
#endif
  constexpr bool kInteger = kForm == Cached::kInt8;
  for (; k + kLanes <= count; k += kLanes)
    store(to + k, kInteger ? load_int8(codes + k) : load_e4m3(codes + k));
  const int64_t left = count - k;
  if (left > 0)
    store(to + k, kInteger ? load_int8(codes + k, left) : load_e4m3(codes + k, left), left);
}

inline int64_t value_bytes(Cached form, int64_t plain) {
  if (form == Cached::kPlain) return plain;
  return form == Cached::kBFloat16 ? 2 : 1;
}

// `count` values of a plane from `at` on: where they lie if they are T, else expanded into `room`.
// A factor is not applied.
template <class T>
inline const T* plain_values(const Plane& plane, int64_t at, int64_t count, T* room) {
  const auto* from =
      static_cast<const uint8_t*>(plane.data) + at * value_bytes(plane.form, sizeof(T));
  switch (plane.form) {
    case Cached::kPlain:
      return reinterpret_cast<const T*>(from);
    case Cached::kE4m3:
      expand<Cached::kE4m3>(room, from, count);
      break;
    case Cached::kInt8:
      expand<Cached::kInt8>(room, from, count);
      break;
    case Cached::kBFloat16:
      if constexpr (std::is_same_v<T, float>)
        to_floats(room, reinterpret_cast<const bf16*>(from), count);
  }
  return room;
}

// One KV head's part of a block.
struct BlockPart {
  const Plane& plane;
  int64_t id, head, width;

  int64_t at() const { return id * plane.block_stride + head * kBlockTokens * width; }
  template <class Stored>
  const Stored* values() const {
    return static_cast<const Stored*>(plane.data) + at();
  }
  const void* start(int64_t plain_bytes) const {
    return static_cast<const char*>(plane.data) + at() * value_bytes(plane.form, plain_bytes);
  }
  const float* factors() const {
    if (plane.factors == nullptr) return nullptr;
    return plane.factors + id * plane.factor_stride + head * kBlockTokens;
  }
};

// Code of the e4m3 number nearest to x, saturating; NaN stays NaN. Without branches, so that the
// compiler makes vectors of it.
inline uint8_t to_e4m3(float x) {
  uint32_t bits, lifted_bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 24 & 0x80u, size = bits & 0x7fffffffu;
  uint32_t bounded = size < 0x43e00000u ? size : 0x43e00000u;  // 448
  float small;
  std::memcpy(&small, &bounded, 4);
  // below 2^-6 a code counts 2^-9, which is the last bit of a float near 2^14
  const float lifted = small + 16384.0f;
  std::memcpy(&lifted_bits, &lifted, 4);
  const uint32_t rounded = (bounded + 0x7ffffu + (bounded >> 20 & 1) - (120u << 23)) >> 20;
  uint32_t code = bounded < (121u << 23) ? lifted_bits - 0x46800000u : rounded;
  code = size > 0x7f800000u ? 0x7fu : code;
  return uint8_t(code | sign);
}

inline void encode_e4m3(uint8_t* to, const float* x, int64_t width) {
  for (int64_t k = 0; k < width; ++k) to[k] = to_e4m3(x[k]);
}

// Integers of one vector; returns their factor. What is no number has no integer; its factor makes
// it one that is no number again.
inline float encode_int8(uint8_t* to, const float* x, int64_t width) {
  uint32_t most = 0;  // ordered like the magnitudes, NaN above all
  for (int64_t k = 0; k < width; ++k) {
    uint32_t bits;
    std::memcpy(&bits, x + k, 4);
    bits &= 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  float largest;
  std::memcpy(&largest, &most, 4);
  const float factor = largest / kLargestInt8, divisor = factor == 0.0f ? 1.0f : factor;
  for (int64_t k = 0; k < width; ++k) {
    float value = __builtin_rintf(x[k] / divisor);
    value = value != value ? 1.0f : value;
    value = value < -kLargestInt8 ? -kLargestInt8 : value > kLargestInt8 ? kLargestInt8 : value;
    to[k] = uint8_t(int8_t(int32_t(value)));
  }
  return factor;
}
