#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
#
# speeds.py --programs DIR [--torch PYTHON] [--node FOLDER]: runs the benchmarks' rows of targets some more times and
# adds them to results/speeds.csv, of which the README's table of speeds is made (run.py --report). Leave the machine
# alone meanwhile. Each run is a process of its own: what moves between them (memory, mostly) shows in the range.

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile

from measured import RESULTS, add_provenance, append, load, provenance

FILE = RESULTS / "speeds.csv"
PROGRAMS = ("bench_simd", "bench_attention", "bench_search", "bench_hnsw", "bench_gnn")
HEADER = ["work", "median", "over all runs", "target"]
OF = {"GFLOP/s": " of the peak", "GB/s": " of streaming"}  # what a share is a share of, by the unit of the rate

# The rows of the README: what it calls them, id and work.
F, L, G = "{}, n = {}, d = {}", "{}, n = 16384, d = 64 {}", "GATv2 10k nodes, 160k edges, 64 to 8x8, "
SHOWN = (
    ("`simd::gemm`, float, 1024³", "P1", "gemm (1024 x 1024)(1024 x 1024)"),
    ("Eigen, the same", "P1", "Eigen (1024 x 1024)(1024 x 1024)"),
    ("`simd::gemm`, (4096×64)(64×4096)", "P1", "gemm (4096 x 64)(64 x 4096)"),
    ("Eigen, the same", "P1", "Eigen (4096 x 64)(64 x 4096)"),
    ("`Flash` forward, n = 1024, d = 64", "F1", F.format("forward", 1024, 64)),
    ("Eigen, the same", "F1", F.format("plain Eigen", 1024, 64)),
    ("a plain loop, the same", "F1", F.format("a plain loop", 1024, 64)),
    ("`Flash` forward, n = 4096, d = 128", "F2", F.format("forward", 4096, 128)),
    ("`Flash` causal, visible pairs counted, n = 4096, d = 64", "F3", F.format("causal forward", 4096, 64)),
    ("the same, d = 128", "F3", F.format("causal forward", 4096, 128)),
    ("`Flash` forward and backward, n = 2048, d = 64", "F4", F.format("forward and backward", 2048, 64)),
    ("the same, d = 128", "F4", F.format("forward and backward", 2048, 128)),
    ("`Flash` on two threads against one", "F8", "forward, n = 1024, d = 64, 8 heads, 2 threads"),
    ("`HyperbolicFlash` forward, n = 2048, d = 64", "F5", F.format("hyperbolic forward", 2048, 64)),
    ("the same, 1/64 of the pairs near", "F5", F.format("hyperbolic, 1/64 of pairs near", 2048, 64)),
    ("the same, β/√c an integer", "F6", F.format("hyperbolic, integer beta/sqrt(c)", 2048, 64)),
    ("`HyperbolicFlash` forward, n = 2048, d = 128", "F5", F.format("hyperbolic forward", 2048, 128)),
    ("`DualSpaceFlash` forward, 64 + 64 columns", "F7", F.format("dual space, 64 + 64", 2048, 128)),
    ("decoding: one query, 8 × 100,000 keys, d = 128", "F10", F.format("one query, 8 heads", 100000, 128)),
    ("`LinearAttention`, n = 16,384, d = 64: `Flash` against it", "L1", L.format("flash", "against linear")),
    ("the same, causal", "L1", L.format("flash", "against causal linear")),
    ("`ExactSearch` with softmax, 1M × 128, one query", "S1", "one query, 1M x 128 floats, k = 10, softmax"),
    (
        "the same: hnswlib's brute force, without softmax, against it",
        "S1",
        "the same: hnswlib brute force, without softmax / ours",
    ),
    ("the same: FAISS flat, without softmax, against it", "S1", "the same: FAISS flat, without softmax / ours"),
    ("the same: keys of float against bfloat16", "S2", "S1: keys of float / of bfloat16"),
    ("the same: keys of float against int8", "S2", "S1: keys of float / of int8"),
    ("the same, 64 queries", "S3", "64 queries, 1M x 128 floats, k = 10, softmax"),
    *(
        (
            f"hnswlib's `searchKnn` against `HnswSearch`, Fashion-MNIST, ef = {ef}",
            "S4",
            f"hnswlib's searchKnn over ours, Fashion-MNIST, ef {ef}",
        )
        for ef in (16, 64, 256)
    ),
    ("`GatV2`, 10k nodes, 160k edges, 64 → 8×8, forward, at 220 GFLOP/s", "G1", G + "forward"),
    ("the same, forward and backward", "G1", G + "forward and backward"),
    ("the same: PyTorch 1.13 against it", "G1", "PyTorch against this, forward and backward"),
    ("GRU 10k × 128, forward and backward", "G3", "GRU 10k x 128, forward and backward"),
    ("the same: PyTorch 1.13 against it", "G3", "PyTorch against this, forward and backward"),
    (
        "`RuvectorLayerV2`, 10k nodes, degree 16, 128 → 128",
        "G2",
        "RuvectorLayerV2 10k nodes, degree 16, 128 to 128, 4 heads, forward",
    ),
    (
        "`@ruvector/gnn` against version 1's layer here, 32 neighbours",
        "G4",
        "@ruvector/gnn against this, version 1's layer 128 to 256, 32 neighbours",
    ),
    (
        "the same, version 1's search over 100, 1k, 10k × 128",
        "S5",
        "@ruvector/gnn against this, hierarchical_forward, 100/1k/10k x 128",
    ),
)


def rows_of_runs():
    """The runs of each row, by (id, work), in the order of the file."""
    found = {}
    for line in load(FILE):
        found.setdefault((line["id"], line["work"]), []).append(line)
    return found


def cells(lines):
    """Median, the range over all runs, target."""
    unit, factor = lines[0]["unit"], 100 if lines[0]["unit"] == "%" else 1
    values = [factor * float(line["measured"]) for line in lines]
    digits = 1 if unit == "%" or min(values) >= 10 else 2
    of = OF.get(lines[0]["here_unit"], "") if unit == "%" else ""
    name = "×" if unit == "x" else unit
    target = lines[0]["target"].replace(">=", "≥").replace("<=", "≤").replace(" x", " ×")
    span = f"{min(values):.{digits}f} … {max(values):.{digits}f}"
    return [f"{statistics.median(values):.{digits}f} {name}{of}", span, "" if target == "-" else target]


def limits():
    """What the shares are shares of: of each run the median over its rows."""
    shares = [line for line in load(FILE) if line["unit"] == "%"]
    for name, unit in (("a loop of multiply-adds: the peak", "GFLOP/s"), ("reading 256 MiB: streaming", "GB/s")):
        of_runs = {}
        for line in shares:
            if line["here_unit"] == unit:
                of_runs.setdefault(line["seed"], []).append(float(line["here"]) / float(line["measured"]))
        runs = [statistics.median(values) for values in of_runs.values()]
        yield [name, f"{statistics.median(runs):.0f} {unit}", f"{min(runs):.0f} … {max(runs):.0f}", ""]


def shown():
    """The rows of the README."""
    yield from limits()
    found = rows_of_runs()
    for label, *key in SHOWN:
        if tuple(key) not in found:
            raise SystemExit(f"{FILE.name}: no run of {' '.join(key)}")
        yield [label, *cells(found[tuple(key)])]


def report():
    """Header and rows of the report: all that was measured."""
    rows = [[id, work, *cells(lines), str(len(lines))] for (id, work), lines in rows_of_runs().items()]
    return ["", *HEADER, "runs"], rows


def run(programs, number, options, origin):
    """Runs every benchmark once. Returns the first exit code that is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "rows.csv"
        for name in PROGRAMS:
            command = [str(programs / name), "--rows", "--quick", "--csv", str(out), "--seed", str(number)]
            code = subprocess.call(command + options.get(name, []), stdout=subprocess.DEVNULL)
            if code != 0:
                print(f"{name} failed (exit code {code}): nothing of this run is kept", file=sys.stderr)
                return code
        append(FILE, out, origin)
    return 0


def main():
    parser = argparse.ArgumentParser(description="Runs the benchmarks, and adds their rows to speeds.csv.")
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="folder of the built benchmarks")
    parser.add_argument("--runs", type=int, default=5, help="how many")
    parser.add_argument("--torch", help="path of a Python that has PyTorch")
    parser.add_argument("--node", help="folder in which npm has installed @ruvector/gnn")
    add_provenance(parser)
    arguments = parser.parse_args()
    gnn = [text for name in ("torch", "node") if (value := getattr(arguments, name)) for text in (f"--{name}", value)]
    first = 1 + max((int(line["seed"]) for line in load(FILE)), default=0)
    for number in range(first, first + arguments.runs):
        print(f"run {number}, {number - first + 1} of {arguments.runs}", file=sys.stderr)
        code = run(arguments.programs.resolve(), number, {"bench_gnn": gnn}, provenance(arguments))
        if code != 0:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
