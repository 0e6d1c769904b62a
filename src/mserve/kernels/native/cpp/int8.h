// Products of integers: rows of x, quantized once, times weight rows of signed bytes.
//
//   y = float(sum of q w + bias) * (factor of the row * scale of the weight row)
//
// The sums are exact, in any order, so tiles are cut as the registers and caches like it and a
// row's result has the same bits in any batch. A sum of the widest rows that the caller lets
// through, 2^17 - 1, fits 32 bits; partial sums may wrap around on the way.

inline bool is_int8(Format format) {
  return format == Format::kInt8 || format == Format::kInt8Static;
}

// One row of x as integers, which follow: `inner` of them, and zeros up to a whole cache line.
struct alignas(64) QuantizedRow {
  float factor;   // NaN where the row holds what no integer stands for
  int32_t shift;  // what takes Int8Dot::kWeightShift out of a sum again

  const int8_t* values() const { return reinterpret_cast<const int8_t*>(this + 1); }
  int8_t* values() { return reinterpret_cast<int8_t*>(this + 1); }
  static int64_t bytes(int64_t inner) {
    return int64_t(sizeof(QuantizedRow)) + (inner + 63) / 64 * 64;
  }
};

// Rows of x one after the other in scratch memory, each with room for `inner` integers.
struct QuantizedRows {
  int64_t row_bytes;
  char* data;

  QuantizedRows(int slot, int64_t rows, int64_t inner)
      : row_bytes(QuantizedRow::bytes(inner)),
        data(static_cast<char*>(scratch(slot, rows * row_bytes))) {}
  QuantizedRow* operator[](int64_t row) const {
    return reinterpret_cast<QuantizedRow*>(data + row * row_bytes);
  }
};

// How rows of x become integers.
struct StaticInput {
  float scale, offset;
};

// q = round(x / divisor) + offset within [lowest, 127].
template <class T>
inline void quantize_row(const T* x, int64_t inner, float divisor, float offset, float lowest,
                         float factor, QuantizedRow* to) {
  F32 total = zero(), taint = zero();  // sums of bytes stay exact in fp32
  int8_t* q = to->values();
  const auto step = [&](F32 value) {
    const F32 whole = add(round(div(value, set1(divisor))), set1(offset));
    const F32 bounded = max(set1(lowest), min(set1(127.0f), whole));
    total = add(total, bounded);
    taint = add(taint, sub(bounded, bounded));
    return bounded;
  };
  int64_t k = 0;
  for (; k + kLanes <= inner; k += kLanes) store_int8(q + k, step(load(x + k)));
  if (k < inner) {
    // lanes beyond the row would hold the offset
    const F32 last = load(x + k, inner - k);
    int8_t rest[kLanes];
    const F32 before = total;
    const F32 bounded = step(last);
    total = add(before, first_or(bounded, inner - k, zero()));
    store_int8(rest, bounded);
    std::memcpy(q + k, rest, size_t(inner - k));
  }
  const int64_t padded = QuantizedRow::bytes(inner) - int64_t(sizeof(QuantizedRow));
  std::memset(q + inner, 0, size_t(padded - inner));
  const float no_number = sum(taint);
  to->factor = no_number == no_number ? factor : no_number;
  const uint32_t sum_of_row = no_number == no_number ? uint32_t(int32_t(sum(total))) : 0;
  to->shift = int32_t(0u - uint32_t(Int8Dot::kWeightShift) * sum_of_row);
}

// By the row's own largest magnitude.
template <class T>
inline void quantize_row(const T* x, int64_t inner, QuantizedRow* to) {
  F32 largest = zero();
  for (int64_t k = 0; k < inner; k += kLanes) {
    const F32 value = load(x + k, inner - k);
    largest = max(largest, max(neg(value), value));
  }
  const float factor = max_of(largest) / 127.0f;
  quantize_row(x, inner, factor == 0.0f ? 1.0f : factor, 0.0f, -127.0f, factor, to);
}

template <class T>
inline void quantize_row(const T* x, int64_t inner, StaticInput input, QuantizedRow* to) {
  quantize_row(x, inner, input.scale, input.offset, -128.0f, 1.0f, to);
}

// Matrix `number` of a stack. Beside its values lie four-byte words: a scale per row and, of a
// static one, a bias per row, then a scale and then an offset of the input for each part.
struct Int8Matrix {
  const int8_t* values;
  const float* scales;
  const int32_t* bias;  // null where the input is quantized by its own magnitude
  const float *input_scales, *input_offsets;
  Parts parts;
  int64_t inner;

  Int8Matrix(const Stored& stack, Format format, int64_t number, Parts parts, int64_t inner)
      : bias(nullptr), input_scales(nullptr), input_offsets(nullptr), parts(parts), inner(inner) {
    const int64_t rows = parts.rows();
    const bool fixed = format == Format::kInt8Static;
    values = static_cast<const int8_t*>(stack.values) + number * rows * inner;
    scales = static_cast<const float*>(stack.scales) +
             number * (fixed ? 2 * (rows + parts.count) : rows);
    if (!fixed) return;
    bias = reinterpret_cast<const int32_t*>(scales + rows);
    input_scales = scales + 2 * rows;
    input_offsets = input_scales + parts.count;
  }

  // Calls body(part, rows) for the rows in `mine` that take the same integers of x.
  template <class Body>
  void for_parts(const Range& mine, Body&& body) const {
    if (!is_static()) return body(0, mine);
    for (int64_t part = 0, begin = 0; part < parts.count; begin += parts.heights[part++]) {
      const Range both{std::max(mine.begin, begin),
                       std::min(mine.end, begin + parts.heights[part])};
      if (both.begin < both.end) body(part, both);
    }
  }

  bool is_static() const { return bias != nullptr; }
  // How often a row of x is quantized.
  int64_t inputs() const { return is_static() ? parts.count : 1; }

  template <class T>
  void quantize(const T* x, int64_t part, QuantizedRow* to) const {
    if (is_static())
      quantize_row(x, inner, StaticInput{input_scales[part], input_offsets[part]}, to);
    else
      quantize_row(x, inner, to);
  }
};

// Weight rows per step of the callers below.
constexpr int64_t kInt8Columns = 8;

// The part of a row that whole steps cover; int8_rest does the others.
constexpr int64_t whole_steps(int64_t inner) { return inner / Int8Dot::kStep * Int8Dot::kStep; }

// sums[r * kInt8Columns + c] = x[r] . w[c], for R rows and C weight rows. The first tile to meet
// weight rows streams them: one after the other, as they lie in memory.
template <int R, int C, bool kStreams>
inline void int8_tile(const QuantizedRow* const* x, const int8_t* w, int64_t inner,
                      int32_t* sums) {
  using D = Int8Dot;
  // A chain of additions is as fast as memory only if another one runs beside it.
  constexpr int kChains = !kStreams || R > 2 ? 1 : R == 2 ? 2 : 4;
  const int64_t whole = whole_steps(inner);
  const int8_t* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = x[r]->values();
  I32 totals[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) totals[r][c] = D::zero();

  if constexpr (kStreams) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const int8_t* row = w + c * inner;
      I32 chains[kChains][R];
#pragma GCC unroll 4
      for (int i = 0; i < kChains; ++i)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) chains[i][r] = D::zero();
      int64_t k = 0;
      for (; k + kChains * D::kStep <= whole; k += kChains * D::kStep)
#pragma GCC unroll 4
        for (int i = 0; i < kChains; ++i) {
          prefetch(row + k + i * D::kStep + kAheadBytes);
          const D::V weights = D::weights(row + k + i * D::kStep);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r)
            chains[i][r] =
                D::multiply_add(D::load(rows[r] + k + i * D::kStep), weights, chains[i][r]);
        }
      for (; k < whole; k += D::kStep)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          chains[0][r] = D::multiply_add(D::load(rows[r] + k), D::weights(row + k), chains[0][r]);
#pragma GCC unroll 4
      for (int i = 0; i < kChains; ++i)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) totals[r][c] = add(totals[r][c], chains[i][r]);
    }
  } else {
    for (int64_t k = 0; k < whole; k += D::kStep) {
      typename D::V weights[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) weights[c] = D::weights(w + c * inner + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename D::V row = D::load(rows[r] + k);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c)
          totals[r][c] = D::multiply_add(row, weights[c], totals[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    int32_t* to = sums + r * kInt8Columns;
    if constexpr (C == 4) {
      store_sums(to, totals[r][0], totals[r][1], totals[r][2], totals[r][3]);
    } else {
      static_assert(C == 1);
      *to = sum(totals[r][0]);
    }
  }
}

// Adds what lies beyond the whole steps. By itself: a second loop over the sums of a tile takes
// them from registers to memory.
inline void int8_rest(const QuantizedRow* const* x, int64_t rows, const int8_t* w, int64_t columns,
                      int64_t inner, int32_t* sums) {
  const int64_t whole = whole_steps(inner);
  if (whole == inner) return;
  for (int64_t c = 0; c < columns; ++c) {
    const Int8Dot::V weights = Int8Dot::weights(w + c * inner + whole, inner - whole);
    for (int64_t m = 0; m < rows; ++m) {
      const I32 rest =
          Int8Dot::multiply_add(Int8Dot::load(x[m]->values() + whole), weights, Int8Dot::zero());
      int32_t& total = sums[m * kInt8Columns + c];
      total = int32_t(uint32_t(total) + uint32_t(sum(rest)));
    }
  }
}

// A tile of 1 to R rows.
template <int R, int C, bool kStreams>
inline void int8_tile_of(int64_t rows, const QuantizedRow* const* x, const int8_t* w,
                         int64_t inner, int32_t* sums) {
  if constexpr (R > 1) {
    if (rows < R) return int8_tile_of<R - 1, C, kStreams>(rows, x, w, inner, sums);
  }
  int8_tile<R, C, kStreams>(x, w, inner, sums);
}

// Any number of rows, in tiles of nearly equal height.
template <int C>
inline void int8_tiles(const QuantizedRow* const* x, int64_t rows, const int8_t* w, int64_t inner,
                       int32_t* sums) {
  const int64_t tiles = (rows + kInt8TileRows - 1) / kInt8TileRows;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t top = rows * tile / tiles, bottom = rows * (tile + 1) / tiles;
    const auto run =
        tile == 0 ? int8_tile_of<kInt8TileRows, C, true> : int8_tile_of<kInt8TileRows, C, false>;
    run(bottom - top, x + top, w, inner, sums + top * kInt8Columns);
  }
  int8_rest(x, rows, w, C, inner, sums);
}

inline int32_t unshifted(int32_t sum, const QuantizedRow& x) {
  return int32_t(uint32_t(sum) + uint32_t(x.shift));
}

// out[m * kInt8Columns + c] = y of row m of x and weight row n + c, for all rows and `columns` <=
// kInt8Columns weight rows. At most kMaxRowBlock rows.
inline void int8_rows(const QuantizedRow* const* x, int64_t rows, const Int8Matrix& w, int64_t n,
                      int64_t columns, float* out) {
  alignas(64) int32_t sums[kMaxRowBlock * kInt8Columns];
  const int8_t* from = w.values + n * w.inner;
  if (columns < kInt8Columns) std::fill_n(sums, rows * kInt8Columns, 0);
  int64_t c = 0;
  for (; c + 4 <= columns; c += 4) int8_tiles<4>(x, rows, from + c * w.inner, w.inner, sums + c);
  for (; c < columns; ++c) int8_tiles<1>(x, rows, from + c * w.inner, w.inner, sums + c);

  // Loops of a fixed length, which become one instruction each.
  float scales[kInt8Columns];
  for (int64_t i = 0; i < kInt8Columns; i += kLanes)
    store(scales + i, load(w.scales + n + i, columns - i), kInt8Columns - i);
  if (!w.is_static()) {
    for (int64_t m = 0; m < rows; ++m)
      for (int i = 0; i < kInt8Columns; ++i)
        out[m * kInt8Columns + i] = float(unshifted(sums[m * kInt8Columns + i], *x[m])) *
                                    (x[m]->factor * scales[i]);
    return;
  }
  int64_t bias[kInt8Columns] = {};
  std::copy_n(w.bias + n, columns, bias);
  for (int64_t m = 0; m < rows; ++m)
    for (int i = 0; i < kInt8Columns; ++i)
      out[m * kInt8Columns + i] =
          float(unshifted(sums[m * kInt8Columns + i], *x[m]) + bias[i]) *
          (x[m]->factor * scales[i]);
}
