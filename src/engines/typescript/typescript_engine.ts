/**
 * The portable engine: every recipe in plain TypeScript, on any machine that runs JavaScript.
 * It serves backend `cpu` in browsers, and everything else that has no native addon.
 */
import type {AttentionProblem} from '../../problem.js';
import type {BackwardBuffers, Engine, ForwardBuffers} from '../engine.js';
import {backwardTiles} from './backward.js';
import {runInSlices} from './event_loop.js';
import {forwardTiles} from './forward.js';

export const typescriptEngine: Engine = {
  name: 'typescript',
  // Quantised codes are emulated in float64 here: they cost time instead of saving it.
  preferred: 'exact',
  supports: () => true,
  forward(problem: AttentionProblem, buffers: ForwardBuffers): void {
    runToEnd(forwardTiles(problem, buffers));
  },
  backward(problem: AttentionProblem, buffers: BackwardBuffers): void {
    runToEnd(backwardTiles(problem, buffers));
  },
  forwardAsync(
    problem: AttentionProblem,
    buffers: ForwardBuffers,
    signal?: AbortSignal,
  ): Promise<void> {
    return runInSlices(forwardTiles(problem, buffers), signal);
  },
};

function runToEnd(steps: Iterator<void>): void {
  while (!steps.next().done);
}
