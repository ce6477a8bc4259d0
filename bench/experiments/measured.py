# SPDX-License-Identifier: MIT
"""Reads the runs in results/, adds to them, and makes means and intervals of them: what the programs here share."""

import csv
import datetime
import io
import math
import os
import pathlib
import platform
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE.parent.parent / "README.md"
PROVENANCE = ["processor", "commit", "date"]
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


# --- Adding runs ---


def command_output(*command):
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def commit():
    """The short hash, with + where the sources differ from it."""
    sources = ("../../include", "../../examples", "../*.cpp", "../support")
    changed = command_output("git", "status", "--porcelain", "--", *sources)
    return command_output("git", "rev-parse", "--short", "HEAD") + ("+" if changed else "")


def processor():
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            name = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), name)
    return f"{name} {os.cpu_count()} cores"


def add_provenance(parser):
    parser.add_argument("--processor", default=processor(), help="name of the processor in the CSV files")
    parser.add_argument("--commit", help="commit of the programs (default: that of these sources)")


def provenance(arguments):
    return [arguments.processor, arguments.commit or commit(), datetime.date.today().isoformat()]


def append(path, new, origin, wanted=lambda line: True):
    """Adds the lines of the file `new` that `wanted` takes, with their provenance. All or nothing. Returns how many."""
    with open(new, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        header, lines = list(reader.fieldnames or []), [line for line in reader if wanted(line)]
    old = path.read_text(encoding="utf-8") if path.exists() else ",".join(header + PROVENANCE) + "\n"
    if old.splitlines()[0].split(",") != header + PROVENANCE:
        raise SystemExit(f"{path} has other columns than what the program writes: {','.join(header)}")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([line[name] for name in header] + origin for line in lines)
    partial = path.with_suffix(".partial")
    partial.write_text(old + text.getvalue(), encoding="utf-8")
    partial.replace(path)
    return len(lines)


# --- Tables ---


def table(header, rows):
    """The lines of a Markdown table."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def write_into_readme(header, rows):
    """Replaces the table with this header."""
    first = next(table(header, []))
    before, found, rest = README.read_text(encoding="utf-8").partition(first + "\n")
    if found:
        README.write_text(before + "\n".join(table(header, rows)) + rest[rest.index("\n\n") :], encoding="utf-8")
