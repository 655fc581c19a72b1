/** Test projects. All read the TypeScript sources as they stand; what is tested as built is in test/package. */
import type {Config} from 'jest';

// Read by TensorFlow and cuBLAS themselves, which never see what a test puts into its own copy of process.env.
process.env['TF_CPP_MIN_LOG_LEVEL'] ??= '2';
// TensorFlow's own products on a GPU keep 10 bits of each factor by default, too few for golden logits.
process.env['NVIDIA_TF32_OVERRIDE'] ??= '0';

/** Compiled file by file, without type checks (`npm run typecheck` does these), and `#platform` bound to Node. */
const shared = {
  testEnvironment: 'node',
  // jest's clean-up walks every global of a finished file, and does not come back from a WebAssembly module of tfjs that is
  // still starting; files share nothing that would need it.
  testEnvironmentOptions: {globalsCleanup: 'off'},
  // Far above what any test needs: a slow or shared machine must not turn a right answer into a failure.
  testTimeout: 60_000,
  setupFiles: ['<rootDir>/test/uninitialised_memory.ts'],
  transform: {
    '^.+\\.ts$': ['ts-jest', {tsconfig: '<rootDir>/tsconfig.jest.json', diagnostics: false}],
  },
  moduleNameMapper: {
    '^#platform$': '<rootDir>/src/platform/node.ts',
    '^(\\.{1,2}/.*)\\.js$': '$1',
  },
  modulePathIgnorePatterns: [
    '<rootDir>/build/',
    '<rootDir>/dist/',
    '<rootDir>/npm/',
    '<rootDir>/bench/peers/',
    '<rootDir>/test/tfjs_core/',
    '<rootDir>/.cache/',
  ],
} satisfies Config;

/** A project of its own for a folder of test/: needs the built addon, the weights, the built package, TensorFlow, or quiet. */
const inFolder = (name: string): Config => ({
  ...shared,
  displayName: name,
  testMatch: [`<rootDir>/test/${name}/**/*.test.ts`],
});

const folders = ['native', 'models', 'package', 'tensorflow', 'gpu', 'timing'];

const config: Config = {
  // jest takes it from here and not from the projects.
  testTimeout: shared.testTimeout,
  testSequencer: '<rootDir>/scripts/longest_first.cjs',
  projects: [
    {
      ...shared,
      displayName: 'unit',
      testMatch: ['<rootDir>/test/**/*.test.ts'],
      testPathIgnorePatterns: folders.map((folder) => `<rootDir>/test/${folder}/`),
    },
    ...folders.map(inFolder),
  ],
};

export default config;
