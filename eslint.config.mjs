// ESLint: the recommended and strict sets, plus the house rules that a machine can check.
import js from '@eslint/js';
import tseslint from 'typescript-eslint';

/** Node built-ins may be imported only where a browser never looks. */
const nodeOnly = ['src/cli/**', 'src/platform/node.ts', 'src/tensorflow/**', 'models/**/load*.ts'];

const noDefaultExport = {
  selector: 'ExportDefaultDeclaration',
  message: 'Named exports only: the name of a thing is the same wherever it is used.',
};

const noModuleLocation = {
  selector: 'MetaProperty',
  message: 'import.meta does not exist in the CommonJS build; ask `#platform`.',
};

export default tseslint.config(
  {
    ignores: [
      'build/',
      '**/dist/',
      '**/node_modules/',
      '.cache/',
      'models/gpt2/js-gpt/',
      'test/fixtures/',
    ],
  },
  js.configs.recommended,
  {
    files: ['**/*.mjs', '**/*.cjs'],
    languageOptions: {
      globals: {
        AbortController: 'readonly',
        Buffer: 'readonly',
        URL: 'readonly',
        __dirname: 'readonly',
        console: 'readonly',
        exports: 'writable',
        module: 'writable',
        performance: 'readonly',
        process: 'readonly',
        require: 'readonly',
        setTimeout: 'readonly',
        structuredClone: 'readonly',
      },
    },
  },
  {
    files: ['**/*.ts'],
    extends: [...tseslint.configs.strict, ...tseslint.configs.stylistic],
    languageOptions: {parserOptions: {projectService: true}},
    rules: {
      '@typescript-eslint/await-thenable': 'error',
      '@typescript-eslint/consistent-type-imports': ['error', {fixStyle: 'separate-type-imports'}],
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/only-throw-error': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': [
        'error',
        {considerDefaultExhaustiveForUnions: true},
      ],
      // Kernels index typed arrays in loops whose bounds hold by construction; `!` says so at no cost.
      '@typescript-eslint/no-non-null-assertion': 'off',
      // `for` over an index is what a kernel is.
      '@typescript-eslint/prefer-for-of': 'off',
      // Matters of taste that the strict set leaves open.
      '@typescript-eslint/consistent-indexed-object-style': 'off',
      '@typescript-eslint/consistent-type-definitions': 'off',
      '@typescript-eslint/no-unused-vars': ['error', {varsIgnorePattern: '^_'}],
      // `!= null` is the one way to ask for both kinds of nothing.
      eqeqeq: ['error', 'always', {null: 'ignore'}],
      'no-console': 'error',
      'no-restricted-syntax': ['error', noDefaultExport],
    },
  },
  {
    files: ['src/**/*.ts', 'models/**/*.ts'],
    rules: {'no-restricted-syntax': ['error', noDefaultExport, noModuleLocation]},
  },
  {
    files: ['src/**/*.ts', 'models/**/*.ts'],
    ignores: nodeOnly,
    rules: {
      'no-restricted-imports': [
        'error',
        {patterns: [{regex: '^node:', message: 'Browsers load this file; ask `#platform`.'}]},
      ],
      'no-restricted-globals': ['error', 'process', 'Buffer', 'require', '__dirname', '__filename'],
    },
  },
  {
    files: ['src/**/*.ts', 'models/**/*.ts'],
    ignores: ['src/runtime/config.ts', 'src/platform/node.ts'],
    rules: {
      'no-restricted-properties': [
        'error',
        {object: 'process', property: 'env', message: 'runtime/config.ts is the only reader.'},
      ],
    },
  },
  {
    files: ['test/**/*.ts', 'bench/**/*.ts', 'src/cli/**/*.ts'],
    rules: {'no-console': 'off'},
  },
  {
    files: ['test/**/*.ts'],
    rules: {
      'no-restricted-syntax': [
        'error',
        noDefaultExport,
        {
          selector: "MemberExpression[property.name='only'][object.name=/^(describe|it|test)$/]",
          message: 'A lone `only` switches every other test of the file off.',
        },
      ],
    },
  },
  // Interfaces are merged by the names of their type parameters, used or not.
  {
    files: ['src/accuracy/jest.ts'],
    rules: {'@typescript-eslint/no-unused-vars': ['error', {varsIgnorePattern: '^T$'}]},
  },
  // jest asks for a default export.
  {files: ['jest.config.ts'], rules: {'no-restricted-syntax': 'off'}},
  // Compiled against the built package, by check_types.mjs and check_package.mjs; they belong to no project here.
  {ignores: ['test/types/', 'scripts/consumer/*.ts']},
);
