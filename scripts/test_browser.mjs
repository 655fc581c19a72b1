// Opens the built page of examples/browser in headless Chromium and uses it: loads the model, generates exactly and in low
// bits, and compares the exact text with what Node computes. Skips, saying so, where no Chromium is found.
/* global document, OffscreenCanvas -- what evaluate() runs is run by the page */
import {spawnSync} from 'node:child_process';
import {existsSync, statSync} from 'node:fs';
import {createRequire} from 'node:module';
import {delimiter, join} from 'node:path';
import {pathToFileURL} from 'node:url';
import {root, say} from './set_up/workspace.mjs';

const example = join(root, 'examples', 'browser');

/** Names under which distributions install it; CHROME_PATH names another. */
const CHROMIUM = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'];

/** What the page is asked to continue: short, so that a slow machine is done in a minute. */
const PROMPT = 'function add(a, b) {\n  return a + b;\n}\n\nfunction subtract(a, b) {\n';
const NEW_BYTES = 24;

/** Far above what a run takes on a busy machine. */
const TIMEOUT_MS = 240_000;

function findChromium() {
  const given = process.env.CHROME_PATH;
  if (given !== undefined && given !== '') return existsSync(given) ? given : undefined;
  const folders = (process.env.PATH ?? '').split(delimiter);
  return CHROMIUM.flatMap((name) => folders.map((folder) => join(folder, name))).find(
    (path) => existsSync(path) && statSync(path).isFile(),
  );
}

/** Installs the example's packages as its lock says, unless they are there. */
function installExample() {
  if (existsSync(join(example, 'node_modules', 'vite'))) return true;
  say('installing the packages of examples/browser ...');
  const child = spawnSync('npm', ['ci', '--ignore-scripts', '--loglevel=error'], {
    cwd: example,
    stdio: 'inherit',
    shell: process.platform === 'win32',
  });
  return child.status === 0;
}

function check(holds, what) {
  if (!holds) throw new Error(`The page failed: ${what}.`);
}

/** The text that Node generates from the same files by plain tfjs ops, and the prompt's loss in bits per byte. */
async function expectedAnswer() {
  const require = createRequire(join(root, 'package.json'));
  const tf = require('@tensorflow/tfjs-core');
  require('@tensorflow/tfjs-backend-wasm');
  const {
    bitsPerByte,
    loadGpt2,
    encodeBytes,
    decodeBytes,
  } = require('tfjs-sage-attention/models/gpt2');
  await tf.setBackend('wasm');
  const model = await loadGpt2(join(root, 'models', 'gpt2', 'js-gpt'));
  const prompt = encodeBytes(PROMPT);
  const text = decodeBytes(await model.generate(prompt, {maxNewTokens: NEW_BYTES}));
  const bits = bitsPerByte(model.negativeLogLikelihood(prompt));
  model.dispose();
  return {text, bits};
}

/** What the page shows, read at once. */
const readPage = (page) =>
  page.evaluate(() => {
    const column = (id) => {
      const part = document.getElementById(id);
      const canvas = part.querySelector('canvas');
      // A copy made for reading: the page's own canvas is for drawing.
      const copy = new OffscreenCanvas(canvas.width, canvas.height);
      const context = copy.getContext('2d', {willReadFrequently: true});
      context.drawImage(canvas, 0, 0);
      const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
      const colours = new Set();
      for (let i = 0; i < data.length; i += 4) colours.add(data.slice(i, i + 3).join());
      return {
        text: part.querySelector('.new')?.textContent ?? '',
        title: part.querySelector('h2').textContent,
        engine: part.querySelector('.engine').textContent,
        prefill: part.querySelector('.prefill').textContent,
        speed: part.querySelector('.speed').textContent,
        label: canvas.getAttribute('aria-label'),
        colours: colours.size,
      };
    };
    return {
      exact: column('exact'),
      low: column('low'),
      agreement: document.getElementById('agreement').textContent,
      status: document.getElementById('status').textContent,
      tensors: document.body.dataset.tensors,
      unnamed: [...document.querySelectorAll('input, select, textarea, button, canvas, progress')]
        .filter((part) => !(part.labels?.length || part.textContent.trim() || part.ariaLabel))
        .map((part) => part.outerHTML),
    };
  });

const waitForStatus = (page, pattern) =>
  page.waitForFunction(
    (source) => new RegExp(source).test(document.getElementById('status').textContent),
    {timeout: TIMEOUT_MS},
    pattern,
  );

async function setField(page, id, value) {
  await page.$eval(
    `#${id}`,
    (field, text) => {
      field.value = text;
    },
    value,
  );
}

/** Generates with a recipe; what the page shows then. */
async function generate(page, precision) {
  await setField(page, 'precision', precision);
  await page.click('#generate');
  await waitForStatus(page, '^(Done|Failed|Stopped)');
  const seen = await readPage(page);
  check(seen.status === 'Done.', `${precision}: ${seen.status}`);
  return seen;
}

async function usePage(page, expected) {
  await waitForStatus(page, '^(Ready|The model did not load)');
  await setField(page, 'prompt', PROMPT);
  await setField(page, 'tokens', String(NEW_BYTES));

  const first = await generate(page, 'int8_fp8');
  const {exact, low} = first;
  check(
    exact.text === expected.text,
    `exact gave ${JSON.stringify(exact.text)}, Node ${JSON.stringify(expected.text)}`,
  );
  check([...low.text].length > 0, 'int8_fp8 gave no text');
  check(exact.title === 'exact' && low.title === 'int8_fp8', 'the columns have other titles');
  for (const column of [exact, low]) {
    check(/^\d+ bytes in \d+ ms$/.test(column.prefill), `prompt time is '${column.prefill}'`);
    check(/^\d+\.\d tokens\/s$/.test(column.speed), `speed is '${column.speed}'`);
    check(/ on (wasm|cpu)$/.test(column.engine), `engine is '${column.engine}'`);
    check(column.colours > 50, `the heat map has ${column.colours} colours`);
    check(/looks most at/.test(column.label), `the heat map is called '${column.label}'`);
  }
  const share = Number(/likeliest at ([\d.]+) %/.exec(first.agreement)?.[1]);
  check(share > 80 && share <= 100, `agreement says '${first.agreement}'`);
  const bits = Number(/is ([\d.]+) bits per byte with exact/.exec(first.agreement)?.[1]);
  check(Math.abs(bits - expected.bits) < 2e-3, `the loss is ${bits}, in Node ${expected.bits}`);
  check(first.unnamed.length === 0, `parts without a name: ${first.unnamed.join()}`);
  say(`int8_fp8: ${first.agreement}`);
  say(`exact ${exact.engine}: ${exact.speed}; int8_fp8 ${low.engine}: ${low.speed}`);

  const same = await generate(page, 'exact');
  check(same.low.text === same.exact.text, 'exact beside exact gave two texts');
  check(/all \d+ bytes.*100\.0 %.*\+0\.0000/.test(same.agreement), `it says '${same.agreement}'`);
  check(same.tensors === first.tensors, `tensors went from ${first.tensors} to ${same.tensors}`);

  await setField(page, 'tokens', '400');
  await page.click('#generate');
  await waitForStatus(page, '^Generating with exact');
  await page.waitForFunction(() => document.querySelector('#exact .new')?.textContent.length > 3, {
    timeout: TIMEOUT_MS,
  });
  await page.click('#stop');
  await waitForStatus(page, '^Stopped');
  const stopped = await readPage(page);
  check(stopped.tensors === first.tensors, 'stopping left tensors behind');
}

async function testBrowser() {
  const chromium = findChromium();
  if (chromium === undefined) {
    say(`skipped: no Chromium (${CHROMIUM.join(', ')} on PATH, or CHROME_PATH)`);
    return 0;
  }
  if (!installExample()) throw new Error('npm ci in examples/browser failed.');
  const installed = (name, file) =>
    import(pathToFileURL(join(example, 'node_modules', name, file)).href);
  const require = createRequire(join(example, 'package.json'));
  const {build, preview} = await import(pathToFileURL(require.resolve('vite')).href);
  const {default: puppeteer} = await installed('puppeteer-core', 'lib/puppeteer/puppeteer-core.js');

  const configFile = join(example, 'vite.config.ts');
  await build({root: example, configFile, logLevel: 'warn'});
  const expected = await expectedAnswer();
  const options = {host: '127.0.0.1', port: 0, open: false};
  const server = await preview({root: example, configFile, logLevel: 'warn', preview: options});
  const address = server.resolvedUrls.local[0];
  // Without a sandbox, as containers forbid it; the page is our own.
  const args = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'];
  const browser = await puppeteer.launch({executablePath: chromium, args});
  try {
    const page = await browser.newPage();
    const troubles = [];
    page.on('pageerror', (error) => troubles.push(`error: ${String(error)}`));
    page.on('console', (message) => {
      if (['error', 'warn'].includes(message.type())) troubles.push(`console: ${message.text()}`);
    });
    page.on('request', (request) => {
      const url = request.url();
      const local = url.startsWith(address) || /^(data|blob):/.test(url);
      if (!local) troubles.push(`asked for ${url}`);
    });
    page.on('requestfailed', (request) => troubles.push(`did not get ${request.url()}`));
    await page.goto(address, {timeout: TIMEOUT_MS});
    await usePage(page, expected);
    check(troubles.length === 0, troubles.join('; '));
    say('the page of examples/browser passed');
    return 0;
  } finally {
    await browser.close();
    await server.close();
  }
}

try {
  process.exitCode = await testBrowser();
} catch (error) {
  say(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
