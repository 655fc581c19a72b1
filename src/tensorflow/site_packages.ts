/** A Python environment's folder with TensorFlow installed: whose libraries are used where they lie. */
import {existsSync, readdirSync, readFileSync} from 'node:fs';
import {join} from 'node:path';
import {LIBRARIES} from './manifest.js';
import {setUpFailed} from './tensorflow_errors.js';
import {parseMetadata, type WheelMetadata} from './wheel.js';

/** @throws SageAttentionError `tensorflow-set-up-failed` when there is no TensorFlow in it. */
export function readSitePackages(folder: string): WheelMetadata {
  const refuse = (what: string) =>
    setUpFailed(
      `--site-packages ${folder}: ${what}.`,
      'python3 -c "import tensorflow, os; print(os.path.dirname(os.path.dirname(tensorflow.__file__)))" tells the folder.',
      'site-packages',
    );
  if (!existsSync(folder)) throw refuse('there is no such folder');
  const missing = LIBRARIES.filter((name) => !existsSync(join(folder, 'tensorflow', name)));
  if (missing.length > 0) throw refuse(`tensorflow/${missing.join(', ')} not found`);
  const info = readdirSync(folder).find((name) =>
    /^tensorflow(_cpu)?-[\d.]\S*\.dist-info$/.test(name),
  );
  if (info === undefined) throw refuse('it has no tensorflow-*.dist-info');
  const read = (name: string): string => {
    const path = join(folder, info, name);
    return existsSync(path) ? readFileSync(path, 'utf8') : '';
  };
  return parseMetadata(read('METADATA'), read('WHEEL'));
}
