// The expert block of one layer with both sides in INT8.
//
//   x as integers              once per row, or by its static factors for each expert that takes it
//   hidden = act(x w13^T)      workers split each expert's inner width; fp32
//   ── barrier ──
//   hidden as integers         workers split the slots: a row's factor needs all of it
//   ── barrier ──
//   out = sum_e p_e hidden w2^T  workers split the output's width; fp32 sum, one rounding
//
// Slots and the order of sums are those of moe.h. Hidden values are not rounded on their way to
// integers.

enum MoeInt8Scratch : int { kInputs = kSums + 1, kHiddenInputs };

struct MoeInt8 {
  const MoeArgs& a;
  const MoeSlots slots;
  const int64_t hidden_stride;
  const bool per_slot;  // x is quantized for each slot: for gate and for up
  float* hidden;
  float* sums;
  QuantizedRows inputs, hidden_inputs;

  MoeInt8(const MoeArgs& a)
      : a(a),
        slots(sort_by_expert(a)),
        hidden_stride(std::max(a.inner, a.shared_inner)),
        per_slot(a.format == Format::kInt8Static),
        hidden(static_cast<float*>(scratch(kHidden, slots.count * hidden_stride * 4))),
        sums(static_cast<float*>(scratch(kSums, a.rows * a.hidden * 4))),
        inputs(kInputs, per_slot ? 2 * slots.count : a.rows, a.hidden),
        hidden_inputs(kHiddenInputs, slots.count, hidden_stride) {}

  bool shared(const ActiveExpert& expert) const { return expert.id == a.experts; }
  int64_t inner(const ActiveExpert& expert) const {
    return shared(expert) ? a.shared_inner : a.inner;
  }
  Int8Matrix down(const ActiveExpert& expert) const {
    return {shared(expert) ? a.shared_down : a.down, a.format, shared(expert) ? 0 : expert.id,
            {&a.hidden, 1}, inner(expert)};
  }
  // `halves` are the heights of gate and up.
  Int8Matrix gate_up(const ActiveExpert& expert, const int64_t* halves) const {
    return {shared(expert) ? a.shared_gate_up : a.gate_up, a.format,
            shared(expert) ? 0 : expert.id, {halves, 2}, a.hidden};
  }
  const QuantizedRow* input(int64_t slot, int64_t half) const {
    return inputs[per_slot ? 2 * slot + half : slots.row[slot]];
  }
  // Calls body(expert, share of its slots).
  template <class Body>
  void for_slots(const Range& mine, Body&& body) const {
    for (int64_t i = 0; i < slots.num_active; ++i) {
      const ActiveExpert& expert = slots.active[i];
      const Range both{std::max(mine.begin, expert.begin), std::min(mine.end, expert.end)};
      if (both.begin < both.end) body(expert, both);
    }
  }
};

template <class T>
inline void quantize_inputs(const MoeInt8& m, const Worker& me) {
  const auto* x = static_cast<const T*>(m.a.x);
  if (!m.per_slot) {
    const Range mine = me.share(m.a.rows);
    for (int64_t row = mine.begin; row < mine.end; ++row)
      quantize_row(x + row * m.a.hidden, m.a.hidden, m.inputs[row]);
    return;
  }
  m.for_slots(me.share(m.slots.count), [&](const ActiveExpert& expert, Range mine) {
    const int64_t halves[] = {m.inner(expert), m.inner(expert)};
    const Int8Matrix gate_up = m.gate_up(expert, halves);
    for (int64_t slot = mine.begin; slot < mine.end; ++slot)
      for (int64_t half = 0; half < 2; ++half)
        gate_up.quantize(x + m.slots.row[slot] * m.a.hidden, half, m.inputs[2 * slot + half]);
  });
}

inline void int8_expert_hidden(const MoeInt8& m, const ActiveExpert& expert, const Worker& me) {
  const int64_t inner = m.inner(expert), halves[] = {inner, inner};
  const Int8Matrix gate_up = m.gate_up(expert, halves);
  const Range mine = me.share(inner, kInt8Columns);
  const QuantizedRow *for_gate[kMaxRowBlock], *for_up[kMaxRowBlock];
  float gate[kMaxRowBlock * kInt8Columns], up[kMaxRowBlock * kInt8Columns];
  for_row_blocks<int8_t>(expert.end - expert.begin, m.a.hidden, [&](int64_t first, int64_t count) {
    const int64_t first_slot = expert.begin + first;
    for (int64_t s = 0; s < count; ++s) {
      for_gate[s] = m.input(first_slot + s, 0);
      for_up[s] = m.input(first_slot + s, 1);
    }
    for (int64_t n = mine.begin; n < mine.end; n += kInt8Columns) {
      const int64_t columns = std::min(kInt8Columns, mine.end - n);
      int8_rows(for_gate, count, gate_up, n, columns, gate);
      int8_rows(for_up, count, gate_up, inner + n, columns, up);
      for (int64_t s = 0; s < count; ++s)
        store_activated(m.a.activation, gate + s * kInt8Columns, up + s * kInt8Columns, columns,
                        m.hidden + (first_slot + s) * m.hidden_stride + n);
    }
  });
}

inline void quantize_hidden(const MoeInt8& m, const Worker& me) {
  m.for_slots(me.share(m.slots.count), [&](const ActiveExpert& expert, Range mine) {
    const Int8Matrix down = m.down(expert);
    for (int64_t slot = mine.begin; slot < mine.end; ++slot)
      down.quantize(m.hidden + slot * m.hidden_stride, 0, m.hidden_inputs[slot]);
  });
}

inline void add_int8_expert_output(const MoeInt8& m, const ActiveExpert& expert,
                                   const Range& mine) {
  const Int8Matrix down = m.down(expert);
  const QuantizedRow* rows[kMaxRowBlock];
  float values[kMaxRowBlock * kInt8Columns];
  for_row_blocks<int8_t>(expert.end - expert.begin, down.inner, [&](int64_t first, int64_t count) {
    const int64_t first_slot = expert.begin + first;
    for (int64_t s = 0; s < count; ++s) rows[s] = m.hidden_inputs[first_slot + s];
    for (int64_t n = mine.begin; n < mine.end; n += kInt8Columns) {
      const int64_t columns = std::min(kInt8Columns, mine.end - n);
      int8_rows(rows, count, down, n, columns, values);
      for (int64_t s = 0; s < count; ++s)
        add_weighted(m.slots.weight[first_slot + s], values + s * kInt8Columns, columns,
                     m.sums + m.slots.row[first_slot + s] * m.a.hidden + n);
    }
  });
}

template <class T, class Out>
void moe_int8_typed(const MoeArgs& a) {
  const MoeInt8 m(a);
  parallel_over(a.rows * a.hidden * int64_t(sizeof(T)),
                [&](const Worker& me) { quantize_inputs<T>(m, me); });
  parallel([&](const Worker& me) {
    for (int64_t i = 0; i < m.slots.num_active; ++i)
      int8_expert_hidden(m, m.slots.active[i], me);
    me.wait();
    quantize_hidden(m, me);
    me.wait();
    const Range mine = me.share(a.hidden, kInt8Columns);
    sum_experts<Out>(a, m.slots, mine, m.sums, [&](const ActiveExpert& expert) {
      add_int8_expert_output(m, expert, mine);
    });
  });
}

inline void moe_int8(const MoeArgs& a) {
  for_types(a.dtype, a.out_dtype, [&](auto type, auto out) {
    moe_int8_typed<typename decltype(type)::Type, typename decltype(out)::Type>(a);
  });
}
