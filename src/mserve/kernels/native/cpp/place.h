// Memory near the worker that will read it: the system puts a page on the node that first writes
// to it, so the workers, pinned, each touch their share of a matrix before it is filled.
#pragma once

#include <cstdint>

namespace mserve {

// Every worker writes to the pages of its share of `rows`, whose contents stay as they are.
void touch_rows(char* first, int64_t rows, int64_t row_bytes);

}  // namespace mserve
