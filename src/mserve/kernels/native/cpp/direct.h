// Products of a few rows with one block of the cache, from where it lies: no panel of the whole
// block is made, since one decoded token has too few rows to pay for it.
//
//   keys      64 of them, 32 elements at a time, are turned into a piece of a panel: a lane is a key
//   values    two of them are interleaved in registers: a lane is a column
//
// Every sum runs over the same elements in the same order and lane as with panels (panel.h), so
// both agree bit for bit. Needs AVX-512 and bf16 values whose width is a multiple of kDirectWidth.

#if defined(MSERVE_FAST_TRANSPOSE)

constexpr int64_t kDirectWidth = 64;
constexpr int64_t kDirectRows = 24;
// Elements of a key that are turned at once.
constexpr int64_t kDirectSlice = 32;
// Values whose rows stay in the first-level cache for all columns and rows of sums.
constexpr int64_t kDirectValues = 32;
// A panel's worth of keys is touched in every slice, so all of it has to be there beforehand.
constexpr int64_t kDirectAheadBytes = 16384;

// Memory read in order, fetched a fixed distance ahead: to the end of one piece, and on into the
// next, which lies anywhere. A piece is no shorter than the distance.
class Following {
 public:
  Following(const void* piece, int64_t bytes, const void* next)
      : at_(static_cast<const char*>(piece) + kDirectAheadBytes),
        left_((bytes - kDirectAheadBytes) / 64),
        next_(static_cast<const char*>(next)) {}
  void lines(int64_t count) {
    for (int64_t i = 0; i < count; ++i, at_ += 64) {
      if (left_-- == 0) at_ = next_;
      prefetch(at_);
    }
  }

 private:
  const char* at_;
  int64_t left_;
  const char* next_;
};

// sums[r * kBlockTokens + i] = row r . key i, for kPanel keys.
template <class Kind>
inline void direct_scores(const typename Kind::Element* const* rows, int64_t count,
                          const bf16* keys, int64_t width, Following& ahead, float* sums) {
  constexpr int64_t kSteps = kDirectSlice / Kind::kWidth;
  alignas(64) typename Kind::Element turned[kSteps * kPanel];
  const typename Kind::Element* parts[kDirectRows];
  for (int64_t at = 0; at < width; at += kDirectSlice) {
    for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
      ahead.lines(kLanes);
      if constexpr (Kind::kWidth == 2)
        transpose_dwords(turned + lane, kPanel, keys + lane * width + at, width * 2, kLanes);
      else
        transpose_split(turned + lane, kPanel, keys + lane * width + at, width, kLanes);
    }
    for (int64_t r = 0; r < count; ++r) parts[r] = rows[r] + at / Kind::kWidth;
    panel_rows<Kind>(
        parts, count, turned, kSteps,
        [&](int64_t r, int i) {
          return at == 0 ? zero() : load(sums + r * kBlockTokens + i * kLanes);
        },
        [&](int64_t r, const F32* totals) {
          for (int i = 0; i < 4; ++i) store(sums + r * kBlockTokens + i * kLanes, totals[i]);
        });
  }
}

#if defined(MSERVE_BF16_PAIRS)

// Rows of probabilities, and the sums that weighted values are added to.
struct Weighted {
  const bf16* probabilities;
  float* out;
};

// out[r] += sum of p[r][k] * value k, for values [first, last) and kDirectWidth columns from `at`;
// from value `seen` on they count as zero.
template <int R>
inline void add_values(const Weighted* rows, const bf16* values, int64_t width, int64_t at,
                       int64_t first, int64_t last, int64_t seen, Following* ahead) {
  alignas(64) static constexpr uint16_t kLow[32] = {
      0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  F32 sums[R][4];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < 4; ++i) sums[r][i] = load(rows[r].out + at + i * kLanes);
  for (int64_t k = first; k < last; k += 2) {
    const bf16* row = values + k * width + at;
    if (ahead != nullptr) ahead->lines(int(width / 16));
    __m512bh columns[4];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i even = _mm512_loadu_si512(row + 32 * half);
      const __m512i odd =
          k + 1 < seen ? _mm512_loadu_si512(row + width + 32 * half) : _mm512_setzero_si512();
      columns[2 * half] = (__m512bh)_mm512_permutex2var_epi16(even, low, odd);
      columns[2 * half + 1] = (__m512bh)_mm512_permutex2var_epi16(even, high, odd);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512bh pair =
          Pairs::broadcast(reinterpret_cast<const uint32_t*>(rows[r].probabilities + k));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[r][i] = Pairs::multiply_add(pair, columns[i], sums[r][i]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < 4; ++i) store(rows[r].out + at + i * kLanes, sums[r][i]);
}

template <int R = kPanelRows>
inline void add_values_to(const Weighted* rows, int64_t count, const bf16* values, int64_t width,
                          int64_t at, int64_t first, int64_t last, int64_t seen,
                          Following* ahead) {
  int64_t row = 0;
  for (; row + R <= count; row += R, ahead = nullptr)
    add_values<R>(rows + row, values, width, at, first, last, seen, ahead);
  if constexpr (R > 1)
    if (row < count)
      add_values_to<R - 1>(rows + row, count - row, values, width, at, first, last, seen, ahead);
}

// Adds the `seen` first values of a block to the sums of all rows.
inline void direct_values(const Weighted* rows, int64_t count, const bf16* values, int64_t width,
                          int64_t seen, Following& ahead) {
  for (int64_t first = 0; first < seen; first += kDirectValues)
    for (int64_t at = 0; at < width; at += kDirectWidth)
      add_values_to(rows, count, values, width, at, first, std::min(first + kDirectValues, seen),
                    seen, at == 0 ? &ahead : nullptr);
}

#endif
#endif
