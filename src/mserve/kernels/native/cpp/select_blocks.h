// MSA's block selection: score every past block by its best key, keep the best blocks.
//
// Scores are fp32 sums of exact products in one order of the index width, one lane per key, so they
// have the same bits for one token and for a thousand, and on every instruction set: hardware that
// multiplies pairs of bf16 adds the odd product first, each sum rounded, and so do the others
// (panel.h). Workers take (tokens, blocks) tiles in turn; a row's choice starts when all its
// scores are there.

// Tokens whose index queries share a panel of keys, and past blocks of one tile.
constexpr int64_t kSelectTokens = 64;
constexpr int64_t kSelectBlocks = 16;
// Scores that exist at once; longer spans go piece by piece.
constexpr int64_t kSelectScores = int64_t(16) << 20;

// Bounds of fixed tables; the caller checks them.
constexpr int64_t kMaxGroups = 16, kMaxChosen = 64;

// Tokens of spans whose scores exist at the same time: several short spans, or part of one.
struct SelectPiece {
  int64_t first_span, last_span, first_token, last_token;

  int64_t tokens() const { return last_token - first_token; }
  int64_t row(int64_t span, int64_t token) const {
    return (span - first_span) * tokens() + token - first_token;
  }
};

struct SelectTile {
  int64_t span, first_token, last_token, first_block, last_block;
  int64_t next_block;  // of the span, which this worker is likely to read then
};

inline int64_t own_block(const Spans& at, int64_t span, int64_t token) {
  return at.positions[span * at.length + token] / kBlockTokens;
}

// Blocks [0, this) of a token compete by score. The local blocks win anyway; without any, the
// token's own block competes over its tokens so far.
inline int64_t scored_blocks(const SelectArgs& a, int64_t own) {
  return std::max<int64_t>(0, own + 1 - std::min<int64_t>(a.local_blocks, 1));
}

// Lanes of scores of one row with keys of which `visible` count; their factors, or null. A NaN does
// not count either: it is the first operand of max, which then gives the second.
inline F32 best_lanes(F32 best, const F32* scores, int64_t visible, const float* factors) {
  for (int i = 0; i < 4; ++i) {
    const F32 score =
        factors == nullptr ? scores[i] : mul(scores[i], load(factors + i * kLanes));
    best = max(first_or(score, visible - i * kLanes, set1(-INFINITY)), best);
  }
  return best;
}

// What one worker needs for one tile at a time; all arrays are parts of one allocation.
template <class T>
struct SelectWork {
  using Kind = Fast<T>;
  using Element = typename Kind::Element;

  T* expanded;      // keys of the current block, if they are packed
  Element* panel;   // kPanel of them
  Element* copies;  // [rows, width] of queries that had to be converted

  static int64_t bytes(const SelectArgs& a) {
    return (kBlockTokens + kPanel + kSelectTokens * a.groups) * panel_columns(a.width) * 4;
  }
  SelectWork(const SelectArgs& a, void* memory)
      : expanded(static_cast<T*>(memory)),
        panel(static_cast<Element*>(memory) + kBlockTokens * panel_columns(a.width)),
        copies(panel + kPanel * panel_columns(a.width)) {}
};

#if defined(MSERVE_FAST_TRANSPOSE)
// The best score of one block for each row of a single token, from where its keys lie. `next` is
// the block after it.
template <class Kind, class Stored>
inline void score_directly(const typename Kind::Element* const* inputs, int64_t rows,
                           const Stored* keys, const float* factors, int64_t width,
                           int64_t visible, const void* next, float* scores, int64_t stride) {
  float sums[kMaxGroups * kBlockTokens];
  Following ahead(keys, kBlockTokens * width * int64_t(sizeof(Stored)), next);
  for (int64_t key = 0; key < visible; key += kPanel)
    direct_scores<Kind>(inputs, rows, keys + key * width, width, ahead, sums + key);
  for (int64_t r = 0; r < rows; ++r) {
    F32 best = set1(-INFINITY);
    for (int64_t key = 0; key < visible; key += kPanel) {
      F32 lanes[4];
      for (int i = 0; i < 4; ++i) lanes[i] = load(sums + r * kBlockTokens + key + i * kLanes);
      best = best_lanes(best, lanes, visible - key, factors == nullptr ? nullptr : factors + key);
    }
    scores[r * stride] = max_of(best);
  }
}
#endif

// The same in whatever form the keys are stored, where there is a way; else false.
template <class T>
inline bool scored_directly([[maybe_unused]] const typename Fast<T>::Element* const* inputs,
                            [[maybe_unused]] int64_t rows, [[maybe_unused]] const BlockPart& keys,
                            [[maybe_unused]] int64_t visible, [[maybe_unused]] const void* next,
                            [[maybe_unused]] float* scores, [[maybe_unused]] int64_t stride) {
#if defined(MSERVE_FAST_TRANSPOSE)
  if constexpr (std::is_same_v<T, bf16>) {
    if (keys.width % kDirectWidth != 0) return false;
    const auto score = [&](const auto* values) {
      score_directly<Fast<T>>(inputs, rows, values, keys.factors(), keys.width, visible, next,
                              scores, stride);
      return true;
    };
    if (keys.plane.form == Cached::kPlain) return score(keys.values<bf16>());
#if defined(MSERVE_BF16_PAIRS)
    if (keys.plane.form == Cached::kE4m3) return score(keys.values<Code<Cached::kE4m3>>());
    return score(keys.values<Code<Cached::kInt8>>());
#endif
  }
#endif
  return false;
}

template <class T>
void score_tile(const SelectArgs& a, const SelectTile& tile, float* scores,
                const SelectWork<T>& work) {
  using Kind = Fast<T>;
  const int64_t tokens = tile.last_token - tile.first_token, rows = tokens * a.groups;
  const int64_t first = tile.span * a.at.length + tile.first_token;
  const typename Kind::Element* inputs[kSelectTokens * kMaxGroups];
  for (int64_t r = 0; r < rows; ++r)
    inputs[r] = Kind::row(static_cast<const T*>(a.query) +
                              (first + r / a.groups) * a.query_stride + r % a.groups * a.width,
                          a.width, work.copies + r * panel_columns(a.width));
  const int64_t position = a.at.positions[first];
  const auto part_of = [&](int64_t block) {
    return BlockPart{a.key, a.at.blocks[tile.span * a.at.num_blocks + block], 0, a.width};
  };
  for (int64_t block = tile.first_block; block < tile.last_block; ++block) {
    const BlockPart keys = part_of(block);
    const bool is_last = block + 1 == tile.last_block;
    const void* next = part_of(is_last ? tile.next_block : block + 1).start(sizeof(T));
    // keys of the block that the tile's first token may see, and its last
    const int64_t visible_first = position + 1 - block * kBlockTokens;
    const int64_t visible_last = std::min(kBlockTokens, visible_first + tokens - 1);
    if (tokens == 1 &&
        scored_directly<T>(inputs, rows, keys, visible_last, next, scores + block, a.at.num_blocks))
      continue;
    for (int64_t r = 0; r < rows; ++r) scores[r * a.at.num_blocks + block] = -INFINITY;
    const int64_t seen = std::max<int64_t>(visible_last, 0);
    const T* values = plain_values(a.key, keys.at(), seen * a.width, work.expanded);
    Ahead ahead(next);
    for (int64_t column = 0; column < seen; column += kPanel) {
      const float* factors = keys.factors();
      if (factors != nullptr) factors += column;
      Kind::pack_transposed(work.panel, values + column * a.width, a.width, seen - column, a.width,
                            ahead);
      panel_rows<Kind>(
          inputs, rows, work.panel, panel_steps<Kind>(a.width),
          [](int64_t, int) { return zero(); },
          [&](int64_t r, const F32* sums) {
            const int64_t visible = visible_first + r / a.groups - column;
            float& score = scores[r * a.at.num_blocks + block];
            score = std::max(score, max_of(best_lanes(set1(-INFINITY), sums, visible, factors)));
          });
    }
  }
}

// Writes the best `width` ids of a token, ascending, then -1. Equal scores go to the lower id;
// -inf never wins.
inline void choose(const float* scores, int64_t own, const SelectArgs& a, int64_t* chosen) {
  float best[kMaxChosen];
  int64_t ids[kMaxChosen], count = 0;
  const int64_t width = a.chosen_width;
  for (int64_t block = 0; block <= own; ++block) {
    const bool forced = block > own - a.local_blocks || block < a.init_blocks;
    const float score = forced ? INFINITY : scores[block];
    if (!(score > (count == width ? best[count - 1] : -INFINITY))) continue;
    int64_t place = count < width ? count++ : width - 1;
    for (; place > 0 && best[place - 1] < score; --place)
      best[place] = best[place - 1], ids[place] = ids[place - 1];
    best[place] = score, ids[place] = block;
  }
  std::sort(ids, ids + count);
  for (int64_t i = 0; i < width; ++i) chosen[i] = i < count ? ids[i] : -1;
}

enum SelectScratch : int { kSelectScratchScores, kSelectScratchWork };

template <class T>
void select_piece(const SelectArgs& a, const SelectPiece& piece) {
  int64_t deepest = 0;
  for (int64_t span = piece.first_span; span < piece.last_span; ++span)
    deepest = std::max(deepest, own_block(a.at, span, piece.last_token - 1));
  const int64_t num_spans = piece.last_span - piece.first_span;
  const int64_t tiles = (piece.tokens() + kSelectTokens - 1) / kSelectTokens;
  // Who sees no more blocks than may be chosen needs no scores.
  const int64_t segments =
      deepest < a.chosen_width ? 0 : (scored_blocks(a, deepest) + kSelectBlocks - 1) / kSelectBlocks;
  const int64_t row_scores = a.groups * a.at.num_blocks;
  auto* scores = static_cast<float*>(
      scratch(kSelectScratchScores, segments ? num_spans * piece.tokens() * row_scores * 4 : 0));
  const int64_t work_bytes = SelectWork<T>::bytes(a);
  auto* memory = static_cast<char*>(scratch(kSelectScratchWork, team_size() * work_bytes));
  const int64_t bytes = num_spans * segments * kSelectBlocks * kBlockTokens * a.width *
                        value_bytes(a.key.form, sizeof(T));
  std::atomic<int64_t> next{0};
  parallel_over(bytes, [&](const Worker& me) {
    const SelectWork<T> work(a, memory + me.rank * work_bytes);
    for (int64_t item; (item = next.fetch_add(1)) < num_spans * tiles * segments;) {
      SelectTile tile;
      tile.span = piece.first_span + item / (tiles * segments);
      tile.first_token = piece.first_token + item / segments % tiles * kSelectTokens;
      tile.last_token = std::min(tile.first_token + kSelectTokens, piece.last_token);
      tile.first_block = item % segments * kSelectBlocks;
      const int64_t scored = scored_blocks(a, own_block(a.at, tile.span, tile.last_token - 1));
      tile.last_block = std::min(tile.first_block + kSelectBlocks, scored);
      tile.next_block = std::min(tile.first_block + me.size * kSelectBlocks, a.at.num_blocks - 1);
      score_tile<T>(a, tile, scores + piece.row(tile.span, tile.first_token) * row_scores, work);
    }
    me.wait();
    const Range mine = me.share(num_spans * piece.tokens());
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const int64_t span = piece.first_span + row / piece.tokens();
      const int64_t token = piece.first_token + row % piece.tokens();
      const int64_t own = own_block(a.at, span, token);
      for (int64_t g = 0; g < a.groups; ++g) {
        int64_t* chosen = a.chosen + ((span * a.at.length + token) * a.groups + g) * a.chosen_width;
        if (own < a.chosen_width) {
          for (int64_t i = 0; i < a.chosen_width; ++i) chosen[i] = i <= own ? i : -1;
        } else {
          choose(scores + row * row_scores + g * a.at.num_blocks, own, a, chosen);
        }
      }
    }
  });
}

template <class T>
void select_blocks_typed(const SelectArgs& a) {
  const int64_t rows = std::max<int64_t>(1, kSelectScores / (a.at.num_blocks * a.groups));
  const int64_t spans = std::max<int64_t>(1, rows / a.at.length);
  for (int64_t span = 0; span < a.at.spans; span += spans) {
    const int64_t last_span = std::min(span + spans, a.at.spans);
    for (int64_t token = 0; token < a.at.length; token += rows)
      select_piece<T>(a, {span, last_span, token, std::min(token + rows, a.at.length)});
  }
}

inline void select_blocks(const SelectArgs& a) {
  a.dtype == DType::kFloat32 ? select_blocks_typed<float>(a) : select_blocks_typed<bf16>(a);
}
