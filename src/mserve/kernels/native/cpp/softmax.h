// Softmax over keys that arrive block by block: sums relative to the highest score so far.

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

// What a packed block's codes lack, [kBlockTokens] each, or null: factors of its keys and values.
struct Factors {
  const float *key, *value;
};

// Scores of one row with a block of keys become probabilities relative to the row's peak, ready to
// weigh the block's stored values; returns what the sums so far have to be multiplied with.
template <class Probability>
float soften(Softmax& softmax, float* scores, Factors factors, int64_t visible, float scale,
             Probability* probabilities) {
  if (factors.key != nullptr)
    for (int64_t k = 0; k < visible; k += kLanes)
      store(scores + k, mul(load(scores + k), load(factors.key + k)));
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
    if (factors.value == nullptr)
      store(probabilities + k, seen);
    else
      store(probabilities + k, first_or(mul(weight, load(factors.value + k)), visible - k, zero()));
  }
  softmax.peak = peak;
  softmax.total = softmax.total * keep + sum(total);
  return keep;
}
