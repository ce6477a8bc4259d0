// SPDX-License-Identifier: MIT
// Rows G4 and S5 of bench_gnn in version 1, the npm package @ruvector/gnn:
//
//   mkdir /tmp/v1 && cd /tmp/v1 && npm install @ruvector/gnn@0.1.25
//   node gnn_node.mjs /tmp/v1            prints the rows in microseconds a call, the medians of 21 runs
//   node gnn_node.mjs /tmp/v1 --serve    runs a row each time its name is read from standard input, for bench_gnn --node
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const [, , packages = '.', mode] = process.argv;
const { RuvectorLayer, hierarchicalForward } = createRequire(join(packages, 'package.json'))('@ruvector/gnn');

const vector = (n) => Float32Array.from({ length: n }, () => Math.random() * 2 - 1);
const vectors = (n, width) => Array.from({ length: n }, () => vector(width));

const input = 128, hidden = 256, neighbors = 32, heads = 4;
const layer = new RuvectorLayer(input, hidden, heads, 0.1);
const node = vector(input), rows = vectors(neighbors, input);
const weights = new Float32Array(neighbors).fill(1);

// The call takes layers as JSON and reads them each time.
const levels = [100, 1000, 10000].map((n) => vectors(n, input));
const layers = levels.map(() => new RuvectorLayer(input, input, heads, 0.1).toJson());
const query = vector(input);

const calls = { G4: 20, S5: 1 }; // a run, as in bench_gnn
const run = {
  G4: () => layer.forward(node, rows, weights),
  S5: () => hierarchicalForward(query, levels, layers),
};
const repeat = (row) => { for (let i = 0; i < calls[row]; ++i) run[row](); };

if (mode === '--serve') {
  for await (const line of createInterface({ input: process.stdin })) {
    repeat(line);
    process.stdout.write(`${line}\n`);
  }
} else {
  for (const row of Object.keys(run)) {
    const times = Array.from({ length: 21 }, () => {
      const start = process.hrtime.bigint();
      repeat(row);
      return Number(process.hrtime.bigint() - start) / 1e3 / calls[row];
    }).sort((a, b) => a - b);
    console.log(`${row}: ${times[10].toFixed(1)} us`);
  }
}
