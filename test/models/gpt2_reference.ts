// GPT-2 in float64 on plain arrays, one token and one head at a time: written from the architecture, not from
// the model under test, and sharing nothing with it. Also makes small random models.

/** The fields of config.json that matter here. */
export interface ReferenceConfig {
  vocab_size: number;
  n_positions: number;
  n_embd: number;
  n_layer: number;
  n_head: number;
  n_inner: number | null;
  activation_function: string;
  layer_norm_epsilon: number;
  tie_word_embeddings: boolean;
  scale_attn_weights: boolean;
  scale_attn_by_inverse_layer_idx: boolean;
}

export interface ReferenceTensor {
  shape: number[];
  values: Float32Array;
}

export type ReferenceWeights = Map<string, ReferenceTensor>;

/** Names and shapes that a model of this configuration holds, without prefix. */
export function shapesOf(config: ReferenceConfig): Map<string, number[]> {
  const {vocab_size: vocab, n_positions: positions, n_embd: width, n_layer: layers} = config;
  const inner = config.n_inner ?? 4 * width;
  const shapes = new Map<string, number[]>([
    ['wte.weight', [vocab, width]],
    ['wpe.weight', [positions, width]],
    ['ln_f.weight', [width]],
    ['ln_f.bias', [width]],
  ]);
  for (let i = 0; i < layers; i++) {
    const parts: [string, number[]][] = [
      ['ln_1.weight', [width]],
      ['ln_1.bias', [width]],
      ['attn.c_attn.weight', [width, 3 * width]],
      ['attn.c_attn.bias', [3 * width]],
      ['attn.c_proj.weight', [width, width]],
      ['attn.c_proj.bias', [width]],
      ['ln_2.weight', [width]],
      ['ln_2.bias', [width]],
      ['mlp.c_fc.weight', [width, inner]],
      ['mlp.c_fc.bias', [inner]],
      ['mlp.c_proj.weight', [inner, width]],
      ['mlp.c_proj.bias', [width]],
    ];
    for (const [name, shape] of parts) shapes.set(`h.${i}.${name}`, shape);
  }
  return shapes;
}

/** Weights of a small model: spread wide enough that attention and activations matter. */
export function randomWeights(config: ReferenceConfig, seed = 1): ReferenceWeights {
  let state = seed;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  const weights: ReferenceWeights = new Map();
  const shapes = shapesOf(config);
  if (!config.tie_word_embeddings) {
    shapes.set('lm_head.weight', [config.vocab_size, config.n_embd]);
  }
  for (const [name, shape] of shapes) {
    const size = shape.reduce((a, b) => a * b);
    const centre = /ln_\w+\.weight$/.test(name) ? 1 : 0;
    weights.set(name, {
      shape,
      values: Float32Array.from({length: size}, () => centre + 1.6 * (uniform() - 0.5)),
    });
  }
  return weights;
}

/** erf by its Taylor series, which float64 sums well for |x| <= 4; beyond, erf is 1 to 1e-8. */
function erf(x: number): number {
  if (Math.abs(x) > 4) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; n < 120; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

const ACTIVATIONS: Record<string, (x: number) => number> = {
  relu: (x) => (x > 0 ? x : 0),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_new: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x))),
};

/** Logits of one sequence: one array of `vocab_size` for each id. */
export function referenceLogits(
  config: ReferenceConfig,
  weights: ReferenceWeights,
  ids: readonly number[],
): number[][] {
  const {n_embd: width, n_head: heads, vocab_size: vocab} = config;
  const size = width / heads;
  const activate = ACTIVATIONS[config.activation_function] as (x: number) => number;
  const get = (name: string): Float32Array => (weights.get(name) as ReferenceTensor).values;
  const dense = (x: number[], name: string): number[] => {
    const bias = get(`${name}.bias`);
    const w = get(`${name}.weight`);
    return Array.from(bias, (b, column) =>
      x.reduce((sum, value, row) => sum + value * (w[row * bias.length + column] as number), b),
    );
  };
  const norm = (x: number[], name: string): number[] => {
    const mean = x.reduce((a, b) => a + b) / width;
    const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / width;
    const gamma = get(`${name}.weight`);
    const beta = get(`${name}.bias`);
    return x.map(
      (value, i) =>
        ((value - mean) / Math.sqrt(variance + config.layer_norm_epsilon)) * (gamma[i] as number) +
        (beta[i] as number),
    );
  };
  const at = (x: number[][], row: number, column: number): number =>
    (x[row] as number[])[column] as number;
  const row = (name: string, index: number): number[] =>
    Array.from(get(name).subarray(index * width, (index + 1) * width));

  let x = ids.map((id, position) => {
    const place = row('wpe.weight', position);
    return row('wte.weight', id).map((value, i) => value + (place[i] as number));
  });
  for (let layer = 0; layer < config.n_layer; layer++) {
    const name = `h.${layer}`;
    let scale = config.scale_attn_weights ? 1 / Math.sqrt(size) : 1;
    if (config.scale_attn_by_inverse_layer_idx) scale /= layer + 1;
    const qkv = x.map((token) => dense(norm(token, `${name}.ln_1`), `${name}.attn.c_attn`));
    const attended = qkv.map((_, i) => {
      const out: number[] = [];
      for (let head = 0; head < heads; head++) {
        const scores: number[] = [];
        for (let j = 0; j <= i; j++) {
          let dot = 0;
          for (let d = head * size; d < (head + 1) * size; d++) {
            dot += at(qkv, i, d) * at(qkv, j, width + d);
          }
          scores.push(dot * scale);
        }
        const max = Math.max(...scores);
        const powers = scores.map((score) => Math.exp(score - max));
        const total = powers.reduce((a, b) => a + b);
        for (let d = head * size; d < (head + 1) * size; d++) {
          out.push(powers.reduce((sum, p, j) => sum + (p / total) * at(qkv, j, 2 * width + d), 0));
        }
      }
      return out;
    });
    x = x.map((token, i) => {
      const projected = dense(attended[i] as number[], `${name}.attn.c_proj`);
      const middle = token.map((value, c) => value + (projected[c] as number));
      const hidden = dense(norm(middle, `${name}.ln_2`), `${name}.mlp.c_fc`).map(activate);
      const out = dense(hidden, `${name}.mlp.c_proj`);
      return middle.map((value, c) => value + (out[c] as number));
    });
  }
  const head = config.tie_word_embeddings ? 'wte.weight' : 'lm_head.weight';
  return x.map((token) => {
    const normed = norm(token, 'ln_f');
    return Array.from({length: vocab}, (_, id) =>
      row(head, id).reduce((sum, w, i) => sum + w * (normed[i] as number), 0),
    );
  });
}
