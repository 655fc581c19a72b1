/**
 * Where a command speaks: what it was asked for goes to stdout, progress and notes go to stderr. With `--json` stdout
 * carries one object and nothing else.
 */

/** The part of a stream that commands use. */
export interface TextSink {
  write(text: string): unknown;
  readonly isTTY?: boolean | undefined;
}

export interface Terminal {
  /** Whether colours are welcome on stdout. */
  readonly colours: boolean;
  /** One paragraph of the result on stdout; nothing with `--json`. */
  print(text: string): void;
  /** Text on stdout as it comes, without a line end; nothing with `--json`. */
  write(text: string): void;
  /** One line on stderr. */
  note(text: string): void;
}

export function openTerminal(json: boolean, stdout: TextSink, stderr: TextSink): Terminal {
  const write = (text: string): void => {
    if (!json) stdout.write(text);
  };
  return {
    colours: !json && stdout.isTTY === true,
    print: (text) => write(`${text}\n`),
    write,
    note: (text) => void stderr.write(`${text}\n`),
  };
}

/** Text of a file or of a model as it may be shown: a terminal would obey some of the control characters. */
export function printable(text: string): string {
  // eslint-disable-next-line no-control-regex -- these are meant
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '\ufffd');
}

/** Sends what libraries log to stderr until the returned function is called: stdout belongs to the command. */
export function divertLogs(stderr: TextSink): () => void {
  const {log, info, debug} = console;
  const divert = (...parts: unknown[]): void =>
    void stderr.write(`${parts.map(String).join(' ')}\n`);
  Object.assign(console, {log: divert, info: divert, debug: divert});
  return () => void Object.assign(console, {log, info, debug});
}
