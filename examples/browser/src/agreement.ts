// How far two runs agree, in words.

import type {Gpt2Score} from 'tfjs-sage-attention/models/gpt2/browser';

export interface Agreement {
  /** New bytes before the first difference. */
  readonly sameBytes: number;
  readonly newBytes: number;
  /** Share of the prompt's positions where both find the same next byte likeliest. */
  readonly likeliest: number;
  /** Mean loss of the exact run on the prompt, bits per byte. */
  readonly exactBits: number;
  /** Mean loss of the low-bit run over that. */
  readonly extraBits: number;
}

export function agreementOf(
  exact: readonly number[],
  low: readonly number[],
  exactScore: Gpt2Score,
  lowScore: Gpt2Score,
): Agreement {
  const newBytes = Math.max(exact.length, low.length);
  let sameBytes = 0;
  while (sameBytes < newBytes && exact[sameBytes] === low[sameBytes]) sameBytes++;
  const positions = exactScore.likeliest.length;
  const same = exactScore.likeliest.filter((byte, i) => byte === lowScore.likeliest[i]).length;
  const bits = (losses: Float32Array): number =>
    losses.reduce((a, b) => a + b, 0) / losses.length / Math.LN2;
  const exactBits = bits(exactScore.negativeLogLikelihood);
  const extraBits = bits(lowScore.negativeLogLikelihood) - exactBits;
  return {sameBytes, newBytes, likeliest: same / positions, exactBits, extraBits};
}

export function describeAgreement(
  {sameBytes, newBytes, likeliest, exactBits, extraBits}: Agreement,
  precision: string,
): string {
  const texts =
    sameBytes === newBytes
      ? `Both texts are the same, all ${newBytes} bytes.`
      : `The texts are the same for ${sameBytes} of ${newBytes} bytes, then go their own ways.`;
  const sign = extraBits < 0 ? '' : '+';
  const share = (100 * likeliest).toFixed(1);
  return (
    `${texts} On the prompt, ${precision} finds the same next byte likeliest at ${share} % of the positions. The loss there ` +
    `is ${exactBits.toFixed(4)} bits per byte with exact attention, ${sign}${extraBits.toFixed(4)} with ${precision}.`
  );
}
