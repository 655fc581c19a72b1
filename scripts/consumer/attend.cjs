// One attention through the installed package, checked against plain tfjs ops. Given the user's tf and the package.
exports.attend = function attend(tf, sage, wantedEngine) {
  const [heads, tokens, dim] = [2, 37, 16];
  const make = (seed) => tf.randomNormal([heads, tokens, dim], 0, 1, 'float32', seed);
  const [q, k, v] = [make(1), make(2), make(3)];
  const expected = tf.tidy(() => {
    const scores = tf.mul(tf.matMul(q, k, false, true), 1 / Math.sqrt(dim));
    return tf.matMul(tf.softmax(scores), v).dataSync();
  });

  const info = sage.getSageAttentionInfo();
  const native = info.engines.find(({name}) => name === 'native');
  if (native.available !== (wantedEngine === 'native')) {
    throw new Error(`native engine available: ${native.available} (${native.reason})`);
  }
  sage.configureSageAttention({engine: wantedEngine});
  const largest = (actual) => Math.max(...actual.map((x, i) => Math.abs(x - expected[i])));
  const bounds = {exact: 1e-5, int8_int16: 0.05};
  for (const [precision, bound] of Object.entries(bounds)) {
    const named = largest(sage.sageAttention(q, k, v, {precision}).dataSync());
    const chained = largest(q.sageAttention(k, v, {precision}).dataSync());
    if (!(named <= bound && chained <= bound)) {
      throw new Error(`${precision}: largest difference ${named} (chained: ${chained})`);
    }
    console.log(
      `${tf.getBackend()}, ${wantedEngine}, ${precision}: within ${named.toExponential(1)}`,
    );
  }
};
