/**
 * Whether a file may be given to the dynamic loader. A truncated shared library passes `dlopen`'s own checks and ends
 * the process with SIGBUS when a page behind its end is touched, so its headers are compared with its length first.
 * Format: the ELF-64 headers of the System V ABI. Other systems' files are let through.
 */

/** Why a file is refused: `damaged` (not whole, or no library) or `wrong-cpu`. */
export interface BinaryFault {
  readonly code: 'damaged' | 'wrong-cpu';
  readonly message: string;
}

/** `e_machine` by Node's `process.arch`. */
const ELF_MACHINES: Readonly<Record<string, number>> = {
  x64: 62,
  arm64: 183,
  riscv64: 243,
  loong64: 258,
};

const HEADER_BYTES = 64;
const ELF_CLASS_64 = 2;
const ELF_LITTLE_ENDIAN = 1;
const ELF_SHARED_OBJECT = 3;
/** Type of a section without bytes in the file (.bss). */
const SECTION_NOBITS = 8;

/**
 * Checks a file for the machine that is running.
 * @param bytes The whole file.
 * @param os `process.platform`; only `linux` is checked.
 * @param arch `process.arch`.
 */
export function findBinaryFault(
  bytes: Uint8Array,
  os: string | null,
  arch: string | null,
): BinaryFault | null {
  if (os !== 'linux') return null;
  if (bytes.length < HEADER_BYTES) return damaged(`it has ${bytes.length} bytes only`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(0, false) !== 0x7f454c46) return damaged('it is no ELF file');
  if (view.getUint8(4) !== ELF_CLASS_64 || view.getUint8(5) !== ELF_LITTLE_ENDIAN) {
    return {code: 'wrong-cpu', message: 'it is for a 32-bit or big-endian processor'};
  }
  if (view.getUint16(16, true) !== ELF_SHARED_OBJECT) return damaged('it is no shared library');
  const machine = view.getUint16(18, true);
  const expected = arch === null ? undefined : ELF_MACHINES[arch];
  if (expected !== undefined && machine !== expected) {
    return {
      code: 'wrong-cpu',
      message: `it is for ${nameOfMachine(machine)}, this process runs on ${arch}`,
    };
  }
  const end = endOfContents(view);
  if (end > bytes.length) {
    return damaged(`it is truncated: its headers speak of ${end} bytes, it has ${bytes.length}`);
  }
  return null;
}

/** One past the last byte that the headers speak of; beyond the file's end where they are cut off themselves. */
function endOfContents(view: DataView): number {
  const programs = table(view, 32, 54);
  const sections = table(view, 40, 58);
  let end = Math.max(programs.end, sections.end);
  if (end > view.byteLength) return end;
  for (let at = programs.start; at < programs.end; at += programs.entryBytes) {
    // p_offset and p_filesz of a segment.
    end = Math.max(end, word(view, at + 8) + word(view, at + 32));
  }
  for (let at = sections.start; at < sections.end; at += sections.entryBytes) {
    // sh_type, sh_offset and sh_size of a section.
    if (view.getUint32(at + 4, true) === SECTION_NOBITS) continue;
    end = Math.max(end, word(view, at + 24) + word(view, at + 32));
  }
  return end;
}

/** A header table: its offset lies at `offsetAt`, the sizes of an entry and of the table at `countsAt`. */
function table(
  view: DataView,
  offsetAt: number,
  countsAt: number,
): {start: number; end: number; entryBytes: number} {
  const start = word(view, offsetAt);
  const entryBytes = view.getUint16(countsAt, true);
  const count = view.getUint16(countsAt + 2, true);
  if (start === 0 || count === 0) return {start: 0, end: 0, entryBytes: 1};
  // An entry shorter than the fields that are read would let a damaged header send the reader past the end.
  if (entryBytes < 40) return {start, end: Number.POSITIVE_INFINITY, entryBytes: 40};
  return {start, end: start + count * entryBytes, entryBytes};
}

/** A 64-bit word as a number; beyond 2^53 it is inexact and far past the end of any file in any case. */
function word(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
}

function nameOfMachine(machine: number): string {
  const known = Object.entries(ELF_MACHINES).find(([, code]) => code === machine);
  return known?.[0] ?? `processor type ${machine}`;
}

function damaged(what: string): BinaryFault {
  return {code: 'damaged', message: what};
}
