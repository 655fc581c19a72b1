/** What `--json` prints: one object, the same frame for every command. */
import type {Machine} from './machine.js';

/** Version of the objects; grows when a field changes its meaning or goes. */
export const REPORT_SCHEMA = 1;

export type Report<Body> = {
  readonly schema: typeof REPORT_SCHEMA;
  readonly machine: Machine;
} & Body;

export function makeReport<Body extends object>(machine: Machine, body: Body): Report<Body> {
  return {schema: REPORT_SCHEMA, machine, ...body};
}
