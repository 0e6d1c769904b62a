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
// Above this many tokens there are items enough without cutting at chunks.
constexpr int64_t kSplitTokens = 32;

inline void close_chunk(Softmax& closed, Softmax& open, int64_t width) {
  join(closed, open, width);
  clear(open, width);
}

// The first block that an item's first token reads.
inline int64_t first_block(const AttentionArgs& a, const AttentionItem& item) {
  const int64_t count = num_entries(a, item.span, item.first_token, item.group);
  if (count == 0) return 0;
  return entry_block(a, item.span, item.first_token, item.group, std::min(item.begin, count - 1));
}

// Leaves the result of every row of the item in work.closed. `next_item` is what this worker is
// likely to do then: its first block is fetched ahead, or it would come at half the speed.
template <class T>
void attend(const AttentionArgs& a, const AttentionItem& item, const AttentionItem& next_item,
            AttentionWork<T>& work) {
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
    const bool is_last = following >= ends[last_reader];
    const BlockPart upcoming =
        is_last ? part_of(a, a.key, next_item, first_block(a, next_item))
                : part_of(a, a.key, item,
                          entry_block(a, item.span, item.first_token + last_reader, item.group,
                                      following));
    const BlockPair part{part_of(a, a.key, item, block), part_of(a, a.value, item, block), upcoming,
                         std::min(kBlockTokens, offset + last_reader + 1)};
    if (goes_directly<T>(a, tokens)) {
#if defined(MSERVE_FAST_TRANSPOSE)
      if constexpr (std::is_same_v<T, bf16>) absorb_directly(a, part, work);
#endif
    } else {
      pack_block(a, part, work);
      for (int64_t r = 0; r < count; r += kScoreRows)
        absorb(a, work, work.readers + r, std::min(kScoreRows, count - r), offset, part.factors());
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
      const int64_t likely = std::min(i + me.size, pairs * chunks - 1);
      attend(a, item, item_of(likely / chunks, likely % chunks), work);
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
      attend(a, item, item, work);
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
