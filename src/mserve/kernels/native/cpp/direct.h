// Products of a few rows with one block of the cache, from where it lies: no panel of the whole
// block is made, since one decoded token has too few rows to pay for it.
//
//   keys      a panel's worth, a few lines of each, is turned into a piece of it: a lane is a key
//   values    as many as a step takes become registers: a lane is a column
//
// Codes of a packed cache become bf16 in registers on the way. Every sum runs over the same
// elements in the same order and lane as with panels (panel.h), so both agree bit for bit. Needs
// a fast transpose, for codes AVX-512 BF16, and a width that is a multiple of kDirectWidth.

// Rows of a token that go this way, if there is one.
constexpr int64_t kDirectRows = 24;

#if defined(MSERVE_FAST_TRANSPOSE)

constexpr int64_t kDirectWidth = 64;
// Bytes of a key that are turned before they are multiplied: with one line at a time the products
// wait for stores that have not reached the cache (12 % of the time of a block).
constexpr int64_t kDirectSliceBytes = 128;
// Values whose rows stay in the first-level cache for all columns and rows of sums.
constexpr int64_t kDirectValues = 32;
// A panel's worth of keys is touched in every slice, so all of it has to be there beforehand. What
// is fetched is spread over all of the work: a core has room for few lines on their way, and in
// bursts it waits for memory, then memory for it.
constexpr int64_t kDirectAheadBytes = 16384;

// Memory read in order, fetched a fixed distance ahead: to the end of one piece, and on into the
// next, which lies anywhere. Calls end where a piece ends: a test per line would cost as much as
// the products. Of a piece shorter than the distance nothing is fetched.
class Following {
 public:
  Following(const void* piece, int64_t bytes, const void* next)
      : at_(static_cast<const char*>(piece) + kDirectAheadBytes),
        left_(std::max<int64_t>(bytes - kDirectAheadBytes, 0) / 64),
        next_(static_cast<const char*>(next)) {}
  void lines(int64_t count) {
    if (left_ == 0) at_ = next_;
    left_ -= count;
    for (int64_t i = 0; i < count; ++i, at_ += 64) prefetch(at_);
  }

 private:
  const char* at_;
  int64_t left_;
  const char* next_;
};

// Turns a cache line of each of kLanes rows into steps of a panel.
template <class Kind>
inline void turn(typename Kind::Element* to, const bf16* rows, int64_t width) {
  if constexpr (Kind::kWidth == 2)
    transpose_dwords(to, kPanel, rows, width * 2, kLanes);
  else
    for (int64_t k = 0; k < 64 / int64_t(sizeof(bf16)); k += 2 * kLanes)
      transpose_split(to + k * kPanel, kPanel, rows + k, width, kLanes);
}

#if defined(MSERVE_BF16_PAIRS)
// One value of a packed plane.
template <Cached kForm>
struct Code {
  uint8_t code;
};

template <class Kind, Cached kForm>
inline void turn(uint32_t* to, const Code<kForm>* rows, int64_t width) {
  const CodeLookup<kForm> lookup;
  __m512i r[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) r[i] = _mm512_loadu_si512(rows + i * width);
  transpose(r);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    __m512i first, second;
    lookup.split(r[i], first, second);
    _mm512_storeu_si512(to + 2 * i * kPanel, first);
    _mm512_storeu_si512(to + (2 * i + 1) * kPanel, second);
  }
}
#endif

// sums[r * kBlockTokens + i] = row r . key i, for kPanel keys.
template <class Kind, class Stored>
inline void direct_scores(const typename Kind::Element* const* rows, int64_t count,
                          const Stored* keys, int64_t width, Following& ahead, float* sums) {
  constexpr int64_t kLine = 64 / sizeof(Stored), kSlice = kDirectSliceBytes / sizeof(Stored);
  alignas(64) typename Kind::Element turned[kSlice / Kind::kWidth * kPanel];
  const typename Kind::Element* parts[kDirectRows];
  for (int64_t at = 0; at < width; at += kSlice) {
    const int64_t length = std::min(kSlice, width - at);
    for (int64_t line = 0; line < length; line += kLine)
      for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
        ahead.lines(kLanes / 2);
        turn<Kind>(turned + line / Kind::kWidth * kPanel + lane, keys + lane * width + at + line,
                   width);
      }
    for (int64_t r = 0; r < count; ++r) parts[r] = rows[r] + at / Kind::kWidth;
    int64_t lines = length / kLine * kPanel / 2;
    panel_rows<Kind>(
        parts, count, turned, length / Kind::kWidth,
        [&](int64_t r, int i) {
          return at == 0 ? zero() : load(sums + r * kBlockTokens + i * kLanes);
        },
        [&](int64_t r, const F32* totals) {
          for (int i = 0; i < 4; ++i) store(sums + r * kBlockTokens + i * kLanes, totals[i]);
        },
        [&] {
          constexpr int64_t kEach = 2 * Kind::kWidth * sizeof(Stored) / 4;
          if (lines > 0) ahead.lines(kEach), lines -= kEach;
        });
  }
}

// A row of probabilities, and the sums that weighted values are added to.
template <class Kind>
struct Weighted {
  const Probability<Kind>* probabilities;
  float* out;
};

// kPanel columns of as many values as a step takes; of two the second may be missing.
inline void value_columns(const bf16* row, const bf16*, F32 columns[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) columns[i] = load(row + i * kLanes);
}
#if defined(MSERVE_BF16_PAIRS)
inline void value_columns(const bf16* row, const bf16* next, __m512bh columns[4]) {
  alignas(64) static constexpr uint16_t kLow[32] = {
      0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m512i even = _mm512_loadu_si512(row + 32 * half);
    const __m512i odd =
        next != nullptr ? _mm512_loadu_si512(next + 32 * half) : _mm512_setzero_si512();
    columns[2 * half] = (__m512bh)_mm512_permutex2var_epi16(even, low, odd);
    columns[2 * half + 1] = (__m512bh)_mm512_permutex2var_epi16(even, high, odd);
  }
}
template <Cached kForm>
inline void value_columns(const Code<kForm>* row, const Code<kForm>* next, __m512bh columns[4]) {
  const CodeLookup<kForm> lookup;
  __m512i pairs[4];
  lookup.interleave(_mm512_loadu_si512(row),
                    next != nullptr ? _mm512_loadu_si512(next) : _mm512_setzero_si512(), pairs);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) columns[i] = (__m512bh)pairs[i];
}
#endif

// out[r] += sum of p[r][k] * value k, for values [first, last) and kPanel columns from `at`; from
// value `seen` on they count as zero.
template <class Kind, int R, class Stored>
inline void add_values(const Weighted<Kind>* rows, const Stored* values, int64_t width, int64_t at,
                       int64_t first, int64_t last, int64_t seen, Following* ahead) {
  F32 sums[R][4];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < 4; ++i) sums[r][i] = load(rows[r].out + at + i * kLanes);
  for (int64_t k = first; k < last; k += Kind::kWidth) {
    const Stored* row = values + k * width + at;
    if (ahead != nullptr) ahead->lines(Kind::kWidth * kPanel * int64_t(sizeof(Stored)) / 64);
    typename Kind::V columns[4];
    value_columns(row, k + 1 < seen ? row + width : nullptr, columns);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename Kind::V weight =
          Kind::broadcast(reinterpret_cast<const typename Kind::Element*>(
              rows[r].probabilities + k));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[r][i] = Kind::multiply_add(weight, columns[i], sums[r][i]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < 4; ++i) store(rows[r].out + at + i * kLanes, sums[r][i]);
}

template <class Kind, int R = kPanelRows, class Stored>
inline void add_values_to(const Weighted<Kind>* rows, int64_t count, const Stored* values,
                          int64_t width, int64_t at, int64_t first, int64_t last, int64_t seen,
                          Following* ahead) {
  int64_t row = 0;
  for (; row + R <= count; row += R, ahead = nullptr)
    add_values<Kind, R>(rows + row, values, width, at, first, last, seen, ahead);
  if constexpr (R > 1)
    if (row < count)
      add_values_to<Kind, R - 1>(rows + row, count - row, values, width, at, first, last, seen,
                                 ahead);
}

// Adds the `seen` first values of a block to the sums of all rows.
template <class Kind, class Stored>
inline void direct_values(const Weighted<Kind>* rows, int64_t count, const Stored* values,
                          int64_t width, int64_t seen, Following& ahead) {
  for (int64_t first = 0; first < seen; first += kDirectValues)
    for (int64_t at = 0; at < width; at += kPanel)
      add_values_to(rows, count, values, width, at, first, std::min(first + kDirectValues, seen),
                    seen, &ahead);
}

#endif
