// Rows of one KV head against one block of keys and values: what attention is made of.
//
// Knows where a block's keys and values lie and how rows meet them; which blocks a row reads, and
// in which order, is attention.h's.

// Rows of one work item: their sums stay in the second-level cache beside the panels.
constexpr int64_t kItemRows = 256;
// Rows whose scores and probabilities stay in the first-level cache.
constexpr int64_t kScoreRows = 4 * kPanelRows;

// What one worker needs for one item at a time; all arrays are parts of one allocation.
template <class T>
struct AttentionWork {
  using Kind = Fast<T>;
  using Element = typename Kind::Element;

  Softmax *open, *closed;   // [rows], each with `out` of `width` floats
  const Element** queries;  // [rows] to broadcast
  Element* copies;          // [rows, width] of queries that had to be converted
  int64_t* cursor;          // [tokens] next entry of each token's list
  int32_t* readers;         // [rows] that read the current block
  Element *keys, *values;   // panels of the current block
  T* expanded;              // its keys or values, if they are packed
  float* scores;            // [kScoreRows or kDirectRows, kBlockTokens]
  Probability<Kind>* probabilities;
  int64_t width;            // of the head, in whole panels
  int64_t bytes = 0;

  // Without memory, only `bytes` comes of it.
  AttentionWork(const AttentionArgs& a, char* memory) : width(panel_columns(a.width)) {
    const int64_t rows = std::max(kItemRows, a.heads / a.groups);
    take(memory, open, rows), take(memory, closed, rows), take(memory, queries, rows);
    take(memory, copies, rows * width), take(memory, cursor, rows), take(memory, readers, rows);
    take(memory, keys, panel_steps<Kind>(a.width) * kBlockTokens);
    take(memory, values, panel_steps<Kind>(kBlockTokens) * width);
    take(memory, expanded, a.key.form == Cached::kPlain ? 0 : kBlockTokens * a.width);
    take(memory, scores, std::max(kScoreRows, kDirectRows) * kBlockTokens);
    take(memory, probabilities, std::max(kScoreRows, kDirectRows) * kBlockTokens);
    float* out;
    take(memory, out, 2 * rows * width);
    if (memory == nullptr) return;
    for (int64_t row = 0; row < rows; ++row) {
      open[row].out = out + 2 * row * width;
      closed[row].out = open[row].out + width;
    }
  }

 private:
  template <class U>
  void take(char* memory, U*& array, int64_t count) {
    if (memory != nullptr) array = reinterpret_cast<U*>(memory + bytes);
    bytes += (count * int64_t(sizeof(U)) + 63) / 64 * 64;  // a cache line of its own
  }
};

// Tokens [first_token, last_token) of a span and one KV head; entries [begin, end) of each token's
// list of blocks.
struct AttentionItem {
  int64_t span, group, first_token, last_token, begin, end;
};

// Number of blocks that a token reads, and the entry-th of them: its list, or all up to its own.
inline int64_t num_entries(const AttentionArgs& a, int64_t span, int64_t token, int64_t group) {
  const int64_t own = own_block(a.at, span, token);
  if (a.chosen == nullptr) return own + 1;
  const int64_t* list =
      a.chosen + ((span * a.at.length + token) * a.groups + group) * a.chosen_width;
  int64_t count = 0;
  while (count < a.chosen_width && list[count] >= 0) ++count;
  return count;
}

inline int64_t entry_block(const AttentionArgs& a, int64_t span, int64_t token, int64_t group,
                           int64_t entry) {
  if (a.chosen == nullptr) return entry;
  return a.chosen[((span * a.at.length + token) * a.groups + group) * a.chosen_width + entry];
}

// Where a row's head begins, in elements, if tokens are `stride` apart.
inline int64_t head_offset(const AttentionArgs& a, const AttentionItem& item, int64_t row,
                           int64_t stride) {
  const int64_t per_group = a.heads / a.groups, token = item.first_token + row / per_group;
  const int64_t head = item.group * per_group + row % per_group;
  return (item.span * a.at.length + token) * stride + head * a.width;
}

// A block of the item's KV head in one of the planes.
inline BlockPart part_of(const AttentionArgs& a, const Plane& plane, const AttentionItem& item,
                         int64_t block) {
  return {plane, a.at.blocks[item.span * a.at.num_blocks + block], item.group, a.width};
}

// Keys and values of one block, of whose tokens `seen` count, and keys that are read after it.
struct BlockPair {
  BlockPart key, value, next_key;
  int64_t seen;

  Factors factors() const { return {key.factors(), value.factors()}; }
};

// Adds one block, whose panels are in `work`, to the open sums of `count` rows.
// position: of the first token of the item, relative to the block's first.
template <class T>
void absorb(const AttentionArgs& a, AttentionWork<T>& work, const int32_t* readers, int64_t count,
            int64_t position, Factors factors) {
  using Kind = typename AttentionWork<T>::Kind;
  using Element = typename AttentionWork<T>::Element;
  const Element* rows[kScoreRows];
  float keep[kScoreRows];
  const int64_t steps = panel_steps<Kind>(a.width);
  for (int64_t r = 0; r < count; ++r) rows[r] = work.queries[readers[r]];
  for (int64_t column = 0; column < kBlockTokens; column += kPanel)
    panel_rows<Kind>(
        rows, count, work.keys + column * steps, steps, [](int64_t, int) { return zero(); },
        [&](int64_t r, const F32* sums) {
          for (int i = 0; i < 4; ++i)
            store(work.scores + r * kBlockTokens + column + i * kLanes, sums[i]);
        });
  int64_t most = 0;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t token = readers[r] / (a.heads / a.groups);
    const int64_t visible = std::min(kBlockTokens, position + token + 1);
    auto* probabilities = work.probabilities + r * kBlockTokens;
    keep[r] = soften(work.open[readers[r]], work.scores + r * kBlockTokens, factors, visible,
                     a.scale, probabilities);
    rows[r] = reinterpret_cast<const Element*>(probabilities);
    most = std::max(most, visible);
  }
  const int64_t value_steps = panel_steps<Kind>(most);
  for (int64_t column = 0; column < work.width; column += kPanel)
    panel_rows<Kind>(
        rows, count, work.values + column * panel_steps<Kind>(kBlockTokens), value_steps,
        [&](int64_t r, int i) {
          return mul(set1(keep[r]), load(work.open[readers[r]].out + column + i * kLanes));
        },
        [&](int64_t r, const F32* sums) {
          for (int i = 0; i < 4; ++i)
            store(work.open[readers[r]].out + column + i * kLanes, sums[i]);
        });
}

// Makes the panels of one block, while values and then the keys of the next block are fetched.
template <class T>
void pack_block(const AttentionArgs& a, const BlockPair& block, AttentionWork<T>& work) {
  using Kind = typename AttentionWork<T>::Kind;
  const int64_t count = block.seen * a.width;
  const T* keys = plain_values(a.key, block.key.at(), count, work.expanded);
  Ahead values_ahead(block.value.start(sizeof(T)));
  for (int64_t column = 0; column < kBlockTokens; column += kPanel)
    Kind::pack_transposed(work.keys + column * panel_steps<Kind>(a.width), keys + column * a.width,
                          a.width, block.seen - column, a.width, values_ahead);
  const T* values = plain_values(a.value, block.value.at(), count, work.expanded);
  Ahead keys_ahead(block.next_key.start(sizeof(T)));
  for (int64_t column = 0; column < work.width; column += kPanel)
    Kind::pack(work.values + column * panel_steps<Kind>(kBlockTokens), values + column, a.width,
               block.seen, a.width - column, keys_ahead);
}

#if defined(MSERVE_FAST_TRANSPOSE)
// The same for one block of a single token, from where it lies.
template <class Stored>
void absorb_directly(const AttentionArgs& a, const BlockPair& block, AttentionWork<bf16>& work) {
  using Kind = AttentionWork<bf16>::Kind;
  const int64_t rows = a.heads / a.groups;
  const int64_t bytes = kBlockTokens * a.width * int64_t(sizeof(Stored));
  const auto *keys = block.key.values<Stored>(), *values = block.value.values<Stored>();
  Weighted<Kind> weighted[kDirectRows];
  Following values_ahead(keys, bytes, values);
  for (int64_t key = 0; key < block.seen; key += kPanel)
    direct_scores<Kind>(work.queries, rows, keys + key * a.width, a.width, values_ahead,
                        work.scores + key);
  for (int64_t r = 0; r < rows; ++r) {
    auto* probabilities = work.probabilities + r * kBlockTokens;
    float* out = work.open[r].out;
    const F32 keep = set1(soften(work.open[r], work.scores + r * kBlockTokens, block.factors(),
                                 block.seen, a.scale, probabilities));
    for (int64_t k = 0; k < a.width; k += kLanes) store(out + k, mul(keep, load(out + k)));
    weighted[r] = {probabilities, out};
  }
  Following keys_ahead(values, bytes, block.next_key.values<Stored>());
  direct_values(weighted, rows, values, a.width, block.seen, keys_ahead);
}

inline void absorb_directly(const AttentionArgs& a, const BlockPair& block,
                            AttentionWork<bf16>& work) {
  switch (a.key.form) {
    case Cached::kPlain:
      return absorb_directly<bf16>(a, block, work);
#if defined(MSERVE_BF16_PAIRS)
    case Cached::kE4m3:
      return absorb_directly<Code<Cached::kE4m3>>(a, block, work);
    case Cached::kInt8:
      return absorb_directly<Code<Cached::kInt8>>(a, block, work);
#endif
    default:
      return;  // goes_directly says which
  }
}
#endif

// Whether a token's rows are better off without panels.
template <class T>
constexpr bool goes_directly([[maybe_unused]] const AttentionArgs& a,
                             [[maybe_unused]] int64_t tokens) {
#if defined(MSERVE_FAST_TRANSPOSE)
#if defined(MSERVE_BF16_PAIRS)
  const bool readable = true;
#else
  const bool readable = a.key.form == Cached::kPlain;
#endif
  return std::is_same_v<T, bf16> && readable && tokens == 1 && a.width % kDirectWidth == 0 &&
         a.heads / a.groups <= kDirectRows;
#else
  return false;
#endif
}
