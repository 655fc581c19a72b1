/**
 * Attention written down from its definition: the whole score matrix, visibility from the formula of docs/numerics.md 1.
 * Shares nothing with src/numerics/reference.ts.
 */
import type {AttentionProblem} from '../../src/problem';

export type Values = ArrayLike<number>;

export interface NaiveInputs {
  q: Values;
  k: Values;
  v: Values;
  mask: Values | null;
}

/** Whether query i may see key j, the mask aside. */
function sees(problem: AttentionProblem, i: number, j: number): boolean {
  const offset = problem.causal === 'bottom_right' ? problem.kvLen - problem.qLen : 0;
  const {windowLeft, windowRight} = problem;
  return (
    (windowLeft < 0 || j >= i + offset - windowLeft) &&
    (windowRight < 0 || j <= i + offset + windowRight)
  );
}

/** o in the problem's strides and lse [B, H, Nq]. `score` replaces scale·q·k where given. */
export function naiveAttention(
  problem: AttentionProblem,
  {q, k, v, mask}: NaiveInputs,
  score?: (b: number, h: number, i: number, j: number) => number,
): {o: number[]; lse: number[]} {
  const o: number[] = [];
  const lse: number[] = [];
  for (let b = 0; b < problem.batch; b++) {
    for (let h = 0; h < problem.qHeads; h++) {
      const kvHead = Math.floor(h / (problem.qHeads / problem.kvHeads));
      for (let i = 0; i < problem.qLen; i++) {
        const scores = Array.from({length: problem.kvLen}, (_, j) => {
          if (!sees(problem, i, j)) return -Infinity;
          const m = problem.mask;
          const maskValue = mask ? mask[b * m.batch + h * m.head + i * m.query + j * m.key]! : 0;
          if (problem.maskKind === 'boolean' && maskValue === 0) return -Infinity;
          let s = 0;
          if (score) s = score(b, h, i, j);
          else {
            for (let d = 0; d < problem.qkDim; d++) {
              s +=
                problem.scale *
                q[b * problem.q.batch + h * problem.q.head + i * problem.q.token + d]! *
                k[b * problem.k.batch + kvHead * problem.k.head + j * problem.k.token + d]!;
            }
          }
          return problem.maskKind === 'additive' ? s + maskValue : s;
        });
        const max = scores.reduce((a, s) => Math.max(a, s), -Infinity);
        const p = scores.map((s) => (s === -Infinity ? 0 : Math.exp(s - max)));
        const sum = p.reduce((a, x) => a + x, 0);
        lse.push(sum === 0 ? -Infinity : max + Math.log(sum));
        for (let d = 0; d < problem.vDim; d++) {
          let out = 0;
          for (let j = 0; j < problem.kvLen; j++) {
            if (p[j] === 0) continue;
            const at = b * problem.v.batch + kvHead * problem.v.head + j * problem.v.token + d;
            out += (p[j]! / sum) * v[at]!;
          }
          o[b * problem.o.batch + h * problem.o.head + i * problem.o.token + d] = out;
        }
      }
    }
  }
  return {o, lse};
}
