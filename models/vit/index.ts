/** tfjs-sage-attention/models/vit (Node): the Vision Transformer as a classifier, attention as an argument. */
export type {Attention, AttentionOptions} from '../attention.js';
export {ModelError, type ModelErrorPlace} from '../model_error.js';
export {plainAttention} from '../plain_attention.js';
export {SafetensorsError} from '../safetensors/errors.js';
export type {WeightSource} from '../weight_reader.js';
export {parseVitConfig, parseVitProcessor, type VitConfig, type VitProcessor} from './config.js';
export {loadVit, type LoadVitOptions} from './load.js';
export {type PixelImage, type ResizeFilter, resizeImage} from './resize_image.js';
export {Vit, type VitClass} from './vit.js';
