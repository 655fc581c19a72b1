// The FP4 kernels of csrc/cuda/sm120 in the simulation, over their case table: codes and scales
// equal to the CPU engine's, errors of o and lse against float64 and against that engine.
//
//   simulate_fp4_test [part of a case's name]
#include "simulate/fp4_forward.h"
#include "test/fp4_cases.h"

namespace {

using namespace sage_test;

bool Simulate(const Data& data, sage::InputType input, Outputs* out, Operands* operands) {
  Problem p = data.p;
  p.input = input;
  out->o.assign(data.o_elements(), 1e30f);
  out->lse.assign(p.batch * p.q_heads * p.q_len, 1e30f);
  sage::simulate::SimulatedWorkspace space;
  const sage::Status status = sage::simulate::Fp4Forward(
      p, HostBuffers(data, p, out->o.data(), out->lse.data()), 2, &space);
  if (!status.ok()) {
    std::printf("Fp4Forward: %s\n", status.message);
    return false;
  }
  *operands = Unpack(p, space.layout, [](const uint8_t* from, int64_t count) {
    return std::vector<uint8_t>(from, from + count);
  });
  return true;
}

bool Check(const Fp4Case& c, uint64_t seed) {
  const Data data = MakeData(c, seed);
  Outputs out;
  Operands operands;
  if (!Simulate(data, sage::InputType::kFloat32, &out, &operands)) return false;
  const bool ok = Judge(c, data, out, operands);
  if (data.narrow == sage::InputType::kFloat32) return ok;
  Outputs narrow;
  Operands of_narrow;
  if (!Simulate(data, data.narrow, &narrow, &of_narrow)) return false;
  const bool same = Differences(of_narrow, operands) == 0 && SameBits(narrow.o, out.o) &&
                    SameBits(narrow.lse, out.lse);
  if (!same) std::printf("FAIL 16 bits give another result than the same values in float32\n");
  return ok && same;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string part = argc > 1 ? argv[1] : "";
  int failed = 0, count = 0, seed = 100;
  for (const Fp4Case& c : Fp4Cases()) {
    ++seed;
    if (c.shape.name.find(part) == std::string::npos) continue;
    failed += !Check(c, static_cast<uint64_t>(seed));
    ++count;
  }
  std::printf("%d of %d cases failed\n", failed, count);
  return failed == 0 ? 0 : 1;
}
