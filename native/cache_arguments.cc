#include "cache_arguments.h"

#include <cmath>

namespace sage_node {
namespace {

// Elements of an Int16Array of at least that length; null where it is anything else.
int16_t* Codes(napi_env env, napi_value value, int64_t elements) {
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_int16_array || static_cast<int64_t>(length) < elements) {
    return nullptr;
  }
  return static_cast<int16_t*>(data);
}

}  // namespace

bool ReadCount(napi_env env, napi_value value, int64_t* out) {
  double number = 0;
  if (napi_get_value_double(env, value, &number) != napi_ok) return false;
  if (!(number >= 0 && number <= 9007199254740991.0 && number == std::floor(number))) return false;
  *out = static_cast<int64_t>(number);
  return true;
}

napi_value ThrowCount(napi_env env) {
  return ThrowStatus(env, sage::Status::Invalid("cache: a size is not a whole number"));
}

bool ReadCacheShape(napi_env env, const napi_value* arguments, sage::KvCacheShape* shape,
                    int64_t* capacity) {
  int64_t sizes[6];
  for (int n = 0; n < 6; ++n) {
    if (ReadCount(env, arguments[n], &sizes[n])) continue;
    ThrowCount(env);
    return false;
  }
  if (sizes[4] > static_cast<int64_t>(sage::CacheForm::kInt16)) {
    ThrowStatus(env, sage::Status::Invalid("cache: no such form"));
    return false;
  }
  *shape = {sizes[0], sizes[1], sizes[2], sizes[3], static_cast<sage::CacheForm>(sizes[4])};
  *capacity = sizes[5];
  return true;
}

sage::Problem ReadAttend(ArgumentReader* reader, const napi_value* arguments,
                         sage::ForwardBuffers* buffers) {
  const sage::Problem p = reader->ReadProblem(arguments[0]);
  if (!reader->ok()) return p;
  buffers->q = reader->Floats(arguments[1],
                              RequiredElements(p.q, p.batch, p.q_heads, p.q_len, p.qk_dim), "q");
  buffers->mask = reader->Mask(arguments[2], p);
  buffers->o = reader->Floats(arguments[3],
                              RequiredElements(p.o, p.batch, p.q_heads, p.q_len, p.v_dim), "o");
  if (p.want_lse) buffers->lse = reader->Floats(arguments[4], RowCount(p), "lse");
  return p;
}

bool ReadCodes(napi_env env, const napi_value* arguments, const sage::KvCacheShape& shape,
               int64_t length, sage::CacheCodes* out) {
  ArgumentReader reader(env);
  out->k = Codes(env, arguments[0], Elements({length, shape.qk_dim}));
  out->k_scale = reader.Floats(arguments[1], length, "kScale");
  out->k_mean = reader.Floats(arguments[2], shape.qk_dim, "kMean");
  out->v = Codes(env, arguments[3], Elements({length, shape.v_dim}));
  out->v_scale = reader.Floats(arguments[4], length, "vScale");
  if (!reader.ok()) {
    ThrowStatus(env, reader.status());
    return false;
  }
  if (length == 0 || (out->k != nullptr && out->v != nullptr)) return true;
  ThrowStatus(env, sage::Status::Invalid("codes: expected an Int16Array, long enough"));
  return false;
}

}  // namespace sage_node
