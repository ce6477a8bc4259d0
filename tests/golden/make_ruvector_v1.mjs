// SPDX-License-Identifier: MIT
// Writes ruvector_v1.json: layers, searches and hierarchical passes as version 1 (the npm package @ruvector/gnn 0.1.25)
// computes them. Run by hand, outside the project, since the package is not one of its dependencies:
//
//   mkdir /tmp/v1 && cd /tmp/v1 && npm install @ruvector/gnn@0.1.25
//   node <project>/tests/golden/make_ruvector_v1.mjs /tmp/v1 > <project>/tests/golden/ruvector_v1.json
//
// Shape of the file:
//
//   package, version
//   layers[20]      input, hidden, heads, dropout, json (a string: what layer.toJson() returns, byte by byte),
//                   cases[]: node [input], neighbors [n][input], edge_weights [n], output [hidden] of layer.forward
//   searches[]      query [d], candidates [n][d], k, temperature, indices, weights  of differentiableSearch
//   hierarchies[]   query [d], embeddings [levels][n][d], layers (positions in `layers`), output  of hierarchicalForward
import { createRequire } from 'node:module';
import { join } from 'node:path';

const packages = process.argv[2] ?? '.';
const v1 = createRequire(join(packages, 'package.json'))('@ruvector/gnn');
const { version } = createRequire(join(packages, 'package.json'))('@ruvector/gnn/package.json');

// mulberry32, and normal numbers from it: weights of the package itself come from an unseeded generator.
let state = 20250601;
function uniform() {
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}
const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
const below = (n) => Math.floor(uniform() * n);
// Few digits, where the number of digits is not what is tested: the file stays small.
const short = (x) => Math.fround(Math.round(x * 1000) / 1000);
const vector = (n, draw = normal) => Float32Array.from({ length: n }, () => short(draw()));
const vectors = (count, n) => Array.from({ length: count }, () => vector(n));
// The fewest digits that name a float; nine always do.
const digits = (x) => [1, 2, 3, 4, 5, 6, 7, 8].map((n) => Number(x.toPrecision(n))).find((y) => Math.fround(y) === x);
const number = (x) => digits(x) ?? Number(x.toPrecision(9));
const plain = (x) => (ArrayBuffer.isView(x) ? Array.from(x, number) : x.map(plain));

// The layer with random weights, and with random biases, gamma and beta, which the package starts at 0 and 1.
function randomise(layer, round) {
  const fill = (tensor, mean, sigma) => { tensor.data = tensor.data.map(() => round(mean + sigma * normal())); };
  const walk = (node) => {
    for (const [name, value] of Object.entries(node)) {
      if (value === null || typeof value !== 'object') continue;
      if (name === 'weights') fill(value, 0, Math.sqrt(2 / (value.dim[0] + value.dim[1])));
      else if (name === 'bias' || name === 'beta') fill(value, 0, 0.3);
      else if (name === 'gamma') fill(value, 1, 0.2);
      else walk(value);
    }
  };
  const json = JSON.parse(layer.toJson());
  walk(json);
  return v1.RuvectorLayer.fromJson(JSON.stringify(json));
}

// [input, hidden, heads, dropout]; the first two keep all digits of their weights.
const shapes = [
  [5, 8, 2, 0.1], [8, 8, 4, 0], [1, 1, 1, 0], [1, 2, 1, 0.5], [2, 1, 1, 0.25], [3, 3, 3, 0.1], [4, 8, 2, 0.1],
  [4, 4, 1, 0], [4, 4, 2, 0.3], [4, 4, 4, 0.9], [4, 4, 1, 1], [6, 4, 2, 0.1], [7, 5, 5, 0], [8, 6, 3, 0.2],
  [8, 8, 1, 0.1], [8, 8, 2, 0], [8, 8, 8, 0.1], [16, 12, 3, 0.1], [12, 16, 4, 0.1], [16, 16, 8, 0],
];
const kept = [];
const layers = shapes.map(([input, hidden, heads, dropout], index) => {
  const layer = randomise(new v1.RuvectorLayer(input, hidden, heads, dropout), index < 2 ? Math.fround : short);
  kept.push(layer);
  const weightings = [
    [0, uniform], [1, uniform], [3, uniform], [4, () => 0], [4, () => -uniform()], [6, normal],
    [10 + below(8), uniform],
  ];
  const cases = weightings.map(([count, weight]) => {
    const node = vector(input), neighbors = vectors(count, input), weights = vector(count, weight);
    return { node: plain(node), neighbors: plain(neighbors), edge_weights: plain(weights),
             output: plain(layer.forward(node, neighbors, weights)) };
  });
  return { input, hidden, heads, dropout, json: layer.toJson(), cases };
});

const search = (query, candidates, k, temperature) => {
  const { indices, weights } = v1.differentiableSearch(query, candidates, k, temperature);
  return { query: plain(query), candidates: plain(candidates), k, temperature, indices,
           weights: plain(Float32Array.from(weights)) };
};
const repeated = vector(4);
const searches = [
  search(vector(1), vectors(1, 1), 1, 1), search(vector(3), vectors(5, 3), 2, 1), search(vector(8), vectors(20, 8), 5, 0.1),
  search(vector(8), vectors(20, 8), 20, 1), search(vector(8), vectors(12, 8), 30, 0.5),
  search(vector(4), [vector(4), new Float32Array(4), vector(4)], 3, 1),       // a candidate of norm 0
  search(new Float32Array(4), vectors(6, 4), 3, 1),                           // a query of norm 0: all alike
  search(vector(4), [repeated, vector(4), repeated, repeated], 4, 1),         // ties
  search(vector(6), vectors(30, 6), 4, 0.01), search(vector(6), vectors(30, 6), 4, 10), search(vector(5), [], 3, 1),
];

const hierarchy = (sizes, width, numbers) => {
  const query = vector(width), embeddings = sizes.map((n) => vectors(n, width));
  const output = v1.hierarchicalForward(query, embeddings, numbers.map((l) => kept[l].toJson()));
  return { query: plain(query), embeddings: plain(embeddings), layers: numbers, output: plain(output) };
};
const hierarchies = [
  hierarchy([10], 8, [1]), hierarchy([3, 10], 8, [14, 15]), hierarchy([2, 7, 25], 8, [16, 1, 14]),
  hierarchy([4, 0, 9], 4, [7, 8, 9]),                          // an empty level
  hierarchy([4, 6, 8], 4, [8, 7]), hierarchy([4, 6], 4, [7, 8, 9]),  // more levels than layers, and the other way round
  hierarchy([1, 1], 1, [2, 2]), hierarchy([12], 16, [17]), hierarchy([], 4, [7]), hierarchy([3], 4, []),
];

const rows = (list) => list.map((item) => JSON.stringify(item)).join(',\n');
process.stdout.write(`{"package":"@ruvector/gnn","version":${JSON.stringify(version)},\n"layers":[\n${rows(layers)}],\n` +
                     `"searches":[\n${rows(searches)}],\n"hierarchies":[\n${rows(hierarchies)}]}\n`);
