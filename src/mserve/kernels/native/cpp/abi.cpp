// The C interface, and the choice of instruction set. Every op returns 0, 1 without memory, or 2 if
// a token id is none.
//
// Arguments are plain pointers and numbers: the callers (matrix_ops.py, row_ops.py, cache_ops.py)
// have checked shapes and types.

#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#include "isa.h"
#include "place.h"
#include "tape.h"

#ifndef MSERVE_SOURCE_DIGEST
#define MSERVE_SOURCE_DIGEST "unknown"
#endif

namespace mserve {
namespace {

struct Isa {
  const char* name;
  const Kernels* kernels;
  bool (*present)();
};

// Best first.
const Isa kIsas[] = {
#if defined(__x86_64__)
    {"avx512_bf16", &avx512_bf16::kernels,
     [] {
       // only Cooper Lake has the first without the second; all that have it have the third
       return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
              __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
     }},
    {"avx512", &avx512::kernels,
     [] {
       return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq");
     }},
    {"avx2", &avx2::kernels,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"plain", &plain::kernels, [] { return true; }},
};

const Isa* best() {
  for (const Isa& isa : kIsas)
    if (isa.present()) return &isa;
  return nullptr;
}

const Isa* chosen = best();

template <class Body>
int status_of(Body&& body) noexcept {
  try {
    Turn turn;
    body();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  } catch (const std::out_of_range&) {
    return 2;
  }
}

// Where this thread's ops are written down while they run.
thread_local std::unique_ptr<Tape> recording;

template <class Args>
int run(void (*Kernels::*op)(const Args&), const Args& args) noexcept {
  return status_of([&] {
    (chosen->kernels->*op)(args);
    if (recording) recording->add(op, args);
  });
}

}  // namespace
}  // namespace mserve

using namespace mserve;

#pragma GCC visibility push(default)
extern "C" {

const char* mserve_source_digest() { return MSERVE_SOURCE_DIGEST; }

const char* mserve_isa() { return chosen->name; }

// 0, or 1 if this machine or build has no such instruction set.
int mserve_use_isa(const char* name) {
  for (const Isa& isa : kIsas) {
    if (std::strcmp(isa.name, name) == 0 && isa.present()) {
      chosen = &isa;
      return 0;
    }
  }
  return 1;
}

// 0, or 1 if the system refused to pin a worker to its processor; `cpus` [count] or null.
int mserve_set_num_threads(int count, const int* cpus) { return set_num_threads(count, cpus) ? 0 : 1; }

void mserve_touch_rows(char* first, int64_t rows, int64_t row_bytes) {
  touch_rows(first, rows, row_bytes);
}

int mserve_num_threads() {
  Turn turn;
  return team_size();
}

int mserve_tape_begin() {
  return status_of([] { recording = std::make_unique<Tape>(); });
}

// What this thread ran since mserve_tape_begin, which the caller owns.
Tape* mserve_tape_end() { return recording.release(); }

int mserve_tape_play(const Tape* tape) {
  return status_of([&] { tape->play(*chosen->kernels); });
}

void mserve_tape_free(Tape* tape) { delete tape; }

int mserve_read(const float* x, int64_t count) {
  return run(&Kernels::read, ReadArgs{x, count});
}

int mserve_linear(const void* x, const void* w, const void* w_scales, const int64_t* part_rows,
                  void* y, int64_t parts, int64_t rows, int64_t outer, int64_t inner,
                  int64_t x_stride, int64_t y_stride, int dtype, int out_dtype, int format) {
  return run(&Kernels::linear,
             LinearArgs{x, Stored{w, w_scales}, part_rows, y, parts, rows, outer, inner, x_stride,
                        y_stride, DType(dtype), DType(out_dtype), Format(format)});
}

int mserve_moe(const void* x, const void* gate_up, const void* gate_up_scales, const void* down,
               const void* down_scales, const void* shared_gate_up,
               const void* shared_gate_up_scales, const void* shared_down,
               const void* shared_down_scales, const int64_t* expert_ids, const float* weights,
               void* out, int64_t rows, int64_t hidden, int64_t inner, int64_t shared_inner,
               int64_t experts, int64_t first_expert, int64_t chosen_experts, int dtype,
               int out_dtype, int format, int activation, float alpha, float limit, float beta) {
  return run(&Kernels::moe,
             MoeArgs{x, Stored{gate_up, gate_up_scales}, Stored{down, down_scales},
                     Stored{shared_gate_up, shared_gate_up_scales},
                     Stored{shared_down, shared_down_scales}, expert_ids, weights, out, rows,
                     hidden, inner, shared_inner, experts, first_expert, chosen_experts,
                     DType(dtype), DType(out_dtype), Format(format),
                     ActivationArgs{Activation(activation), alpha, limit, beta}});
}

int mserve_rms_norm(const void* x, const void* weight, void* out, int64_t rows, int64_t width,
                    float eps, int kind, int dtype) {
  return run(&Kernels::rms_norm,
             NormArgs{x, weight, out, rows, width, eps, Norm(kind), DType(dtype)});
}

int mserve_norm_rope(const void* x, const void* weight, const float* mean_square,
                     const float* cosine, const float* sine, void* out, int64_t tokens,
                     int64_t heads, int64_t width, int64_t turned, int64_t x_stride,
                     int64_t mean_square_stride, float eps, int kind, int dtype) {
  return run(&Kernels::norm_rope,
             NormRopeArgs{x, weight, mean_square, cosine, sine, out, tokens, heads, width, turned,
                          x_stride, mean_square_stride, eps, Norm(kind), DType(dtype)});
}

int mserve_mean_squares(const void* x, float* means, int64_t tokens, int64_t split, int64_t width,
                        int64_t x_stride, int64_t first_count, int64_t last_count, int dtype) {
  return run(&Kernels::mean_squares, MeanSquaresArgs{x, means, tokens, split, width, x_stride,
                                                     first_count, last_count, DType(dtype)});
}

int mserve_embedding(const int64_t* ids, const void* weight, void* out, int64_t tokens,
                     int64_t height, int64_t width, int dtype) {
  return run(&Kernels::embedding,
             EmbeddingArgs{ids, weight, out, tokens, height, width, DType(dtype)});
}

int mserve_rope_angles(const int64_t* positions, const float* frequencies, float* cosine,
                       float* sine, int64_t tokens, int64_t turned) {
  return run(&Kernels::rope_angles,
             AnglesArgs{positions, frequencies, cosine, sine, tokens, turned});
}

int mserve_activate(const void* x, void* out, int64_t rows, int64_t width, int dtype,
                    int activation, float alpha, float limit, float beta) {
  return run(&Kernels::activate,
             ActivateArgs{x, out, rows, width, DType(dtype),
                          ActivationArgs{Activation(activation), alpha, limit, beta}});
}

int mserve_residual_sum(const void* x, const void* y, void* out, int64_t rows, int64_t width,
                        int dtype) {
  return run(&Kernels::residual_sum, ResidualArgs{x, y, out, rows, width, DType(dtype)});
}

int mserve_draw(const float* scores, const double* temperature, const int64_t* top_k,
                const double* top_p, const double* min_p, const uint64_t* seeds,
                const int64_t* positions, float* highest, int64_t* ids, int64_t rows,
                int64_t width) {
  return run(&Kernels::draw, DrawArgs{scores, temperature, top_k, top_p, min_p, seeds, positions,
                                      highest, ids, rows, width});
}

int mserve_write_kv(const Plane* plane, const void* x, const int64_t* slots, int64_t tokens,
                    int64_t heads, int64_t width, int64_t x_stride, int dtype) {
  return run(&Kernels::write_kv,
             WriteArgs{*plane, x, slots, tokens, heads, width, x_stride, DType(dtype)});
}

int mserve_route(const void* x, const float* gate, const float* bias, int64_t* ids, float* weights,
                 int64_t tokens, int64_t hidden, int64_t experts, int64_t chosen_experts,
                 float scale, int dtype) {
  return run(&Kernels::route, RouteArgs{x, gate, bias, ids, weights, tokens, hidden, experts,
                                        chosen_experts, scale, DType(dtype)});
}

int mserve_select_blocks(const void* query, const Plane* keys, const int64_t* blocks,
                         const int64_t* positions, int64_t* chosen_blocks, int64_t spans,
                         int64_t length, int64_t num_blocks, int64_t query_stride, int64_t groups,
                         int64_t width, int64_t chosen_width, int64_t local_blocks,
                         int64_t init_blocks, int dtype) {
  return run(&Kernels::select_blocks,
             SelectArgs{query, *keys, chosen_blocks,
                        Spans{blocks, positions, spans, length, num_blocks}, query_stride, groups,
                        width, chosen_width, local_blocks, init_blocks, DType(dtype)});
}

int mserve_attention(const void* query, const Plane* keys, const Plane* values,
                     const int64_t* blocks, const int64_t* positions, const int64_t* chosen_blocks,
                     void* out, int64_t spans, int64_t length, int64_t num_blocks,
                     int64_t query_stride, int64_t heads, int64_t groups, int64_t width,
                     int64_t chosen_width, float scale, int dtype) {
  return run(&Kernels::attention,
             AttentionArgs{query, *keys, *values, chosen_blocks, out,
                           Spans{blocks, positions, spans, length, num_blocks}, query_stride,
                           heads, groups, width, chosen_width, scale, DType(dtype)});
}

}  // extern "C"
#pragma GCC visibility pop
