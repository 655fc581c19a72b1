/** Optional peers that the facades re-export; they need not be installed to compile this package. */
declare module '@tensorflow/tfjs-node' {
  export * from '@tensorflow/tfjs';
}
declare module '@tensorflow/tfjs-node-gpu' {
  export * from '@tensorflow/tfjs';
}
