// Reading and checking the words of a problem: past this point every engine may trust every field.
#include "sage/problem.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sage {
namespace {

// Sizes beyond this cannot belong to buffers that exist, and their products stay far from the
// limits of int64.
constexpr double kMaxSize = 1 << 30;
// Offsets up to here are exact in float64.
constexpr double kMaxStride = 9007199254740992.0;
// Largest head_dim that the engines hold tiles for.
constexpr double kMaxHeadDim = 512;
// The engines compute in float32.
constexpr double kMaxScale = std::numeric_limits<float>::max();
// Codes of p and v fit in 16 bits.
constexpr double kMaxTop = 32768;
constexpr int64_t kTooMany = std::numeric_limits<int64_t>::max();

// Reads one word after another; the first that is out of range is remembered, and reading goes on
// harmlessly.
class WordReader {
 public:
  explicit WordReader(const double* words) : words_(words) {}

  int64_t Integer(double low, double high, const char* complaint) {
    const double value = *words_++;
    // Written so that NaN fails.
    if (!(value >= low && value <= high && value == std::floor(value))) {
      Fail(complaint);
      return static_cast<int64_t>(low);
    }
    return static_cast<int64_t>(value);
  }
  double Real(double low, double high, const char* complaint) {
    const double value = *words_++;
    if (!(value >= low && value <= high)) Fail(complaint);
    return value;
  }
  bool Flag(const char* complaint) { return Integer(0, 1, complaint) != 0; }
  template <typename Enum>
  Enum Choice(Enum last, const char* complaint) {
    return static_cast<Enum>(Integer(0, static_cast<double>(last), complaint));
  }
  TokenStrides Strides(const char* complaint) {
    TokenStrides strides;
    strides.batch = Integer(0, kMaxStride, complaint);
    strides.head = Integer(0, kMaxStride, complaint);
    strides.token = Integer(0, kMaxStride, complaint);
    return strides;
  }
  void Fail(const char* complaint) {
    if (status_.ok()) status_ = Status::Invalid(complaint);
  }
  const Status& status() const { return status_; }

 private:
  const double* words_;
  Status status_;
};

struct Formats {
  QkFormat qk;
  PvFormat pv;
};

// By Precision: the formats are what the name means, in every variant.
constexpr Formats kFormats[] = {
    {QkFormat::kFloat32, PvFormat::kFloat32}, {QkFormat::kInt16, PvFormat::kInt16},
    {QkFormat::kInt8Pair, PvFormat::kInt16},  {QkFormat::kInt8, PvFormat::kBf16},
    {QkFormat::kInt8, PvFormat::kFp16},       {QkFormat::kInt8, PvFormat::kE4m3},
    {QkFormat::kInt8, PvFormat::kInt8},       {QkFormat::kInt4, PvFormat::kE4m3},
    {QkFormat::kNvfp4, PvFormat::kNvfp4},     {QkFormat::kNvfp4, PvFormat::kE4m3},
};

Recipe ReadRecipe(WordReader* reader) {
  Recipe r;
  r.precision = reader->Choice(Precision::kFp4Fp8, "recipe: unknown precision");
  r.variant = reader->Choice(Variant::kPaper, "recipe: unknown variant");
  r.qk = reader->Choice(QkFormat::kNvfp4, "recipe: unknown format of q and k");
  r.pv = reader->Choice(PvFormat::kNvfp4, "recipe: unknown format of p and v");
  r.smooth_k = reader->Flag("recipe: smoothK must be 0 or 1");
  r.smooth_q =
      static_cast<int32_t>(reader->Integer(0, 128, "recipe: smoothQ must be 0, 32 or 128"));
  r.smooth_v = static_cast<int32_t>(reader->Integer(0, 128, "recipe: smoothV must be 0 or 128"));
  r.q_group = reader->Choice(TokenGroup::kBlock64, "recipe: unknown token group of q");
  r.k_group = reader->Choice(TokenGroup::kBlock64, "recipe: unknown token group of k");
  r.v_scale = reader->Choice(VScale::kBlock64, "recipe: unknown scale of v");
  r.rounding = reader->Choice(Rounding::kAway, "recipe: unknown rounding");
  r.balance = reader->Flag("recipe: balance must be 0 or 1");
  r.rotate = reader->Flag("recipe: rotate must be 0 or 1");
  r.four_six = reader->Flag("recipe: fourSix must be 0 or 1");
  r.head_exponent = reader->Flag("recipe: headExponent must be 0 or 1");
  r.row_sum = reader->Choice(RowSum::kQuantized, "recipe: unknown row sum");
  r.p_top = static_cast<float>(reader->Real(1, kMaxTop, "recipe: pTop must lie from 1 to 2^15"));
  r.v_top = static_cast<float>(reader->Real(0, kMaxTop, "recipe: vTop must lie from 0 to 2^15"));
  r.pv_accumulator = reader->Choice(PvAccumulator::kFp32Fp16, "recipe: unknown accumulator");
  if (!reader->status().ok()) return r;

  if (r.smooth_q != 0 && r.smooth_q != 32 && r.smooth_q != 128) {
    reader->Fail("recipe: smoothQ must be 0, 32 or 128");
  }
  if (r.smooth_v != 0 && r.smooth_v != 128) reader->Fail("recipe: smoothV must be 0 or 128");
  const Formats& formats = kFormats[static_cast<int>(r.precision)];
  if (r.qk != formats.qk || r.pv != formats.pv) {
    reader->Fail("recipe: the formats are not those of the precision");
  }
  if (r.balance && r.qk != QkFormat::kNvfp4) {
    reader->Fail("recipe: only nvfp4 has balanced channels");
  }
  const bool integer_p = r.pv == PvFormat::kInt16 || r.pv == PvFormat::kInt8;
  if (r.row_sum == RowSum::kQuantized && !integer_p) {
    reader->Fail("recipe: only integer p is summed after rounding");
  }
  return r;
}

// Whether no two elements share an address: two threads would write one place of an output.
bool IsInjective(const TokenStrides& strides, int64_t batch, int64_t heads, int64_t tokens,
                 int64_t dim) {
  struct Axis {
    int64_t stride, count;
  } axes[3] = {{strides.batch, batch}, {strides.head, heads}, {strides.token, tokens}};
  std::sort(axes, axes + 3, [](const Axis& a, const Axis& b) { return a.stride < b.stride; });
  double extent = static_cast<double>(dim);
  for (const Axis& axis : axes) {
    if (axis.count <= 1) continue;
    if (static_cast<double>(axis.stride) < extent) return false;
    extent += static_cast<double>(axis.stride) * static_cast<double>(axis.count - 1);
  }
  return true;
}

void CheckTogether(const Problem& p, WordReader* reader) {
  if (p.kv_heads == 0 ? p.q_heads != 0 : p.q_heads % p.kv_heads != 0) {
    reader->Fail("problem: qHeads must be a multiple of kvHeads");
  }
  if (p.causal != Causal::kNone && p.window_right != 0) {
    reader->Fail("problem: windowRight must be 0 when causal");
  }
  if (p.batch > 0 && p.q_heads > 0 && p.q_len > 0 &&
      !IsInjective(p.o, p.batch, p.q_heads, p.q_len, p.v_dim)) {
    reader->Fail("problem: the strides of o let its elements overlap");
  }
}

// Highest offset + 1 as float64, which cannot overflow; exact up to 2^53.
int64_t Capped(double elements) {
  return elements <= kMaxStride ? static_cast<int64_t>(elements) : kTooMany;
}

double Reach(int64_t count, int64_t stride) {
  return static_cast<double>(count - 1) * static_cast<double>(stride);
}

}  // namespace

Status DecodeProblem(const double* words, int64_t count, Problem* problem) {
  if (words == nullptr || count < kProblemWords) {
    return Status::Invalid("problem: too few words");
  }
  WordReader reader(words);
  reader.Integer(kProblemVersion, kProblemVersion,
                 "problem: written for another version of the native addon");
  if (!reader.status().ok()) return reader.status();

  Problem p;
  const char* const size = "problem: sizes must be integers from 0 to 2^30";
  const char* const dim = "problem: head_dim must be an integer from 1 to 512";
  const char* const window = "problem: windows must be integers from -1";
  const char* const mask_strides = "problem: mask strides must be non-negative integers";
  p.batch = reader.Integer(0, kMaxSize, size);
  p.q_heads = reader.Integer(0, kMaxSize, size);
  p.kv_heads = reader.Integer(0, kMaxSize, size);
  p.q_len = reader.Integer(0, kMaxSize, size);
  p.kv_len = reader.Integer(0, kMaxSize, size);
  p.qk_dim = reader.Integer(1, kMaxHeadDim, dim);
  p.v_dim = reader.Integer(1, kMaxHeadDim, dim);
  p.q = reader.Strides("problem: strides of q must be non-negative integers");
  p.k = reader.Strides("problem: strides of k must be non-negative integers");
  p.v = reader.Strides("problem: strides of v must be non-negative integers");
  p.o = reader.Strides("problem: strides of o must be non-negative integers");
  p.scale = reader.Real(-kMaxScale, kMaxScale, "problem: scale must be a finite float32");
  p.causal = reader.Choice(Causal::kBottomRight, "problem: unknown kind of causality");
  p.window_left = reader.Integer(-1, kMaxStride, window);
  p.window_right = reader.Integer(-1, kMaxStride, window);
  p.mask_kind = reader.Choice(MaskKind::kAdditive, "problem: unknown kind of mask");
  p.mask.batch = reader.Integer(0, kMaxStride, mask_strides);
  p.mask.head = reader.Integer(0, kMaxStride, mask_strides);
  p.mask.query = reader.Integer(0, kMaxStride, mask_strides);
  p.mask.key = reader.Integer(0, kMaxStride, mask_strides);
  p.want_lse = reader.Flag("problem: wantLse must be 0 or 1");
  p.recipe = ReadRecipe(&reader);
  if (reader.status().ok()) CheckTogether(p, &reader);
  if (reader.status().ok()) *problem = p;
  return reader.status();
}

int64_t RequiredElements(const TokenStrides& strides, int64_t batch, int64_t heads, int64_t tokens,
                         int64_t dim) {
  if (batch <= 0 || heads <= 0 || tokens <= 0 || dim <= 0) return 0;
  return Capped(Reach(batch, strides.batch) + Reach(heads, strides.head) +
                Reach(tokens, strides.token) + static_cast<double>(dim));
}

int64_t RequiredMaskElements(const Problem& p) {
  if (p.mask_kind == MaskKind::kNone || p.batch <= 0 || p.q_heads <= 0 || p.q_len <= 0 ||
      p.kv_len <= 0) {
    return 0;
  }
  return Capped(Reach(p.batch, p.mask.batch) + Reach(p.q_heads, p.mask.head) +
                Reach(p.q_len, p.mask.query) + Reach(p.kv_len, p.mask.key) + 1);
}

}  // namespace sage
