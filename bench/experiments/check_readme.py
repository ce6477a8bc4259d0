#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
#
# check_readme.py <source directory>: every figure in the README's tables of experiments is what the runs in results/
# give. A table is known by its first header cells; each of its rows must be named below and have runs, and each cell
# must read as computed from them: mean ± half of the 95 % interval (examples/support/intervals.hpp), over the seeds.
# The tables of claims and of speeds are those of run.py and speeds.py, whole: a claim that fails cannot be left out.
# Every other figure, in a sentence or a table that is not named here, must be in prose.py.

import itertools
import pathlib
import re
import sys

import prose
import speeds
from measured import between, by_seed, column, curve, interval, load, matches
from run import CLAIMS, DIMS, MAMMALS, NOUNS, claims


class Value:
    """column = mean ± half over the seeds of the runs that `where` and the row select."""

    def __init__(self, column, **where):
        self.column, self.where = column, where

    def read(self, table, row):
        return column(table.runs({**row, **self.where}).values(), {}, self.column)

    def text(self, table, row, cell):
        # As many decimals as the cell has: a subtree is held out to two, a random split to three.
        decimals = len(cell.split("±")[0].strip().partition(".")[2])
        mean, half = interval(list(self.read(table, row).values()))
        return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


class Mammals(Value):
    """A dimension of E1, where the row is an arm."""

    def __init__(self, dim):
        super().__init__("map", epochs=300, dim=dim)

    def read(self, table, row):
        recipe = next(recipe for recipe in MAMMALS[row["arm"]] if recipe["dim"] == self.where["dim"])
        return super().read(table, recipe)


class One(Value):
    """column × factor of the only run, as memory has it: the same for each seed."""

    def __init__(self, column, form, factor=1, **where):
        super().__init__(column, **where)
        self.form, self.factor = form, factor

    def text(self, table, row, cell):
        (value,) = self.read(table, row).values()
        return self.form.format(self.factor * value).replace("-", "−")


class First(Value):
    """column of the run with seed 1, with as many decimals as the cell has."""

    def text(self, table, row, cell):
        return f"{self.read(table, row)['1']:.{len(cell.partition('.')[2])}f}"


class Published:
    """What others found: in prose.py or run.py, if anywhere."""

    def text(self, table, row, cell):
        return cell


class Memory(One):
    """A way of E8: the first or the second that the row names."""

    def __init__(self, way, column, form, factor=1):
        super().__init__(column, form, factor)
        self.way = way

    def read(self, table, row):
        where = {name: value for name, value in row.items() if name != "ways"}
        return Value(self.column, way=row["ways"][self.way]).read(table, where)


class Trained(Value):
    """A column of E4's trained search, at the breadth that it was trained with; `saved`: how many evaluations of plain
    search at the same R_ann it does not make, in %."""

    def __init__(self, column, unit=""):
        super().__init__(column, root="", ef=256)
        self.unit = unit

    def read(self, table, row):
        lines = table.runs({**row, **self.where})
        if self.column != "saved":
            return column(lines.values(), {}, self.column)
        plain = {**row, "root": "", "search": "hnsw", "trained": 0, "worth": 0}
        saved = {}
        for seed, line in lines.items():
            points = curve(table.lines, {**plain, "seed": seed}, "r_ann_10", "distances")
            saved[seed] = 100 * (1 - float(line["distances"]) / between(points, float(line["r_ann_10"])))
        return saved

    def text(self, table, row, cell):
        values = list(self.read(table, row).values())
        if len(values) > 1:
            return super().text(table, row, cell.removesuffix(self.unit)).replace("-", "−") + self.unit
        decimals = len(cell.removesuffix(self.unit).partition(".")[2])
        return f"{values[0]:.{decimals}f}{self.unit}"


def trained(space, loss="negatives", stage="far", dim=32, search="ending", **where):
    return {"space": space, "loss": loss, "stage": stage, "dim": dim, "search": search, "worth": 300, **where}


class Table:
    """`rows`: what selects the runs of each row, by the text of its first cell; `columns`: those behind it."""

    def __init__(self, header, file, rows, columns):
        self.header, self.file, self.rows, self.columns = header, file, rows, columns

    def load(self, results):
        self.lines = load(results / self.file)

    def runs(self, where):
        found = by_seed(self.lines, where)
        if not found:
            raise SystemExit(f"{self.file}: no run of {where}")
        return found

    def check(self, cells):
        if cells[0] not in self.rows:
            return [f"row '{cells[0]}' has no runs in {self.file}"]
        if len(cells) != len(self.columns) + 1:
            return [f"row '{cells[0]}': {len(cells)} cells"]
        row, wrong = self.rows[cells[0]], []
        for cell, column in zip(cells[1:], self.columns):
            expected = column.text(self, row, cell)
            if cell != expected:
                wrong.append(f"row '{cells[0]}': '{cell}', but {self.file} gives '{expected}'")
        return wrong


NAMES = {"poincare": "Poincaré", "lorentz": "Lorentz", "euclidean": "Euclid"}
POSITIONS = {
    "none": {"positions": "none"},
    "random": {"positions": "random"},
    "random walks": {"positions": "rwpe"},
    "hops to landmarks": {"positions": "landmark"},
    "spectral": {"positions": "spectral"},
}
SPLITS = [Value("test", split="random"), Value("test", split="subtree")]

TABLES = [
    Table(
        ("model (300 epochs, one thread)", "mean rank"),
        "mammals.csv",
        {
            "Poincaré, d = 5": MAMMALS["published"][DIMS.index(5)],
            "Lorentz, d = 5": MAMMALS["lorentz"][DIMS.index(5)],
            "Euclidean, d = 5": MAMMALS["euclidean"][DIMS.index(5)],
            "Euclidean, d = 50": MAMMALS["euclidean"][DIMS.index(50)],
        },
        [*(First(name, epochs=300) for name in ("mean_rank", "map", "recall_at_10", "seconds")), Published()],
    ),
    Table(
        ("MAP", "d = 2"),
        "mammals.csv",
        {
            "Poincaré, as published": {"arm": "published"},
            "Lorentz, the same": {"arm": "lorentz"},
            "Poincaré, tuned": {"arm": "tuned"},
            "Euclid, tuned": {"arm": "euclidean"},
        },
        [Mammals(dim) for dim in DIMS],
    ),
    Table(
        ("the curvature's rate", "MAP, d = 2"),
        "mammals_curvature.csv",
        {f"{rate}": {"curvature_rate": rate} for rate in (0.01, 0.1)},
        [Value(name, dim=dim) for dim in DIMS[:-1] for name in ("map", "curvature")],
    ),
    Table(
        ("WordNet's nouns", "MAP"),
        "nouns.csv",
        {f"{NAMES[arm['model']]}, d = {arm['dim']}": arm for arm in NOUNS},
        [
            One("map", "{:.3f}", batch=50, held_out=0),
            One("mean_rank", "{:.2f}", batch=50, held_out=0),
            One("epochs", "{:.0f}", batch=50, held_out=0),
            One("seconds", "{:.0f}", 1 / 60, batch=50, held_out=0),
        ],
    ),
    Table(
        ("WordNet's nouns, pairs held out", "MAP"),
        "nouns_held_out.csv",
        {f"Poincaré, d = {arm['dim']}": arm for arm in NOUNS[:2]},
        [
            One("map", "{:.3f}", batch=50, held_out=0.1),
            One("mean_rank", "{:.1f}", batch=50, held_out=0.1),
            One("recall_at_10", "{:.3f}", batch=50, held_out=0.1),
        ],
    ),
    Table(
        ("edges", "random split"),
        "supersense.csv",
        {
            "none": {"edges": "none"},
            "scalar distance": {"edges": "scalar"},
            "relation": {"edges": "typed"},
            "shuffled relations": {"edges": "shuffled"},
            "relation and direction": {"edges": "directed"},
        },
        SPLITS,
    ),
    Table(
        ("rotary positions", "random split"),
        "supersense_positions.csv",
        POSITIONS,
        SPLITS,
    ),
    Table(
        ("space, recipe", "R_emb"),
        "hierarchical_retrieval.csv",
        {
            "cosine": {"space": "cosine", "loss": "all", "stage": "base"},
            "cosine, far pairs": {"space": "cosine", "loss": "all", "stage": "far"},
            "cosine, negatives, far pairs": {"space": "cosine", "loss": "negatives", "stage": "far"},
            "inner product, negatives, far pairs": {"space": "inner", "loss": "negatives", "stage": "far"},
            "Poincaré, negatives, far pairs": {"space": "poincare", "loss": "negatives", "stage": "far"},
            "Lorentz, negatives, far pairs": {"space": "lorentz", "loss": "negatives", "stage": "far"},
            "dual, negatives, far pairs": {"space": "dual", "loss": "negatives", "stage": "far"},
        },
        [Value(name, root="", dim=32) for name in ("r_emb_10", "r_ann_10", "r_e2e_10")],
    ),
    Table(
        ("trained search", "R_ann"),
        "hierarchical_retrieval_curve.csv",
        {
            "cosine": trained("cosine", "all", "base"),
            "cosine, far pairs": trained("cosine", "all"),
            "cosine, negatives, far pairs": trained("cosine"),
            "inner product, negatives, far pairs": trained("inner"),
            "Poincaré, negatives, far pairs": trained("poincare"),
            "Lorentz, negatives, far pairs": trained("lorentz"),
            "dual, negatives, far pairs": trained("dual"),
            "d = 64: cosine": trained("cosine", "all", "base", 64),
            "d = 64: cosine, far pairs": trained("cosine", "all", dim=64),
            "d = 64: cosine, negatives, far pairs": trained("cosine", dim=64),
            "d = 64: inner product, negatives, far pairs": trained("inner", dim=64),
            "d = 64: Poincaré, negatives, far pairs": trained("poincare", dim=64),
            "d = 64: Lorentz, negatives, far pairs": trained("lorentz", dim=64),
            "d = 64: dual, negatives, far pairs": trained("dual", dim=64),
        },
        [Trained("r_ann_10"), Trained("r_e2e_10"), Trained("distances"), Trained("saved", " %")],
    ),
    Table(
        ("coordinates", "training graphs"),
        "graph_positions.csv",
        POSITIONS,
        [Value(name, coordinates=5, epochs=100) for name in ("train_rmse", "test_rmse")],
    ),
    Table(
        ("Fashion-MNIST", "recall@10"),
        "ann_benchmarks.csv",
        {f"M = {links}, ef = {ef}": {"links": links, "ef": ef} for links, ef in ((8, 20), (16, 20), (16, 40), (32, 80))},
        [
            One("recall_at_10", "{:.4f}", at_once=1, program="ruvector"),
            One("queries_per_second", "{:.0f}", at_once=1, program="ruvector"),
            One("queries_per_second", "{:.0f}", at_once=1, program="hnswlib"),
        ],
    ),
    Table(
        ("forward and backward", "weights kept, MiB"),
        "attention_memory.csv",
        {
            "n = m = 2,048": {"problem": "attention", "queries": 2048, "ways": ("naive", "tiled")},
            "n = m = 16,384": {"problem": "attention", "queries": 16384, "ways": ("naive", "tiled")},
            "one query, 1,048,576 keys": {"problem": "one query", "queries": 1, "ways": ("naive", "tiled")},
            "one query, 32 keys": {"problem": "neighbourhood", "queries": 1, "ways": ("naive", "tiled")},
            "GATv2, WordNet's nouns": {"problem": "WordNet GATv2", "queries": 82115, "ways": ("naive", "one worker")},
            "the same on two workers": {"problem": "WordNet GATv2", "queries": 82115, "ways": ("naive", "two workers")},
        },
        [Memory(0, "peak_mib", "{:.2f}"), Memory(1, "peak_mib", "{:.2f}"), Memory(1, "saved", "{:.1f} %", 100)],
    ),
]

def blocks_of(text):
    """Its tables, as lists of rows of cells without the line under the header, and what is between them, as strings.
    Code is left out."""
    for in_table, lines in itertools.groupby(
        re.sub(r"```.*?```", "", text, flags=re.S).splitlines(), lambda line: line.startswith("|")
    ):
        if in_table:
            rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
            yield rows[:1] + rows[2:]
        else:
            yield "\n".join(lines)


def main(source):
    source = pathlib.Path(source)
    wrong, seen = [], set()
    written = {tuple(CLAIMS): claims, tuple(speeds.HEADER): speeds.shown}  # whole, by run.py
    for table in TABLES:
        table.load(source / "bench" / "experiments" / "results")
    sentences = []
    for rows in blocks_of((source / "README.md").read_text(encoding="utf-8")):
        if isinstance(rows, str):
            sentences.append(rows)
            continue
        known = next((t for t in TABLES if tuple(rows[0][: len(t.header)]) == t.header), None)
        if tuple(rows[0]) in written:
            seen.add(tuple(rows[0]))
            if rows[1:] != list(written[tuple(rows[0])]()):
                wrong.append(f"the table {rows[0]} is not what the runs give: run.py --report")
        elif known is not None:
            seen.add(known.header)
            for cells in rows[1:]:
                wrong += known.check(cells)
            for row in known.rows.keys() - {cells[0] for cells in rows[1:]}:
                wrong.append(f"row '{row}' of {known.file} is not in the table")
        else:
            sentences += [cell for row in rows for cell in row]
    wrong += [f"no table {table.header} in README.md" for table in TABLES if table.header not in seen]
    wrong += [f"no table {list(header)} in README.md" for header in written if header not in seen]
    wrong += prose.check("\n".join(sentences))
    for problem in wrong:
        print("README.md:", problem)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
