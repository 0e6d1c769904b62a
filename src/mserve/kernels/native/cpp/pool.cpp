#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace mserve {
namespace {

// A futex wake costs 5 to 50 us on virtual machines; the gap between two ops of one step is
// shorter than this. Longer spinning would burn a core that the tokenizer or server needs.
constexpr int64_t kSpinNanoseconds = 50'000;
constexpr int kScratchSlots = 8;

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Codes become subnormal floats on their way to their values (e4m3.h). A thread may have been told to
// take those for zero, and workers inherit that from the one that starts them.
#if defined(__x86_64__)
unsigned float_mode() { return _mm_getcsr(); }
void set_float_mode(unsigned mode) { _mm_setcsr(mode); }
constexpr unsigned kFlushes = 0x8040;
#else
unsigned float_mode() { return 0; }
void set_float_mode(unsigned) {}
constexpr unsigned kFlushes = 0;
#endif
void keep_subnormals() { set_float_mode(float_mode() & ~kFlushes); }

// False if the system refused.
bool pin(std::thread& thread, int cpu) {
  const size_t bytes = CPU_ALLOC_SIZE(cpu + 1);
  cpu_set_t* set = CPU_ALLOC(cpu + 1);
  if (set == nullptr) return false;
  CPU_ZERO_S(bytes, set);
  CPU_SET_S(cpu, bytes, set);
  const bool pinned = pthread_setaffinity_np(thread.native_handle(), bytes, set) == 0;
  CPU_FREE(set);
  return pinned;
}

class Team {
 public:
  explicit Team(std::vector<int> cpus, int size)
      : size_(size), cpus_(std::move(cpus)), barrier_(size), done_(size) {
    for (int rank = 1; rank < size; ++rank) {
      threads_.emplace_back([this, rank] { serve(rank); });
      char name[16];
      std::snprintf(name, sizeof name, "mserve-%d", rank);
      pthread_setname_np(threads_.back().native_handle(), name);
      if (!cpus_.empty()) pinned_ &= pin(threads_.back(), cpus_[rank]);
    }
  }

  ~Team() {
    body_ = nullptr;
    regions_.open();
    for (auto& thread : threads_) thread.join();
  }

  int size() const { return size_; }
  const std::vector<int>& cpus() const { return cpus_; }
  bool pinned() const { return pinned_; }

  void run(void (*body)(void*, const Worker&), void* context) {
    body_ = body;
    context_ = context;
    if (size_ > 1) regions_.open();
    body(context, Worker{0, size_, &barrier_});
    if (size_ > 1) done_.wait();
  }

 private:
  void serve(int rank) {
    keep_subnormals();
    for (uint32_t seen = 0;; ++seen) {
      regions_.await(seen);
      if (body_ == nullptr) return;
      body_(context_, Worker{rank, size_, &barrier_});
      done_.wait();
    }
  }

  const int size_;
  const std::vector<int> cpus_;
  bool pinned_ = true;
  Barrier barrier_, done_;
  Gate regions_;
  void (*body_)(void*, const Worker&) = nullptr;
  void* context_ = nullptr;
  std::vector<std::thread> threads_;
};

struct Buffer {
  void* data = nullptr;
  int64_t bytes = 0;
};

// A forked child has no workers: it starts over with a team of one and leaks the parent's, whose
// threads it cannot join.
struct State {
  std::mutex turn;
  std::unique_ptr<Team> team = std::make_unique<Team>(std::vector<int>(), 1);
  Buffer buffers[kScratchSlots];
};

State* state = [] {
  pthread_atfork(nullptr, nullptr, [] { state = new State; });
  return new State;
}();

}  // namespace

// A thread goes to sleep only after it has counted itself in sleepers_, and the kernel puts it to
// sleep only if the turn is still the one it saw; open() counts the turn before it looks for
// sleepers. All three are sequentially consistent, so either open() sees the sleeper or the kernel
// sees the new turn, and the system call is spared whenever everybody is still spinning.
void Gate::open() {
  turn_.fetch_add(1);
  if (sleepers_.load() > 0) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&turn_), FUTEX_WAKE_PRIVATE, 1 << 30, nullptr,
            nullptr, 0);
  }
}

void Gate::await(uint32_t seen) {
  const int64_t deadline = now_ns() + kSpinNanoseconds;
  do {
    for (int i = 0; i < 64; ++i) {
      if (turn() != seen) return;
      relax();
    }
  } while (now_ns() < deadline);
  sleepers_.fetch_add(1);
  while (turn_.load() == seen) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&turn_), FUTEX_WAIT_PRIVATE, seen, nullptr,
            nullptr, 0);
  }
  sleepers_.fetch_sub(1);
}

void Barrier::wait() {
  const uint32_t seen = gate_.turn();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    gate_.open();
  } else {
    gate_.await(seen);
  }
}

Turn::Turn() : float_mode_(float_mode()) {
  state->turn.lock();
  keep_subnormals();
}
Turn::~Turn() {
  set_float_mode(float_mode_);
  state->turn.unlock();
}

bool set_num_threads(int count, const int* cpus) {
  Turn turn;
  std::vector<int> wanted;
  if (cpus != nullptr) wanted.assign(cpus, cpus + count);
  if (count != state->team->size() || wanted != state->team->cpus()) {
    state->team.reset();
    state->team = std::make_unique<Team>(std::move(wanted), count);
  }
  return state->team->pinned();
}

int team_size() { return state->team->size(); }

void run_region(void (*body)(void*, const Worker&), void* context) {
  state->team->run(body, context);
}

void* scratch(int slot, int64_t bytes) {
  Buffer& buffer = state->buffers[slot];
  if (buffer.bytes < bytes) {
    std::free(buffer.data);
    buffer = {};
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    void* data = std::aligned_alloc(4096, size_t(rounded));
    if (data == nullptr) throw std::bad_alloc();
    buffer = {data, rounded};
  }
  return buffer.data;
}

}  // namespace mserve
