// MSA's block selection: score every past block by its best key, keep the best blocks.
//
// Scores are fp32 sums of exact products in the order of the index width, one lane per key, so they
// have the same bits for one token and for a thousand, on every instruction set with fused
// multiply-add. Workers take (tokens, blocks) tiles in turn; a row's choice starts when all its
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
};

inline int64_t own_block(const Spans& at, int64_t span, int64_t token) {
  return at.positions[span * at.length + token] / kBlockTokens;
}

// Blocks [0, this) of a token compete by score. The local blocks win anyway; without any, the
// token's own block competes over its tokens so far.
inline int64_t scored_blocks(const SelectArgs& a, int64_t own) {
  return std::max<int64_t>(0, own + 1 - std::min<int64_t>(a.local_blocks, 1));
}

// The best score of one block for each row of a single token, of which the first `visible` keys
// count.
#if defined(MSERVE_FAST_TRANSPOSE)
inline void score_directly(const float* const* inputs, int64_t rows, const bf16* keys,
                           int64_t width, int64_t visible, const bf16* next, float* scores,
                           int64_t stride) {
  float sums[kMaxGroups * kBlockTokens];
  Following ahead(keys, kBlockTokens * width * 2, next);
  for (int64_t key = 0; key < visible; key += kPanel)
    direct_scores<Singles>(inputs, rows, keys + key * width, width, ahead, sums + key);
  for (int64_t r = 0; r < rows; ++r) {
    F32 best = set1(-INFINITY);
    for (int64_t key = 0; key < visible; key += kLanes)
      best = max(best, first_or(load(sums + r * kBlockTokens + key), visible - key, set1(-INFINITY)));
    scores[r * stride] = max_of(best);
  }
}
#endif

template <class T>
void score_tile(const SelectArgs& a, const SelectTile& tile, float* scores, float* panel,
                float* copies) {
  const int64_t tokens = tile.last_token - tile.first_token, rows = tokens * a.groups;
  const int64_t first = tile.span * a.at.length + tile.first_token;
  const float* inputs[kSelectTokens * kMaxGroups];
  for (int64_t r = 0; r < rows; ++r)
    inputs[r] = Singles::row(static_cast<const T*>(a.query) +
                                 (first + r / a.groups) * a.query_stride + r % a.groups * a.width,
                             a.width, copies + r * panel_columns(a.width));
  const int64_t position = a.at.positions[first];
  for (int64_t block = tile.first_block; block < tile.last_block; ++block) {
    const auto keys_of = [&](int64_t number) {
      const int64_t id = a.at.blocks[tile.span * a.at.num_blocks + number];
      return static_cast<const T*>(a.key.data) + id * a.key.block_stride;
    };
    const T* keys = keys_of(block);
    Ahead ahead(keys_of(std::min(block + 1, tile.last_block - 1)));
    for (int64_t r = 0; r < rows; ++r) scores[r * a.at.num_blocks + block] = -INFINITY;
    // keys of the block that the tile's first token may see, and its last
    const int64_t visible_first = position + 1 - block * kBlockTokens;
    const int64_t visible_last = std::min(kBlockTokens, visible_first + tokens - 1);
#if defined(MSERVE_FAST_TRANSPOSE)
    if constexpr (std::is_same_v<T, bf16>) {
      if (tokens == 1 && a.width % kDirectWidth == 0) {
        score_directly(inputs, rows, keys, a.width, visible_last,
                       keys_of(std::min(block + 1, tile.last_block - 1)), scores + block,
                       a.at.num_blocks);
        continue;
      }
    }
#endif
    for (int64_t column = 0; column < visible_last; column += kPanel) {
      Singles::pack_transposed(panel, keys + column * a.width, a.width, visible_last - column,
                               a.width, ahead);
      panel_rows<Singles>(
          inputs, rows, panel, a.width, [](int64_t, int) { return zero(); },
          [&](int64_t r, const F32* sums) {
            const int64_t visible = visible_first + r / a.groups - column;
            F32 best = set1(-INFINITY);
            for (int i = 0; i < 4; ++i)
              best = max(best, first_or(sums[i], visible - i * kLanes, set1(-INFINITY)));
            float& score = scores[r * a.at.num_blocks + block];
            score = std::max(score, max_of(best));
          });
    }
  }
}

// Writes the best `width` ids of a token, ascending, then -1. Equal scores go to the lower id;
// -inf and NaN never win.
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

enum SelectScratch : int { kSelectScratchScores, kSelectScratchPanels };

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
  const int64_t panel_size = a.width * kPanel;
  const int64_t worker_size = panel_size + kSelectTokens * a.groups * panel_columns(a.width);
  auto* work = static_cast<float*>(scratch(kSelectScratchPanels, team_size() * worker_size * 4));
  const int64_t bytes =
      num_spans * segments * kSelectBlocks * kBlockTokens * a.width * int64_t(sizeof(T));
  std::atomic<int64_t> next{0};
  parallel_over(bytes, [&](const Worker& me) {
    float* panel = work + me.rank * worker_size;
    for (int64_t item; (item = next.fetch_add(1)) < num_spans * tiles * segments;) {
      SelectTile tile;
      tile.span = piece.first_span + item / (tiles * segments);
      tile.first_token = piece.first_token + item / segments % tiles * kSelectTokens;
      tile.last_token = std::min(tile.first_token + kSelectTokens, piece.last_token);
      tile.first_block = item % segments * kSelectBlocks;
      tile.last_block = std::min(tile.first_block + kSelectBlocks,
                                 scored_blocks(a, own_block(a.at, tile.span, tile.last_token - 1)));
      score_tile<T>(a, tile, scores + piece.row(tile.span, tile.first_token) * row_scores, panel,
                    panel + panel_size);
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
