"""PyTorch's scaled_dot_product_attention on the CPU, driven over stdin and stdout.

One JSON object a line in each direction. Requests, with their answers:

  {"ask": "about"}                              {"version", "capability"}
  {"ask": "case", "heads", "kv_heads", "tokens", "head_dim", "causal", "dtype", "threads", "folder"}
                                                {}; reads q, k and v, float32, from `folder`
  {"ask": "output", "folder"}                   {}; writes o, float32 [heads, tokens, head_dim], to `folder`
  {"ask": "time", "count"}                      {"ms"}: of that many runs together

A failure is answered by {"error": "..."}. Ends with its input. With the argument "avx2" PyTorch does without
what the processor has beyond AVX2.
"""

import json
import os
import sys
import time

if "avx2" in sys.argv[1:]:
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"  # read when torch is imported

import numpy as np
import torch
import torch.nn.functional as F


class Attention:
    """One case: q, k and v, and what is called on them."""

    def __init__(self, request):
        torch.set_num_threads(request["threads"])
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[request["dtype"]]

        def read(name, heads):
            values = np.fromfile(os.path.join(request["folder"], name), dtype=np.float32)
            shape = (1, heads, request["tokens"], request["head_dim"])
            return torch.from_numpy(values.reshape(shape)).to(dtype)

        heads, kv_heads = request["heads"], request["kv_heads"]
        self.q = read("q", heads)
        # Grouped heads are repeated before the clock starts: its fused kernels for CPUs want equal numbers.
        self.k, self.v = (
            read(name, kv_heads).repeat_interleave(heads // kv_heads, dim=1) for name in ("k", "v")
        )
        self.causal = request["causal"]

    def run(self):
        with torch.no_grad():
            return F.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=self.causal)


def answer(request, state):
    ask = request["ask"]
    if ask == "about":
        return {"version": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
    if ask == "case":
        state["attention"] = Attention(request)
        return {}
    attention = state["attention"]
    if ask == "output":
        attention.run().float().numpy().tofile(os.path.join(request["folder"], "o"))
        return {}
    if ask == "time":
        start = time.perf_counter()
        for _ in range(request["count"]):
            attention.run()
        return {"ms": (time.perf_counter() - start) * 1000}
    raise ValueError(f"no request named {ask}")


def main():
    state = {}
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), state)
        except Exception as error:  # Whatever it is, the other side says it to the user.
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


main()
