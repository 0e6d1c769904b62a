// The ends of a step and what joins its products: rows of the embedding, rotary angles, the gated
// activation, the residual sum.

// A token id that is no row of the embedding is std::out_of_range, before anything is written.
inline void embedding(const EmbeddingArgs& a) {
  const int64_t bytes = a.width * (a.dtype == DType::kFloat32 ? 4 : 2);
  for (int64_t t = 0; t < a.tokens; ++t)
    if (a.ids[t] < 0 || a.ids[t] >= a.height) throw std::out_of_range("token id");
  for_rows(a.tokens, a.width, [&](Range mine) {
    for (int64_t t = mine.begin; t < mine.end; ++t)
      std::memcpy(static_cast<char*>(a.out) + t * bytes,
                  static_cast<const char*>(a.weight) + a.ids[t] * bytes, size_t(bytes));
  });
}

inline void rope_angles(const AnglesArgs& a) {
  // an angle costs about as much as sixteen elements of a norm
  for_rows(a.tokens, a.turned * 16, [&](Range mine) {
    for (int64_t t = mine.begin; t < mine.end; ++t)
      for (int64_t c = 0; c < a.turned; ++c) {
        const float angle = float(a.positions[t]) * a.frequencies[c];
        a.cosine[t * a.turned + c] = std::cos(angle);
        a.sine[t * a.turned + c] = std::sin(angle);
      }
  });
}

template <class T>
void activate_typed(const ActivateArgs& a) {
  for_rows(a.rows, 2 * a.width, [&](Range mine) {
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      const T *gate = static_cast<const T*>(a.x) + r * 2 * a.width, *up = gate + a.width;
      T* out = static_cast<T*>(a.out) + r * a.width;
      for (int64_t k = 0; k < a.width; k += kLanes) {
        const int64_t left = a.width - k;
        store(out + k, activate(a.activation, load(gate + k, left), load(up + k, left)), left);
      }
    }
  });
}

inline void activate(const ActivateArgs& a) {
  a.dtype == DType::kFloat32 ? activate_typed<float>(a) : activate_typed<bf16>(a);
}

template <class T>
void residual_sum_typed(const ResidualArgs& a) {
  for_rows(a.rows, a.width, [&](Range mine) {
    const auto *x = static_cast<const T*>(a.x), *y = static_cast<const T*>(a.y);
    const int64_t end = mine.end * a.width;
    for (int64_t k = mine.begin * a.width; k < end; k += kLanes)
      store(static_cast<T*>(a.out) + k, add(load(x + k, end - k), load(y + k, end - k)), end - k);
  });
}

inline void residual_sum(const ResidualArgs& a) {
  a.dtype == DType::kFloat32 ? residual_sum_typed<float>(a) : residual_sum_typed<bf16>(a);
}
