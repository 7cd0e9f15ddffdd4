// node bench.js [luthier] [jax] [tfjs] [--adapter=default] [KEY=VALUE ...]      prints one JSON line a peer
//
// Bundles src/PEER.js, serves it on 127.0.0.1 and runs it in headless Chromium (CHROMIUM, or /usr/bin/chromium).
// The keys are those of `defaults` in src/setup.js; lora=0 trains all parameters. --adapter=default takes the machine's
// GPU; without it WebGPU is SwiftShader on the CPU.
import fs from 'node:fs';
import http from 'node:http';
import { build } from 'esbuild';
import { chromium } from 'playwright-core';
import { defaults } from './src/setup.js';

// Luthier's engines are what `cargo xtask wasm` has built.
const peers = { luthier: 'luthier', jax: '@jax-js/jax', tfjs: '@tensorflow/tfjs-core' };
const engine = `${import.meta.dirname}/../../../www/luthier-web/pkg`;
const versions = JSON.parse(fs.readFileSync(`${import.meta.dirname}/package.json`)).dependencies;

function options(args) {
  const o = { ...defaults };
  for (const arg of args.filter(a => a.includes('=') && !a.startsWith('--'))) {
    const [key, value] = arg.split('=');
    if (!(key in o) || !Number.isInteger(+value)) throw new Error(`${arg}: KEY=VALUE, with a key of ${Object.keys(o)}`);
    o[key] = key === 'lora' ? value !== '0' : +value;
  }
  return o;
}

async function bundle(peer) {
  const contents = `import { run } from './src/${peer}.js'; window.run = run;`;
  const stdin = { contents, resolveDir: import.meta.dirname };
  const result = await build({ stdin, bundle: true, format: 'esm', write: false, external: ['/pkg/*'] });
  return result.outputFiles[0].text;
}

// The isolation headers let a peer use threads of WebAssembly.
async function serve(scripts) {
  const headers = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };
  const server = http.createServer(({ url }, response) => {
    const [, file] = url.match(/^\/pkg\/(luthier(?:_relaxed)?(?:_bg)?\.(?:js|wasm))$/) ?? [];
    if (file) {
      const type = file.endsWith('.js') ? 'text/javascript' : 'application/wasm';
      response.writeHead(200, { 'content-type': type, ...headers });
      return response.end(fs.readFileSync(`${engine}/${file}`));
    }
    const [, peer, kind] = url.match(/^\/(\w+)\.(js|html)$/) ?? [];
    if (!(peer in scripts)) return response.writeHead(404).end();
    const type = kind === 'js' ? 'text/javascript' : 'text/html';
    response.writeHead(200, { 'content-type': type, ...headers });
    response.end(kind === 'js' ? scripts[peer] : `<!doctype html><script type="module" src="/${peer}.js"></script>`);
  });
  await new Promise(done => server.listen(0, '127.0.0.1', done));
  return server;
}

function launch(adapter) {
  const software = ['--use-webgpu-adapter=swiftshader', '--enable-unsafe-swiftshader'];
  const args = ['--disable-dev-shm-usage', '--enable-unsafe-webgpu', '--ignore-gpu-blocklist'];
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', chromiumSandbox: false,
    // Playwright's own --headless is the old shell; only the new one has WebGPU.
    ignoreDefaultArgs: ['--headless'], args: ['--headless=new', ...args, ...(adapter === 'default' ? [] : software)],
  });
}

async function adapterName() {
  const { info } = await navigator.gpu.requestAdapter();
  return [info.vendor, info.architecture, info.description].filter(Boolean).join(' ');
}

async function main(args) {
  const o = options(args);
  const adapter = args.find(a => a.startsWith('--adapter='))?.split('=')[1];
  const chosen = Object.keys(peers).filter(p => args.includes(p));
  const names = chosen.length ? chosen : Object.keys(peers);
  const scripts = Object.fromEntries(await Promise.all(names.map(async p => [p, await bundle(p)])));
  const server = await serve(scripts);
  const browser = await launch(adapter);
  try {
    for (const peer of names) {
      const page = await browser.newPage();
      page.on('pageerror', error => console.error(peer, error));
      await page.goto(`http://127.0.0.1:${server.address().port}/${peer}.html`);
      await page.waitForFunction('window.run');
      const device = await page.evaluate(adapterName);
      const result = await page.evaluate(o => window.run(o), o);
      const about = { version: versions[peers[peer]] ?? "this tree", device, browser: browser.version() };
      console.log(JSON.stringify({ peer, ...result, ...about }));
      await page.close();
    }
  } finally {
    await browser.close();
    server.close();
  }
}

await main(process.argv.slice(2));
