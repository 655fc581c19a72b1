/** tfjs backends are optional peers: loaded when a command needs one, and missed in words. */
import * as tf from '@tensorflow/tfjs-core';
import {CliError, messageOf} from './cli_error.js';

export const CLI_BACKENDS = ['wasm', 'cpu'] as const;
export type CliBackend = (typeof CLI_BACKENDS)[number];

/** Loaders by name; literal specifiers, so that both module systems resolve them from this package. */
const LOADERS: Readonly<Record<CliBackend, () => Promise<unknown>>> = {
  wasm: () => import('@tensorflow/tfjs-backend-wasm'),
  cpu: () => import('@tensorflow/tfjs-backend-cpu'),
};

export function backendPackage(backend: CliBackend): string {
  return `@tensorflow/tfjs-backend-${backend}`;
}

/**
 * Loads a backend and makes it tfjs' current one.
 * @throws CliError that names the package to install.
 */
export async function startBackend(backend: CliBackend): Promise<void> {
  const name = backendPackage(backend);
  try {
    await LOADERS[backend]();
  } catch (cause) {
    const {code} = (cause ?? {}) as {code?: unknown};
    const missing = code === 'MODULE_NOT_FOUND' || code === 'ERR_MODULE_NOT_FOUND';
    throw new CliError(
      missing
        ? `tfjs backend '${backend}' is not installed.`
        : `tfjs backend '${backend}' cannot be loaded: ${messageOf(cause)}`,
      `npm install ${name}`,
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
