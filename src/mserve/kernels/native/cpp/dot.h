// Inner products of rows with rows: what every linear layer is made of.
//
// Both sides are row-major with the inner dimension contiguous, so weights are used as they lie in
// the checkpoint: nothing is repacked, and a weight row streams from memory exactly once per call.
// Each (row, weight row) pair has one register of partial sums that runs over the whole inner
// dimension and is folded in a fixed order. So a row's result has the same bits alone, in any
// batch, and under any split over threads.

// Rows of a tile: with four weight rows, all sums fit the registers.
constexpr int kTileRows = kTileSums / 4;
// Weight rows per step of the callers below.
constexpr int kColumns = 8;
// Rows whose elements stay in the second-level cache while weight rows pass by.
constexpr int64_t kMaxRowBlock = 252;
constexpr int64_t kRowBlockBytes = 512 << 10;

template <class T>
inline int64_t row_block(int64_t inner) {
  const int64_t fitting = kRowBlockBytes / (std::max<int64_t>(inner, 1) * int64_t(sizeof(T)));
  return std::min(std::max<int64_t>(fitting, 24), kMaxRowBlock);
}

// Elements of the inner dimension that one tile after the other runs over, so that four weight
// rows' worth stays in the first-level cache while all rows of x pass by.
constexpr int64_t kSlice = 2048;

// The part of [0, inner) that a tile covers. Between slices its sums wait in memory, unfolded, so
// slicing does not show in the result.
struct Slice {
  int64_t begin, end;
  bool first, last;
};

// How far ahead of the row being read weights are fetched. The hardware's prefetcher restarts at
// every page; at 8 KiB one core reads 97 % of what a plain read does, at 0 and 32 KiB 75 %.
constexpr int64_t kAheadBytes = 8192;

// How a tile meets its weight rows.
enum class TilePass {
  kStreams,  // the first to meet them: one row after the other, as they lie in memory
  kCached,   // they are in the cache: all at once, with fewer loads per product
  kScaled,   // the same, and the slice's sums are multiplied by `factors`, one per weight row
};

// out[r * kColumns + c] = x[r] . w[c], for R rows and C weight rows `stride` elements apart, `w`
// pointing at the slice's first column. `state` holds R * C sums between slices.
template <int R, int C, TilePass kPass, class T>
inline void dot_tile(const T* const* x, const T* w, int64_t stride, Slice slice,
                     const float* factors, F32* state, float* out) {
  using D = Dot<T>;
  constexpr bool kScaled = kPass == TilePass::kScaled;
  const T* from[R];
  for (int r = 0; r < R; ++r) from[r] = x[r] + slice.begin;
  F32 sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = slice.first || kScaled ? zero() : state[r * C + c];

  const int64_t width = slice.end - slice.begin, whole = width / D::kStep * D::kStep;
  if constexpr (kPass == TilePass::kStreams) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const T* row = w + c * stride;
#pragma GCC unroll 8
      for (int64_t k = 0; k < whole; k += D::kStep) {
        prefetch(row + k + kAheadBytes / int64_t(sizeof(T)));
        const typename D::V weight = D::load(row + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          sums[r][c] = D::multiply_add(D::load(from[r] + k), weight, sums[r][c]);
      }
    }
  } else {
    for (int64_t k = 0; k < whole; k += D::kStep) {
      typename D::V rows[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) rows[r] = D::load(from[r] + k);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const typename D::V weight = D::load(w + c * stride + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r][c] = D::multiply_add(rows[r], weight, sums[r][c]);
      }
    }
  }
  if (whole < width) {
    const int64_t left = width - whole;
    for (int c = 0; c < C; ++c) {
      const typename D::V weight = D::load(w + c * stride + whole, left);
      for (int r = 0; r < R; ++r)
        sums[r][c] = D::multiply_add(D::load(from[r] + whole, left), weight, sums[r][c]);
    }
  }

  if constexpr (kScaled) {
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c)
        sums[r][c] = fma(sums[r][c], set1(factors[c]), slice.first ? zero() : state[r * C + c]);
  }
  if (!slice.last) {
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) state[r * C + c] = sums[r][c];
    return;
  }
  for (int r = 0; r < R; ++r) {
    if constexpr (C % 4 == 0) {
#pragma GCC unroll 2
      for (int c = 0; c < C; c += 4)
        store_sums(out + r * kColumns + c, sums[r][c], sums[r][c + 1], sums[r][c + 2],
                   sums[r][c + 3]);
    } else {
      for (int c = 0; c < C; ++c) out[r * kColumns + c] = sum(sums[r][c]);
    }
  }
}

// The same for 1 to R rows.
template <int R, int C, TilePass kPass, class T>
inline void dot_tile_of(int64_t rows, const T* const* x, const T* w, int64_t stride, Slice slice,
                        const float* factors, F32* state, float* out) {
  if constexpr (R > 1) {
    if (rows < R)
      return dot_tile_of<R - 1, C, kPass>(rows, x, w, stride, slice, factors, state, out);
  }
  dot_tile<R, C, kPass>(x, w, stride, slice, factors, state, out);
}

// Any number of rows up to kMaxRowBlock, in tiles of nearly equal height.
template <int C, class T>
inline void dot_tiles(const T* const* x, int64_t rows, const T* w, int64_t stride, int64_t inner,
                      float* out) {
  constexpr int64_t kMost = kTileRows;
  const int64_t tiles = (rows + kMost - 1) / kMost;
  const int64_t step = tiles > 1 ? kSlice : inner;
  F32 state[kMaxRowBlock * C];
  int64_t begin = 0;
  do {
    const int64_t end = std::min(begin + step, inner);
    const Slice slice{begin, end, begin == 0, end == inner};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t top = rows * tile / tiles, bottom = rows * (tile + 1) / tiles;
      // all but the first come only with four columns
      const auto run = tile == 0 || C > 4 ? dot_tile_of<kMost, C, TilePass::kStreams, T>
                                          : dot_tile_of<kMost, C, TilePass::kCached, T>;
      run(bottom - top, x + top, w + begin, stride, slice, nullptr, state + top * C,
          out + top * kColumns);
    }
    begin = end;
  } while (begin < inner);
}

// out[m * kColumns + c] = x[m] . w[c], for all rows and `columns` <= kColumns weight rows.
template <class T>
inline void dot_rows(const T* const* x, int64_t rows, const T* w, int64_t stride, int64_t inner,
                     int64_t columns, float* out) {
  if (columns < kColumns) {
    for (int64_t c = 0; c < columns; ++c)
      dot_tiles<1>(x, rows, w + c * stride, stride, inner, out + c);
  } else if (rows <= kTileRows) {
    dot_tiles<kColumns>(x, rows, w, stride, inner, out);
  } else {
    dot_tiles<4>(x, rows, w, stride, inner, out);
    dot_tiles<4>(x, rows, w + 4 * stride, stride, inner, out + 4);
  }
}

// Writes the first n <= kColumns of `values`.
template <class Out>
inline void store_columns(Out* to, const float* values, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes) store(to + c, load(values + c, n - c), n - c);
}
