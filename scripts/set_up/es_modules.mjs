// Turns a folder of ES modules as the compiler leaves it (`.js`, `.d.ts`) into `.mjs` and `.d.mts`: the package's own
// type is CommonJS, and a nested package.json that says otherwise would hide the root's `imports` (`#platform`).
// The sources name their neighbours as `./name.js`; every such specifier becomes `./name.mjs`.
import {readdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {join} from 'node:path';
import {dependency} from './workspace.mjs';

const RELATIVE = /^(\.{1,2}\/.*)\.js$/;

/** Start and end of every module specifier of a file, quotes left out. */
function specifiers(ts, name, text) {
  const found = [];
  const take = (node) => {
    if (node && ts.isStringLiteral(node) && RELATIVE.test(node.text)) {
      found.push({start: node.getStart(file) + 1, end: node.getEnd() - 1, text: node.text});
    }
  };
  const visit = (node) => {
    if (ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) take(node.moduleSpecifier);
    else if (ts.isModuleDeclaration(node)) take(node.name);
    else if (ts.isImportTypeNode(node)) take(node.argument.literal);
    else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) {
      take(node.arguments[0]);
    }
    ts.forEachChild(node, visit);
  };
  const file = ts.createSourceFile(name, text, ts.ScriptTarget.Latest);
  visit(file);
  return found;
}

function renameSpecifiers(ts, name, text) {
  let result = '';
  let end = 0;
  for (const specifier of specifiers(ts, name, text)) {
    result += text.slice(end, specifier.start) + specifier.text.replace(RELATIVE, '$1.mjs');
    end = specifier.end;
  }
  return result + text.slice(end);
}

/** `a.js` -> `a.mjs`, `a.d.ts` -> `a.d.mts`, and the same for their maps; null for every other file. */
function renamed(name) {
  const match = /^(.*)\.(js|d\.ts)(\.map)?$/.exec(name);
  if (match === null) return null;
  return `${match[1]}.${match[2] === 'js' ? 'mjs' : 'd.mts'}${match[3] ?? ''}`;
}

export function turnIntoEsModules(directory) {
  const ts = createRequire(import.meta.url)(dependency('typescript'));
  for (const entry of readdirSync(directory, {recursive: true, withFileTypes: true})) {
    const target = entry.isFile() ? renamed(entry.name) : null;
    if (target === null) continue;
    const path = join(entry.parentPath ?? entry.path, entry.name);
    let text = readFileSync(path, 'utf8');
    if (entry.name.endsWith('.map')) {
      text = JSON.stringify({...JSON.parse(text), file: target.slice(0, -'.map'.length)});
    } else {
      text = renameSpecifiers(ts, entry.name, text);
      text = text.replace(`sourceMappingURL=${entry.name}.map`, `sourceMappingURL=${target}.map`);
    }
    rmSync(path);
    writeFileSync(join(path, '..', target), text);
  }
}
