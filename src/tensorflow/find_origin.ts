/** What TensorFlow's libraries come from: a wheel given, cached or fetched, or a Python environment. */
import {join, resolve} from 'node:path';
import {sha256OfFile} from './file_records.js';
import {defaultCache} from './find_folder.js';
import {findWheel, WHEEL_ARCH, type WheelFile} from './find_wheel.js';
import type {SetUpOptions} from './set_up_options.js';
import {readSitePackages} from './site_packages.js';
import {setUpFailed} from './tensorflow_errors.js';
import {withWheel, type WheelMetadata} from './wheel.js';

/** The version that this package is tested with. */
export const TENSORFLOW_VERSION = '2.21.0';

export interface Origin {
  readonly metadata: WheelMetadata;
  readonly wheel: WheelFile | null;
  readonly sitePackages: string | null;
}

/** Folder of the wheels that are kept. */
export function wheelCache(cache: string | undefined): string {
  return join(resolve(cache ?? defaultCache()), 'wheels');
}

/** @throws SageAttentionError `tensorflow-set-up-failed` when it cannot be had. */
export async function findOrigin(options: SetUpOptions): Promise<{origin: Origin; kept: boolean}> {
  const {gpu, version, wheel, sitePackages, note} = options;
  if (sitePackages !== undefined) {
    const folder = resolve(sitePackages);
    const metadata = readSitePackages(folder);
    return {origin: {metadata, wheel: null, sitePackages: folder}, kept: true};
  }
  const file =
    wheel === undefined
      ? await findWheel({
          project: projectNamed(gpu === true),
          version: version ?? TENSORFLOW_VERSION,
          cache: wheelCache(options.cache),
          note,
          showProgress: options.showProgress === true,
        })
      : {path: resolve(wheel), sha256: await sha256OfFile(wheel), fetched: false};
  note(`${file.path}`);
  const metadata = await withWheel(file.path, (opened) => Promise.resolve(opened.metadata));
  return {origin: {metadata, wheel: file, sitePackages: null}, kept: !file.fetched};
}

/** On arm64 the one wheel is `tensorflow`. */
function projectNamed(gpu: boolean): string {
  return gpu || process.arch !== 'x64' ? 'tensorflow' : 'tensorflow-cpu';
}

/** @throws SageAttentionError `tensorflow-set-up-failed` when it is not what was asked for. */
export function checkOrigin(
  {metadata, wheel, sitePackages}: Origin,
  {gpu, version}: SetUpOptions,
): void {
  const {project, version: found, tags} = metadata;
  const where = wheel?.path ?? sitePackages ?? '';
  const argument = wheel === null ? 'site-packages' : 'wheel';
  const refuse = (what: string, hint: string) => setUpFailed(`${where}: ${what}.`, hint, argument);
  if (project !== 'tensorflow' && project !== 'tensorflow-cpu') {
    throw refuse(`it is ${project} ${found}`, 'Expected tensorflow or tensorflow-cpu.');
  }
  if (version !== undefined && version !== found) {
    throw refuse(
      `it is version ${found}, asked for was ${version}`,
      'Leave --version out, or give another file.',
    );
  }
  const arch = WHEEL_ARCH[process.arch] ?? process.arch;
  if (!tags.some((tag) => tag.includes('linux') && tag.endsWith(arch))) {
    throw refuse(`it is for ${tags.join(', ')}`, `Expected a wheel for Linux on ${arch}.`);
  }
  if (gpu === true && project !== projectNamed(true)) {
    throw refuse('this build cannot use a GPU', 'Leave --gpu out, or give the wheel `tensorflow`.');
  }
}
