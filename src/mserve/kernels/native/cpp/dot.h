// Inner products of rows with rows: what every linear layer is made of.
//
// Both sides are row-major with the inner dimension contiguous, so weights are used as they lie in
// the checkpoint: nothing is repacked, and a weight row comes from memory once per call. Rows of x
// come as operands (vec.h), expanded beforehand; weights that are not are widened in registers for
// few rows, and for many once into the first-level cache.
// Each (row, weight row) pair has one register of partial sums that runs over the whole inner
// dimension and is folded in a fixed order. So a row's result has the same bits alone, in any
// batch, and under any split over threads.
//
//   one row     streams the weights, row after row, or two in turn
//   few rows    stay in the first-level cache; four weight rows at a time pass by, or two where they
//               are widened and four would need a second tile
//   many rows   stay in the second-level cache and pass by eight weight rows in the first
//
// The last two ask for the weights that come next while they compute.

// Rows of a tile: with four weight rows, all sums fit the registers.
constexpr int kTileRows = kTileSums / 4;
// The same for plain weights. Sixteen sums keep the multipliers busy and fold with the least work.
constexpr int kPlainRows = std::min(4, kTileRows);
// Weight rows per step of the callers below.
constexpr int kColumns = 16;
// Rows whose elements stay in the second-level cache while weight rows pass by.
constexpr int64_t kMaxRowBlock = 128;
// Half of a second-level cache, of which processors with AVX2 have 512 KiB, with AVX-512 1 MiB.
constexpr int64_t kRowBlockBytes = kLanes * (32 << 10);

// Rows of a block that stay in that cache.
template <class T>
constexpr int64_t most_rows(int64_t inner) {
  const int64_t row_bytes = std::max<int64_t>(inner, 1) * int64_t(sizeof(T));
  return std::min(std::max<int64_t>(kRowBlockBytes / row_bytes, 24), kMaxRowBlock);
}

// Calls body(first, count) for blocks of rows, nearly equal and few enough to stay in that cache.
template <class T, class Body>
inline void for_row_blocks(int64_t rows, int64_t inner, Body&& body) {
  const int64_t most = most_rows<T>(inner);
  const int64_t blocks = (rows + most - 1) / most;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = rows * block / blocks;
    body(first, rows * (block + 1) / blocks - first);
  }
}

// Rows of x as operands of the weights W: where they lie, or expanded by each worker into memory of
// its own, once for all weight rows that pass by.
template <class W>
class OperandRows {
  using T = typename W::Element;

 public:
  // Memory of one worker, for blocks of at most `rows` rows.
  static int64_t bytes(int64_t rows, int64_t inner) {
    return kExpands ? std::min(rows, most_rows<float>(inner)) * stride(inner) * 4 : 0;
  }
  OperandRows(void* memory, int64_t inner)
      : expanded_(static_cast<Operand<T>*>(memory)), inner_(inner) {}

  void set(int64_t row, const T* x) {
    if constexpr (kExpands) {
      Operand<T>* to = expanded_ + row * stride(inner_);
      to_floats(to, x, inner_);
      if constexpr (W::kArranged) arrange(to, inner_);
      rows_[row] = to;
    } else {
      rows_[row] = x;
    }
  }
  const Operand<T>* const* all() const { return rows_; }

 private:
  static constexpr bool kExpands = W::kArranged || !std::is_same_v<T, Operand<T>>;
  // Rows that begin at the same place of a page share few places of a cache, and most widths are
  // powers of two.
  static int64_t stride(int64_t inner) { return (inner + 15) / 16 * 16 + 16; }

  Operand<T>* expanded_;
  int64_t inner_;
  const Operand<T>* rows_[kMaxRowBlock];
};

// Elements of the inner dimension that one tile after the other runs over, so that four weight
// rows' worth stays in the first-level cache while all rows of x pass by.
constexpr int64_t kSlice = 4096 / sizeof(Operand<bf16>);
// The same for eight plain weight rows.
constexpr int64_t kPlainSliceBytes = 256 * kLanes;
// Few rows are those whose slices fill no more of the first-level cache than this.
constexpr int64_t kFewRows = 16;

// The part of [0, inner) that a tile covers. Between slices its sums wait in memory, unfolded, so
// slicing does not show in the result. Tiles take it by reference: a copy on the stack is written by
// halves and read whole, which waits until all products of the last tile are done (a fifth of the
// time of tiles 1024 deep).
struct Slice {
  int64_t begin, end;
  bool first, last;
};

// How far ahead of the row being read weights are fetched. The hardware's prefetcher restarts at
// every page; at 8 KiB one core reads 97 % of what a plain read does, at 0 and 32 KiB 75 %.
constexpr int64_t kAheadBytes = 8192;

// Weight rows that will be needed soon, asked for line by line in the order they lie in memory.
template <class T>
class Soon {
 public:
  Soon(const T* rows, int64_t stride, int64_t width)
      : at_(rows), row_(rows), stride_(stride), width_(width) {}
  void ask(int lines) {
    for (int i = 0; i < lines; ++i) {
      prefetch(at_);
      at_ += 64 / sizeof(T);
      if (at_ >= row_ + width_) at_ = row_ += stride_;
    }
  }

 private:
  const T *at_, *row_;
  int64_t stride_, width_;
};

// What a tile asks for at each step: so many lines of `soon`, or nothing.
template <class T>
struct Wish {
  Soon<T>& soon;
  int lines;
  void operator()() const { soon.ask(lines); }
};
struct NoWish {
  void operator()() const {}
};

// What a tile does with its sums.
enum class TilePass {
  kCached,  // adds the slice's products to them
  kScaled,  // adds the slice's products, multiplied by `factors`, one per weight row
};

// body(std::integral_constant<int, i>) for all i below N. Unlike an unrolled loop, this lets the
// compiler keep an array that is indexed by i in registers, come what may in between.
template <int N, class Body>
[[gnu::always_inline]] inline void each(Body&& body) {
  if constexpr (N > 0) {
    each<N - 1>(body);
    body(std::integral_constant<int, N - 1>{});
  }
}

// out[r * kColumns + c] = x[r] . w[c], for R rows and C weight rows `stride` elements apart, `w`
// pointing at the slice's first column. `state` holds R * C sums between slices.
template <int R, int C, TilePass kPass, bool kFirst, bool kLast, class X, class W, class Ask>
inline void dot_tile(const X* const* x, const W* w, int64_t stride, const Slice& slice,
                     const float* factors, F32* state, float* out, const Ask& ask) {
  using D = Dot<X>;
  constexpr bool kScaled = kPass == TilePass::kScaled;
  const X* from[R];
  const W* weights[C];
  F32 sums[R][C];
  each<R>([&](auto r) __attribute__((always_inline)) { from[r] = x[r] + slice.begin; });
  each<C>([&](auto c) __attribute__((always_inline)) { weights[c] = w + c * stride; });
  const auto each_sum = [&](auto&& body) __attribute__((always_inline)) {
    each<R>([&](auto r) __attribute__((always_inline)) {
      each<C>([&](auto c) __attribute__((always_inline)) { body(sums[r][c], r, c); });
    });
  };
  each_sum([&](F32& sum, auto r, auto c) __attribute__((always_inline)) {
    sum = kFirst || kScaled ? zero() : state[r * C + c];
  });

  const auto step = [&](int64_t k, auto&& load) __attribute__((always_inline)) {
    // The fewer of both sides stay in registers while the others pass by.
    typename D::V kept[std::min(R, C)];
    if constexpr (R <= C) {
      each<R>([&](auto r) __attribute__((always_inline)) { kept[r] = load(from[r] + k); });
      each<C>([&](auto c) __attribute__((always_inline)) {
        const typename D::V weight = load(weights[c] + k);
        each<R>([&](auto r) __attribute__((always_inline)) {
          sums[r][c] = D::multiply_add(kept[r], weight, sums[r][c]);
        });
      });
    } else {
      each<C>([&](auto c) __attribute__((always_inline)) { kept[c] = load(weights[c] + k); });
      each<R>([&](auto r) __attribute__((always_inline)) {
        const typename D::V row = load(from[r] + k);
        each<C>([&](auto c) __attribute__((always_inline)) {
          sums[r][c] = D::multiply_add(row, kept[c], sums[r][c]);
        });
      });
    }
  };
  const int64_t width = slice.end - slice.begin, whole = width / D::kStep * D::kStep;
  for (int64_t k = 0; k < whole; k += D::kStep) {
    ask();
    step(k, [](auto* p) __attribute__((always_inline)) { return load_operand(p); });
  }
  if (whole < width)
    step(whole, [&](auto* p) __attribute__((always_inline)) {
      return load_operand(p, width - whole);
    });

  if constexpr (kScaled)
    each_sum([&](F32& sum, auto r, auto c) __attribute__((always_inline)) {
      sum = fma(sum, set1(factors[c]), kFirst ? zero() : state[r * C + c]);
    });
  if constexpr (!kLast) {
    each_sum([&](F32& sum, auto r, auto c) __attribute__((always_inline)) {
      state[r * C + c] = sum;
    });
  } else if constexpr (R == 4 && C == 4) {
    store_sums(out, kColumns, sums[0], sums[1], sums[2], sums[3]);
  } else {
    each<R>([&](auto r) __attribute__((always_inline)) {
      if constexpr (C == 4)
        store_sums(out + r * kColumns, sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
      else
        each<C>([&](auto c) __attribute__((always_inline)) {
          out[r * kColumns + c] = sum(sums[r][c]);
        });
    });
  }
}

// The same for 1 to R rows and any slice.
template <int R, int C, TilePass kPass, class X, class W, class Ask = NoWish>
inline void dot_tile_of(int64_t rows, const X* const* x, const W* w, int64_t stride,
                        const Slice& slice, const float* factors, F32* state, float* out,
                        const Ask& ask = {}) {
  if constexpr (R > 1) {
    if (rows < R)
      return dot_tile_of<R - 1, C, kPass>(rows, x, w, stride, slice, factors, state, out, ask);
  }
  if (slice.first && slice.last)
    dot_tile<R, C, kPass, true, true>(x, w, stride, slice, factors, state, out, ask);
  else if (slice.first)
    dot_tile<R, C, kPass, true, false>(x, w, stride, slice, factors, state, out, ask);
  else if (slice.last)
    dot_tile<R, C, kPass, false, true>(x, w, stride, slice, factors, state, out, ask);
  else
    dot_tile<R, C, kPass, false, false>(x, w, stride, slice, factors, state, out, ask);
}

// out[c] = x . w[c] for C weight rows, one after the other as they lie in memory. A sum waits for its
// last product; where that covers less than a line, memory is faster than one row and two take turns.
template <int C, class X, class W>
inline void dot_streamed(const X* x, const W* w, int64_t stride, int64_t inner, float* out) {
  using D = Dot<X>;
  constexpr int kRows = D::kStep * sizeof(W) < 64 ? std::min(C, 2) : 1;
  F32 sums[C];
  const int64_t whole = inner / D::kStep * D::kStep, left = inner - whole;
#pragma GCC unroll 8
  for (int c = 0; c < C; c += kRows) {
    const W* row = w + c * stride;
    each<kRows>([&](auto r) __attribute__((always_inline)) { sums[c + r] = zero(); });
#pragma GCC unroll 8
    for (int64_t k = 0; k < whole; k += D::kStep) {
      prefetch(row + k * kRows + kAheadBytes / int64_t(sizeof(W)));
      each<kRows>([&](auto r) __attribute__((always_inline)) {
        sums[c + r] =
            D::multiply_add(load_operand(x + k), load_operand(row + r * stride + k), sums[c + r]);
      });
    }
    if (left > 0)
      each<kRows>([&](auto r) __attribute__((always_inline)) {
        sums[c + r] = D::multiply_add(load_operand(x + whole, left),
                                      load_operand(row + r * stride + whole, left), sums[c + r]);
      });
  }
  if constexpr (C % 4 == 0) {
#pragma GCC unroll 2
    for (int c = 0; c < C; c += 4)
      store_sums(out + c, sums[c], sums[c + 1], sums[c + 2], sums[c + 3]);
  } else {
    for (int c = 0; c < C; ++c) out[c] = sum(sums[c]);
  }
}

// out[m * kColumns + c] = x[m] . w[c] for any number of rows up to kMaxRowBlock and C weight rows, in
// tiles of nearly equal height: of four weight rows, or of two and twice as high.
template <int C, class X, class W>
inline void dot_group(const X* const* x, int64_t rows, const W* w, int64_t stride, int64_t inner,
                      float* out) {
  constexpr int64_t kSliceElements = kPlainSliceBytes / int64_t(sizeof(X));
  // Eight rows far apart may share few places of the cache.
  constexpr bool kCopies = C > 4, kWidens = !std::is_same_v<X, W>;
  constexpr int kTileColumns = std::min(C, 4), kTileHeight = kPlainRows * 4 / kTileColumns;
  using Part = std::conditional_t<kCopies, X, W>;
  constexpr int64_t kRows = kCopies ? kMaxRowBlock : kFewRows;
  alignas(64) X copy[kCopies ? C * kSliceElements : 1];
  F32 state[kRows * C];
  const int64_t tiles = (rows + kTileHeight - 1) / kTileHeight;
  const int64_t all_tiles = tiles * (C / kTileColumns);
  const int64_t step = kCopies || tiles > 1 ? std::min(kSliceElements, inner) : inner;
  for (int64_t begin = 0; begin < inner; begin += step) {
    const int64_t end = std::min(begin + step, inner), width = end - begin;
    const Slice slice{begin, end, begin == 0, end == inner};
    Soon<W> soon = slice.last ? Soon<W>(w + C * stride, stride, std::min(step, inner))
                              : Soon<W>(w + end, stride, std::min(step, inner - end));
    const Part* part;
    int64_t part_stride;
    if constexpr (kCopies && kWidens) {
      for (int c = 0; c < C; ++c)
        to_floats(copy + c * kSliceElements, w + c * stride + begin, width);
      part = copy, part_stride = kSliceElements;
    } else {
      part = w + begin, part_stride = stride;
      if constexpr (kCopies) {
        if (width < inner) {
          for (int c = 0; c < C; ++c)
            std::memcpy(copy + c * kSliceElements, part + c * stride, size_t(width) * sizeof(W));
          part = copy, part_stride = kSliceElements;
        }
      }
    }
    // The lines of C weight rows, divided among the tiles. A short tile asks at each of its steps for
    // as many as one step takes; one of copied rows asks for all beforehand.
    const int64_t asking = kCopies ? step : Dot<W>::kStep;
    const int64_t wanted = std::max<int64_t>(C * asking * int64_t(sizeof(W)) / 64, 1);
    int64_t due = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t top = rows * tile / tiles, bottom = rows * (tile + 1) / tiles;
      for (int c = 0; c < C; c += kTileColumns) {
        due += wanted;
        const int lines = int(due / all_tiles);
        due %= all_tiles;
        const auto run = [&](auto ask) __attribute__((always_inline)) {
          dot_tile_of<kTileHeight, kTileColumns, TilePass::kCached>(
              bottom - top, x + top, part + c * part_stride, part_stride, slice, nullptr,
              state + c * rows + top * kTileColumns, out + top * kColumns + c, ask);
        };
        if constexpr (kCopies) {
          soon.ask(lines);
          run(NoWish{});
        } else {
          run(Wish<W>{soon, lines});
        }
      }
    }
  }
}

// out[m * kColumns + c] = x[m] . w[c], for all rows and `columns` <= kColumns weight rows.
template <class X, class W>
inline void dot_rows(const X* const* x, int64_t rows, const W* w, int64_t stride, int64_t inner,
                     int64_t columns, float* out) {
  // Where a second tile would widen the weights again, many begin.
  constexpr bool kWidens = !std::is_same_v<X, W>;
  constexpr int64_t kFew = kWidens ? 2 * kPlainRows : kFewRows;
  int64_t c = 0;
  if (rows == 1) {
    for (; c + 8 <= columns; c += 8) dot_streamed<8>(x[0], w + c * stride, stride, inner, out + c);
    for (; c < columns; ++c) dot_streamed<1>(x[0], w + c * stride, stride, inner, out + c);
    return;
  }
  if (rows > kFew && columns == kColumns) {
    for (; c < columns; c += 8) dot_group<8>(x, rows, w + c * stride, stride, inner, out + c);
    return;
  }
  if constexpr (kWidens) {
    if (rows > kPlainRows && rows <= kFew)
      for (; c + 2 <= columns; c += 2)
        dot_group<2>(x, rows, w + c * stride, stride, inner, out + c);
  }
  for (; c + 4 <= columns; c += 4)
    for (int64_t m = 0; m < rows; m += kFewRows)
      dot_group<4>(x + m, std::min(kFewRows, rows - m), w + c * stride, stride, inner,
                   out + m * kColumns + c);
  for (; c < columns; ++c)
    for (int64_t m = 0; m < rows; ++m)
      dot_streamed<1>(x[m], w + c * stride, stride, inner, out + m * kColumns + c);
}

// Writes the first n of `values`.
template <class Out>
inline void store_columns(Out* to, const float* values, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes) store(to + c, load(values + c, n - c), n - c);
}
