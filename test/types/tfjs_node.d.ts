/** Stand-ins for two optional peers that are not installed here; both re-export tfjs. */
declare module '@tensorflow/tfjs-node' {
  export * from '@tensorflow/tfjs';
}

declare module '@tensorflow/tfjs-node-gpu' {
  export * from '@tensorflow/tfjs';
}
