// The router: fp32 products with the gate, sigmoid, and the best experts by biased score.

constexpr int64_t kMaxChosenExperts = 64;

// One token's choice. Ties go to the lower id, NaN counts as -inf; the bias takes part in the choice
// only.
inline void choose_experts(const RouteArgs& a, float* scores, int64_t* ids, float* weights) {
  for (int64_t e = 0; e < a.experts; e += kLanes)
    store(scores + e, sigmoid(load(scores + e, a.experts - e)), a.experts - e);
  float best[kMaxChosenExperts];
  int64_t count = 0;
  for (int64_t e = 0; e < a.experts; ++e) {
    float score = scores[e] + a.bias[e];
    if (score != score) score = -INFINITY;
    if (count == a.chosen && !(score > best[count - 1])) continue;
    int64_t place = count < a.chosen ? count++ : a.chosen - 1;
    for (; place > 0 && best[place - 1] < score; --place)
      best[place] = best[place - 1], ids[place] = ids[place - 1];
    best[place] = score, ids[place] = e;
  }
  std::sort(ids, ids + a.chosen);
  float total = 0.0f;
  for (int64_t i = 0; i < a.chosen; ++i) total += scores[ids[i]];
  for (int64_t i = 0; i < a.chosen; ++i) weights[i] = scores[ids[i]] * (a.scale / total);
}

enum RouteScratch : int { kRouteInputs, kRouteScores };

template <class T>
void route_typed(const RouteArgs& a) {
  auto* inputs = static_cast<float*>(scratch(kRouteInputs, a.tokens * a.hidden * 4));
  auto* scores = static_cast<float*>(scratch(kRouteScores, a.tokens * a.experts * 4));
  parallel_over(a.experts * a.hidden * 4, [&](const Worker& me) {
    const Range tokens = me.share(a.tokens);
    if (std::is_same_v<T, bf16>) {
      const int64_t at = tokens.begin * a.hidden;
      to_floats(inputs + at, static_cast<const T*>(a.x) + at,
                (tokens.end - tokens.begin) * a.hidden);
      me.wait();
    }
    const float* x = std::is_same_v<T, bf16> ? inputs : static_cast<const float*>(a.x);
    const Range experts = me.share(a.experts, kColumns);
    const float* rows[kMaxRowBlock];
    float sums[kMaxRowBlock * kColumns];
    for_row_blocks<float>(a.tokens, a.hidden, [&](int64_t first, int64_t count) {
      for (int64_t t = 0; t < count; ++t) rows[t] = x + (first + t) * a.hidden;
      for (int64_t e = experts.begin; e < experts.end; e += kColumns) {
        const int64_t columns = std::min<int64_t>(kColumns, experts.end - e);
        dot_rows(rows, count, a.gate + e * a.hidden, a.hidden, a.hidden, columns, sums);
        for (int64_t t = 0; t < count; ++t)
          store_columns(scores + (first + t) * a.experts + e, sums + t * kColumns, columns);
      }
    });
    me.wait();
    for (int64_t t = tokens.begin; t < tokens.end; ++t)
      choose_experts(a, scores + t * a.experts, a.ids + t * a.chosen, a.weights + t * a.chosen);
  });
}

inline void route(const RouteArgs& a) {
  a.dtype == DType::kFloat32 ? route_typed<float>(a) : route_typed<bf16>(a);
}
