// Inner products of rows with rows: what every linear layer is made of.
//
// Both sides are row-major with the inner dimension contiguous, so weights are used as they lie in
// the checkpoint: nothing is repacked, and a weight row streams from memory exactly once per call.
// Each (row, weight row) pair has one register of partial sums that runs over the whole inner
// dimension and is folded in a fixed order. So a row's result has the same bits alone, in any
// batch, and under any split over threads.

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

// out[r * kColumns + c] = x[r] . w[c], for R rows and C weight rows `stride` elements apart.
template <int R, int C, class T>
inline void dot_tile(const T* const* x, const T* w, int64_t stride, int64_t inner, float* out) {
  using D = Dot<T>;
  F32 sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = zero();

  const int64_t whole = inner / D::kStep * D::kStep;
  for (int64_t k = 0; k < whole; k += D::kStep) {
    typename D::V rows[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) rows[r] = D::load(x[r] + k);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const typename D::V weight = D::load(w + c * stride + k);
      // The hardware's prefetcher restarts at every row; the next step's rows follow at C rows.
      if (R * C <= 3 * kColumns && C == kColumns) prefetch(w + (c + C) * stride + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][c] = D::multiply_add(rows[r], weight, sums[r][c]);
    }
  }
  if (whole < inner) {
    for (int c = 0; c < C; ++c) {
      const typename D::V weight = D::load(w + c * stride + whole, inner - whole);
      for (int r = 0; r < R; ++r)
        sums[r][c] = D::multiply_add(D::load(x[r] + whole, inner - whole), weight, sums[r][c]);
    }
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

// The same for 1 to kTileSums / C rows.
template <int C, class T, int R = kTileSums / C>
inline void dot_tile(int64_t rows, const T* const* x, const T* w, int64_t stride, int64_t inner,
                     float* out) {
  if constexpr (R > 1) {
    if (rows < R) return dot_tile<C, T, R - 1>(rows, x, w, stride, inner, out);
  }
  dot_tile<R, C, T>(x, w, stride, inner, out);
}

// Any number of rows, in tiles of nearly equal height.
template <int C, class T>
inline void dot_tiles(const T* const* x, int64_t rows, const T* w, int64_t stride, int64_t inner,
                      float* out) {
  constexpr int64_t kMost = std::min(kTileSums / C, 6);
  const int64_t tiles = (rows + kMost - 1) / kMost;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = rows * tile / tiles, end = rows * (tile + 1) / tiles;
    dot_tile<C, T, kMost>(end - begin, x + begin, w, stride, inner, out + begin * kColumns);
  }
}

// out[m * kColumns + c] = x[m] . w[c], for all rows and `columns` <= kColumns weight rows.
template <class T>
inline void dot_rows(const T* const* x, int64_t rows, const T* w, int64_t stride, int64_t inner,
                     int64_t columns, float* out) {
  if (columns < kColumns) {
    for (int64_t c = 0; c < columns; ++c)
      dot_tiles<1>(x, rows, w + c * stride, stride, inner, out + c);
  } else if (rows * kColumns <= kTileSums) {
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
