/** How the loader of layers models words what is wrong with a file. */
import {SageAttentionError, type SageErrorCode} from '../../runtime/errors.js';

/** What every error about a file names. */
export class ModelFile {
  /** @param name Path, address, or what else tells the user which file it is. */
  constructor(readonly name: string) {}

  /** Not readable, cut short, or no layers model. */
  invalid(layer: string | null, what: string, cause?: unknown): SageAttentionError {
    const hint = 'Download or convert the model again.';
    return this.error('invalid-model', layer, `${this.place(layer)}: ${what}.`, hint, cause);
  }

  /** A class that nobody registered. */
  unknown(layer: string, className: string): SageAttentionError {
    return this.error(
      'unknown-layer',
      layer,
      `${this.place(layer)}: there is no layer class \`${className}\`.`,
      'Register it with tf.serialization.registerClass() before loading, or convert the model as a graph model.',
    );
  }

  /** A setting or a way of calling that cannot be computed. */
  unsupported(layer: string, what: string, hint: string): SageAttentionError {
    return this.error('unsupported-layer', layer, `${this.place(layer)}: ${what}.`, hint);
  }

  private place(layer: string | null): string {
    return `loadLayersModel: ${this.name}${layer === null ? '' : `, layer \`${layer}\``}`;
  }

  private error(
    code: SageErrorCode,
    argument: string | null,
    message: string,
    hint: string,
    cause?: unknown,
  ): SageAttentionError {
    return new SageAttentionError({code, argument, message, hint, cause});
  }
}
