/**
 * PyTorch's attention on the same GPU as a peer of the CUDA kernels: its kernels of cuDNN and of FlashAttention-2,
 * bfloat16 in device memory, timed by events of the device in a process of their own.
 */
import {CliError, messageOf} from '../cli_error.js';
import type {Terminal} from '../terminal.js';
import type {GpuCase} from './gpu_cases.js';
import {startTorchProcess} from './torch.js';

/** Names in torch.nn.attention.SDPBackend, with those of the table. */
export const TORCH_GPU_KERNELS = {
  'bfloat16, cuDNN': 'CUDNN_ATTENTION',
  'bfloat16, flash': 'FLASH_ATTENTION',
} as const;
export type TorchGpuKernels = keyof typeof TORCH_GPU_KERNELS;

/** bfloat16 keeps 8 bits: far above that something else was computed. */
const MAX_RELATIVE_L1 = 0.02;

/** A process with PyTorch on the GPU; one case at a time. */
export interface TorchGpu {
  /** Its version and device, in its own words. */
  readonly about: string;
  /**
   * Holds q, k and v of a case on the device from now on.
   * @returns Why its kernels do not compute the case; null when they do.
   */
  take(c: GpuCase, kernels: TorchGpuKernels): Promise<string | null>;
  /** Milliseconds of each of `count` calls. */
  time(count: number): Promise<number[]>;
  close(): void;
}

/**
 * Starts PyTorch on the GPU.
 *
 * @param python An interpreter that has torch; `true` for the environment of the benchmark's own.
 * @throws CliError where there is no Python, no PyTorch for it, or no GPU that it can use.
 */
export async function startTorchGpu(python: string | true, terminal: Terminal): Promise<TorchGpu> {
  const {worker, about} = await startTorchProcess(python, 'attention_gpu.py', terminal);
  return {
    about: `PyTorch ${String(about['version'])} on ${String(about['device'])}`,
    take: async (c, kernels) => {
      const request = {
        ask: 'case',
        batch: c.batch,
        heads: c.heads,
        tokens: c.tokens,
        head_dim: c.headDim,
        causal: c.causal,
        kernels: TORCH_GPU_KERNELS[kernels],
      };
      let error: number;
      try {
        error = Number((await worker.ask(request))['relativeL1']);
      } catch (refusal) {
        return messageOf(refusal);
      }
      if (error <= MAX_RELATIVE_L1) return null;
      throw new CliError(`PyTorch (${kernels}) computes something else: relative L1 ${error}.`);
    },
    time: async (count) => (await worker.ask({ask: 'time', count}))['ms'] as number[],
    close: () => worker.close(),
  };
}
