// The library's own threads: fork, join, and a barrier inside a region.
//
// torch ships an OpenMP runtime of its own; a second OpenMP pool beside it would fight for the
// same cores, hence plain threads. Workers spin briefly after a region, since the next op of a
// step follows within microseconds, and then sleep on a futex: an idle server uses no core.
// Knows threads; does not know what they compute.
#pragma once

#include <atomic>
#include <cstdint>

namespace mserve {

// A share [begin, end) of a range.
struct Range {
  int64_t begin, end;
};

// A counter that threads wait on: spinning first, asleep later.
class Gate {
 public:
  uint32_t turn() const { return turn_.load(std::memory_order_acquire); }
  void open();                 // counts one turn and lets everyone through
  void await(uint32_t seen);   // returns once turn() is no longer `seen`

 private:
  std::atomic<uint32_t> turn_{0};
  std::atomic<int> sleepers_{0};
};

class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait();

 private:
  const int size_;
  std::atomic<int> arrived_{0};
  Gate gate_;
};

// What a region's body sees of the team that runs it.
struct Worker {
  int rank, size;
  Barrier* barrier;

  void wait() const {
    if (size > 1) barrier->wait();
  }
  // This worker's share of `count` items, cut at multiples of `unit`. The split is static: the
  // same worker touches the same weights every step, which keeps them near its core.
  Range share(int64_t count, int64_t unit = 1) const {
    const int64_t units = (count + unit - 1) / unit;
    const int64_t begin = units * rank / size * unit, end = units * (rank + 1) / size * unit;
    return {begin < count ? begin : count, end < count ? end : count};
  }
};

// Threads that later regions use, the caller included. Existing workers are joined first. With
// `cpus` [count], worker r is pinned to cpus[r] and the caller is left to find the one that remains:
// threads that it starts later would inherit its core. False if the system refused to pin one.
bool set_num_threads(int count, const int* cpus);
// Size of the team. Between regions only; meaningful while holding a Turn.
int team_size();

void run_region(void (*body)(void*, const Worker&), void* context);

// Runs body(worker) on every thread of the team and returns when all are done. Regions do not
// nest; concurrent callers take turns.
template <class Body>
void parallel(Body&& body) {
  run_region([](void* context, const Worker& worker) { (*static_cast<Body*>(context))(worker); },
             &body);
}

// What one thread reads in about 6 us, the price of a region with its barriers.
constexpr int64_t kSerialBytes = 256 << 10;

// The same, by the caller alone where the `bytes` to be read are not worth a region.
template <class Body>
void parallel_over(int64_t bytes, Body&& body) {
  if (bytes < kSerialBytes)
    body(Worker{0, 1, nullptr});
  else
    parallel([&](const Worker& me) { body(me); });
}

// Memory for one region's intermediate values, kept from call to call. `slot` tells apart the
// buffers that an op holds at the same time. Only inside the calling thread's turn; throws
// std::bad_alloc.
void* scratch(int slot, int64_t bytes);

// Holds the team for one op: taken before scratch() and kept until the region is over. Meanwhile the
// caller computes with subnormal floats, as workers do, whatever it does otherwise.
class Turn {
 public:
  Turn();
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  const unsigned float_mode_;
};

}  // namespace mserve
