// The cache and decoding on one instruction set: compiled once for each, with its own flags and its
// own SAGE_ISA_SUFFIX.
#include "cpu/cache/attend_rows.h"
#include "cpu/cache/cache_functions.h"
#include "cpu/cache/float_operands.h"
#include "cpu/cache/packed_operands.h"
#include "cpu/cache/store_tokens.h"

#define SAGE_JOIN2(a, b) a##b
#define SAGE_JOIN(a, b) SAGE_JOIN2(a, b)

namespace sage {
namespace {

FloatOperands FloatOperandsOf(const CacheView* cache, const PageLayout& layout,
                              const Problem& problem, const ForwardBuffers& buffers) {
  FloatOperands operands = {};
  operands.cache = cache;
  operands.layout = layout;
  operands.problem = &problem;
  operands.buffers = &buffers;
  return operands;
}

Status Attend(const CacheView& cache, const Problem& problem, const ForwardBuffers& buffers,
              const EngineOptions& options, Workspace* workspace) {
  const PageLayout layout = LayoutOf(*cache.shape);
  if (cache.shape->form == CacheForm::kFloat32) {
    DecodePlan plan = MakeDecodePlan(problem, buffers, options, kFloatTaskRows);
    plan.row_bytes = FloatOperands::RowBytes(plan, layout);
    return RunDecode(plan, FloatOperandsOf(&cache, layout, problem, buffers), options, workspace);
  }
  DecodePlan plan = MakeDecodePlan(problem, buffers, options, kPackedTaskRows);
  plan.row_bytes = PackedOperands::RowBytes(plan, layout);
  PackedOperands operands = {};
  operands.cache = &cache;
  operands.layout = layout;
  return RunDecode(plan, operands, options, workspace);
}

Status Decode(const Problem& problem, const ForwardBuffers& buffers, const EngineOptions& options,
              Workspace* workspace) {
  DecodePlan plan = MakeDecodePlan(problem, buffers, options, kFloatTaskRows);
  plan.row_bytes = FloatOperands::RowBytes(plan, PageLayout{});
  return RunDecode(plan, FloatOperandsOf(nullptr, PageLayout{}, problem, buffers), options,
                   workspace);
}

}  // namespace

CacheFunctions SAGE_JOIN(CacheFunctions_, SAGE_ISA_SUFFIX)() {
  return {FreezeMean, StoreTokens, Attend, Decode};
}

}  // namespace sage
