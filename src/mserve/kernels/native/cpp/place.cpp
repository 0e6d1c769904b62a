#include "place.h"

#include "pool.h"

namespace mserve {

namespace {
constexpr int64_t kPageBytes = 4096;  // or a divisor of the system's
}

void touch_rows(char* first, int64_t rows, int64_t row_bytes) {
  Turn turn;
  parallel([&](const Worker& me) {
    const Range mine = me.share(rows);
    for (int64_t at = mine.begin * row_bytes; at < mine.end * row_bytes; at += kPageBytes)
      __atomic_fetch_or(first + at, 0, __ATOMIC_RELAXED);  // a write that changes nothing
  });
}

}  // namespace mserve
