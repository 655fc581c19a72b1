// Types of tensorflow_folder.cjs.
export const TENSORFLOW_VERSION: string;
export const tensorflowFolder: string;
