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
// the same bits in any batch. Where the decoder has an order of its own within groups, counted from the
// first column, x and the expanded rows lie in it, and every slice begins with a group.

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
  static constexpr bool kArranged = false;  // whether its rows' operands lie in the decoder's order
  const T* values;
  int64_t inner;

  Plain(const Stored& stack, int64_t number, const Parts& parts, int64_t inner)
      : values(static_cast<const T*>(stack.values) + number * parts.rows() * inner),
        inner(inner) {}
};

template <class T>
struct Mxfp8 {
  using Element = T;
  static constexpr bool kArranged = kArranges, kScaledSums = false;
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
      E4m3Decoder decoder;
      constexpr int64_t kCodes = E4m3Decoder::kCodes;
      for (; k + 64 <= end && stays_normal(scale[k >> 5]) && stays_normal(scale[(k >> 5) + 1]);
           k += 64) {
        prefetch(from + k + kAheadBytes);
#pragma GCC unroll 2
        for (int64_t i = k; i < k + 64; i += kCodes)
          store(to + i - begin, decoder.values(from + i, scale + (i >> 5)));
      }
      if (decoder.saw_nan()) k = begin;
    }
#endif
    for (; k < end; k += kMxfp8Group) {
      prefetch(from + k + kAheadBytes);
      const F32 power = set1(power_of_scale(scale[k / kMxfp8Group]));
      for (int64_t i = k; i < k + kMxfp8Group; i += kLanes)
        store(to + i - begin, mul(load_e4m3(from + i), power));
      if constexpr (kArranged) arrange(to + k - begin, kMxfp8Group);
    }
  }

#if defined(MSERVE_E4M3_DECODER)
  // Rows whose values come straight into registers, E4m3Decoder::kCodes at a time from the column
  // that was advanced to. They have their distance in common: few pointers stay in registers.
  template <int C>
  struct Rows {
    const uint8_t *codes, *scales;
    int64_t inner, groups;
    [[gnu::always_inline]] auto load(E4m3Decoder& decoder, int row, int64_t k) const {
      return decoder.values(codes + row * inner + k, scales + row * groups + k / kMxfp8Group);
    }
    [[gnu::always_inline]] void advance(int64_t columns) {
      codes += columns;
      scales += columns / kMxfp8Group;
    }
    F32 factor(int) const { return set1(1.0f); }
  };
  template <int C>
  Rows<C> rows_from(int64_t first) const {
    return {codes + first * inner, row_scales(first), inner, inner / kMxfp8Group};
  }
  // What needs treatment by value is seldom, and not worth a branch per group.
  bool fits_registers(int64_t number) const {
    return stay_normal(row_scales(number), inner / kMxfp8Group);
  }
#endif
};

template <class T>
struct Fp8Block {
  using Element = T;
  static constexpr bool kArranged = kArranges, kScaledSums = true;
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
      E4m3Decoder decoder;
      constexpr int64_t kCodes = E4m3Decoder::kCodes;
      for (; k + 64 <= end; k += 64) {
        prefetch(from + k + kAheadBytes);
#pragma GCC unroll 2
        for (int64_t i = k; i < k + 64; i += kCodes)
          store(to + i - begin, decoder.values(from + i));
      }
      if (decoder.saw_nan()) k = begin;
    }
#endif
    Operand<T>* rest = to + k - begin;
    const int64_t left = end - k;
    for (; k + kLanes <= end; k += kLanes) {
      prefetch(from + k + kAheadBytes);
      store(to + k - begin, load_e4m3(from + k));
    }
    if (k < end) store(to + k - begin, load_e4m3(from + k, end - k), end - k);
    if constexpr (kArranged) arrange(rest, left);
  }

#if defined(MSERVE_E4M3_DECODER)
  template <int C>
  struct Rows {
    const uint8_t* codes;
    int64_t inner;
    const float* factors[C];
    [[gnu::always_inline]] auto load(E4m3Decoder& decoder, int row, int64_t k) const {
      return decoder.values(codes + row * inner + k);
    }
    // By a block, as nothing smaller has one factor.
    [[gnu::always_inline]] void advance(int64_t columns) {
      codes += columns;
      for (const float*& row : factors) ++row;
    }
    F32 factor(int row) const { return set1(*factors[row]); }
  };
  template <int C>
  Rows<C> rows_from(int64_t first) const {
    Rows<C> rows{codes + first * inner, inner, {}};
    for (int i = 0; i < C; ++i) rows.factors[i] = row_factors(first + i);
    return rows;
  }
  static constexpr bool fits_registers(int64_t) { return true; }
#endif
};

// Columns that are expanded at a time where one tile of rows takes them: few enough to be still on
// their way to the cache when they are loaded again.
constexpr int64_t kShortSlice = 32 * kLanes;
static_assert(kShortSlice % kMxfp8Group == 0 && kSlice % kMxfp8Group == 0);

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
// False if the decoder cannot read the codes.
template <int R, class W>
[[nodiscard]] inline bool sum_in_registers(const E4m3Decoder::Value* const* x, const W& w, int64_t n,
                                           F32 (&sums)[R][W::at_once(R)]) {
  using D = Dot<E4m3Decoder::Value>;
  constexpr int C = W::at_once(R);
  constexpr int64_t kCodes = E4m3Decoder::kCodes;
  constexpr int64_t kUnit = W::kScaledSums ? kFp8Block : 64;
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = zero();
  E4m3Decoder decoder;
  auto weights = w.template rows_from<C>(n);
  const E4m3Decoder::Value* from[R];
  each<R>([&](auto r) __attribute__((always_inline)) { from[r] = x[r]; });
  const auto begin_part = [](F32 sum) { return W::kScaledSums ? zero() : sum; };
  const auto end_part = [&](F32 part, int c, F32 sum) {
    return W::kScaledSums ? fma(part, weights.factor(c), sum) : part;
  };

  const int64_t inner = w.inner;
  // Rows lie one below the other: what is fetched ahead is memory in order.
  const uint8_t* ahead = weights.codes + kAheadBytes;
  int64_t k = 0;
  for (; k + kUnit <= inner; k += kUnit) {
    F32 part[R][C];
    each<R * C>([&](auto i) __attribute__((always_inline)) {
      part[i / C][i % C] = begin_part(sums[i / C][i % C]);
    });
    // A chain of one row's products would wait for itself; another row's come in between.
    each<kUnit / kCodes>([&](auto step) __attribute__((always_inline)) {
      constexpr int64_t at = step * kCodes;
      each<C>([&](auto c) __attribute__((always_inline)) {
        if constexpr (at % 64 == 0) {
          prefetch(ahead);
          ahead += 64;
        }
        const auto values = weights.load(decoder, c, at);
        each<R>([&](auto r) __attribute__((always_inline)) {
          each<kCodes / D::kStep>([&](auto p) __attribute__((always_inline)) {
            part[r][c] =
                D::multiply_add(D::load(from[r] + at + p * D::kStep), values.part(p), part[r][c]);
          });
        });
      });
    });
    each<R * C>([&](auto i) __attribute__((always_inline)) {
      sums[i / C][i % C] = end_part(part[i / C][i % C], i % C, sums[i / C][i % C]);
    });
    weights.advance(kUnit);
    each<R>([&](auto r) __attribute__((always_inline)) { from[r] += kUnit; });
  }
  if (k < inner)
    for (int c = 0; c < C; ++c) {
      alignas(64) E4m3Decoder::Value rest[kUnit];
      w.expand(n + c, k, inner, rest);
      for (int r = 0; r < R; ++r) {
        F32 part = begin_part(sums[r][c]);
        for (int64_t i = k; i < inner; i += D::kStep)
          part = D::multiply_add(D::load(x[r] + i, inner - i), D::load(rest + i - k, inner - i),
                                 part);
        sums[r][c] = end_part(part, c, sums[r][c]);
      }
    }
  return !decoder.saw_nan();
}

// out[m * kColumns + c] = x[m] . w[n + c] for R rows of x and four of w; false if the decoder cannot
// read those. Not inlined: a function that holds all of them has too few registers for any.
template <int R, class W>
[[gnu::noinline]] bool dot_in_registers(const E4m3Decoder::Value* const* x, const W& w, int64_t n,
                                       float* out) {
  constexpr int C = W::at_once(R);
  F32 lanes[R][4];
  for (int c = 0; c < 4; c += C) {
    F32 sums[R][C];
    if (!sum_in_registers<R>(x, w, n + c, sums)) return false;
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < C; ++i) lanes[r][c + i] = sums[r][i];
  }
  for (int r = 0; r < R; ++r)
    store_sums(out + r * kColumns, lanes[r][0], lanes[r][1], lanes[r][2], lanes[r][3]);
  return true;
}

// For 1 to R rows of x.
template <int R, class W>
inline bool dot_in_registers_of(int64_t rows, const E4m3Decoder::Value* const* x, const W& w,
                                int64_t n, float* out) {
  if constexpr (R > 1) {
    if (rows < R) return dot_in_registers_of<R - 1>(rows, x, w, n, out);
  }
  return dot_in_registers<R>(x, w, n, out);
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
      const int64_t at = n + c;
      if (!(w.fits_registers(at) && w.fits_registers(at + 1) && w.fits_registers(at + 2) &&
            w.fits_registers(at + 3) && dot_in_registers_of<kTileRows>(rows, x, w, at, out + c)))
        dot_expanded<4>(x, rows, w, at, out + c);
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
