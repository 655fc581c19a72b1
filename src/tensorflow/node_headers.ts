/** Where `node_api.h` is: Node's own headers, or the npm package node-api-headers. */
import {existsSync} from 'node:fs';
import {createRequire} from 'node:module';
import {homedir} from 'node:os';
import {dirname, join, resolve} from 'node:path';
import {platform} from '#platform';
import {tensorflowEnvironment} from '../runtime/config.js';
import {setUpFailed} from './tensorflow_errors.js';

/**
 * The first folder with node_api.h.
 * @param project Directory whose node_modules are looked at.
 * @throws SageAttentionError `tensorflow-set-up-failed` when there is none.
 */
export function findNodeHeaders(project: string): string {
  const {nodeInclude} = tensorflowEnvironment();
  const candidates = [
    nodeInclude,
    resolve(dirname(process.execPath), '..', 'include', 'node'),
    headersPackage(project),
    platform.packageRoot === null ? null : headersPackage(platform.packageRoot),
    join(homedir(), '.cache', 'node-gyp', process.versions.node, 'include', 'node'),
    '/usr/include/node',
    '/usr/local/include/node',
  ];
  const found = candidates.find((folder) => folder && existsSync(join(folder, 'node_api.h')));
  if (found) return found;
  throw setUpFailed(
    'node_api.h is not found: this Node came without its headers.',
    'npm install --save-dev node-api-headers, or set SAGE_NODE_INCLUDE to the folder that holds it.',
  );
}

function headersPackage(directory: string): string | null {
  try {
    const {resolve: find} = createRequire(join(directory, 'index.js'));
    return join(dirname(find('node-api-headers/package.json')), 'include');
  } catch {
    return null;
  }
}
