// Packs the platform package of this machine: `node scripts/pack_platform.mjs [destination]` (default: build/packages).
import {join, resolve} from 'node:path';
import {packPlatform} from './packing.mjs';
import {root} from './set_up/workspace.mjs';

const destination = resolve(process.argv[2] ?? join(root, 'build', 'packages'));
const directory = join(root, 'npm', `${process.platform}-${process.arch}`);
console.log(packPlatform(directory, destination));
