/** PyTorch as a peer: what is said where it cannot run, and the conversation where it can. */
import {spawnSync} from 'node:child_process';
import {compareArrays} from '../../src/accuracy/metrics.js';
import {makeBenchInputs} from '../../src/cli/bench/bench_inputs.js';
import {startTorch} from '../../src/cli/bench/torch.js';
import {startTorchGpu} from '../../src/cli/bench/torch_gpu.js';
import {openTerminal} from '../../src/cli/terminal.js';
import {cudaEngine} from '../../src/engines/cuda.js';
import {sageAttention} from '../../src/index.js';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';

const quiet = openTerminal(true, {write: () => undefined}, {write: () => undefined});
const hasPython = spawnSync('python3', ['--version']).status === 0;
/** An interpreter with torch; the test of a whole conversation runs where one is named or the system's has it. */
const python = process.env['SAGE_TEST_TORCH'] ?? 'python3';
const hasTorch = spawnSync(python, ['-c', 'import torch, numpy']).status === 0;

it('names an interpreter that is not there', async () => {
  await expect(startTorch('/no/such/python', quiet)).rejects.toThrow(
    /PyTorch does not run by \/no\/such\/python: .*ENOENT/,
  );
});

it('names an interpreter that is not there, for the GPU too', async () => {
  await expect(startTorchGpu('/no/such/python', quiet)).rejects.toThrow(
    /PyTorch does not run by \/no\/such\/python: .*ENOENT/,
  );
});

if (hasPython && cudaEngine().engine === null) {
  it('tells what PyTorch on the GPU says where there is none', async () => {
    await expect(startTorchGpu(python, quiet)).rejects.toThrow(
      /PyTorch does not run by .*(No module named|CUDA|NVIDIA)/,
    );
  });
}

if (hasTorch) {
  it('computes the cases, grouped heads and causality too', async () => {
    const torch = await startTorch(python, quiet);
    try {
      const c = {heads: 4, kvHeads: 2, headDim: 8, tokens: 33, causal: true};
      const inputs = makeBenchInputs(c);
      await tf.setBackend('cpu');
      const shape = (heads: number): [number, number, number] => [heads, c.tokens, c.headDim];
      const expected = sageAttention(
        tf.tensor3d(inputs.q, shape(4)),
        tf.tensor3d(inputs.k, shape(2)),
        tf.tensor3d(inputs.v, shape(2)),
        {precision: 'exact', isCausal: true},
      ).dataSync<'float32'>();
      const bounds = [1e-5, 0.02];
      const contenders = torch.contenders(c, inputs, 1);
      for (const [i, contender] of contenders.entries()) {
        const {relativeL1} = compareArrays(await contender.output(), expected);
        expect(relativeL1).toBeLessThan(bounds[i] as number);
        expect(await contender.time?.(2)).toBeGreaterThan(0);
      }
      for (const contender of contenders) await contender.dispose();
    } finally {
      torch.close();
    }
  });
} else if (hasPython) {
  it('tells what an interpreter without torch says', async () => {
    await expect(startTorch(python, quiet)).rejects.toThrow(/No module named '(torch|numpy)'/);
  });
}
