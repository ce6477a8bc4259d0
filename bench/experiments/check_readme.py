#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
#
# check_readme.py <source directory>: every figure in the README's tables of experiments is what the runs in results/
# give. A table is known by its first header cells; each of its rows must be named below and have runs, and each cell
# must read as computed from them: mean ± half of the 95 % interval (examples/support/intervals.hpp), over the seeds.
# A table with "±" or "recall" in it that is not named below is an error, so that none is added without its runs.

import pathlib
import re
import sys

from measured import by_seed, column, interval, load, paired


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


class Gain(Value):
    """The same for value/base − 1 in percent, seed by seed; the base itself has an empty cell."""

    def __init__(self, column, base, **where):
        super().__init__(column, **where)
        self.base = base

    def text(self, table, row, cell):
        if row == self.base:
            return ""
        values, base = self.read(table, row), self.read(table, self.base)
        if values.keys() != base.keys():
            raise SystemExit(f"{table.file}: {row} and {self.base} have other seeds")
        mean, half = interval(paired(values, base, lambda value, none: 100 * (value / none - 1)))
        return f"{mean:+.1f} ± {half:.1f} %".replace("-", "−")


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


NONE = {"edges": "none"}
TABLES = [
    Table(
        ("edges", "random split"),
        "supersense.csv",
        {
            "none": NONE,
            "scalar distance": {"edges": "scalar"},
            "relation": {"edges": "typed"},
            "shuffled relations": {"edges": "shuffled"},
            "relation and direction": {"edges": "directed"},
        },
        [
            Value("test", split="random"),
            Gain("test", NONE, split="random"),
            Value("test", split="subtree"),
            Gain("test", NONE, split="subtree"),
        ],
    ),
]

# Not of experiments, or made by the command above them (one run, one seed) and checked by its own test.
OTHERS = [("model (300 epochs, one thread)",)]


def tables_of(text):
    """Each table as a list of rows of cells, without the line under the header. Code is not looked at."""
    table = []
    for line in re.sub(r"```.*?```", "", text, flags=re.S).splitlines() + [""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif table:
            yield table[:1] + table[2:]
            table = []


def main(source):
    source = pathlib.Path(source)
    wrong, seen = [], set()
    for table in TABLES:
        table.load(source / "bench" / "experiments" / "results")
    for rows in tables_of((source / "README.md").read_text(encoding="utf-8")):
        known = next((t for t in TABLES if tuple(rows[0][: len(t.header)]) == t.header), None)
        if known is not None:
            seen.add(known.header)
            for cells in rows[1:]:
                wrong += known.check(cells)
            for row in known.rows.keys() - {cells[0] for cells in rows[1:]}:
                wrong.append(f"row '{row}' of {known.file} is not in the table")
        elif not any(tuple(rows[0][: len(header)]) == header for header in OTHERS):
            if re.search("±|[Rr]ecall", " ".join(cell for row in rows for cell in row)):
                wrong.append(f"a table of experiments without runs: {rows[0]}")
    wrong += [f"no table {table.header} in README.md" for table in TABLES if table.header not in seen]
    for problem in wrong:
        print("README.md:", problem)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
