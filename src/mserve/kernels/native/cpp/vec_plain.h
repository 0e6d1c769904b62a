// Any machine: four lanes in the compiler's own vector type (SSE2 on x86-64, NEON on Arm).

constexpr int kLanes = 4;
constexpr int kTileSums = 8;
constexpr int kInt8TileRows = kTileSums / 4;

struct F32 {
  typedef float Float4 __attribute__((vector_size(16)));
  typedef int32_t Int4 __attribute__((vector_size(16)));
  Float4 v;
};

inline F32 set1(float x) { return {F32::Float4{x, x, x, x}}; }
inline F32 zero() { return set1(0.0f); }
inline F32 add(F32 a, F32 b) { return {a.v + b.v}; }
inline F32 sub(F32 a, F32 b) { return {a.v - b.v}; }
inline F32 mul(F32 a, F32 b) { return {a.v * b.v}; }
inline F32 div(F32 a, F32 b) { return {a.v / b.v}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {a.v * b.v + c.v}; }
inline F32 neg(F32 a) { return sub(zero(), a); }
// A NaN in the second operand is the result.
inline F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
inline F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
inline F32 round(F32 a) {
  F32 r;
  for (int i = 0; i < 4; ++i) r.v[i] = __builtin_rintf(a.v[i]);
  return r;
}
inline F32 power_of_two(F32 n) {
  F32 r;
  for (int i = 0; i < 4; ++i) {
    // a NaN has no integer; its power is multiplied by the NaN anyway
    const uint32_t bits = n.v[i] == n.v[i] ? uint32_t(int32_t(n.v[i]) + 127) << 23 : 0;
    float power;
    std::memcpy(&power, &bits, 4);
    r.v[i] = power;
  }
  return r;
}
inline F32 zero_where_less(F32 x, F32 bound, F32 value) {
  return {x.v < bound.v ? zero().v : value.v};
}
// The first n lanes of `a`, the rest of `other`; n may be negative.
inline F32 first_or(F32 a, int64_t n, F32 other) {
  for (int i = 0; i < 4 && i < n; ++i) other.v[i] = a.v[i];
  return other;
}

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline bf16 to_bf16(float x);
inline void narrow(float* p, float x) { *p = x; }
inline void narrow(bf16* p, float x) { *p = to_bf16(x); }

template <class T>
inline F32 load(const T* p) {
  return {F32::Float4{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}};
}
// The first n elements, the rest zero; reads nothing beyond them.
template <class T>
inline F32 load(const T* p, int64_t n) {
  F32 r = zero();
  for (int i = 0; i < 4 && i < n; ++i) r.v[i] = widen(p[i]);
  return r;
}
template <class T>
inline void store(T* p, F32 a, int64_t n) {
  for (int i = 0; i < 4 && i < n; ++i) narrow(p + i, a.v[i]);
}
template <class T>
inline void store(T* p, F32 a) {
  store(p, a, 4);
}

inline float sum(F32 a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline void store_sums(float* p, F32 a, F32 b, F32 c, F32 d) {
  p[0] = sum(a), p[1] = sum(b), p[2] = sum(c), p[3] = sum(d);
}
inline float max_of(F32 a) {
  const float low = a.v[0] > a.v[1] ? a.v[0] : a.v[1], high = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return low > high ? low : high;
}

template <class T>
struct Dot {
  using V = F32;
  static constexpr int kStep = 4;
  static V load(const T* p) { return MSERVE_ISA::load(p); }
  static V load(const T* p, int64_t n) { return MSERVE_ISA::load(p, n); }
  static F32 multiply_add(V a, V b, F32 c) { return fma(a, b, c); }
};

// Integers of one byte, rounded; what is no number has no integer.
inline void store_int8(int8_t* p, F32 a) {
  const F32 whole = round(a);
  for (int i = 0; i < 4; ++i) p[i] = whole.v[i] == whole.v[i] ? int8_t(whole.v[i]) : int8_t(0);
}

struct I32 {
  F32::Int4 v;
};

inline I32 add(I32 a, I32 b) { return {a.v + b.v}; }
inline void store_sums(int32_t* p, I32 a, I32 b, I32 c, I32 d) {
  const I32 all[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    p[i] = (all[i].v[0] + all[i].v[1]) + (all[i].v[2] + all[i].v[3]);
}

struct Int8Dot {
  struct V {
    F32::Int4 v[2];
  };
  static constexpr int kStep = 8;
  static constexpr int32_t kWeightShift = 0;
  static I32 zero() { return {F32::Int4{0, 0, 0, 0}}; }
  static V load(const int8_t* p) {
    return {F32::Int4{p[0], p[1], p[2], p[3]}, F32::Int4{p[4], p[5], p[6], p[7]}};
  }
  static V weights(const int8_t* p) { return load(p); }
  static V weights(const int8_t* p, int64_t n) {
    int8_t copy[kStep] = {};
    std::memcpy(copy, p, size_t(n));
    return load(copy);
  }
  static I32 multiply_add(V x, V weights, I32 c) {
    return {c.v + x.v[0] * weights.v[0] + x.v[1] * weights.v[1]};
  }
};

// Inlined by force: called within what is inlined so, gcc takes it for a function without effect.
[[gnu::always_inline]] inline void prefetch(const void* p) { __builtin_prefetch(p); }
