// The installed package as CommonJS: `node smoke.cjs <engine>`.
const tf = require('@tensorflow/tfjs-core');
require('@tensorflow/tfjs-backend-cpu');
require('@tensorflow/tfjs-backend-wasm');
const sage = require('tfjs-sage-attention');
const {attend} = require('./attend.cjs');

async function main() {
  for (const backend of ['cpu', 'wasm']) {
    await tf.setBackend(backend);
    attend(tf, sage, process.argv[2]);
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
