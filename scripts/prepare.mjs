// The one way in to every job of this repository: `node scripts/prepare.mjs <job> [arguments]`, which is what the npm
// scripts run. Does what of the set-up is still to do (dependencies, native addon, compiled sources), then the job.
// A second run finds everything stamped and repeats nothing. Node built-ins only: node_modules may not exist yet.
import {jobs} from './jobs.mjs';
import {prepareCompiledSources} from './set_up/compiled_sources.mjs';
import {prepareDependencies} from './set_up/dependencies.mjs';
import {withLock} from './set_up/lock.mjs';
import {builtAddon, prepareNativeAddon} from './set_up/native_addon.mjs';
import {say, SetUpError} from './set_up/workspace.mjs';

async function setUp({needs, withoutAddon}) {
  prepareDependencies();
  if (needs.includes('addon')) {
    try {
      prepareNativeAddon();
    } catch (error) {
      if (!(error instanceof SetUpError) || withoutAddon !== 'go on') throw error;
      const rest =
        builtAddon() === null
          ? 'without it: the TypeScript engine serves, many times slower'
          : 'with the addon of an earlier build';
      say(`${error.message} Going on ${rest}.`);
    }
  }
  if (needs.includes('dist')) await prepareCompiledSources();
}

async function main([name, ...args]) {
  const job = Object.hasOwn(jobs, name ?? '') ? jobs[name] : undefined;
  if (job === undefined) {
    throw new SetUpError(
      `There is no job "${name ?? ''}"; there are: ${Object.keys(jobs).join(', ')}.`,
    );
  }
  await withLock(() => setUp(job));
  return job.run(args);
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof SetUpError)) throw error;
  say(error.message);
  process.exitCode = 1;
}
