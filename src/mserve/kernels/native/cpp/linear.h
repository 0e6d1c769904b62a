// y = x w^T. Workers split the weight rows; every worker reads all rows of x.

template <class T, class Out>
void linear_typed(const LinearArgs& a) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* w = static_cast<const T*>(a.w);
  auto* y = static_cast<Out*>(a.y);
  parallel([&](const Worker& me) {
    const Range mine = me.share(a.outer, kColumns);
    const int64_t block = row_block<T>(a.inner);
    const T* rows[kMaxRowBlock];
    float sums[kMaxRowBlock * kColumns];
    for (int64_t first_row = 0; first_row < a.rows; first_row += block) {
      const int64_t count = std::min(block, a.rows - first_row);
      for (int64_t m = 0; m < count; ++m) rows[m] = x + (first_row + m) * a.x_stride;
      for (int64_t n = mine.begin; n < mine.end; n += kColumns) {
        const int64_t columns = std::min<int64_t>(kColumns, mine.end - n);
        dot_rows(rows, count, w + n * a.inner, a.inner, a.inner, columns, sums);
        for (int64_t m = 0; m < count; ++m)
          store_columns(y + (first_row + m) * a.y_stride + n, sums + m * kColumns, columns);
      }
    }
  });
}

inline void linear(const LinearArgs& a) {
  const bool wide = a.out_dtype == DType::kFloat32;
  if (a.dtype == DType::kFloat32) return linear_typed<float, float>(a);
  wide ? linear_typed<bf16, float>(a) : linear_typed<bf16, bf16>(a);
}
