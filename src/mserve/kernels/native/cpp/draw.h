// One token per row of scores, the highest or one by chance; a row to a worker.
//
//   weight(score) = exp((score - highest) / temperature)     fp64
//
// A row that keeps the whole vocabulary is walked by id; one that top_k or top_p cuts from the most
// likely on, and of those no more are put in order than it takes. Plain arithmetic in loops that the
// compiler makes wide, and sums in a fixed order: the same token on every instruction set.

enum DrawScratch : int { kDrawWork };

constexpr int64_t kWeighRun = 1024;
constexpr int kWeighLanes = 8;
// A nucleus of a trained model rarely has more tokens.
constexpr int64_t kFirstCandidates = 1024;
constexpr int64_t kScanRun = 64;

constexpr int64_t kScoreRun = 1024;

// The first of equal scores; the first NaN if there is one. Runs of a row are compared by their
// highest, and only the winning run is searched for the place.
inline void highest_of_row(const float* x, int64_t width, float& value, int64_t& id) {
  F32 numbers = zero();  // NaN once a NaN went by; infinities do not count
  int64_t winner = 0;
  value = -INFINITY;
  for (int64_t begin = 0; begin < width; begin += kScoreRun) {
    const int64_t end = std::min(begin + kScoreRun, width);
    F32 best = set1(-INFINITY);
    for (int64_t k = begin; k < end; k += kLanes) {
      const F32 score = first_or(load(x + k, end - k), end - k, set1(-INFINITY));
      const F32 bounded = max(set1(-1.0f), min(set1(1.0f), score));
      numbers = fma(bounded, zero(), numbers);
      best = max(score, best);
    }
    if (max_of(best) > value) value = max_of(best), winner = begin;
  }
  if (sum(numbers) != 0.0f) {
    for (id = 0; x[id] == x[id];) ++id;
    value = x[id];
    return;
  }
  for (id = winner; x[id] != value;) ++id;
}

// Uniform in [0, 1), of a seed and a position: Stafford's 13th variant of the 64-bit finaliser.
inline uint64_t mixed(uint64_t value) {
  value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
  value = (value ^ value >> 27) * 0x94d049bb133111eb;
  return value ^ value >> 31;
}
inline double uniform(uint64_t seed, uint64_t position) {
  constexpr uint64_t kIncrement = 0x9e3779b97f4a7c15, kOffset = 0xbf58476d1ce4e5b9;
  const uint64_t stream = mixed(seed + kIncrement);
  return double(mixed(stream ^ mixed(position * kIncrement + kOffset)) >> 11) * 0x1p-53;
}

// e^x for x <= 0, within 2 ulp; 0 where it would be subnormal.
inline double exp_of_negative(double x) {
  // Adding and taking off 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
  const double shifted = x * 1.4426950408889634 + 0x1.8p52;
  const double n = shifted - 0x1.8p52;
  uint64_t bits;
  std::memcpy(&bits, &shifted, 8);
  bits = (bits + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, 8);
  // ln 2 in two parts, the first with trailing zeros, so that n * ln 2 loses nothing
  const double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return x < -708.0 ? 0.0 : p * power;
}

struct Candidate {
  float score;
  int32_t id;

  bool operator<(const Candidate& other) const {  // more likely, then lower id
    return score != other.score ? score > other.score : id < other.id;
  }
};

// What a worker needs beside the scores.
struct DrawWork {
  double* weights;        // [kWeighRun]
  double* sums;           // one for each run of a row
  Candidate* candidates;  // one for each score

  static int64_t bytes(int64_t width) {
    const int64_t runs = (width + kWeighRun - 1) / kWeighRun;
    return (kWeighRun + runs) * 8 + width * int64_t(sizeof(Candidate));
  }
  DrawWork(char* memory, int64_t width)
      : weights(reinterpret_cast<double*>(memory)),
        sums(weights + kWeighRun),
        candidates(
            reinterpret_cast<Candidate*>(sums + (width + kWeighRun - 1) / kWeighRun)) {}
};

class RowDraw {
 public:
  // Of a row whose `highest` is finite.
  RowDraw(const DrawArgs& a, int64_t row, float highest, const DrawWork& work)
      : x_(a.scores + row * a.width), width_(a.width),
        limit_(a.top_k[row] > 0 ? std::min(a.top_k[row], a.width) : a.width),
        temperature_(a.temperature[row]), top_p_(a.top_p[row]), min_p_(a.min_p[row]),
        uniform_(uniform(a.seeds[row], uint64_t(a.positions[row]))), highest_(highest),
        work_(work) {}

  int64_t token() { return top_p_ < 1.0 || limit_ < width_ ? by_rank() : by_id(); }

 private:
  double weight(float score) const {
    return exp_of_negative((double(score) - highest_) / temperature_);
  }

  // Weights of the run from `begin`, and zeros up to its full length; those below `least` are 0.
  void weigh(int64_t begin, double least) {
    const int64_t count = std::min(kWeighRun, width_ - begin);
    for (int64_t k = 0; k < count; ++k) {
      const double value = weight(x_[begin + k]);
      work_.weights[k] = value < least ? 0.0 : value;
    }
    for (int64_t k = count; k < kWeighRun; ++k) work_.weights[k] = 0.0;
  }

  // Of all weights from `least` on, those of a run in sums[run].
  double sum_runs(double least) {
    double total = 0.0;
    for (int64_t begin = 0; begin < width_; begin += kWeighRun) {
      weigh(begin, least);
      double lanes[kWeighLanes] = {};
      for (int64_t k = 0; k < kWeighRun; k += kWeighLanes)
        for (int lane = 0; lane < kWeighLanes; ++lane) lanes[lane] += work_.weights[k + lane];
      double sum = 0.0;
      for (double lane : lanes) sum += lane;
      work_.sums[begin / kWeighRun] = sum;
      total += sum;
    }
    return total;
  }

  int64_t by_id() {
    const double wanted = uniform_ * sum_runs(min_p_);
    double before = 0.0;
    int64_t last = 0;
    for (int64_t begin = 0; begin < width_; begin += kWeighRun) {
      const double sum = work_.sums[begin / kWeighRun];
      if (sum > 0.0 && (before + sum > wanted || begin + kWeighRun >= width_)) {
        weigh(begin, min_p_);
        double running = before;
        for (int64_t k = 0; k < kWeighRun; ++k) {
          if (work_.weights[k] == 0.0) continue;
          running += work_.weights[k];
          last = begin + k;
          if (running > wanted) return last;
        }
      }
      before += sum;
    }
    return last;  // only where rounding put the end a hair lower than the sum
  }

  int64_t by_rank() {
    const bool whole = limit_ >= width_;
    const double whole_sum = whole ? sum_runs(0.0) : 0.0;
    for (int64_t count = whole ? std::min(kFirstCandidates, width_) : limit_;; count *= 8) {
      const int64_t found = rank(std::min(count, width_));
      double total = whole_sum;
      if (!whole)
        for (int64_t k = 0; k < found; ++k) total += weight(work_.candidates[k].score);
      // The nucleus is the shortest run that weighs top_p or more: a token is outside when those
      // before it already do.
      const double enough = top_p_ < 1.0 ? top_p_ * total : INFINITY;
      double before = 0.0, kept = 0.0;
      int64_t end = 0;
      for (; end < found && before < enough; ++end) {
        const double value = weight(work_.candidates[end].score);
        before += value;
        if (value >= min_p_) kept += value;
      }
      if (whole && before < enough && found == count && count < width_) continue;
      return among(end, uniform_ * kept);
    }
  }

  // The `count` most likely in order; fewer where the others are impossible. Returns how many.
  int64_t rank(int64_t count) {
    Candidate* const first = work_.candidates;
    float threshold = -INFINITY;
    int64_t found = 0;
    for (int64_t begin = 0; begin < width_; begin += kScanRun) {
      const int64_t end = std::min(begin + kScanRun, width_);
      F32 best = set1(-INFINITY);
      for (int64_t k = begin; k < end; k += kLanes)
        best = max(first_or(load(x_ + k, end - k), end - k, set1(-INFINITY)), best);
      if (!(max_of(best) > threshold)) continue;
      for (int64_t k = begin; k < end; ++k)
        if (x_[k] > threshold) first[found++] = {x_[k], int32_t(k)};
      if (found >= 2 * count + kScanRun) {
        found = keep(count, found);
        threshold = first[count - 1].score;
      }
    }
    if (found > count) found = keep(count, found);
    std::sort(first, first + found);
    return found;
  }

  // The `count` most likely of those found come first, the least of them last.
  int64_t keep(int64_t count, int64_t found) {
    Candidate* const first = work_.candidates;
    std::nth_element(first, first + count - 1, first + found);
    return count;
  }

  // The first of the `end` most likely where the sum of weights exceeds `wanted`.
  int64_t among(int64_t end, double wanted) const {
    double running = 0.0;
    int64_t last = 0;
    for (int64_t k = 0; k < end; ++k) {
      const double value = weight(work_.candidates[k].score);
      if (value < min_p_ || value == 0.0) continue;
      running += value;
      last = work_.candidates[k].id;
      if (running > wanted) break;
    }
    return last;
  }

  const float* const x_;
  const int64_t width_, limit_;
  const double temperature_, top_p_, min_p_, uniform_, highest_;
  const DrawWork work_;
};

inline void draw(const DrawArgs& a) {
  const int64_t bytes = DrawWork::bytes(a.width);
  auto* memory = static_cast<char*>(scratch(kDrawWork, team_size() * bytes));
  parallel_over(a.rows * a.width * 4, [&](const Worker& me) {
    const Range mine = me.share(a.rows);
    const DrawWork work(memory + me.rank * bytes, a.width);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      float& highest = a.highest[row];
      highest_of_row(a.scores + row * a.width, a.width, highest, a.ids[row]);
      if (a.temperature[row] > 0.0 && std::isfinite(highest))
        a.ids[row] = RowDraw(a, row, highest, work).token();
    }
  });
}
