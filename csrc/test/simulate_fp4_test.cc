// The FP4 kernels of csrc/cuda/sm120 in the simulation, over their case table: codes and scales
// equal to the CPU engine's, errors of o and lse against float64 and against that engine.
//
//   simulate_fp4_test [part of a case's name]
#include "simulate/fp4_forward.h"
#include "test/fp4_cases.h"

namespace {

using namespace sage_test;

bool Check(const Fp4Case& c, uint64_t seed) {
  const Data data = MakeData(c, seed);
  const Problem& p = data.p;
  Outputs out;
  out.o.assign(data.o_elements(), 1e30f);
  out.lse.assign(p.batch * p.q_heads * p.q_len, 1e30f);
  const sage::ForwardBuffers buffers = {data.q.data(), data.k.data(), data.v.data(),
                                        data.mask(),   out.o.data(),  out.lse.data()};
  sage::simulate::SimulatedWorkspace space;
  const sage::Status status = sage::simulate::Fp4Forward(p, buffers, 2, &space);
  if (!status.ok()) {
    std::printf("Fp4Forward: %s\n", status.message);
    return false;
  }
  const Operands operands = Unpack(p, space.layout, [](const uint8_t* from, int64_t count) {
    return std::vector<uint8_t>(from, from + count);
  });
  return Judge(c, data, out, operands);
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
