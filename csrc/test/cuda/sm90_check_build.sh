#!/bin/sh
# Compiles the Hopper kernels and reads what the assembler says of them. Needs nvcc, no device.
#   sh csrc/test/cuda/sm90_check_build.sh
# Fails if products are serialised (warnings C75xx), if an attention kernel spills registers, or if a
# register of a product in flight is written. The last needs nvdisasm, on the PATH or named by
# NVDISASM, and is left out without it.
set -eu
cd "$(dirname "$0")/../../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for file in attend attend_parts; do
  nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -Icsrc -Icsrc/include -Xptxas -v \
    -cubin -o "$out/$file.cubin" "csrc/cuda/sm90/$file.cu" 2>>"$out/log" || {
    cat "$out/log"
    exit 1
  }
done
if grep -E '\(C75[0-9][0-9]\)' "$out/log"; then
  echo 'the assembler serialises products'
  exit 1
fi
awk '/Compiling entry function/ { split($0, part, "\x27"); name = part[2] }
     /bytes spill stores/ && name ~ /Attend(Parts)?Kernel/ {
       for (i = 2; i <= NF; ++i) if ($i == "bytes" && $(i + 1) == "spill" && $(i + 2) ~ /^stores/) bytes = $(i - 1)
       print name ": " bytes " bytes spilled"
       if (bytes > 0) failed = 1
       ++kernels
       name = ""
     }
     END { exit failed || kernels != 10 }' "$out/log"
nvdisasm=${NVDISASM:-nvdisasm}
if command -v "$nvdisasm" >/dev/null; then
  for file in attend attend_parts; do
    "$nvdisasm" -c "$out/$file.cubin" | awk -f csrc/test/cuda/sm90_check_registers.awk
  done
  echo 'registers of products in flight: not written'
else
  echo 'registers of products in flight: not checked, no nvdisasm'
fi
