// y = x w^T. Workers split the weight rows; every worker reads all rows of x.

enum LinearScratch : int { kLinearOperands };

template <class W, class Out>
void linear_typed(const LinearArgs& a) {
  using T = typename W::Element;
  const W w(a.w, 0, {a.part_rows, a.parts}, a.inner);
  const auto* x = static_cast<const T*>(a.x);
  auto* y = static_cast<Out*>(a.y);
  const int64_t operand_bytes = OperandRows<W>::bytes(a.rows, a.inner);
  auto* operands = static_cast<char*>(scratch(kLinearOperands, team_size() * operand_bytes));
  parallel([&](const Worker& me) {
    const Range mine = me.share(a.outer, kColumns);
    OperandRows<W> rows(operands + me.rank * operand_bytes, a.inner);
    float sums[kMaxRowBlock * kColumns];
    for_row_blocks<Operand<T>>(a.rows, a.inner, [&](int64_t first_row, int64_t count) {
      for (int64_t m = 0; m < count; ++m) rows.set(m, x + (first_row + m) * a.x_stride);
      for (int64_t n = mine.begin; n < mine.end; n += kColumns) {
        const int64_t columns = std::min<int64_t>(kColumns, mine.end - n);
        dot_rows(rows.all(), count, w, n, columns, sums);
        for (int64_t m = 0; m < count; ++m)
          store_columns(y + (first_row + m) * a.y_stride + n, sums + m * kColumns, columns);
      }
    });
  });
}

inline void linear(const LinearArgs& a) {
  if (is_int8(a.format)) return linear_int8(a);
  for_storage(a.format, a.dtype, a.out_dtype, [&](auto storage, auto out) {
    linear_typed<typename decltype(storage)::Type, typename decltype(out)::Type>(a);
  });
}
