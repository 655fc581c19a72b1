// Where this folder lies. A CommonJS file, since `__dirname` means the same to all three readers of node.ts:
// dist/esm, dist/cjs and the sources under ts-jest. The build copies it beside both compiled forms.
exports.moduleDirectory = __dirname;
