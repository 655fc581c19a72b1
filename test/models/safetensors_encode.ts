// Writes safetensors files for tests, well-formed and not.

/** A tensor to write. */
export interface TensorSpec {
  dtype: string;
  shape: number[];
  data: ArrayBufferView<ArrayBuffer>;
}

/** A file from a header (text, or an object) and the bytes after it. */
export function fileOf(header: unknown, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  const text = typeof header === 'string' ? header : JSON.stringify(header);
  const headerBytes = new TextEncoder().encode(text);
  const file = new Uint8Array(8 + headerBytes.length + data.length);
  new DataView(file.buffer).setBigUint64(0, BigInt(headerBytes.length), true);
  file.set(headerBytes, 8);
  file.set(data, 8 + headerBytes.length);
  return file;
}

/** A well-formed file of these tensors, in this order. `padding` spaces shift the data to any alignment. */
export function encode(tensors: Record<string, TensorSpec>, padding = 0): Uint8Array {
  const header: Record<string, unknown> = {__metadata__: {format: 'pt'}};
  const parts: Uint8Array[] = [];
  let length = 0;
  for (const [name, {dtype, shape, data}] of Object.entries(tensors)) {
    const begin = length;
    parts.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    length += data.byteLength;
    header[name] = {dtype, shape, data_offsets: [begin, length]};
  }
  return fileOf(JSON.stringify(header) + ' '.repeat(padding), Buffer.concat(parts));
}
