# SPDX-License-Identifier: MIT
"""Reads the runs in results/, and makes means and intervals of them: what run.py and check_readme.py share."""

import csv
import math

T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]  # Student's t, 0.975


def interval(values):
    """Mean and half of the 95 % interval, as examples/support/intervals.hpp."""
    n = len(values)
    if n < 2:
        raise SystemExit("no interval of fewer than two runs")
    mean = sum(values) / n
    return mean, T[min(n - 2, len(T) - 1)] * math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)


def load(path):
    """The lines of a CSV file as dictionaries; none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def matches(line, where):
    """Whether the line has these values; numbers are compared as text."""
    return all(line[column] == str(value) for column, value in where.items())


def by_seed(lines, where):
    """The lines with these values, by seed."""
    found = {}
    for line in lines:
        if matches(line, where):
            if line["seed"] in found:
                raise SystemExit(f"{where} has seed {line['seed']} twice")
            found[line["seed"]] = line
    return found


def column(lines, where, name):
    """The numbers of a column, by seed; what was not measured (NaN) is left out."""
    values = {seed: float(line[name]) for seed, line in by_seed(lines, where).items()}
    return {seed: value for seed, value in values.items() if not math.isnan(value)}


def paired(values, base, of=lambda value, base: value - base):
    """of(value, base), seed by seed, for the seeds that both have."""
    return [of(values[seed], base[seed]) for seed in sorted(values.keys() & base.keys())]


def between(points, x):
    """y at x, on the line between the first two neighbouring points (x, y) around it; NaN beyond them."""
    for (left, low), (right, high) in zip(points, points[1:]):
        if left <= x <= right and left < right:
            return low + (high - low) * (x - left) / (right - left)
    return math.nan


def curve(lines, where, x, y):
    """A curve of search by its breadth: points of two columns."""
    found = sorted((line for line in lines if matches(line, where)), key=lambda line: int(line["ef"]))
    return [(float(line[x]), float(line[y])) for line in found]
