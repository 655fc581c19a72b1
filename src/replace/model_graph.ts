/**
 * A GraphDef, or the body of one of its library functions, as matchers read it: nodes by name, who reads whom, and
 * constants decoded when they are asked for.
 */

/** An attribute as tfjs' JSON writes it. */
export interface GraphAttribute {
  readonly b?: boolean;
  readonly i?: number | string;
  readonly f?: number;
  /** Base64, or the bytes. */
  readonly s?: string | readonly number[];
  readonly type?: string | number;
  readonly shape?: GraphShape;
  readonly tensor?: unknown;
  readonly list?: unknown;
  readonly func?: unknown;
}

export interface GraphShape {
  readonly dim?: readonly {readonly size?: string | number}[];
  readonly unknownRank?: boolean;
}

export interface GraphNode {
  name: string;
  op: string;
  input?: string[];
  attr?: Record<string, GraphAttribute>;
}

export interface GraphFunction {
  readonly signature: {
    readonly name: string;
    readonly inputArg?: readonly {readonly name: string}[];
    readonly outputArg?: readonly {readonly name: string}[];
  };
  nodeDef?: GraphNode[];
  readonly ret?: Readonly<Record<string, string>>;
}

export interface GraphTopology {
  node: GraphNode[];
  library?: {function?: GraphFunction[]};
  versions?: unknown;
}

/** A weight of the model. */
export interface GraphConstant {
  readonly shape: readonly number[];
  readonly dtype: string;
  /** Read only when asked for: weights may be large, or on another device. null where they cannot be had now. */
  readonly values: ArrayLike<number> | null;
}

/** Looks a weight up by the name of its Const node; null when there is none. */
export type ConstantReader = (name: string) => GraphConstant | null;

/** What reads a node's output. */
export interface Consumer {
  readonly node: GraphNode;
  /** Position in `node.input`. */
  readonly position: number;
  /** `^name`: an order, no data. */
  readonly isControl: boolean;
}

export interface ParsedReference {
  readonly name: string;
  /** Which output of the node. */
  readonly output: number;
  readonly isControl: boolean;
}

/** Reads `name`, `name:1`, `^name`, and `name:port:0` as function bodies write it. */
export function parseReference(reference: string): ParsedReference {
  const isControl = reference.startsWith('^');
  const parts = (isControl ? reference.slice(1) : reference).split(':');
  const output = parts.length > 1 ? Number(parts[parts.length - 1]) : 0;
  return {name: parts[0] as string, output: Number.isNaN(output) ? 0 : output, isControl};
}

/** Outputs of multi-output ports of function bodies (`split:output:1`) and of graphs (`split:1`) in one form. */
function sameOutput(a: string, b: string): boolean {
  const left = parseReference(a);
  const right = parseReference(b);
  return left.name === right.name && left.output === right.output;
}

export class GraphView {
  private readonly byName: Map<string, GraphNode>;
  private readonly readers = new Map<string, Consumer[]>();

  /**
   * @param kept Names of nodes whose outputs are wanted from outside: they must stay, and be read by nobody but us.
   */
  constructor(
    readonly nodes: readonly GraphNode[],
    private readonly kept: ReadonlySet<string>,
    private readonly readConstant: ConstantReader,
  ) {
    this.byName = new Map(nodes.map((node) => [node.name, node]));
    for (const node of nodes) {
      for (const [position, reference] of (node.input ?? []).entries()) {
        const {name, isControl} = parseReference(reference);
        const list = this.readers.get(name) ?? [];
        list.push({node, position, isControl});
        this.readers.set(name, list);
      }
    }
  }

  node(name: string): GraphNode | null {
    return this.byName.get(name) ?? null;
  }

  isKept(node: GraphNode): boolean {
    return this.kept.has(node.name);
  }

  /** The node whose first output `reference` is; null for arguments of functions and for other outputs. */
  producer(reference: string | undefined): GraphNode | null {
    if (reference === undefined) return null;
    const {name, output, isControl} = parseReference(reference);
    return isControl || output !== 0 ? null : this.node(name);
  }

  /** Data inputs, without control inputs. */
  inputs(node: GraphNode): string[] {
    return (node.input ?? []).filter((reference) => !reference.startsWith('^'));
  }

  /** Everything that reads any output of a node. */
  consumers(node: GraphNode): readonly Consumer[] {
    return this.readers.get(node.name) ?? [];
  }

  /** Readers of the values: those that only ask for the shape, or wait for the node, do not count. */
  valueReaders(node: GraphNode): GraphNode[] {
    return this.consumers(node)
      .filter(({node: reader, isControl}) => !isControl && reader.op !== 'Shape')
      .map(({node: reader}) => reader);
  }

  /** Whether both are one output of one node. */
  same(a: string, b: string): boolean {
    return sameOutput(a, b);
  }

  /** The constant behind a reference, through Identity; null when it is computed. */
  constant(reference: string | undefined): GraphConstant | null {
    let node = this.producer(reference);
    for (let i = 0; node !== null && i < 8; i += 1) {
      if (node.op === 'Const') return this.readConstant(node.name);
      if (!['Identity', 'ReadVariableOp', 'StopGradient'].includes(node.op)) return null;
      node = this.producer(this.inputs(node)[0]);
    }
    return null;
  }

  /** The value of a constant that holds one number. */
  scalar(reference: string | undefined): number | null {
    const constant = this.constant(reference);
    if (constant === null || sizeOf(constant.shape) !== 1) return null;
    return constant.values?.[0] ?? null;
  }

  /** The values of a small constant, as of a permutation. */
  list(reference: string | undefined): number[] | null {
    const constant = this.constant(reference);
    if (constant === null || sizeOf(constant.shape) > MAX_LIST) return null;
    return constant.values === null ? null : Array.from(constant.values);
  }
}

/** Longer constants are no shapes, axes or permutations. */
const MAX_LIST = 64;

export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

export function flag(node: GraphNode, ...names: string[]): boolean {
  return names.some((name) => node.attr?.[name]?.b === true);
}

export function integer(node: GraphNode, name: string): number {
  return Number(node.attr?.[name]?.i ?? 0);
}

/** A string attribute; null when the node has none. */
export function text(node: GraphNode, name: string): string | null {
  const value = node.attr?.[name]?.s;
  if (value === undefined) return null;
  return typeof value === 'string' ? atob(value) : String.fromCharCode(...value);
}

/** `DT_FLOAT` and the like, also where the JSON writes the number. */
export function typeName(node: GraphNode, name: string): string | null {
  const type = node.attr?.[name]?.type;
  if (type === undefined) return null;
  return typeof type === 'number' ? (TYPE_NAMES[type] ?? null) : type;
}

/** Numbers of TensorFlow's types.proto that matter here. */
const TYPE_NAMES: Readonly<Record<number, string>> = {
  1: 'DT_FLOAT',
  2: 'DT_DOUBLE',
  3: 'DT_INT32',
  9: 'DT_INT64',
  10: 'DT_BOOL',
  14: 'DT_BFLOAT16',
  19: 'DT_HALF',
};

const FLOAT_TYPES = new Set(['DT_FLOAT', 'DT_DOUBLE', 'DT_HALF', 'DT_BFLOAT16']);

/** Whether a node hands its first input on unchanged, save for the width of its floats: tfjs knows one width. */
export function passesThrough(node: GraphNode): boolean {
  switch (node.op) {
    case 'Identity':
    case 'StopGradient':
    case 'PreventGradient':
    case 'Snapshot':
    case 'CheckNumerics':
      return true;
    case 'Cast':
      return (
        FLOAT_TYPES.has(typeName(node, 'DstT') ?? '') &&
        FLOAT_TYPES.has(typeName(node, 'SrcT') ?? '')
      );
    default:
      return false;
  }
}
