// Lets another program check the number formats of csrc/formats.
//
//   formats_table decode NAME   prints a line "code pattern" for every code of the format: the code
//                               in decimal, the float32 pattern of its value in hexadecimal
//   formats_table encode NAME   reads float32 values (4 bytes each, native order) on stdin and
//                               writes the code of each as a uint32_t
//   formats_table round NAME    the same, writing the pattern of the rounded float32
//
// Each format has its own loop, so that an optimising build checks the vectorised code too.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "formats/formats.h"

namespace {

using sage::FloatToBits;

using Loop = void (*)(const std::vector<float>& inputs, std::vector<uint32_t>* outputs);

// Integer codes are signed in C++; as codes they are counted from 0.
template <auto kEncode, int kBits>
void EncodeLoop(const std::vector<float>& inputs, std::vector<uint32_t>* outputs) {
  const size_t count = inputs.size();
  const float* from = inputs.data();
  uint32_t* to = outputs->data();
  for (size_t i = 0; i < count; ++i) {
    to[i] = static_cast<uint32_t>(kEncode(from[i])) & ((1u << kBits) - 1u);
  }
}

template <auto kRound>
void RoundLoop(const std::vector<float>& inputs, std::vector<uint32_t>* outputs) {
  const size_t count = inputs.size();
  const float* from = inputs.data();
  uint32_t* to = outputs->data();
  for (size_t i = 0; i < count; ++i) to[i] = FloatToBits(kRound(from[i]));
}

float RoundInt4(float x) { return static_cast<float>(sage::EncodeInt4(x)); }
float RoundInt8(float x) { return static_cast<float>(sage::EncodeInt8(x)); }
float RoundInt16(float x) { return static_cast<float>(sage::EncodeInt16(x)); }
float RoundInt8HalfAway(float x) {
  return static_cast<float>(sage::RoundToIntHalfAway(x, sage::kInt8Max));
}

template <auto kDecode>
float Decode(uint32_t code) {
  return kDecode(code);
}

// Sign extension of a two's complement code.
template <int kBits>
float DecodeInt(uint32_t code) {
  return static_cast<float>(static_cast<int32_t>(code << (32 - kBits)) >> (32 - kBits));
}

struct Format {
  const char* name;
  int bits;  // of a code; 0 where only rounding is defined
  float (*decode)(uint32_t);
  Loop encode;
  Loop round;
};

#define SAGE_FORMAT_ROW(name, bits, Name)                                         \
  {                                                                               \
    name, bits, Decode<sage::Decode##Name>, EncodeLoop<sage::Encode##Name, bits>, \
        RoundLoop<sage::Round##Name>                                              \
  }

const Format kFormats[] = {
    SAGE_FORMAT_ROW("e2m1", 4, E2m1),
    SAGE_FORMAT_ROW("e4m3", 8, E4m3),
    SAGE_FORMAT_ROW("ue4m3", 7, Ue4m3),
    SAGE_FORMAT_ROW("e5m2", 8, E5m2),
    SAGE_FORMAT_ROW("e8m0", 8, E8m0),
    SAGE_FORMAT_ROW("bf16", 16, Bf16),
    SAGE_FORMAT_ROW("fp16", 16, Fp16),
    {"fp16_saturating", 16, Decode<sage::DecodeFp16>, EncodeLoop<sage::EncodeFp16Saturating, 16>,
     RoundLoop<sage::RoundFp16Saturating>},
    {"int4", 4, DecodeInt<4>, EncodeLoop<sage::EncodeInt4, 4>, RoundLoop<RoundInt4>},
    {"int8", 8, DecodeInt<8>, EncodeLoop<sage::EncodeInt8, 8>, RoundLoop<RoundInt8>},
    {"int16", 16, DecodeInt<16>, EncodeLoop<sage::EncodeInt16, 16>, RoundLoop<RoundInt16>},
    {"e8m0_round_up", 0, nullptr, EncodeLoop<sage::EncodeE8m0RoundUp, 8>,
     RoundLoop<sage::E8m0RoundUp>},
    {"half_even", 0, nullptr, nullptr, RoundLoop<sage::RoundHalfEven>},
    {"half_away", 0, nullptr, nullptr, RoundLoop<sage::RoundHalfAway>},
    {"int8_half_away", 0, nullptr, nullptr, RoundLoop<RoundInt8HalfAway>},
};

std::vector<float> ReadInputs() {
  std::vector<float> inputs;
  std::vector<float> chunk(1 << 16);
  size_t count;
  while ((count = std::fread(chunk.data(), sizeof(float), chunk.size(), stdin)) > 0) {
    inputs.insert(inputs.end(), chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(count));
  }
  return inputs;
}

int Run(Loop loop) {
  const std::vector<float> inputs = ReadInputs();
  std::vector<uint32_t> outputs(inputs.size());
  loop(inputs, &outputs);
  const size_t written = std::fwrite(outputs.data(), sizeof(uint32_t), outputs.size(), stdout);
  return written == outputs.size() ? 0 : 1;
}

int PrintValues(const Format& format) {
  for (uint32_t code = 0; code < (1u << format.bits); ++code) {
    std::printf("%u %08x\n", static_cast<unsigned>(code),
                static_cast<unsigned>(FloatToBits(format.decode(code))));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3) {
    for (const Format& format : kFormats) {
      if (std::strcmp(argv[2], format.name) != 0) continue;
      if (std::strcmp(argv[1], "decode") == 0 && format.decode) return PrintValues(format);
      if (std::strcmp(argv[1], "encode") == 0 && format.encode) return Run(format.encode);
      if (std::strcmp(argv[1], "round") == 0) return Run(format.round);
    }
  }
  std::fprintf(stderr, "usage: formats_table decode|encode|round FORMAT\n");
  return 2;
}
