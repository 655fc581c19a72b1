"""PyTorch's scaled_dot_product_attention on the GPU, bfloat16, driven over stdin and stdout.

One JSON object a line in each direction. Requests, with their answers:

  {"ask": "about"}                              {"version", "device"}
  {"ask": "case", "batch", "heads", "tokens", "head_dim", "causal", "kernels"}
                                                {"relativeL1"}: N(0,1) is made on the device; the first
                                                queries of a head against float32 arithmetic
  {"ask": "time", "count"}                      {"ms"}: a list, one call each, by events of the device

`kernels` is a member of torch.nn.attention.SDPBackend. A failure, such as kernels that refuse a case, is
answered by {"error": "..."}. Ends with its input.
"""

import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# Queries that are compared: their scores in float32 are small for any number of keys.
COMPARED = 128


class Attention:
    """One case: q, k and v, and the kernels that are called on them."""

    def __init__(self, request):
        shape = [request[name] for name in ("batch", "heads", "tokens", "head_dim")]
        generator = torch.Generator(device="cuda").manual_seed(1)
        self.q, self.k, self.v = (
            torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
            for _ in range(3)
        )
        self.causal = request["causal"]
        self.kernels = getattr(SDPBackend, request["kernels"])

    def run(self):
        with torch.no_grad(), sdpa_kernel(self.kernels):
            return F.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=self.causal)

    def relative_l1(self):
        o = self.run()[0, 0, :COMPARED].float()
        q, k, v = (x[0, 0].float() for x in (self.q, self.k, self.v))
        scores = q[:COMPARED] @ k.T * q.shape[-1] ** -0.5
        if self.causal:
            hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, float("-inf"))
        expected = scores.softmax(-1) @ v
        return ((o - expected).abs().sum() / expected.abs().sum()).item()

    def time(self, count):
        begin, end = (
            [torch.cuda.Event(enable_timing=True) for _ in range(count)] for _ in range(2)
        )
        for i in range(count):
            begin[i].record()
            self.run()
            end[i].record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in zip(begin, end)]


def answer(request, state):
    ask = request["ask"]
    if ask == "about":
        return {"version": torch.__version__, "device": torch.cuda.get_device_name()}
    if ask == "case":
        # The memory of the case before is given back first.
        state.clear()
        state["attention"] = Attention(request)
        return {"relativeL1": state["attention"].relative_l1()}
    if ask == "time":
        return {"ms": state["attention"].time(request["count"])}
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
