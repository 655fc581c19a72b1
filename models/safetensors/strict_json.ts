// JSON that refuses duplicate keys. JSON.parse silently keeps the last of two equal keys, so a file could show one
// tensor to this reader and another one to the next; the format forbids them.

/**
 * Parses JSON and refuses an object that holds the same key twice, at any depth.
 *
 * @param text the JSON text
 * @returns the parsed value
 * @throws SyntaxError for text that is not JSON and for duplicate keys
 */
export function parseStrictJson(text: string): unknown {
  const value: unknown = JSON.parse(text);
  const duplicate = findDuplicateKey(text);
  if (duplicate !== undefined) {
    throw new SyntaxError(`duplicate key ${JSON.stringify(duplicate.slice(0, 120))}`);
  }
  return value;
}

/** The first key that its object already holds. `text` must be valid JSON, which keeps the scan this short. */
function findDuplicateKey(text: string): string | undefined {
  // One entry per open container: the keys of an object, or undefined for an array.
  const open: (Set<string> | undefined)[] = [];
  let expectsKey = false;
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '"') {
      const begin = i;
      for (i++; text[i] !== '"'; i++) {
        if (text[i] === '\\') i++;
      }
      const keys = open[open.length - 1];
      if (expectsKey && keys !== undefined) {
        // Unescaped before comparing: "a" and "\u0061" are the same key.
        const key = JSON.parse(text.slice(begin, i + 1)) as string;
        if (keys.has(key)) return key;
        keys.add(key);
      }
      expectsKey = false;
    } else if (character === '{') {
      open.push(new Set());
      expectsKey = true;
    } else if (character === '[') {
      open.push(undefined);
      expectsKey = false;
    } else if (character === '}' || character === ']') {
      open.pop();
      expectsKey = false;
    } else if (character === ',') {
      expectsKey = open[open.length - 1] !== undefined;
    }
  }
  return undefined;
}
