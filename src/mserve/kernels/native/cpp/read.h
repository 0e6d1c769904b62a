// Reads memory and does next to nothing with it: the bound that decoding is measured against.

inline void read(const ReadArgs& a) {
  parallel([&](const Worker& me) {
    const Range mine = me.share(a.count, 16 * kLanes);
    F32 sums[16];
    for (F32& lane : sums) lane = zero();
    int64_t k = mine.begin;
    for (; k + 16 * kLanes <= mine.end; k += 16 * kLanes)
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) sums[i] = add(sums[i], load(a.x + k + i * kLanes));
    for (; k < mine.end; ++k) sums[0] = add(sums[0], set1(a.x[k]));
    for (int i = 1; i < 16; ++i) sums[0] = add(sums[0], sums[i]);
    // the compiler must not see that nobody needs the sum
    const float total = sum(sums[0]);
    asm volatile("" : : "m"(total));
  });
}
