/** Initializers, regularizers and constraints, by Keras' names or as instances, through the registry of tfjs. */
import {serialization} from '@tensorflow/tfjs-core';
import type * as tfl from '@tensorflow/tfjs-layers';
import {describeValue, SageAttentionError} from '../runtime/errors.js';

export type Initializer = ReturnType<typeof tfl.initializers.ones>;
export type Regularizer = ReturnType<typeof tfl.regularizers.l1l2>;
export type Constraint = ReturnType<typeof tfl.constraints.nonNeg>;

/** A name (`'glorotUniform'`, `'glorot_uniform'`, `'GlorotUniform'`), a `{className, config}`, or an instance. */
export type Identifier<T> = string | serialization.ConfigDict | T;

/** Classes that tfjs spells differently. */
const TFJS_NAMES: Readonly<Record<string, string>> = {
  LecunNormal: 'LeCunNormal',
  LecunUniform: 'LeCunUniform',
  L1: 'L1L2',
  L2: 'L1L2',
  L1l2: 'L1L2',
  NonNegative: 'NonNeg',
  OrthogonalInitializer: 'Orthogonal',
  IdentityInitializer: 'Identity',
};

/** Whether tfjs has the class that Keras calls `className`, and its name there. */
export function tfjsClassName(className: string): string | null {
  const pascal = className
    .replace(/_+(\w)/g, (_, letter: string) => letter.toUpperCase())
    .replace(/^\w/, (letter) => letter.toUpperCase());
  const name = TFJS_NAMES[pascal] ?? pascal;
  return name in serialization.SerializationMap.getMap().classNameMap ? name : null;
}

/** The object that `identifier` means; null for null and undefined. */
export function kerasObject<T extends serialization.Serializable>(
  layer: string,
  argument: string,
  identifier: Identifier<T> | null | undefined,
): T | null {
  if (identifier == null) return null;
  if (identifier instanceof serialization.Serializable) return identifier;
  const {className, config} =
    typeof identifier === 'string'
      ? {className: identifier, config: {}}
      : (identifier as {className?: unknown; config?: serialization.ConfigDict | null});
  const known = typeof className === 'string' ? tfjsClassName(className) : null;
  if (known === null) {
    throw new SageAttentionError({
      code: 'invalid-option',
      argument,
      message: `${layer}: \`${argument}\` is ${describeValue(className ?? identifier)}, which is no class that tfjs knows.`,
      hint: 'Name one of tf.initializers, tf.regularizers or tf.constraints, or pass the object itself.',
    });
  }
  const [cls, fromConfig] = serialization.SerializationMap.getMap().classNameMap[
    known
  ] as unknown as [serialization.SerializableConstructor<T>, serialization.FromConfigMethod<T>];
  return fromConfig(cls, config ?? {});
}

/** What `getConfig` says of such an object. */
export function configOf(
  object: serialization.Serializable | null,
): {className: string; config: serialization.ConfigDict} | null {
  return object === null ? null : {className: object.getClassName(), config: object.getConfig()};
}
