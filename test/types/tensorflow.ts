/** The loader's entry: what it gives is typed without tfjs-node. */
import {preparedTensorflow, type TensorflowManifest} from 'tfjs-sage-attention/tensorflow';

export const folder: string = preparedTensorflow.folder;
export const manifest: TensorflowManifest = preparedTensorflow.manifest;
export const major: 12 | 13 | null | undefined = manifest.cuda?.major;
// @ts-expect-error: what the set-up wrote down is not changed
manifest.tensorflow = '2.9.1';
