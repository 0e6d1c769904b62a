// The expert block of one layer in one parallel region.
//
//   rows sorted by expert      every expert's weights are read once per call
//   hidden = act(x w13^T)      workers split each expert's inner width; fp32, one rounding
//   ── barrier ──
//   out = sum_e p_e hidden w2^T  workers split the output's width; fp32 sum, one rounding
//
// The shared expert is one more expert that every row chose with weight 1. A row's experts are
// summed in ascending id, the shared one last, whatever other rows are there.

inline F32 activate(const ActivationArgs& a, F32 gate, F32 up) {
  if (a.kind == Activation::kSilu) return mul(mul(gate, sigmoid(gate)), up);
  const F32 g = min(set1(a.limit), gate);
  const F32 u = max(set1(-a.limit), min(set1(a.limit), up));
  return mul(mul(add(u, set1(a.beta)), g), sigmoid(mul(set1(a.alpha), g)));
}

struct ActiveExpert {
  int64_t id;  // args.experts for the shared one
  int64_t begin, end;  // of the slots: (row, expert) pairs in order of expert, then row
};

// Where the slots of a call live, in scratch memory.
struct MoeSlots {
  int32_t* row;
  float* weight;
  ActiveExpert* active;
  int64_t num_active = 0, count = 0;
};

enum MoeScratch : int { kSlotRows, kSlotWeights, kActiveExperts, kHidden, kSums, kOperands };

inline MoeSlots sort_by_expert(const MoeArgs& a) {
  const int64_t pairs = a.rows * a.chosen, most = pairs + a.rows;
  MoeSlots slots{static_cast<int32_t*>(scratch(kSlotRows, most * 4)),
                 static_cast<float*>(scratch(kSlotWeights, most * 4)),
                 static_cast<ActiveExpert*>(
                     scratch(kActiveExperts, (a.experts + 1) * int64_t(sizeof(ActiveExpert))))};
  // Counting sort; `end` counts first and then runs from each expert's begin.
  ActiveExpert* all = slots.active;
  for (int64_t e = 0; e < a.experts; ++e) all[e] = {e, 0, 0};
  const auto local = [&](int64_t pair) { return a.expert_ids[pair] - a.first_expert; };
  const auto ours = [&](int64_t e) { return e >= 0 && e < a.experts; };
  for (int64_t p = 0; p < pairs; ++p)
    if (ours(local(p))) ++all[local(p)].end;
  for (int64_t e = 0; e < a.experts; ++e) {
    const int64_t count = all[e].end;
    all[e].begin = all[e].end = slots.count;
    slots.count += count;
  }
  for (int64_t p = 0; p < pairs; ++p) {
    if (!ours(local(p))) continue;
    const int64_t slot = all[local(p)].end++;
    slots.row[slot] = int32_t(p / a.chosen);
    slots.weight[slot] = a.weights[p];
  }
  for (int64_t e = 0; e < a.experts; ++e)
    if (all[e].begin < all[e].end) all[slots.num_active++] = all[e];
  if (a.shared_gate_up.values != nullptr && a.rows > 0) {
    all[slots.num_active++] = {a.experts, slots.count, slots.count + a.rows};
    for (int64_t m = 0; m < a.rows; ++m) {
      slots.row[slots.count] = int32_t(m);
      slots.weight[slots.count++] = 1.0f;
    }
  }
  return slots;
}

// to[c] = act(gate[c], up[c]).
template <class T>
inline void store_activated(const ActivationArgs& a, const float* gate, const float* up,
                            int64_t columns, T* to) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int64_t left = columns - c;
    store(to + c, activate(a, load(gate + c, left), load(up + c, left)), left);
  }
}

// sums[c] += weight * dots[c].
inline void add_weighted(float weight, const float* dots, int64_t columns, float* sums) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int64_t left = columns - c;
    store(sums + c, fma(set1(weight), load(dots + c, left), load(sums + c, left)), left);
  }
}

// The columns `mine` of the output, to whose fp32 sums [rows, hidden] add(expert) adds.
template <class Out, class Add>
inline void sum_experts(const MoeArgs& a, const MoeSlots& slots, const Range& mine, float* sums,
                        Add&& add) {
  const int64_t width = mine.end - mine.begin;
  for (int64_t m = 0; m < a.rows; ++m)
    std::fill_n(sums + m * a.hidden + mine.begin, width, 0.0f);
  for (int64_t i = 0; i < slots.num_active; ++i) add(slots.active[i]);
  for (int64_t m = 0; m < a.rows; ++m) {
    const int64_t at = m * a.hidden + mine.begin;
    store_columns(static_cast<Out*>(a.out) + at, sums + at, width);
  }
}

template <class W, class T = typename W::Element>
void expert_hidden(const MoeArgs& a, const MoeSlots& slots, const ActiveExpert& expert,
                   const Worker& me, void* memory, T* hidden, int64_t hidden_stride) {
  const bool shared = expert.id == a.experts;
  const int64_t inner = shared ? a.shared_inner : a.inner;
  const int64_t halves[] = {inner, inner};
  const W gate_up(shared ? a.shared_gate_up : a.gate_up, shared ? 0 : expert.id, {halves, 2},
                  a.hidden);
  const Range mine = me.share(inner, kColumns);
  OperandRows<W> rows(memory, a.hidden);
  float gate[kMaxRowBlock * kColumns], up[kMaxRowBlock * kColumns];
  const int64_t slots_here = expert.end - expert.begin;
  for_row_blocks<Operand<T>>(slots_here, a.hidden, [&](int64_t first, int64_t count) {
    const int64_t first_slot = expert.begin + first;
    for (int64_t s = 0; s < count; ++s)
      rows.set(s, static_cast<const T*>(a.x) + slots.row[first_slot + s] * a.hidden);
    for (int64_t n = mine.begin; n < mine.end; n += kColumns) {
      const int64_t columns = std::min<int64_t>(kColumns, mine.end - n);
      dot_rows(rows.all(), count, gate_up, n, columns, gate);
      dot_rows(rows.all(), count, gate_up, inner + n, columns, up);
      for (int64_t s = 0; s < count; ++s)
        store_activated(a.activation, gate + s * kColumns, up + s * kColumns, columns,
                        hidden + (first_slot + s) * hidden_stride + n);
    }
  });
}

template <class W, class T = typename W::Element>
void add_expert_output(const MoeArgs& a, const MoeSlots& slots, const ActiveExpert& expert,
                       const Range& mine, void* memory, const T* hidden, int64_t hidden_stride,
                       float* sums) {
  const bool shared = expert.id == a.experts;
  const int64_t inner = shared ? a.shared_inner : a.inner;
  const W down(shared ? a.shared_down : a.down, shared ? 0 : expert.id, {&a.hidden, 1}, inner);
  OperandRows<W> rows(memory, inner);
  float dots[kMaxRowBlock * kColumns];
  for_row_blocks<Operand<T>>(expert.end - expert.begin, inner, [&](int64_t first, int64_t count) {
    const int64_t first_slot = expert.begin + first;
    for (int64_t s = 0; s < count; ++s) rows.set(s, hidden + (first_slot + s) * hidden_stride);
    for (int64_t n = mine.begin; n < mine.end; n += kColumns) {
      const int64_t columns = std::min<int64_t>(kColumns, mine.end - n);
      dot_rows(rows.all(), count, down, n, columns, dots);
      for (int64_t s = 0; s < count; ++s)
        add_weighted(slots.weight[first_slot + s], dots + s * kColumns, columns,
                     sums + slots.row[first_slot + s] * a.hidden + n);
    }
  });
}

template <class W, class Out>
void moe_typed(const MoeArgs& a) {
  using T = typename W::Element;
  const MoeSlots slots = sort_by_expert(a);
  const int64_t hidden_stride = std::max(a.inner, a.shared_inner);
  auto* hidden =
      static_cast<T*>(scratch(kHidden, slots.count * hidden_stride * int64_t(sizeof(T))));
  auto* sums = static_cast<float*>(scratch(kSums, a.rows * a.hidden * 4));
  int64_t most_slots = 0, operand_bytes = 0;
  for (int64_t i = 0; i < slots.num_active; ++i)
    most_slots = std::max(most_slots, slots.active[i].end - slots.active[i].begin);
  for (const int64_t inner : {a.hidden, a.inner, a.shared_inner})
    operand_bytes = std::max(operand_bytes, OperandRows<W>::bytes(most_slots, inner));
  auto* operands = static_cast<char*>(scratch(kOperands, team_size() * operand_bytes));
  parallel([&](const Worker& me) {
    void* memory = operands + me.rank * operand_bytes;
    for (int64_t i = 0; i < slots.num_active; ++i)
      expert_hidden<W>(a, slots, slots.active[i], me, memory, hidden, hidden_stride);
    me.wait();
    const Range mine = me.share(a.hidden, kColumns);
    sum_experts<Out>(a, slots, mine, sums, [&](const ActiveExpert& expert) {
      add_expert_output<W>(a, slots, expert, mine, memory, hidden, hidden_stride, sums);
    });
  });
}

#include "moe_int8.h"

inline void moe(const MoeArgs& a) {
  if (is_int8(a.format)) return moe_int8(a);
  for_storage(a.format, a.dtype, a.out_dtype, [&](auto storage, auto out) {
    moe_typed<typename decltype(storage)::Type, typename decltype(out)::Type>(a);
  });
}
