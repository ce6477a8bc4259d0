// SPDX-License-Identifier: MIT
// Row G4 of bench_gnn in version 1, the npm package @ruvector/gnn:
//
//   mkdir /tmp/v1 && cd /tmp/v1 && npm install @ruvector/gnn@0.1.25
//   node gnn_node.mjs /tmp/v1            prints the row in microseconds a call, the median of 21 runs
//   node gnn_node.mjs /tmp/v1 --serve    runs a row each time a line is read from standard input, for bench_gnn --node
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const [, , packages = '.', mode] = process.argv;
const { RuvectorLayer } = createRequire(join(packages, 'package.json'))('@ruvector/gnn');

const input = 128, hidden = 256, neighbors = 32, heads = 4;
const calls = 20; // a run, as in bench_gnn
const vector = (n) => Float32Array.from({ length: n }, () => Math.random() * 2 - 1);
const layer = new RuvectorLayer(input, hidden, heads, 0.1);
const node = vector(input), rows = Array.from({ length: neighbors }, () => vector(input));
const weights = new Float32Array(neighbors).fill(1);
const run = () => { for (let i = 0; i < calls; ++i) layer.forward(node, rows, weights); };

if (mode === '--serve') {
  for await (const line of createInterface({ input: process.stdin })) {
    run();
    process.stdout.write(`${line}\n`);
  }
} else {
  const times = Array.from({ length: 21 }, () => {
    const start = process.hrtime.bigint();
    run();
    return Number(process.hrtime.bigint() - start) / 1e3 / calls;
  }).sort((a, b) => a - b);
  console.log(`G4 layer ${input} to ${hidden}, ${neighbors} neighbors: ${times[10].toFixed(1)} us`);
}
