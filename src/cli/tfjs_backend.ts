/** tfjs backends are optional peers: loaded when a command needs one, and missed in words. */
import * as tf from '@tensorflow/tfjs-core';
import {prepareFacade} from '../tensorflow/prepare_facade.js';
import {SET_UP_COMMAND} from '../tensorflow/tensorflow_errors.js';
import {CliError, messageOf} from './cli_error.js';

/** Backends that start everywhere. */
export const PORTABLE_BACKENDS = ['wasm', 'cpu'] as const;

export const CLI_BACKENDS = [...PORTABLE_BACKENDS, 'tensorflow'] as const;
export type CliBackend = (typeof CLI_BACKENDS)[number];

interface BackendLoader {
  readonly package: string;
  /** Commands that bring it. */
  readonly install: string;
  /** Literal specifiers, so that both module systems resolve them from this package. */
  readonly load: () => Promise<unknown>;
}

const LOADERS: Readonly<Record<CliBackend, BackendLoader>> = {
  wasm: {
    package: '@tensorflow/tfjs-backend-wasm',
    install: 'npm install @tensorflow/tfjs-backend-wasm',
    load: () => import('@tensorflow/tfjs-backend-wasm'),
  },
  cpu: {
    package: '@tensorflow/tfjs-backend-cpu',
    install: 'npm install @tensorflow/tfjs-backend-cpu',
    load: () => import('@tensorflow/tfjs-backend-cpu'),
  },
  tensorflow: {
    package: '@tensorflow/tfjs-node',
    install: `npm install --ignore-scripts @tensorflow/tfjs-node@4.22.0, then ${SET_UP_COMMAND}`,
    load: () => {
      prepareFacade('@tensorflow/tfjs-node');
      return import('@tensorflow/tfjs-node');
    },
  },
};

export function backendPackage(backend: CliBackend): string {
  return LOADERS[backend].package;
}

/**
 * Loads a backend and makes it tfjs' current one.
 * @throws CliError that names the package to install, SageAttentionError that names the TensorFlow to set up.
 */
export async function startBackend(backend: CliBackend): Promise<void> {
  const {load, install} = LOADERS[backend];
  try {
    await load();
  } catch (cause) {
    const {code} = (cause ?? {}) as {code?: unknown};
    if (typeof code === 'string' && code.startsWith('tensorflow-')) throw cause;
    const missing = code === 'MODULE_NOT_FOUND' || code === 'ERR_MODULE_NOT_FOUND';
    throw new CliError(
      missing
        ? `tfjs backend '${backend}' is not installed.`
        : `tfjs backend '${backend}' cannot be loaded: ${messageOf(cause)}`,
      install,
      {cause},
    );
  }
  // Otherwise the cpu backend greets with advice to install another package.
  tf.enableProdMode();
  if (!(await tf.setBackend(backend))) {
    throw new CliError(
      `tfjs backend '${backend}' does not start here.`,
      `Try --backend ${backend === 'wasm' ? 'cpu' : 'wasm'}.`,
    );
  }
}
