#include "simulate/fp4_forward.h"

#include <algorithm>
#include <cstring>

#include "cuda/sm120/attend.h"
#include "cuda/sm120/prepass.h"
#include "simulate/block.h"

namespace sage::simulate {
namespace {

template <int D, class E>
void PrepassTyped(const sm120::PrepassArguments& a) {
  const int blocks = static_cast<int>(sm120::PrepassBlocks(a));
  RunGrid(blocks, sm120::StatisticsThreads(D), sizeof(sm120::StatisticsShared<D>),
          [&](uint8_t* shared) { sm120::Statistics<D, E>(a, shared); });
  RunGrid(blocks, sm120::kQuantiseThreads, sm120::kQuantiseShared,
          [&](uint8_t* shared) { sm120::Quantise<D, E>(a, shared); });
}

template <int D>
void Prepass(InputType input, const sm120::PrepassArguments& a) {
  switch (input) {
    case InputType::kFloat32:
      return PrepassTyped<D, sm120::Float32>(a);
    case InputType::kFloat16:
      return PrepassTyped<D, sm120::Float16>(a);
    case InputType::kBfloat16:
      return PrepassTyped<D, sm120::BFloat16>(a);
  }
}

template <int D, bool kFp8, bool kMasked>
void Attend(const sm120::AttendArguments& a, int blocks) {
  RunGrid(std::min(blocks, a.work), sm120::AttendThreads(D), sm120::SharedMap<D, kFp8>::kBytes,
          [&](uint8_t* shared) { sm120::Attend<D, kFp8, kMasked>(a, shared); });
}

template <int D>
void Run(const Problem& p, const ForwardBuffers& buffers, const sm120::Workspace& space,
         int blocks) {
  Prepass<D>(p.input, sm120::PlanPrepass(p, buffers, space));
  const sm120::AttendArguments a = sm120::PlanAttend(p, buffers, space);
  const bool masked = p.mask_kind != MaskKind::kNone;
  if (p.recipe.pv == PvFormat::kE4m3) {
    masked ? Attend<D, true, true>(a, blocks) : Attend<D, true, false>(a, blocks);
  } else {
    masked ? Attend<D, false, true>(a, blocks) : Attend<D, false, false>(a, blocks);
  }
}

}  // namespace

Status Fp4Forward(const Problem& p, const ForwardBuffers& buffers, int blocks,
                  SimulatedWorkspace* workspace) {
  const char* refusal = sm120::RefusalOf(p);
  if (refusal != nullptr) return {StatusCode::kUnsupported, refusal};
  if (p.batch == 0 || p.q_heads == 0 || p.q_len == 0) return Status::Ok();
  constexpr size_t kAlignment = 256;
  // Poisoned: what the kernels read they must have written.
  workspace->memory.assign(static_cast<size_t>(sm120::LayOut(p, nullptr).bytes) + kAlignment, 0xff);
  const uintptr_t start = reinterpret_cast<uintptr_t>(workspace->memory.data());
  uint8_t* const base = workspace->memory.data() + (kAlignment - start % kAlignment) % kAlignment;
  workspace->layout = sm120::LayOut(p, base);
  const sm120::Workspace& space = workspace->layout;
  std::memset(base, 0, static_cast<size_t>(space.zeroed_bytes));
  if (space.dim == 64) {
    Run<64>(p, buffers, space, blocks);
  } else if (space.dim == 128) {
    Run<128>(p, buffers, space, blocks);
  } else {
    Run<256>(p, buffers, space, blocks);
  }
  return Status::Ok();
}

}  // namespace sage::simulate
