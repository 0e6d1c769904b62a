// New tokens' keys or values into their slots of the cache, in the form that it stores.

template <class T>
void write_kv_typed(const WriteArgs& a) {
  const Plane& plane = a.plane;
  for_rows(a.tokens, a.heads * a.width, [&](Range mine) {
    float wide[kMaxHeadWidth + kLanes];
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      const int64_t block = a.slots[t] / kBlockTokens, offset = a.slots[t] % kBlockTokens;
      for (int64_t h = 0; h < a.heads; ++h) {
        const T* x = static_cast<const T*>(a.x) + t * a.x_stride + h * a.width;
        const int64_t vector = h * kBlockTokens + offset;
        const int64_t at = block * plane.block_stride + vector * a.width;
        if (plane.form == Cached::kPlain) {
          std::copy_n(x, a.width, static_cast<T*>(plane.data) + at);
          continue;
        }
        for (int64_t k = 0; k < a.width; k += kLanes) store(wide + k, load(x + k, a.width - k));
        auto* to = static_cast<uint8_t*>(plane.data) + at * value_bytes(plane.form, sizeof(T));
        if (plane.form == Cached::kE4m3)
          encode_e4m3(to, wide, a.width);
        else if (plane.form == Cached::kInt8)
          plane.factors[block * plane.factor_stride + vector] = encode_int8(to, wide, a.width);
        else
          for (int64_t k = 0; k < a.width; k += kLanes)
            store(reinterpret_cast<bf16*>(to) + k, load(wide + k), a.width - k);
      }
    }
  });
}

inline void write_kv(const WriteArgs& a) {
  a.dtype == DType::kFloat32 ? write_kv_typed<float>(a) : write_kv_typed<bf16>(a);
}
