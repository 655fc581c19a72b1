/** js-gpt's golden values: what another framework computed in float64 from the same weights. */
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {encodeBytes} from '../../models/gpt2/bytes.js';

export interface GoldenPrompt {
  readonly file: string;
  readonly prompt_base64: string;
  readonly mean_nll: number;
  readonly logits: readonly {
    readonly position: number;
    readonly log_sum_exp: number;
    readonly top5: readonly (readonly [number, number])[];
  }[];
  readonly greedy_tokens: readonly number[];
  readonly greedy_text: string;
}

export const JS_GPT = join(__dirname, '../../models/gpt2/js-gpt');

export const goldenPrompts: readonly GoldenPrompt[] = (
  JSON.parse(readFileSync(join(JS_GPT, 'golden.json'), 'utf8')) as {prompts: GoldenPrompt[]}
).prompts;

/** float32 against float64: up to 2.4e-3 in a logit of this model was seen; more is a fault. */
export const LOGIT_TOLERANCE = 5e-3;
export const LOSS_TOLERANCE = 1e-4;

export const idsOf = (prompt: GoldenPrompt): number[] =>
  encodeBytes(Buffer.from(prompt.prompt_base64, 'base64'));

export function logSumExp(row: Float32Array): number {
  const {exp} = Math;
  const max = row.reduce((a, b) => (a > b ? a : b));
  return max + Math.log(row.reduce((sum, value) => sum + exp(value - max), 0));
}

/** Largest difference of the listed logits and log-sum-exps. `count` positions are in `logits`. */
export function goldenError(prompt: GoldenPrompt, logits: Float32Array, count: number): number {
  let worst = 0;
  for (const {position, log_sum_exp, top5} of prompt.logits) {
    if (position >= count) continue;
    const row = logits.subarray(position * 257, (position + 1) * 257);
    worst = Math.max(worst, Math.abs(logSumExp(row) - log_sum_exp));
    for (const [id, value] of top5) worst = Math.max(worst, Math.abs((row[id] as number) - value));
  }
  return worst;
}

/** Mean loss of the prompt's own bytes. */
export function meanLoss(ids: readonly number[], logits: Float32Array): number {
  const losses = ids.slice(1).map((id, i) => {
    const row = logits.subarray(i * 257, (i + 1) * 257);
    return logSumExp(row) - (row[id] as number);
  });
  return losses.reduce((a, b) => a + b) / losses.length;
}
