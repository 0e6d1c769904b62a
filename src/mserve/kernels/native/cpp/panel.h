// Products of a few rows with a panel: a block of keys or values laid out so that every lane is
// one column.
//
//   panel   [steps][kPanel]     rows are broadcast, sums need no folding
//
// A column's sum runs over the steps in order, in one lane, so its bits depend neither on the rows
// beside it nor on where the panel was cut. Attention of one token and of a thousand use the same
// panels and agree bit for bit.

constexpr int64_t kPanel = 4 * kLanes;
constexpr int kPanelRows = kTileSums / 4;

inline int64_t panel_columns(int64_t columns) { return (columns + kPanel - 1) / kPanel * kPanel; }

// Memory that will be packed next, fetched line by line while the present block is packed: blocks lie
// anywhere, so the hardware cannot know.
class Ahead {
 public:
  explicit Ahead(const void* start) : at_(static_cast<const char*>(start)) {}
  void lines(int count) {
    for (int i = 0; i < count; ++i, at_ += 64) prefetch(at_);
  }

 private:
  const char* at_;
};

// One fp32 element per lane and step: exact products of bf16 or fp32 values. Of two bf16 elements
// the odd one comes first in a product of queries and keys: so do the pairs below, as hardware
// defines them, and sums have the same bits on every instruction set.
struct Singles {
  using Element = float;
  using V = F32;
  static constexpr int kWidth = 1;
  static V load(const Element* p) { return MSERVE_ISA::load(p); }
  static V broadcast(const Element* p) { return set1(*p); }
  static F32 multiply_add(V a, V b, F32 c) { return fma(a, b, c); }

  // One panel whose columns are `rows` rows of `from`, `width` wide: keys of a product with queries.
  template <class T>
  static void pack_transposed(Element* panel, const T* from, int64_t row_stride, int64_t rows,
                              int64_t width, [[maybe_unused]] Ahead& ahead) {
    int64_t k = 0;
#if defined(MSERVE_FAST_TRANSPOSE)
    constexpr int64_t kStep = sizeof(T) == 2 ? 2 * kLanes : kLanes;
    for (int64_t lane = 0; lane < kPanel; lane += kLanes)
      for (k = 0; k + kStep <= width; k += kStep) {
        float* to = panel + k * kPanel + lane;
        const T* part = from + lane * row_stride + k;
        ahead.lines(int(kLanes * kStep * sizeof(T) / 64));
        if constexpr (sizeof(T) == 2)
          transpose_split(to, kPanel, part, row_stride, rows - lane);
        else
          transpose_dwords(reinterpret_cast<uint32_t*>(to), kPanel, part, row_stride * 4,
                           rows - lane);
      }
#endif
    for (; k < width; ++k)
      for (int64_t lane = 0; lane < kPanel; ++lane)
        panel[k * kPanel + lane] =
            lane < rows ? to_float(from[lane * row_stride + place<T>(k)]) : 0.0f;
  }

  // Which element the k-th step takes.
  template <class T>
  static int64_t place(int64_t k) {
    return sizeof(T) == 2 ? k ^ 1 : k;
  }

  // One panel whose columns are the first `width` of `from`: values of a product with probabilities.
  template <class T>
  static void pack(Element* panel, const T* from, int64_t row_stride, int64_t rows, int64_t width,
                   Ahead& ahead) {
    for (int64_t k = 0; k < rows; ++k) {
      ahead.lines(int(kPanel * sizeof(T) / 64));
      for (int64_t lane = 0; lane < kPanel; lane += kLanes, panel += kLanes)
        store(panel, lane < width ? MSERVE_ISA::load(from + k * row_stride + lane, width - lane)
                                  : zero());
    }
  }

  // A query as a row to broadcast, converted into `copy` where that is needed.
  static const Element* row(const float* x, int64_t, Element*) { return x; }
  static const Element* row(const bf16* x, int64_t width, Element* copy) {
    for (int64_t k = 0; k < width; ++k) copy[k] = to_float(x[place<bf16>(k)]);
    return copy;
  }
};

#if defined(MSERVE_BF16_PAIRS)
// Two bf16 elements per lane and step.
struct Pairs {
  using Element = uint32_t;
  using V = __m512bh;
  static constexpr int kWidth = 2;
  static V load(const Element* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static V broadcast(const Element* p) { return (__m512bh)_mm512_set1_epi32(int(*p)); }
  static F32 multiply_add(V a, V b, F32 c) { return {_mm512_dpbf16_ps(c.v, a, b)}; }

  static void pack_transposed(Element* panel, const bf16* from, int64_t row_stride, int64_t rows,
                              int64_t width, Ahead& ahead) {
    int64_t k = 0;
    for (int64_t lane = 0; lane < kPanel; lane += kLanes)
      for (k = 0; k + 2 * kLanes <= width; k += 2 * kLanes) {
        ahead.lines(kLanes);
        transpose_dwords(panel + k / 2 * kPanel + lane, kPanel, from + lane * row_stride + k,
                         row_stride * 2, rows - lane);
      }
    for (; k < width; k += 2)
      for (int64_t lane = 0; lane < kPanel; ++lane) {
        Element pair = 0;
        if (lane < rows) std::memcpy(&pair, from + lane * row_stride + k, 4);
        panel[k / 2 * kPanel + lane] = pair;
      }
  }

  static void pack(Element* panel, const bf16* from, int64_t row_stride, int64_t rows,
                   int64_t width, Ahead& ahead) {
    alignas(64) static constexpr uint16_t kLow[32] = {
        0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(kLow);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const auto part = [&](int64_t row, int64_t at) {
      const int64_t left = row < rows ? std::min<int64_t>(std::max<int64_t>(width - at, 0), 32) : 0;
      if (left == 0) return _mm512_setzero_si512();
      const __mmask32 mask = left == 32 ? 0xffffffffu : (1u << left) - 1;
      return _mm512_maskz_loadu_epi16(mask, from + row * row_stride + at);
    };
    for (int64_t k = 0; k < rows; k += 2)
      for (int64_t at = 0; at < kPanel; at += 32, panel += 32) {
        const __m512i even = part(k, at), odd = part(k + 1, at);
        ahead.lines(2);
        _mm512_storeu_si512(panel, _mm512_permutex2var_epi16(even, low, odd));
        _mm512_storeu_si512(panel + 16, _mm512_permutex2var_epi16(even, high, odd));
      }
  }

  static const Element* row(const bf16* x, int64_t, Element*) {
    return reinterpret_cast<const Element*>(x);
  }
};
template <class T>
using Fast = std::conditional_t<std::is_same_v<T, bf16>, Pairs, Singles>;
#else
template <class T>
using Fast = Singles;
#endif

// What a block's values are weighted with, as many to an Element as a step takes.
template <class Kind>
using Probability = std::conditional_t<Kind::kWidth == 2, bf16, float>;

template <class Kind>
inline int64_t panel_steps(int64_t width) {
  return (width + Kind::kWidth - 1) / Kind::kWidth;
}

// What else is done while a panel is multiplied: nothing.
struct NoErrand {
  void operator()() const {}
};

// One panel of kPanel columns times R rows: keep(r, sums) takes each row's four registers.
// start(r, i) gives what register i begins with, errand() is run at every step.
template <class Kind, int R, class Start, class Keep, class Errand>
inline void panel_tile(const typename Kind::Element* const* rows,
                       const typename Kind::Element* panel, int64_t steps, Start&& start,
                       Keep&& keep, Errand&& errand) {
  F32 sums[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[r][i] = start(r, i);
  for (int64_t k = 0; k < steps; ++k) {
    typename Kind::V columns[4];
    errand();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) columns[i] = Kind::load(panel + k * kPanel + i * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename Kind::V row = Kind::broadcast(rows[r] + k);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[r][i] = Kind::multiply_add(row, columns[i], sums[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) keep(r, sums[r]);
}

// The same for any number of rows; start and keep get the row's number among all.
template <class Kind, int R = kPanelRows, class Start, class Keep, class Errand = NoErrand>
inline void panel_rows(const typename Kind::Element* const* rows, int64_t count,
                       const typename Kind::Element* panel, int64_t steps, Start&& start,
                       Keep&& keep, Errand&& errand = {}) {
  int64_t row = 0;
  for (; row + R <= count; row += R)
    panel_tile<Kind, R>(
        rows + row, panel, steps, [&](int r, int i) { return start(row + r, i); },
        [&](int r, const F32* sums) { keep(row + r, sums); }, errand);
  if constexpr (R > 1) {
    if (row < count)
      panel_rows<Kind, R - 1>(
          rows + row, count - row, panel, steps,
          [&](int64_t r, int i) { return start(row + r, i); },
          [&](int64_t r, const F32* sums) { keep(row + r, sums); }, errand);
  }
}
