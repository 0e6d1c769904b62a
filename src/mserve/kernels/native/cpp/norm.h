// Root-mean-square norms, and M3's norm and rotation of heads in one pass with one rounding.

template <class T>
inline float inverse_rms(const T* x, int64_t width, float eps) {
  F32 squares = zero();
  int64_t k = 0;
  for (; k + kLanes <= width; k += kLanes) {
    const F32 value = load(x + k);
    squares = fma(value, value, squares);
  }
  if (k < width) {
    const F32 value = load(x + k, width - k);
    squares = fma(value, value, squares);
  }
  return 1.0f / std::sqrt(sum(squares) / float(width) + eps);
}

// Splitting a few rows costs more than it saves: waking a worker takes as long as norming 64 KiB.
constexpr int64_t kSerialElements = 32768;

template <class Body>
inline void for_rows(int64_t rows, int64_t width, Body&& body) {
  if (rows * width <= kSerialElements) return body(Range{0, rows});
  parallel([&](const Worker& me) { body(me.share(rows)); });
}

template <class T>
void rms_norm_typed(const NormArgs& a) {
  for_rows(a.rows, a.width, [&](Range mine) {
    for (int64_t m = mine.begin; m < mine.end; ++m) {
      const T* x = static_cast<const T*>(a.x) + m * a.width;
      T* out = static_cast<T*>(a.out) + m * a.width;
      const F32 factor = set1(inverse_rms(x, a.width, a.eps));
      for (int64_t k = 0; k < a.width; k += kLanes) {
        const int64_t left = a.width - k;
        F32 value = mul(load(x + k, left), factor);
        if (a.kind == Norm::kOnePlusWeight) {
          const F32 weight = load(static_cast<const float*>(a.weight) + k, left);
          value = mul(value, add(set1(1.0f), weight));
        } else {
          T rounded[kLanes];
          store(rounded, value);
          value = mul(load(static_cast<const T*>(a.weight) + k, left), load(rounded));
        }
        store(out + k, value, left);
      }
    }
  });
}

inline void rms_norm(const NormArgs& a) {
  a.dtype == DType::kFloat32 ? rms_norm_typed<float>(a) : rms_norm_typed<bf16>(a);
}

// One head; `values` is room for it in fp32. Dimension i turns with i + turned; the rest, past
// twice `turned`, pass.
template <class T>
inline void norm_rope_head(const T* x, const float* weight, const float* cosine, const float* sine,
                           int64_t width, int64_t turned, float eps, float* values, T* out) {
  const F32 factor = set1(inverse_rms(x, width, eps));
  for (int64_t k = 0; k < width; k += kLanes) {
    const int64_t left = width - k;
    const F32 scaled = mul(load(x + k, left), factor);
    store(values + k, mul(scaled, add(set1(1.0f), load(weight + k, left))), left);
  }
  for (int64_t c = 0; c < turned; c += kLanes) {
    const int64_t left = turned - c;
    const F32 low = load(values + c, left), high = load(values + turned + c, left);
    const F32 cos = load(cosine + c, left), sin = load(sine + c, left);
    store(values + c, sub(mul(low, cos), mul(high, sin)), left);
    store(values + turned + c, add(mul(high, cos), mul(low, sin)), left);
  }
  for (int64_t k = 0; k < width; k += kLanes)
    store(out + k, load(values + k, width - k), width - k);
}

constexpr int64_t kMaxHeadWidth = 1024;

template <class T>
void norm_rope_typed(const NormRopeArgs& a) {
  for_rows(a.tokens, a.heads * a.width, [&](Range mine) {
    float values[kMaxHeadWidth];
    for (int64_t t = mine.begin; t < mine.end; ++t)
      for (int64_t h = 0; h < a.heads; ++h)
        norm_rope_head(static_cast<const T*>(a.x) + t * a.x_stride + h * a.width,
                       a.weight + h * a.width, a.cosine + t * a.turned, a.sine + t * a.turned,
                       a.width, a.turned, a.eps, values,
                       static_cast<T*>(a.out) + (t * a.heads + h) * a.width);
  });
}

inline void norm_rope(const NormRopeArgs& a) {
  a.dtype == DType::kFloat32 ? norm_rope_typed<float>(a) : norm_rope_typed<bf16>(a);
}
