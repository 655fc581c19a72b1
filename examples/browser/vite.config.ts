// Serves and bundles the page. In a project of your own, `npm install tfjs-sage-attention` takes the place of the aliases,
// and the model's files lie where you serve files from.
import {fileURLToPath} from 'node:url';
import {defineConfig} from 'vite';
import {viteStaticCopy} from 'vite-plugin-static-copy';

const inRepository = (path: string): string =>
  fileURLToPath(new URL(`../../${path}`, import.meta.url));
const installed = (path: string): string =>
  fileURLToPath(new URL(`node_modules/${path}`, import.meta.url));

// eslint-disable-next-line no-restricted-syntax -- the bundler asks for it
export default defineConfig({
  // Relative, so that the built page works from any folder of a server.
  base: './',
  resolve: {
    alias: {
      'tfjs-sage-attention/models/gpt2/browser': inRepository('dist/esm/models/gpt2/browser.mjs'),
      'tfjs-sage-attention': inRepository('dist/esm/src/index.mjs'),
    },
    // The package and the page must share one tfjs.
    dedupe: ['@tensorflow/tfjs-core'],
  },
  server: {fs: {allow: ['../..']}},
  build: {target: 'es2022', chunkSizeWarningLimit: 2000},
  plugins: [
    viteStaticCopy({
      targets: [
        {
          src: ['config.json', 'model.safetensors'].map((name) =>
            inRepository(`models/gpt2/js-gpt/${name}`),
          ),
          dest: 'js-gpt',
          rename: {stripBase: true},
        },
        {
          src: [installed('@tensorflow/tfjs-backend-wasm/dist/*.wasm')],
          dest: 'tfjs-backend-wasm',
          rename: {stripBase: true},
        },
      ],
    }),
  ],
});
