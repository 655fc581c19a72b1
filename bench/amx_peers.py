"""The AMX kernels beside torch's scaled_dot_product_attention, on a machine with AMX.

    cmake -S . -B build/tests -DSAGE_TESTS=ON -DSAGE_CUDA=OFF && cmake --build build/tests -t forward_bench
    python3 bench/amx_peers.py build/tests/forward_bench [--rounds 3] [--ms 200]
        [--cases 16:1:12:12:1024:64:full,...] [--recipes amx:int8_bf16,amx:int8] [--dtypes bfloat16]

A case is threads:batch:heads:key/value heads:N:head_dim:mask. Each round times every contender of
a case once, in turns; the table shows medians of the rounds' medians, GFLOP/s by 4 B H N^2 D
(causal counted in full), and the ratio to the fastest torch column. torch and the engine run in
processes of their own, and torch's threads get 50 ms to stop spinning before the engine's turn.
"""

import argparse
import statistics
import subprocess
import sys
import time


def ask(process, line):
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline().split()
    if not answer or answer[0] == "error:":
        sys.exit(f"{line}: {' '.join(answer)}")
    return float(answer[0])


def torch_ms(torch, case, dtype, budget):
    threads, batch, heads, kv_heads, n, dim, mask = case
    torch.set_num_threads(threads)
    make = lambda h: torch.randn(batch, h, n, dim).to(getattr(torch, dtype))
    q, k, v = make(heads), make(kv_heads), make(kv_heads)
    extra = {"enable_gqa": True} if heads != kv_heads else {}
    call = lambda: torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=mask == "causal", **extra
    )
    with torch.inference_mode():
        call()
        call()
        times, start = [], time.perf_counter()
        while len(times) < 5 or (time.perf_counter() - start) * 1e3 < budget:
            before = time.perf_counter()
            call()
            times.append((time.perf_counter() - before) * 1e3)
    time.sleep(0.05)
    return statistics.median(times)


def parse_case(text):
    words = text.split(":")
    return tuple(int(x) for x in words[:6]) + (words[6],)


def default_cases():
    for threads, lengths in ((16, (128, 512, 1024, 4096)), (1, (1024, 4096))):
        for heads, dim in ((12, 64), (16, 128)):
            for n in lengths:
                for mask in ("full", "causal"):
                    yield f"{threads}:1:{heads}:{heads}:{n}:{dim}:{mask}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ms", type=float, default=200)
    parser.add_argument("--cases", default=",".join(default_cases()))
    parser.add_argument("--recipes", default="amx:int8_bf16,amx:int8")
    parser.add_argument("--dtypes", default="bfloat16")
    options = parser.parse_args()
    dtypes = [x for x in options.dtypes.split(",") if x]
    torch = None
    if dtypes:
        import torch
    recipes = [x.split(":") for x in options.recipes.split(",")]
    engine = subprocess.Popen(
        [options.bench], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    print("threads B H Hkv N D mask | " + " | ".join(dtypes + [":".join(r) for r in recipes]))
    for text in options.cases.split(","):
        case = parse_case(text)
        threads, batch, heads, _, n, dim, _ = case
        rows = {}
        for _ in range(options.rounds):
            for dtype in dtypes:
                rows.setdefault(dtype, []).append(torch_ms(torch, case, dtype, options.ms))
            for isa, recipe in recipes:
                words = " ".join(str(x) for x in case[1:])
                line = f"{isa} {recipe} {threads} {words} {options.ms}"
                rows.setdefault((isa, recipe), []).append(ask(engine, line))
        flop = 4.0 * batch * heads * n * n * dim
        best = min((statistics.median(rows[x]) for x in dtypes), default=None)
        cells = []
        for name, times in rows.items():
            ms = statistics.median(times)
            cell = f"{ms:.3f} ms {flop / ms * 1e-6:.0f}"
            if best is not None and name not in dtypes:
                cell += f" {best / ms:.2f}x"
            cells.append(cell)
        print(" ".join(str(x) for x in case) + " | " + " | ".join(cells), flush=True)
    engine.stdin.close()


main()
