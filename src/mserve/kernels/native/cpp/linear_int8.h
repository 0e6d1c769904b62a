// y = x w^T with both sides in INT8. x is quantized first, once for each part of w that has factors
// of its own for it; then workers split the weight rows.

enum LinearInt8Scratch : int { kLinearInputs };

template <class T, class Out>
void linear_int8_typed(const LinearArgs& a) {
  const int64_t whole[] = {a.outer};
  const Int8Matrix w(a.w, a.format, 0, a.parts > 0 ? Parts{a.part_rows, a.parts} : Parts{whole, 1},
                     a.inner);
  const QuantizedRows quantized(kLinearInputs, a.rows * w.inputs(), a.inner);
  const auto* x = static_cast<const T*>(a.x);
  auto* y = static_cast<Out*>(a.y);
  parallel_over(a.rows * a.inner * int64_t(sizeof(T)), [&](const Worker& me) {
    const Range mine = me.share(a.rows);
    for (int64_t part = 0; part < w.inputs(); ++part)
      for (int64_t m = mine.begin; m < mine.end; ++m)
        w.quantize(x + m * a.x_stride, part, quantized[part * a.rows + m]);
  });
  parallel([&](const Worker& me) {
    const Range mine = me.share(a.outer, kInt8Columns);
    const QuantizedRow* rows[kMaxRowBlock];
    float values[kMaxRowBlock * kInt8Columns];
    for_row_blocks<int8_t>(a.rows, a.inner, [&](int64_t first_row, int64_t count) {
      w.for_parts(mine, [&](int64_t part, Range columns_of_part) {
        const int64_t input = part * a.rows + first_row;
        for (int64_t m = 0; m < count; ++m) rows[m] = quantized[input + m];
        for (int64_t n = columns_of_part.begin; n < columns_of_part.end; n += kInt8Columns) {
          const int64_t columns = std::min(kInt8Columns, columns_of_part.end - n);
          int8_rows(rows, count, w, n, columns, values);
          for (int64_t m = 0; m < count; ++m)
            store_columns(y + (first_row + m) * a.y_stride + n, values + m * kInt8Columns, columns);
        }
      });
    });
  });
}

inline void linear_int8(const LinearArgs& a) {
  for_types(a.dtype, a.out_dtype, [&](auto type, auto out) {
    linear_int8_typed<typename decltype(type)::Type, typename decltype(out)::Type>(a);
  });
}
