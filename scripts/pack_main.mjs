// Packs the main package as published: `node scripts/pack_main.mjs [destination]` (default: build/packages).
import {join, resolve} from 'node:path';
import {packMain} from './packing.mjs';
import {root} from './set_up/workspace.mjs';

console.log(packMain(resolve(process.argv[2] ?? join(root, 'build', 'packages'))));
