// Root-mean-square norms, and the same with rotation of heads.

template <class T>
inline float sum_of_squares(const T* x, int64_t width) {
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
  return sum(squares);
}

template <class T>
inline float inverse_rms(const T* x, int64_t width, float eps) {
  return 1.0f / std::sqrt(sum_of_squares(x, width) / float(width) + eps);
}

// As many elements of x / rms as there are lanes, times their weights.
template <class T>
inline F32 weighted(Norm kind, F32 x, F32 inverse, const void* weight, int64_t at, int64_t left) {
  const F32 value = mul(x, inverse);
  if (kind == Norm::kOnePlusWeight)
    return mul(value, add(set1(1.0f), load(static_cast<const float*>(weight) + at, left)));
  T rounded[kLanes];
  store(rounded, value);
  return mul(load(static_cast<const T*>(weight) + at, left), load(rounded));
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
        const F32 value = weighted<T>(a.kind, load(x + k, left), factor, a.weight, k, left);
        store(out + k, value, left);
      }
    }
  });
}

inline void rms_norm(const NormArgs& a) {
  a.dtype == DType::kFloat32 ? rms_norm_typed<float>(a) : rms_norm_typed<bf16>(a);
}

constexpr int64_t kMaxHeadWidth = 1024;

// Dimension i of a head turns with i + turned; the rest, past twice `turned`, pass.
inline void rotate(float* head, const float* cosine, const float* sine, int64_t turned) {
  for (int64_t c = 0; c < turned; c += kLanes) {
    const int64_t left = turned - c;
    const F32 low = load(head + c, left), high = load(head + turned + c, left);
    const F32 cos = load(cosine + c, left), sin = load(sine + c, left);
    store(head + c, sub(mul(low, cos), mul(high, sin)), left);
    store(head + turned + c, add(mul(high, cos), mul(low, sin)), left);
  }
}

template <class T>
void norm_rope_typed(const NormRopeArgs& a) {
  for_rows(a.tokens, a.heads * a.width, [&](Range mine) {
    float head[kMaxHeadWidth];
    for (int64_t t = mine.begin; t < mine.end; ++t)
      for (int64_t h = 0; h < a.heads; ++h) {
        const T* x = static_cast<const T*>(a.x) + t * a.x_stride + h * a.width;
        T* out = static_cast<T*>(a.out) + (t * a.heads + h) * a.width;
        const bool own = a.kind == Norm::kOnePlusWeight;
        const F32 inverse =
            set1(own ? inverse_rms(x, a.width, a.eps)
                     : 1.0f / std::sqrt(a.mean_square[t * a.mean_square_stride] + a.eps));
        for (int64_t k = 0; k < a.width; k += kLanes) {
          const int64_t left = a.width - k;
          const F32 value =
              weighted<T>(a.kind, load(x + k, left), inverse, a.weight, h * a.width + k, left);
          if (own) {
            store(head + k, value, left);
          } else {  // M2 rounds between norm and rotation
            T rounded[kLanes];
            store(rounded, value);
            store(head + k, load(rounded), left);
          }
        }
        rotate(head, a.cosine + t * a.turned, a.sine + t * a.turned, a.turned);
        for (int64_t k = 0; k < a.width; k += kLanes)
          store(out + k, load(head + k, a.width - k), a.width - k);
      }
  });
}

inline void norm_rope(const NormRopeArgs& a) {
  a.dtype == DType::kFloat32 ? norm_rope_typed<float>(a) : norm_rope_typed<bf16>(a);
}

template <class T>
void mean_squares_typed(const MeanSquaresArgs& a) {
  for_rows(a.tokens, a.width, [&](Range mine) {
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      const T* x = static_cast<const T*>(a.x) + t * a.x_stride;
      a.means[2 * t] = sum_of_squares(x, a.split) / float(a.first_count);
      a.means[2 * t + 1] =
          sum_of_squares(x + a.split, a.width - a.split) / float(a.last_count);
    }
  });
}

inline void mean_squares(const MeanSquaresArgs& a) {
  a.dtype == DType::kFloat32 ? mean_squares_typed<float>(a) : mean_squares_typed<bf16>(a);
}
