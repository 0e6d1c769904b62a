// A step's ops, kept with their arguments, to be run again over the same memory.
//
// What changes from step to step (token ids, positions, blocks) lies behind the pointers; shapes do
// not change. Playing costs a function call per op, so nothing of the caller's language is left
// between two ops. Knows ops and arguments; does not know who keeps the memory.
#pragma once

#include <functional>
#include <vector>

#include "isa.h"

namespace mserve {

class Tape {
 public:
  template <class Args>
  void add(void (*Kernels::*op)(const Args&), const Args& args) {
    calls_.push_back([op, args](const Kernels& kernels) { (kernels.*op)(args); });
  }

  void play(const Kernels& kernels) const {
    for (const auto& call : calls_) call(kernels);
  }

 private:
  std::vector<std::function<void(const Kernels&)>> calls_;
};

}  // namespace mserve
