// Weight rows as they are stored, plain or packed, behind one call: rows of x times some of them.
//
//   Plain<T>      values of T, used as they lie
//   Mxfp8<T>      e4m3 codes and a power of two for each 32 along a row
//   Fp8Block<T>   e4m3 codes and an fp32 factor for each 128 x 128
//
// Packed rows are expanded to operands in the first-level cache, four rows and a slice of columns at
// a time, and multiplied like plain ones; one expansion serves all rows of x that a block holds. The
// store and the load of each value cost more than the memory's own time when x has few rows, so these
// meet the weights in registers instead (AVX-512 BF16 and AVX2), few weight rows at a time, so that
// memory is read in order. Operands and the order of sums are the same both ways: a row's result has
// the same bits in any batch.

constexpr int64_t kMxfp8Group = 32;
constexpr int64_t kFp8Block = 128;

// Heights of the parts, one below the other, of a matrix. Each part's blocks begin anew.
struct Parts {
  const int64_t* heights;
  int64_t count;

  int64_t rows() const {
    int64_t total = 0;
    for (int64_t p = 0; p < count; ++p) total += heights[p];
    return total;
  }
  int64_t block_rows() const { return block_row(rows()); }
  // The block row of `row`; of the row below the last, the number of block rows.
  int64_t block_row(int64_t row) const {
    int64_t above = 0;
    for (int64_t p = 0; p < count; ++p) {
      if (row < heights[p]) return above + row / kFp8Block;
      row -= heights[p];
      above += (heights[p] + kFp8Block - 1) / kFp8Block;
    }
    return above;
  }
};

// Matrix `number` of a stack, whose rows are `inner` wide.
template <class T>
struct Plain {
  using Element = T;
  const T* values;
  int64_t inner;

  Plain(const Stored& stack, int64_t number, const Parts& parts, int64_t inner)
      : values(static_cast<const T*>(stack.values) + number * parts.rows() * inner),
        inner(inner) {}
};

template <class T>
struct Mxfp8 {
  using Element = T;
  static constexpr bool kScaledSums = false;
  // Rows of w that meet `rows` of x at once in registers. A single one's sum is a chain of waits;
  // four rows' lines come in an order that costs the memory 10 %, which AVX2 does not keep up with.
  static constexpr int at_once(int rows) { return kLanes == 8 && rows == 1 ? 4 : 2; }
  const uint8_t *codes, *scales;
  int64_t inner;

  Mxfp8(const Stored& stack, int64_t number, const Parts& parts, int64_t inner)
      : codes(static_cast<const uint8_t*>(stack.values) + number * parts.rows() * inner),
        scales(static_cast<const uint8_t*>(stack.scales) +
               number * parts.rows() * (inner / kMxfp8Group)),
        inner(inner) {}

  const uint8_t* row_scales(int64_t row) const { return scales + row * (inner / kMxfp8Group); }

  void expand(int64_t row, int64_t begin, int64_t end, Operand<T>* to) const {
    const uint8_t *from = codes + row * inner, *scale = row_scales(row);
    int64_t k = begin;
#if defined(MSERVE_E4M3_DECODER)
    if constexpr (std::is_same_v<Operand<T>, E4m3Decoder::Value>) {
      const E4m3Decoder decoder;
      constexpr int64_t kCodes = E4m3Decoder::kCodes;
      for (; k + 64 <= end && decoder.knows(from + k, 64) && stays_normal(scale[k >> 5]) &&
             stays_normal(scale[(k >> 5) + 1]);
           k += 64) {
        prefetch(from + k + kAheadBytes);
#pragma GCC unroll 2
        for (int64_t i = k; i < k + 64; i += kCodes)
          store(to + i - begin, decoder.values(from + i, scale + (i >> 5)));
      }
    }
#endif
    for (; k < end; k += kMxfp8Group) {
      prefetch(from + k + kAheadBytes);
      const F32 power = set1(power_of_scale(scale[k / kMxfp8Group]));
      for (int64_t i = k; i < k + kMxfp8Group; i += kLanes)
        store(to + i - begin, mul(load_e4m3(from + i), power));
    }
  }

#if defined(MSERVE_E4M3_DECODER)
  // A row whose values come straight into registers, E4m3Decoder::kCodes from column k on.
  struct Row {
    const uint8_t *codes, *scales;
    [[gnu::always_inline]] auto load(const E4m3Decoder& decoder, int64_t k) const {
      return decoder.values(codes + k, scales + (k >> 5));
    }
    F32 factor(int64_t) const { return set1(1.0f); }
  };
  Row row(int64_t number) const { return {codes + number * inner, row_scales(number)}; }
  // What needs treatment by value is seldom, and not worth a branch per group.
  bool fits_registers(int64_t number) const {
    return E4m3Decoder::knows(codes + number * inner, inner) &&
           stay_normal(row_scales(number), inner / kMxfp8Group);
  }
#endif
};

template <class T>
struct Fp8Block {
  using Element = T;
  static constexpr bool kScaledSums = true;
  // Each block is a sum of its own, so one row of w makes many short chains and is read as it lies;
  // with more of x two share what they load of it. AVX2 has shorter steps and longer chains.
  static constexpr int at_once(int rows) {
    return kLanes == 8 && rows == 1 ? 4 : rows > 1 ? 2 : 1;
  }
  const uint8_t* codes;
  const float* factors;
  Parts parts;
  int64_t inner;

  Fp8Block(const Stored& stack, int64_t number, const Parts& parts, int64_t inner)
      : codes(static_cast<const uint8_t*>(stack.values) + number * parts.rows() * inner),
        factors(static_cast<const float*>(stack.scales) +
                number * parts.block_rows() * block_columns(inner)),
        parts(parts),
        inner(inner) {}

  static int64_t block_columns(int64_t inner) { return (inner + kFp8Block - 1) / kFp8Block; }

  // The factors of a row, one for each slice of kFp8Block columns.
  const float* row_factors(int64_t row) const {
    return factors + parts.block_row(row) * block_columns(inner);
  }

  void expand(int64_t row, int64_t begin, int64_t end, Operand<T>* to) const {
    const uint8_t* from = codes + row * inner;
    int64_t k = begin;
#if defined(MSERVE_E4M3_DECODER)
    if constexpr (std::is_same_v<Operand<T>, E4m3Decoder::Value>) {
      const E4m3Decoder decoder;
      constexpr int64_t kCodes = E4m3Decoder::kCodes;
      for (; k + 64 <= end && decoder.knows(from + k, 64); k += 64) {
        prefetch(from + k + kAheadBytes);
#pragma GCC unroll 2
        for (int64_t i = k; i < k + 64; i += kCodes)
          store(to + i - begin, decoder.values(from + i));
      }
    }
#endif
    for (; k + kLanes <= end; k += kLanes) {
      prefetch(from + k + kAheadBytes);
      store(to + k - begin, load_e4m3(from + k));
    }
    if (k < end) store(to + k - begin, load_e4m3(from + k, end - k), end - k);
  }

#if defined(MSERVE_E4M3_DECODER)
  struct Row {
    const uint8_t* codes;
    const float* factors;
    [[gnu::always_inline]] auto load(const E4m3Decoder& decoder, int64_t k) const {
      return decoder.values(codes + k);
    }
    F32 factor(int64_t k) const { return set1(factors[k >> 7]); }
  };
  Row row(int64_t number) const { return {codes + number * inner, row_factors(number)}; }
  bool fits_registers(int64_t number) const {
    return E4m3Decoder::knows(codes + number * inner, inner);
  }
#endif
};

// Columns that are expanded at a time where one tile of rows takes them: few enough to be still on
// their way to the cache when they are loaded again.
constexpr int64_t kShortSlice = 32 * kLanes;

// out[m * kColumns + c] = x[m] . w[n + c] for C rows of w.
template <int C, class W>
inline void dot_expanded(const Operand<typename W::Element>* const* x, int64_t rows, const W& w,
                         int64_t n, float* out) {
  using T = Operand<typename W::Element>;
  constexpr int64_t kMost = kTileRows;
  constexpr TilePass kPass = W::kScaledSums ? TilePass::kScaled : TilePass::kCached;
  alignas(64) T expanded[C * kSlice];
  F32 state[kMaxRowBlock * C];
  const float* row_factors[C] = {};
  if constexpr (W::kScaledSums)
    for (int c = 0; c < C; ++c) row_factors[c] = w.row_factors(n + c);
  const int64_t tiles = (rows + kMost - 1) / kMost;
  const int64_t step = W::kScaledSums ? kFp8Block : tiles > 1 ? kSlice : kShortSlice;
  for (int64_t begin = 0; begin < w.inner; begin += step) {
    const int64_t end = std::min(begin + step, w.inner);
    const Slice slice{begin, end, begin == 0, end == w.inner};
    float factors[C];
    for (int c = 0; c < C; ++c) {
      w.expand(n + c, begin, end, expanded + c * step);
      if constexpr (W::kScaledSums) factors[c] = row_factors[c][begin / kFp8Block];
    }
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t top = rows * tile / tiles, bottom = rows * (tile + 1) / tiles;
      dot_tile_of<kMost, C, kPass>(bottom - top, x + top, expanded, step, slice, factors,
                                   state + top * C, out + top * kColumns);
    }
  }
}

#if defined(MSERVE_E4M3_DECODER)
// sums[r][c] = the lanes of x[r] . w[n + c] for few rows of x, without the way through the cache:
// the same operands meet the same sums in the same order, so it does not show which of the two ran.
template <int R, class W>
inline void sum_in_registers(const E4m3Decoder::Value* const* x, const W& w, int64_t n,
                             F32 (&sums)[R][W::at_once(R)]) {
  using D = Dot<E4m3Decoder::Value>;
  constexpr int C = W::at_once(R);
  constexpr int64_t kCodes = E4m3Decoder::kCodes;
  constexpr int64_t kUnit = W::kScaledSums ? kFp8Block : 64;
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = zero();
  const E4m3Decoder decoder;
  typename W::Row w_rows[C];
  for (int c = 0; c < C; ++c) w_rows[c] = w.row(n + c);
  const auto begin_part = [](F32 sum) { return W::kScaledSums ? zero() : sum; };
  const auto end_part = [&](F32 part, const typename W::Row& row, int64_t k, F32 sum) {
    return W::kScaledSums ? fma(part, row.factor(k), sum) : part;
  };

  const int64_t inner = w.inner;
  // Rows lie one below the other: what is fetched ahead is memory in order.
  const uint8_t* ahead = w_rows[0].codes + kAheadBytes;
  int64_t k = 0;
  for (; k + kUnit <= inner; k += kUnit)
    each<C>([&](auto c) __attribute__((always_inline)) {
      F32 part[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) part[r] = begin_part(sums[r][c]);
      each<kUnit / kCodes>([&](auto step) __attribute__((always_inline)) {
        if constexpr (step * kCodes % 64 == 0) {
          prefetch(ahead);
          ahead += 64;
        }
        const int64_t at = k + step * kCodes;
        const auto values = w_rows[c].load(decoder, at);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          each<kCodes / D::kStep>([&](auto p) __attribute__((always_inline)) {
            part[r] =
                D::multiply_add(D::load(x[r] + at + p * D::kStep), values.part(p), part[r]);
          });
      });
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][c] = end_part(part[r], w_rows[c], k, sums[r][c]);
    });
  if (k < inner)
    for (int c = 0; c < C; ++c) {
      alignas(64) E4m3Decoder::Value rest[kUnit];
      w.expand(n + c, k, inner, rest);
      for (int r = 0; r < R; ++r) {
        F32 part = begin_part(sums[r][c]);
        for (int64_t i = k; i < inner; i += D::kStep)
          part = D::multiply_add(D::load(x[r] + i, inner - i), D::load(rest + i - k, inner - i),
                                 part);
        sums[r][c] = end_part(part, w_rows[c], k, sums[r][c]);
      }
    }
}

// out[m * kColumns + c] = x[m] . w[n + c] for R rows of x and four of w.
// Not inlined: a function that holds all of them has too few registers for any.
template <int R, class W>
[[gnu::noinline]] void dot_in_registers(const E4m3Decoder::Value* const* x, const W& w, int64_t n,
                                       float* out) {
  constexpr int C = W::at_once(R);
  F32 lanes[R][4];
  for (int c = 0; c < 4; c += C) {
    F32 sums[R][C];
    sum_in_registers<R>(x, w, n + c, sums);
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < C; ++i) lanes[r][c + i] = sums[r][i];
  }
  for (int r = 0; r < R; ++r)
    store_sums(out + r * kColumns, lanes[r][0], lanes[r][1], lanes[r][2], lanes[r][3]);
}

// For 1 to R rows of x.
template <int R, class W>
inline void dot_in_registers_of(int64_t rows, const E4m3Decoder::Value* const* x, const W& w,
                                int64_t n, float* out) {
  if constexpr (R > 1) {
    if (rows < R) return dot_in_registers_of<R - 1>(rows, x, w, n, out);
  }
  dot_in_registers<R>(x, w, n, out);
}
#endif

// out[m * kColumns + c] = x[m] . w[n + c], for all rows of x and `columns` <= kColumns rows of w.
template <class W>
inline void dot_rows(const Operand<typename W::Element>* const* x, int64_t rows, const W& w,
                     int64_t n, int64_t columns, float* out) {
  int64_t c = 0;
#if defined(MSERVE_E4M3_DECODER)
  if constexpr (std::is_same_v<Operand<typename W::Element>, E4m3Decoder::Value>)
    for (; c + 4 <= columns && rows <= kTileRows; c += 4) {
      if (w.fits_registers(n + c) && w.fits_registers(n + c + 1) && w.fits_registers(n + c + 2) &&
          w.fits_registers(n + c + 3))
        dot_in_registers_of<kTileRows>(rows, x, w, n + c, out + c);
      else
        dot_expanded<4>(x, rows, w, n + c, out + c);
    }
#endif
  for (; c + 4 <= columns; c += 4) dot_expanded<4>(x, rows, w, n + c, out + c);
  for (; c < columns; ++c) dot_expanded<1>(x, rows, w, n + c, out + c);
}

template <class T>
inline void dot_rows(const Operand<T>* const* x, int64_t rows, const Plain<T>& w, int64_t n,
                     int64_t columns, float* out) {
  dot_rows(x, rows, w.values + n * w.inner, w.inner, w.inner, columns, out);
}

// Calls run(Tag<T>, Tag<Out>) of the types that an op's arguments name.
template <class Run>
inline void for_types(DType dtype, DType out_dtype, Run&& run) {
  const auto to = [&](auto out) {
    dtype == DType::kFloat32 ? run(Tag<float>{}, out) : run(Tag<bf16>{}, out);
  };
  out_dtype == DType::kFloat32 ? to(Tag<float>{}) : to(Tag<bf16>{});
}

// Calls run(Tag<W<T>>, Tag<Out>) of the storage too.
template <class Run>
inline void for_storage(Format format, DType dtype, DType out_dtype, Run&& run) {
  for_types(dtype, out_dtype, [&](auto type, auto out) {
    using T = typename decltype(type)::Type;
    switch (format) {
      case Format::kPlain: return run(Tag<Plain<T>>{}, out);
      case Format::kMxfp8: return run(Tag<Mxfp8<T>>{}, out);
      case Format::kFp8Block: return run(Tag<Fp8Block<T>>{}, out);
      case Format::kInt8:
      case Format::kInt8Static: throw std::logic_error("INT8 has kernels of its own (int8.h)");
    }
  });
}
