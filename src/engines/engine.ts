/**
 * What an engine is: something that computes attention on plain buffers, given a problem. It knows no tensor class.
 * Which engine serves which backend and recipe is the table in `engine_table.ts`.
 */
import type {AttentionProblem} from '../problem.js';
import type {Precision} from '../numerics/recipes.js';

export type EngineName = 'cuda' | 'native' | 'typescript' | 'composition';

/** Buffers of a forward call; strides are in the problem, so views with byte offsets need no copies. */
export interface ForwardBuffers {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  /** float32 values added to scale·q·k, or bytes (0 = not attended); null when `maskKind` is `none`. */
  readonly mask: Float32Array | Uint8Array | null;
  /** Like lse: written in full, and may hold anything before. */
  readonly o: Float32Array;
  /** [B,H,Nq] contiguous, natural log; null unless `wantLse`. */
  readonly lse: Float32Array | null;
}

/**
 * Buffers of a backward call. dQ, dK, dV have the strides of q, k, v; dO those of o; dMask those of the mask. Gradients are
 * written in full, and may hold anything before.
 */
export interface BackwardBuffers {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly mask: Float32Array | Uint8Array | null;
  readonly o: Float32Array;
  readonly lse: Float32Array;
  readonly dO: Float32Array;
  /** Gradient with respect to lse, [B,H,Nq]; null when lse was not asked for. */
  readonly dLse: Float32Array | null;
  readonly dQ: Float32Array;
  readonly dK: Float32Array;
  readonly dV: Float32Array;
  /** Gradient of an additive mask, summed over its broadcast axes; null when not wanted. Zeroed by the engine. */
  readonly dMask: Float32Array | null;
}

/** An engine. Calls write their outputs in full (also for empty rows) and never change their inputs. */
export interface Engine {
  readonly name: EngineName;
  /** Recipes that this engine computes on this machine. */
  supports(precision: Precision): boolean;
  /** What `auto` means on this engine and machine. */
  readonly preferred: Precision;
  forward(problem: AttentionProblem, buffers: ForwardBuffers): void;
  backward(problem: AttentionProblem, buffers: BackwardBuffers): void;
  /** The same as `forward`, off the event loop. `cancelled` is polled between tiles. */
  forwardAsync(
    problem: AttentionProblem,
    buffers: ForwardBuffers,
    signal?: AbortSignal,
  ): Promise<void>;
}
