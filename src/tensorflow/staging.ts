/**
 * The folder in which a set-up works: beside the one it makes, so that a finished one is renamed into place and a
 * half-made one is never found. What each step made is recorded; a later run keeps it if it is still the same.
 */
import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import {dirname, join} from 'node:path';
import {areUnchanged} from './file_records.js';
import {BINDING_NAME, LIBRARY_FOLDER, MANIFEST_NAME, type FileRecord} from './manifest.js';

/** Names of the steps whose outcome is kept. */
export type StepName = 'libraries' | 'binding';

interface StepRecord {
  /** What the outcome depends on. */
  readonly key: string;
  readonly files: readonly FileRecord[];
}

type StepRecords = Partial<Record<StepName, StepRecord>>;

const RECORDS_NAME = 'steps.json';

/** Keeps version control and packing away from libraries of a gigabyte. */
const IGNORE_NAME = '.gitignore';

/** Files of a finished folder beside those that the manifest lists. */
export const OWN_FILES = [RECORDS_NAME, IGNORE_NAME];

/** Everything that a set-up may leave at the top of its folder. */
const OWN_ENTRIES: ReadonlySet<string> = new Set([
  ...OWN_FILES,
  MANIFEST_NAME,
  BINDING_NAME,
  LIBRARY_FOLDER,
  'nvidia',
  'cuda_runtime',
  'work',
]);

export const stagingOf = (folder: string): string => `${folder}.partial`;
const retiredOf = (folder: string): string => `${folder}.old`;

export class Staging {
  readonly folder: string;
  private readonly records: StepRecords;

  /** @param final Absolute path of the folder to be. */
  constructor(readonly final: string) {
    this.folder = stagingOf(final);
    mkdirSync(this.folder, {recursive: true});
    writeFileSync(join(this.folder, IGNORE_NAME), '*\n');
    this.records = readRecords(this.folder);
  }

  /** The folder for what comes and goes; it is not part of the result. */
  get work(): string {
    return join(this.folder, 'work');
  }

  /**
   * Does a step, unless its outcome is there from an earlier run, here or in the finished folder, with the same key and
   * the same checksums.
   * @param make Makes the files and returns their records, paths relative to the folder.
   * @returns The files, and whether they were kept.
   */
  async step(
    name: StepName,
    key: string,
    make: () => Promise<readonly FileRecord[]>,
  ): Promise<{files: readonly FileRecord[]; kept: boolean}> {
    const kept = (await this.keep(name, key)) ?? (await this.adopt(name, key));
    if (kept !== null) return {files: kept, kept: true};
    this.forget(name);
    const files = await make();
    this.remember(name, {key, files});
    return {files, kept: false};
  }

  /** Puts the folder in its place; the one before it goes, but for files that are not of a set-up. */
  finish(): void {
    rmSync(this.work, {recursive: true, force: true});
    const retired = retiredOf(this.final);
    if (existsSync(this.final)) {
      // Of a run that was killed below.
      dissolve(retired, this.final);
      renameSync(this.final, retired);
    }
    renameSync(this.folder, this.final);
    dissolve(retired, this.final);
  }

  /** Drops everything, because the finished folder is as it should be. */
  discard(): void {
    rmSync(this.folder, {recursive: true, force: true});
  }

  private async keep(name: StepName, key: string): Promise<readonly FileRecord[] | null> {
    const record = this.records[name];
    if (record?.key !== key || !(await areUnchanged(this.folder, record.files))) return null;
    return record.files;
  }

  /** Files of the finished folder, as further names of the same bytes. */
  private async adopt(name: StepName, key: string): Promise<readonly FileRecord[] | null> {
    const record = readRecords(this.final)[name];
    if (record?.key !== key || !(await areUnchanged(this.final, record.files))) return null;
    for (const {path} of record.files) {
      const target = join(this.folder, path);
      mkdirSync(dirname(target), {recursive: true});
      rmSync(target, {force: true});
      linkSync(join(this.final, path), target);
    }
    this.remember(name, record);
    return record.files;
  }

  private forget(name: StepName): void {
    for (const {path} of this.records[name]?.files ?? []) {
      rmSync(join(this.folder, path), {force: true});
    }
    Reflect.deleteProperty(this.records, name);
    this.save();
  }

  private remember(name: StepName, record: StepRecord): void {
    this.records[name] = record;
    this.save();
  }

  private save(): void {
    const path = join(this.folder, RECORDS_NAME);
    writeFileSync(`${path}.partial`, JSON.stringify(this.records));
    renameSync(`${path}.partial`, path);
  }
}

/** Removes a folder that was set aside; files in it that are not of a set-up move into another one. */
function dissolve(retired: string, into: string): void {
  if (!existsSync(retired)) return;
  for (const name of readdirSync(retired)) {
    const target = join(into, name);
    if (!OWN_ENTRIES.has(name) && !existsSync(target)) renameSync(join(retired, name), target);
  }
  rmSync(retired, {recursive: true, force: true});
}

/** Empty where there are none, or none that can be read. */
function readRecords(folder: string): StepRecords {
  try {
    return JSON.parse(readFileSync(join(folder, RECORDS_NAME), 'utf8')) as StepRecords;
  } catch {
    return {};
  }
}
