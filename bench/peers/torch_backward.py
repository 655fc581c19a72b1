"""torch's backward pass of scaled_dot_product_attention on the CPU, for bench/backward.mjs.

    python torch_backward.py <threads>

Reads one JSON object a line and answers each with one:
    {}                                            what torch this is
    {folder, heads, tokens, dim, causal}          takes q, k, v, dO (float32 files) and leaves dQ, dK, dV beside them
    {run: true}                                   one backward pass of the last case: {ms}
"""

import ctypes
import json
import os
import sys
import time

import torch
import torch.nn.functional as functional

threads = int(sys.argv[1])
torch.set_num_threads(threads)
clock = time.process_time if threads == 1 else time.perf_counter
case = None


def read(folder, name, shape):
    with open(os.path.join(folder, name), 'rb') as file:
        data = bytearray(file.read())
    return torch.frombuffer(data, dtype=torch.float32).reshape(shape)


def gradients():
    inputs, output, d_output = case
    return torch.autograd.grad(output, inputs, d_output, retain_graph=True)


for line in sys.stdin:
    question = json.loads(line)
    answer = {}
    if 'run' in question:
        start = clock()
        gradients()
        answer['ms'] = (clock() - start) * 1e3
    elif 'folder' in question:
        folder = question['folder']
        shape = (1, question['heads'], question['tokens'], question['dim'])
        q, k, v = (read(folder, name, shape).requires_grad_() for name in 'qkv')
        output = functional.scaled_dot_product_attention(q, k, v, is_causal=question['causal'])
        case = ((q, k, v), output, read(folder, 'dO', shape))
        for name, gradient in zip(('dQ', 'dK', 'dV'), gradients()):
            with open(os.path.join(folder, name), 'wb') as file:
                values = gradient.contiguous()
                file.write(ctypes.string_at(values.data_ptr(), values.numel() * 4))
    else:
        answer['version'] = torch.__version__
        answer['capability'] = torch.backends.cpu.get_cpu_capability()
    print(json.dumps(answer), flush=True)
