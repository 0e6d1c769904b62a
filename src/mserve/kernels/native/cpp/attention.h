// Causal attention over the blocks of a paged cache: all of them, or the chosen ones.
//
//   row        one query head of one token; rows of one KV head share its keys and values
//   block      keys and values of 128 tokens as panels, made once for all rows that read it
//   chunk      8 blocks of a row's list: online softmax inside, joined in order
//
// One token of a long context is cut at chunks so that all workers have a part; many tokens are cut
// by tokens and run their chunks in turn. The arithmetic of a row is the same either way: decode,
// prefill and any chunking of it agree bit for bit.
//
// Scores and softmax are fp32. With bf16 values the probabilities are rounded to bf16 for their
// product with the values, as the reference does.

constexpr int64_t kChunkBlocks = 8;
// Rows of one work item: their sums stay in the second-level cache beside the panels.
constexpr int64_t kItemRows = 256;
// Rows whose scores and probabilities stay in the first-level cache.
constexpr int64_t kScoreRows = 4 * kPanelRows;
// Above this many tokens there are items enough without cutting at chunks.
constexpr int64_t kSplitTokens = 32;

// Softmax over some keys: sum of e^(score - peak), and the values weighted with it.
struct Softmax {
  float peak, total;
  float* out;
};

inline float exp_of(float x) {
  float value[kLanes];
  store(value, exp(set1(x)));
  return value[0];
}

// Adds the keys of `part` to those of `whole`.
inline void join(Softmax& whole, const Softmax& part, int64_t width) {
  const float peak = std::max(whole.peak, part.peak);
  const float keep = exp_of(whole.peak - peak), add = exp_of(part.peak - peak);
  whole.total = whole.total * keep + part.total * add;
  whole.peak = peak;
  for (int64_t k = 0; k < width; k += kLanes)
    store(whole.out + k, fma(set1(keep), load(whole.out + k), mul(set1(add), load(part.out + k))));
}

inline void clear(Softmax& softmax, int64_t width) {
  softmax.peak = -INFINITY;
  softmax.total = 0.0f;
  std::fill_n(softmax.out, width, 0.0f);
}

// What one worker needs for one item at a time; all arrays are parts of one allocation.
template <class T>
struct AttentionWork {
  using Kind = Fast<T>;
  using Element = typename Kind::Element;
  using Probability = std::conditional_t<Kind::kWidth == 2, bf16, float>;

  Softmax *open, *closed;   // [rows], each with `out` of `width` floats
  const Element** queries;  // [rows] to broadcast
  Element* copies;          // [rows, width] of queries that had to be converted
  int64_t* cursor;          // [tokens] next entry of each token's list
  int32_t* readers;         // [rows] that read the current block
  Element *keys, *values;   // panels of the current block
  float* scores;            // [kScoreRows, kBlockTokens]
  Probability* probabilities;
  int64_t width;            // of the head, in whole panels
  int64_t bytes = 0;

  // Without memory, only `bytes` comes of it.
  AttentionWork(const AttentionArgs& a, char* memory) : width(panel_columns(a.width)) {
    const int64_t rows = std::max(kItemRows, a.heads / a.groups);
    take(memory, open, rows), take(memory, closed, rows), take(memory, queries, rows);
    take(memory, copies, rows * width), take(memory, cursor, rows), take(memory, readers, rows);
    take(memory, keys, panel_steps<Kind>(a.width) * kBlockTokens);
    take(memory, values, panel_steps<Kind>(kBlockTokens) * width);
    take(memory, scores, kScoreRows * kBlockTokens), take(memory, probabilities, kScoreRows * kBlockTokens);
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

// Scores of one row become probabilities relative to the row's peak; returns what the sums so far
// have to be multiplied with.
template <class T>
float soften(Softmax& softmax, const float* scores, int64_t visible, float scale,
             typename AttentionWork<T>::Probability* probabilities) {
  F32 best = set1(-INFINITY);
  for (int64_t k = 0; k < visible; k += kLanes)
    best = max(best, first_or(load(scores + k), visible - k, set1(-INFINITY)));
  const float peak = std::max(softmax.peak, max_of(best) * scale);
  const float keep = exp_of(softmax.peak - peak);
  F32 total = zero();
  for (int64_t k = 0; k < kBlockTokens; k += kLanes) {
    const F32 weight = exp(fma(load(scores + k), set1(scale), set1(-peak)));
    const F32 seen = first_or(weight, visible - k, zero());
    total = add(total, seen);
    store(probabilities + k, seen);
  }
  softmax.peak = peak;
  softmax.total = softmax.total * keep + sum(total);
  return keep;
}

// Adds one block, whose panels are in `work`, to the open sums of `count` rows.
// position: of the first token of the item, relative to the block's first.
template <class T>
void absorb(const AttentionArgs& a, AttentionWork<T>& work, const int32_t* readers, int64_t count,
            int64_t position) {
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
    keep[r] = soften<T>(work.open[readers[r]], work.scores + r * kBlockTokens, visible, a.scale,
                        probabilities);
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

// Keys or values of one block for the item's KV head.
template <class T>
const T* part_of(const AttentionArgs& a, const Plane& plane, const AttentionItem& item,
                 int64_t block) {
  const int64_t id = a.at.blocks[item.span * a.at.num_blocks + block];
  return static_cast<const T*>(plane.data) + id * plane.block_stride +
         item.group * kBlockTokens * a.width;
}

// Makes the panels of one block, of which `seen` tokens count, while values and then the keys of
// block `next` are fetched.
template <class T>
void pack_block(const AttentionArgs& a, const AttentionItem& item, int64_t block, int64_t seen,
                int64_t next, AttentionWork<T>& work) {
  using Kind = typename AttentionWork<T>::Kind;
  const T* keys = part_of<T>(a, a.key, item, block);
  const T* values = part_of<T>(a, a.value, item, block);
  Ahead values_ahead(values), keys_ahead(part_of<T>(a, a.key, item, next));
  for (int64_t column = 0; column < kBlockTokens; column += kPanel)
    Kind::pack_transposed(work.keys + column * panel_steps<Kind>(a.width), keys + column * a.width,
                          a.width, seen - column, a.width, values_ahead);
  for (int64_t column = 0; column < work.width; column += kPanel)
    Kind::pack(work.values + column * panel_steps<Kind>(kBlockTokens), values + column, a.width,
               seen, a.width - column, keys_ahead);
}

#if defined(MSERVE_BF16_PAIRS)
// The same for one block of a single token, from where it lies. `next` is the block after it.
inline void absorb_directly(const AttentionArgs& a, const AttentionItem& item, int64_t block,
                            int64_t next, int64_t seen, AttentionWork<bf16>& work) {
  const int64_t rows = a.heads / a.groups, bytes = kBlockTokens * a.width * 2;
  const bf16 *keys = part_of<bf16>(a, a.key, item, block),
             *values = part_of<bf16>(a, a.value, item, block);
  Weighted weighted[kDirectRows];
  Following values_ahead(keys, bytes, values);
  for (int64_t key = 0; key < seen; key += kPanel)
    direct_scores<Pairs>(work.queries, rows, keys + key * a.width, a.width, values_ahead,
                         work.scores + key);
  for (int64_t r = 0; r < rows; ++r) {
    bf16* probabilities = work.probabilities + r * kBlockTokens;
    float* out = work.open[r].out;
    const F32 keep = set1(soften<bf16>(work.open[r], work.scores + r * kBlockTokens, seen, a.scale,
                                       probabilities));
    for (int64_t k = 0; k < a.width; k += kLanes) store(out + k, mul(keep, load(out + k)));
    weighted[r] = {probabilities, out};
  }
  Following keys_ahead(values, bytes, part_of<bf16>(a, a.key, item, next));
  direct_values(weighted, rows, values, a.width, seen, keys_ahead);
}
#endif

// Whether a token's rows are better off without panels.
template <class T>
constexpr bool goes_directly(const AttentionArgs& a, int64_t tokens) {
#if defined(MSERVE_BF16_PAIRS)
  return std::is_same_v<T, bf16> && tokens == 1 && a.width % kDirectWidth == 0 &&
         a.heads / a.groups <= kDirectRows;
#else
  return false;
#endif
}

inline void close_chunk(Softmax& closed, Softmax& open, int64_t width) {
  join(closed, open, width);
  clear(open, width);
}

// Leaves the result of every row of the item in work.closed.
template <class T>
void attend(const AttentionArgs& a, const AttentionItem& item, AttentionWork<T>& work) {
  const int64_t per_group = a.heads / a.groups, tokens = item.last_token - item.first_token;
  int64_t ends[kItemRows];
  for (int64_t t = 0; t < tokens; ++t) {
    work.cursor[t] = item.begin;
    ends[t] = std::min(item.end, num_entries(a, item.span, item.first_token + t, item.group));
  }
  for (int64_t row = 0; row < tokens * per_group; ++row) {
    clear(work.open[row], work.width);
    clear(work.closed[row], work.width);
    work.queries[row] =
        AttentionWork<T>::Kind::row(
            static_cast<const T*>(a.query) + head_offset(a, item, row, a.query_stride), a.width,
            work.copies + row * work.width);
  }
  const int64_t position = a.at.positions[item.span * a.at.length + item.first_token];
  const auto next = [&](int64_t t) {
    return work.cursor[t] < ends[t]
               ? entry_block(a, item.span, item.first_token + t, item.group, work.cursor[t])
               : a.at.num_blocks;
  };
  // Lists ascend, so the lowest block that any token waits for is the next for all.
  for (;;) {
    int64_t block = a.at.num_blocks;
    for (int64_t t = 0; t < tokens; ++t) block = std::min(block, next(t));
    if (block == a.at.num_blocks) return;
    const int64_t offset = position - block * kBlockTokens;
    int64_t count = 0, last_reader = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      if (next(t) != block) continue;
      for (int64_t h = 0; h < per_group; ++h) work.readers[count++] = int32_t(t * per_group + h);
      last_reader = t;
    }
    const int64_t following = work.cursor[last_reader] + 1;
    const int64_t upcoming =
        following < ends[last_reader]
            ? entry_block(a, item.span, item.first_token + last_reader, item.group, following)
            : block;
    const int64_t seen = std::min(kBlockTokens, offset + last_reader + 1);
    if (goes_directly<T>(a, tokens)) {
#if defined(MSERVE_BF16_PAIRS)
      if constexpr (std::is_same_v<T, bf16>) absorb_directly(a, item, block, upcoming, seen, work);
#endif
    } else {
      pack_block(a, item, block, seen, upcoming, work);
      for (int64_t r = 0; r < count; r += kScoreRows)
        absorb(a, work, work.readers + r, std::min(kScoreRows, count - r), offset);
    }
    for (int64_t r = 0; r < count; r += per_group) {
      const int64_t t = work.readers[r] / per_group;
      const int64_t taken = ++work.cursor[t] - item.begin;
      if (taken % kChunkBlocks == 0 || work.cursor[t] == ends[t])
        for (int64_t h = 0; h < per_group; ++h)
          close_chunk(work.closed[t * per_group + h], work.open[t * per_group + h], work.width);
    }
  }
}

template <class T>
void write_rows(const AttentionArgs& a, const AttentionItem& item, const Softmax* rows) {
  const int64_t count = (item.last_token - item.first_token) * (a.heads / a.groups);
  for (int64_t row = 0; row < count; ++row) {
    T* to = static_cast<T*>(a.out) + head_offset(a, item, row, a.heads * a.width);
    const F32 total = set1(rows[row].total);
    for (int64_t k = 0; k < a.width; k += kLanes)
      store(to + k, div(load(rows[row].out + k), total), a.width - k);
  }
}

enum AttentionScratch : int { kAttentionWork, kAttentionParts };

// Few tokens: an item per token, KV head and chunk; then the chunks of a token are joined in order.
template <class T>
void attend_in_chunks(const AttentionArgs& a, char* memory, int64_t work_bytes, int64_t chunks) {
  const int64_t per_group = a.heads / a.groups, width = panel_columns(a.width);
  const int64_t pairs = a.at.spans * a.at.length * a.groups, part_size = width + 2;
  auto* parts = static_cast<float*>(
      scratch(kAttentionParts, pairs * chunks * per_group * part_size * 4));
  const auto item_of = [&](int64_t pair, int64_t chunk) {
    const int64_t token = pair / a.groups;
    const int64_t in_span = token % a.at.length;
    return AttentionItem{token / a.at.length, pair % a.groups, in_span, in_span + 1,
                         chunk * kChunkBlocks, (chunk + 1) * kChunkBlocks};
  };
  const auto chunks_of = [&](const AttentionItem& item) {
    const int64_t entries = num_entries(a, item.span, item.first_token, item.group);
    return (entries + kChunkBlocks - 1) / kChunkBlocks;
  };
  std::atomic<int64_t> next{0};
  parallel([&](const Worker& me) {
    AttentionWork<T> work(a, memory + me.rank * work_bytes);
    for (int64_t i; (i = next.fetch_add(1)) < pairs * chunks;) {
      const AttentionItem item = item_of(i / chunks, i % chunks);
      if (i % chunks >= chunks_of(item)) continue;
      attend(a, item, work);
      for (int64_t h = 0; h < per_group; ++h) {
        float* part = parts + (i * per_group + h) * part_size;
        part[0] = work.closed[h].peak, part[1] = work.closed[h].total;
        std::copy_n(work.closed[h].out, width, part + 2);
      }
    }
    me.wait();
    const Range mine = me.share(pairs);
    for (int64_t pair = mine.begin; pair < mine.end; ++pair) {
      const AttentionItem item = item_of(pair, 0);
      for (int64_t h = 0; h < per_group; ++h) clear(work.closed[h], width);
      for (int64_t chunk = 0; chunk < chunks_of(item); ++chunk)
        for (int64_t h = 0; h < per_group; ++h) {
          float* part = parts + ((pair * chunks + chunk) * per_group + h) * part_size;
          join(work.closed[h], Softmax{part[0], part[1], part + 2}, width);
        }
      write_rows<T>(a, item, work.closed);
    }
  });
}

// Many tokens: an item per tile of tokens and KV head, the longest contexts first.
template <class T>
void attend_in_tiles(const AttentionArgs& a, char* memory, int64_t work_bytes) {
  const int64_t tile = std::max<int64_t>(1, kItemRows / (a.heads / a.groups));
  const int64_t tiles = (a.at.length + tile - 1) / tile, items = a.at.spans * tiles * a.groups;
  std::atomic<int64_t> next{0};
  parallel([&](const Worker& me) {
    AttentionWork<T> work(a, memory + me.rank * work_bytes);
    for (int64_t i; (i = next.fetch_add(1)) < items;) {
      const int64_t first = (tiles - 1 - i / a.groups % tiles) * tile;
      const AttentionItem item{i / (a.groups * tiles), i % a.groups,    first,
                               std::min(first + tile, a.at.length), 0, a.at.num_blocks};
      attend(a, item, work);
      write_rows<T>(a, item, work.closed);
    }
  });
}

template <class T>
void attention_typed(const AttentionArgs& a) {
  const int64_t tokens = a.at.spans * a.at.length;
  const int64_t most = a.chosen == nullptr ? a.at.num_blocks : a.chosen_width;
  const int64_t chunks = (most + kChunkBlocks - 1) / kChunkBlocks;
  const int64_t work_bytes = AttentionWork<T>(a, nullptr).bytes;
  auto* memory = static_cast<char*>(scratch(kAttentionWork, team_size() * work_bytes));
  if (tokens <= kSplitTokens && chunks > 1)
    attend_in_chunks<T>(a, memory, work_bytes, chunks);
  else
    attend_in_tiles<T>(a, memory, work_bytes);
}

inline void attention(const AttentionArgs& a) {
  a.dtype == DType::kFloat32 ? attention_typed<float>(a) : attention_typed<bf16>(a);
}
