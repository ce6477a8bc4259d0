#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
#
# run.py --programs DIR [ID...]: runs what is missing in results/ of the experiments below, arm by arm and seed by seed,
# with the examples in DIR, and writes results/report.md and the README's table of claims. Ctrl-C leaves what was
# finished; the same command goes on. run.py --report: what is written alone.

import argparse
import dataclasses
import datetime
import math
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import charts
import speeds
from measured import (
    RESULTS,
    add_provenance,
    append,
    between,
    by_seed,
    column,
    curve,
    interval,
    load,
    matches,
    paired,
    provenance,
    table,
    write_into_readme,
)



@dataclasses.dataclass(frozen=True)
class Experiment:
    """Arms × seeds of a program. An arm is the values of columns of its CSV file that are options of the same name."""

    id: str
    title: str
    program: str
    file: str
    arms: tuple
    seeds: tuple
    values: tuple  # columns of the report
    options: tuple = ()  # of each call; {state} is a folder that stays, {run} names the arm and the seeds
    where: dict = dataclasses.field(default_factory=dict)  # what else a line must have
    seconds: float = 60  # of a run, until one was measured
    curves: str = ""  # a second file, of --curve-csv: appended to, not looked at
    all_seeds: bool = False  # the program runs the seeds 1, 2, … in one call: --seeds
    rows: tuple = ()  # of the report, where a call writes more than its arm
    named: dict = dataclasses.field(default_factory=dict)  # arms that are a line of the chart together
    published: dict = dataclasses.field(default_factory=dict)  # (values of an arm) → text
    source: str = ""

    def lines(self, arm):
        return [line for line in load(RESULTS / self.file) if matches(line, {**self.where, **arm})]

    def missing(self, arm):
        return [seed for seed in self.seeds if not any(line["seed"] == str(seed) for line in self.lines(arm))]

    def calls(self):
        """(arm, seeds) of the programs to call."""
        for arm in self.arms:
            missing = self.missing(arm)
            if missing and self.all_seeds:
                yield arm, missing
            elif not self.all_seeds:
                yield from ((arm, [seed]) for seed in missing)

    def expected_seconds(self, arm, seeds):
        known = [float(x["seconds"]) for x in self.lines(arm) if "seconds" in x]
        return len(seeds) * (statistics.median(known) if known else self.seconds)


def arms(**columns):
    """All combinations."""
    result = [{}]
    for name, values in columns.items():
        result = [{**arm, name: value} for arm in result for value in values]
    return tuple(result)


# E1: the published recipe, and for each dimension the best of E1t.
MODELS, DIMS = ("euclidean", "poincare"), (2, 5, 10, 50)


def tuned(model, *best):
    return tuple(
        {"model": model, "dim": dim, "power": power, "learning_rate": rate} for dim, (power, rate) in zip(DIMS, best)
    )


MAMMALS = {
    "published": tuned("poincare", *[(1, 0.3)] * 4),
    "lorentz": tuned("lorentz", *[(1, 0.3)] * 4),
    "tuned": tuned("poincare", (1, 1), (1, 1), (2, 0.3), (2, 1)),
    "euclidean": tuned("euclidean", (1, 0.3), (1, 1), (1, 3), (2, 1)),
}


# E2 and E2b. A dimension of many columns takes fewer epochs: the time goes with the columns.
def nouns(*best):
    names = ("model", "dim", "power", "learning_rate", "last_factor", "epochs", "burn_in")
    return tuple(dict(zip(names, values)) for values in best)


NOUNS = nouns(
    ("poincare", 5, 1, 3, 1, 500, 20),
    ("poincare", 10, 1, 3, 1, 500, 20),
    ("poincare", 20, 1, 3, 1, 500, 20),
    *[("lorentz", dim, 1, 3, 1, 500, 20) for dim in (5, 10, 20)],
    ("euclidean", 5, 1, 5, 0.01, 150, 20),
    ("euclidean", 10, 1, 10, 0.01, 150, 20),
    ("euclidean", 50, 2, 5, 0.1, 140, 1),
    ("euclidean", 200, 2, 5, 0.1, 70, 1),
)


def of_nouns(*published):
    return {tuple(arm.values()): text for arm, text in zip(NOUNS, published)}


CHECKPOINT = ("--checkpoint", "{state}/{run}.safetensors")

# What was tried for them, and runs that are not the best.
NOUNS_TRIALS = nouns(
    *[("poincare", 5, 1, rate, 1, 60, 10) for rate in (1, 3, 10, 30)],
    ("poincare", 5, 2, 3, 1, 60, 10),
    *[("euclidean", 5, 1, rate, 1, 60, 10) for rate in (10, 30)],
    *[("euclidean", 10, 1, rate, 1, 60, 10) for rate in (10, 30)],
    ("euclidean", 10, 2, 3, 1, 60, 10),
    ("poincare", 5, 1, 10, 1, 300, 20),
    ("poincare", 5, 1, 10, 0.01, 300, 20),
    ("poincare", 10, 1, 10, 0.01, 300, 20),
    ("euclidean", 50, 2, 5, 0.01, 30, 5),
)


def retrieval(id, title, dim, seeds, published):
    """E4 in `dim` dimensions: the published recipe, and one for each space."""
    return Experiment(
        id,
        title,
        "hierarchical_retrieval",
        "hierarchical_retrieval.csv",
        (
            {"space": "cosine", "loss": "all"},
            *arms(space=("cosine", "inner", "poincare", "lorentz", "dual"), loss=("negatives",)),
        ),
        seeds,
        ("r_emb_10", "r_emb_size", "r_ann_10", "r_e2e_10"),
        ("--dim", str(dim), "--checkpoints", "{state}", "--trained", "1024"),
        {"root": "", "dim": dim, "stage": "far"},
        300,
        curves="hierarchical_retrieval_curve.csv",
        published={("cosine", "all"): f"{published} of all pairs (another definition of recall)"},
        source="You et al. 2025, arXiv 2509.16411",
    )


EXPERIMENTS = [
    Experiment(
        "E1",
        "WordNet's mammals: reconstruction of the closure (MAP, mean rank)",
        "wordnet_search",
        "mammals.csv",
        (*MAMMALS["published"], *MAMMALS["tuned"], *MAMMALS["euclidean"], *MAMMALS["lorentz"]),
        (1, 2, 3),
        ("map", "mean_rank"),
        ("--root", "mammal"),
        {"epochs": 300},
        10,
        named=MAMMALS,
        published={("poincare", 5, 1, 0.3): "MAP 0.927, mean rank 1.26"},
        source="Nickel & Kiela 2017, README of their code",
    ),
    Experiment(
        "E1t",
        "The same: the learning rate, and whether the loss compares distances or their squares",
        "wordnet_search",
        "mammals_tuning.csv",
        (
            *arms(model=MODELS, dim=DIMS, power=(1, 2), learning_rate=(0.1, 0.3, 1, 3)),
            *arms(model=MODELS, dim=DIMS, power=(1,), learning_rate=(10,)),
        ),
        (101,),
        ("map", "mean_rank"),
        ("--root", "mammal"),
        {"epochs": 300},
        10,
    ),
    Experiment(
        "E1c",
        "The same: the curvature learned, from 1 on",
        "wordnet_search",
        "mammals_curvature.csv",
        arms(dim=DIMS[:-1], curvature_rate=(0.01, 0.1)),
        (1, 2, 3),
        ("map", "mean_rank", "curvature"),
        ("--root", "mammal"),
        {"model": "poincare", "learning_rate": 0.3, "epochs": 300},
        6,
    ),
    Experiment(
        "E2",
        "WordNet's nouns: reconstruction of the closure",
        "wordnet_search",
        "nouns.csv",
        NOUNS,
        (1,),
        ("map", "mean_rank", "seconds"),
        ("--batch", "50", *CHECKPOINT),
        {"batch": 50, "held_out": 0},
        1200,
        published=of_nouns(
            "MAP 0.823, mean rank 4.9 (rate 1, 1,500 epochs)",
            "MAP 0.851, mean rank 4.02 (the same)",
            "MAP 0.855, mean rank 3.84 (the same)",
            "", "", "",
            "MAP 0.024 (constrained)",
            "MAP 0.059 (constrained)",
            "MAP 0.162 (constrained); 0.889 (Bansal & Benton 2021)",
            "MAP 0.168 (constrained); 0.922 (Bansal & Benton 2021)",
        ),
        source="Nickel & Kiela 2017, table 1",
    ),
    Experiment(
        "E2t",
        "The same: trials, most of them short",
        "wordnet_search",
        "nouns_tuning.csv",
        NOUNS_TRIALS,
        (1,),
        ("map", "mean_rank", "seconds"),
        ("--batch", "50", *CHECKPOINT),
        {"batch": 50, "held_out": 0},
        200,
    ),
    Experiment(
        "E2b",
        "The same: a tenth of the pairs held out and predicted",
        "wordnet_search",
        "nouns_held_out.csv",
        NOUNS[:2],
        (1,),
        ("map", "mean_rank", "seconds"),
        ("--batch", "50", "--held-out", "0.1", *CHECKPOINT),
        {"batch": 50, "held_out": 0.1},
        1200,
        published=of_nouns("MAP 0.825, mean rank 5.7 (another split)", "MAP 0.852, mean rank 4.3 (another split)"),
        source="Nickel & Kiela 2017, table 1",
    ),
    retrieval("E4", "WordNet's nouns: retrieval of ancestors, d = 32", 32, (1, 2, 3), "87.3 %"),
    retrieval("E4w", "The same, d = 64", 64, (1,), "92.3 %"),
    Experiment(
        "E5",
        "DictionaryLookup: test accuracy, one head",
        "dictionary_lookup",
        "dictionary_lookup.csv",
        arms(model=("gatv2", "gatv1", "v1"), k=(5, 10, 20)),
        (1, 2, 3),
        ("train_accuracy", "test_accuracy"),
        where={"heads": 1},
        seconds=30,
        published={
            **{("gatv2", k): "1.00" for k in (5, 10, 20)},
            ("gatv1", 20): "0.11",
        },
        source="Brody, Alon & Yahav 2022",
    ),
    Experiment(
        "E6",
        "WordNet's nouns into 26 classes, 10 % of the labels: test accuracy",
        "supersense",
        "supersense.csv",
        arms(split=("random", "subtree"), edges=("none", "scalar", "typed", "shuffled", "directed")),
        (1, 2, 3, 4, 5),
        ("test",),
        ("--checkpoint", "{state}/supersense.safetensors"),
        {"root": "", "features": "glosses"},
        12,
    ),
    Experiment(
        "E7",
        "Five tasks one after another: what is right at the end, and what was forgotten",
        "continual",
        "continual.csv",
        arms(
            data=("fashion", "wordnet"),
            scenario=("task", "class"),
            arm=("none", "ewc", "si", "replay", "joint"),
        ),
        (1, 2, 3),
        ("at_end", "forgetting"),
        ("--checkpoints", "{state}"),
        {"iterations": 100},
        3,
        all_seeds=True,
        published={
            ("fashion", "class", "none"): "0.199 (Split-MNIST)",
            ("fashion", "class", "ewc"): "0.206 (Split-MNIST)",
            ("fashion", "class", "si"): "0.212 (Split-MNIST)",
            ("fashion", "class", "replay"): "0.888 (Split-MNIST)",
            ("fashion", "class", "joint"): "0.982 (Split-MNIST)",
        },
        source="van de Ven et al. 2022",
    ),
    Experiment(
        "E8",
        "Memory of attention, forward and backward: the peak, and without inputs, outputs and their gradients",
        "attention_memory",
        "attention_memory.csv",
        ({},),
        (1,),
        ("peak_mib", "own_mib", "saved"),
        seconds=60,
        rows=(
            *arms(
                problem=("attention",),
                queries=(512, 1024, 2048, 4096, 8192, 16384),
                way=("naive", "weights", "tiled"),
            ),
            *arms(problem=("neighbourhood", "one query"), queries=(1,), way=("naive", "weights", "tiled")),
            *arms(problem=("WordNet GATv2",), queries=(82115,), way=("naive", "one worker", "two workers")),
        ),
    ),
    Experiment(
        "E9",
        "Fashion-MNIST: distances and time at equal recall@10 = 0.95",
        "adaptive_search",
        "adaptive_search.csv",
        ({},),
        (1, 2, 3, 4, 5),
        ("dcs", "gap_closed", "ns_p50", "ns_p99"),
        options=("--warm-up", "12"),
        where={"warm_up": 12, "recall": 0.95, "arm": "router"},
        seconds=60,
        all_seeds=True,
    ),
    Experiment(
        "E10",
        "Fashion-MNIST by ann-benchmarks' rules: recall@10 and queries a second on one thread",
        "ann_benchmarks",
        "ann_benchmarks.csv",
        ({},),
        (1,),
        ("recall_at_10", "queries_per_second", "distances"),
        ("--links", "8,16,32", "--indexes", "{state}", "--svg", str(RESULTS / "ann_benchmarks.svg")),
        {"points": 60000},
        seconds=600,
        rows=(
            *arms(
                program=("ruvector", "hnswlib"),
                links=(8, 16, 32),
                ef=(10, 20, 40, 80, 120, 200, 400, 600, 800),
                at_once=(1,),
            ),
            *arms(
                program=("ruvector exact", "ruvector exact int8", "faiss flat"), links=(0,), ef=(0,), at_once=(1, 1000)
            ),
        ),
    ),
    Experiment(
        "R1",
        "Small worlds (Watts & Strogatz): hops to a marked node, over the most in the graph; RMSE on other graphs",
        "graph_positions",
        "graph_positions.csv",
        arms(positions=("none", "random", "rwpe", "landmark", "spectral")),
        (1, 2, 3),
        ("train_rmse", "test_rmse"),
        ("--epochs", "100"),
        {"epochs": 100, "coordinates": 5},
        15,
        published={("none",): "0.065 (their graphs and scale)", ("spectral",): "0.038 (m = 5; 42 % less)"},
        source="Reid et al. 2025, arXiv 2509.22259",
    ),
    Experiment(
        "R2",
        "E6 with dot products of queries and keys that rotary positions turn (GraphRoPE): test accuracy",
        "supersense",
        "supersense_positions.csv",
        arms(split=("random", "subtree"), positions=("none", "random", "rwpe", "landmark", "spectral")),
        (1, 2, 3),
        ("test",),
        ("--attention", "dot", "--edges", "none", "--checkpoint", "{state}/supersense.safetensors"),
        {"root": "", "features": "glosses", "attention": "dot"},
        25,
    ),
]


# --- Running ---


def call(experiment, arm, seeds, programs, origin, budget=None):
    """Runs the program, for so many seconds at most, and keeps the lines of what it finished. Returns its exit code."""
    state = programs / "experiments" / experiment.id
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "runs.csv"
        command = [str(programs / experiment.program), "--csv", str(out)]
        run_name = "_".join(map(str, [*arm.values(), *seeds]))
        command += [option.format(state=state, run=run_name) for option in experiment.options]
        for name, value in arm.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        curves = pathlib.Path(folder) / "curves.csv"
        command += ["--curve-csv", str(curves)] if experiment.curves else []
        command += ["--seeds", str(max(seeds))] if experiment.all_seeds else ["--seed", str(seeds[0])]
        command += ["--budget", f"{budget:.1f}"] if budget else []
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stopped = False
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # the program got it, too, and ends when it has saved
                stopped = True
        if out.exists():  # what was stopped early is not in it
            present = {line["seed"] for line in experiment.lines(arm)}
            append(RESULTS / experiment.file, out, origin, lambda line: line["seed"] not in present)
            if curves.exists():
                append(RESULTS / experiment.curves, curves, origin, lambda line: line["seed"] not in present)
        return 130 if stopped else code


def clock(seconds):
    return str(datetime.timedelta(seconds=round(seconds)))


def run(experiments, programs, origin, budget=None):
    """Runs what is missing, for so many seconds at most. Returns the exit code: 130 where something is left."""
    end = time.monotonic() + budget if budget else math.inf
    calls = [(e, arm, seeds) for e in experiments for arm, seeds in e.calls()]
    left = [e.expected_seconds(arm, seeds) for e, arm, seeds in calls]
    for number, (experiment, arm, seeds) in enumerate(calls):
        start = time.monotonic()
        if start >= end:
            print("the time is over; the same command goes on", file=sys.stderr)
            return 130
        name = " ".join([experiment.id, *map(str, arm.values()), "seed", ",".join(map(str, seeds))])
        print(f"[{number + 1}/{len(calls)}] {name}: about {clock(sum(left[number:]))} left", file=sys.stderr)
        code = call(experiment, arm, seeds, programs, origin, end - start if budget else None)
        if code in (130, -signal.SIGINT):
            print("stopped; the same command goes on", file=sys.stderr)
            return 130
        if code != 0 or any(seed in experiment.missing(arm) for seed in seeds):
            print(f"{name}: {experiment.program} failed (exit code {code})", file=sys.stderr)
            return 1
        # What is left of this experiment takes as long as this took, compared with what was expected.
        factor = (time.monotonic() - start) / left[number]
        for later in range(number + 1, len(calls)):
            if calls[later][0] is experiment:
                left[later] = experiment.expected_seconds(*calls[later][1:]) * (factor if experiment.seconds else 1)
    return 0


# --- Hypotheses ---


@dataclasses.dataclass
class Part:
    """A statement of a hypothesis: what was measured, and whether it holds; None: no data yet."""

    statement: str
    measured: str = ""
    holds: bool = None


def of(file, where, name):
    lines = load(RESULTS / file)
    return column(lines, where, name) if lines else {}


def shown(values, digits=3, unit=""):
    mean, half = interval(values)
    return f"{mean:+.{digits}f} ± {half:.{digits}f}{unit}".replace("-", "−")


def difference(statement, values, test, digits=3, unit=""):
    """`test` gets mean and half of the interval of paired values."""
    if len(values) < 2:
        return Part(statement)
    return Part(statement, shown(values, digits, unit) + f" ({len(values)} seeds)", test(*interval(values)))


def h1():
    def recall(space):
        where = {"root": "", "space": space, "loss": "negatives", "dim": 32, "stage": "far"}
        values = of("hierarchical_retrieval.csv", where, "r_emb_10")
        return {seed: 100 * value for seed, value in values.items()}

    for space in ("poincare", "lorentz", "dual"):
        # Against the Euclidean arm that does better, by the same recipe.
        euclid = max((recall(name) for name in ("cosine", "inner")), key=lambda x: sum(x.values()) / max(1, len(x)))
        yield difference(
            f"geometry, {space}: R_emb at least 3 points above Euclid with the same recipe",
            paired(recall(space), euclid),
            lambda mean, half: mean >= 3 and mean - half > 0,
            1,
            " points",
        )
    # Of the trained search, at the breadth that it was trained with.
    lines = load(RESULTS / "hierarchical_retrieval_curve.csv")
    for space in ("cosine", "inner", "poincare", "lorentz", "dual"):
        where = {"root": "", "space": space, "loss": "negatives", "dim": 32, "stage": "far"}
        gains = []
        for seed, line in by_seed(lines, {**where, "search": "ending", "ef": 256, "worth": 300}).items():
            plain = curve(lines, {**where, "search": "hnsw", "seed": seed}, "distances", "r_e2e_10")
            gains.append(100 * (float(line["r_e2e_10"]) - between(plain, float(line["distances"]))))
        yield difference(
            f"index, {space}: R_e2e of a trained search at least 1 point above HNSW at equal distance evaluations",
            gains,
            lambda mean, half: mean >= 1 and mean - half > 0,
            1,
            " points",
        )


def mammals(arm, dim):
    where = next(where for where in MAMMALS[arm] if where["dim"] == dim)
    return of("mammals.csv", {**where, "epochs": 300}, "map")


def h1b():
    for dim in DIMS[:-1]:
        yield difference(
            f"MAP of Poincaré above Euclid at d = {dim}, both tuned",
            paired(mammals("tuned", dim), mammals("euclidean", dim)),
            lambda mean, half: mean - half > 0,
        )
    yield difference(
        "a tie at d = 50, both tuned",
        paired(mammals("tuned", 50), mammals("euclidean", 50)),
        lambda mean, half: abs(mean) <= half,
        4,
    )


def crossover(arm):
    """Between which dimensions Euclid overtakes an arm, with intervals that exclude 0 on both sides."""
    below, above, differences = None, None, []
    for dim in DIMS:
        values = paired(mammals(arm, dim), mammals("euclidean", dim))
        if len(values) < 2:
            return "no data yet"
        mean, half = interval(values)
        differences.append(f"{shown(values, 4)} at d = {dim}")
        if mean > half:
            below = dim
        elif mean < -half and above is None:
            above = dim
    where = f"above d = {below}, at most d = {above}" if below and above else "not within d = 2 … 50"
    return f"{where} (MAP {', '.join(differences)})"


def h2():
    def accuracy(edges, split):
        where = {"root": "", "edges": edges, "split": split, "features": "glosses"}
        return of("supersense.csv", where, "test")

    def gain(edges, split):
        return paired(accuracy(edges, split), accuracy("none", split), lambda x, none: 100 * (x / none - 1))

    for split in ("random", "subtree"):
        for edges in ("typed", "directed"):
            yield difference(
                f"{edges} edges, {split} split: accuracy at least 20 % above none",
                gain(edges, split),
                lambda mean, half: mean >= 20 and mean - half > 0,
                1,
                " %",
            )
        yield difference(
            f"shuffled types, {split} split: as none", gain("shuffled", split), lambda mean, half: abs(mean) <= half, 1, " %"
        )

    # Where the definitions do not say most of it already.
    for features, knowing in (("labels", "the classes of labelled neighbours alone"), ("none", "nothing")):
        for edges in ("typed", "shuffled"):
            values, none = (
                of(
                    "supersense_ablations.csv",
                    {"root": "", "edges": name, "split": "random", "features": features, "labels": 0.1},
                    "test",
                )
                for name in (edges, "none")
            )
            typed = edges == "typed"
            yield difference(
                f"{edges} {'edges' if typed else 'types'}, nodes that know {knowing}: "
                + ("at least 20 % above none" if typed else "as none"),
                paired(values, none, lambda x, base: 100 * (x / base - 1)),
                (lambda mean, half: mean >= 20 and mean - half > 0) if typed else (lambda mean, half: abs(mean) <= half),
                1,
                " %",
            )


def h3():
    # Bytes do not depend on the seed: no interval.
    def saved(**where):
        return list(of("attention_memory.csv", where, "saved").values())

    def part(statement, values, complete):
        seen = " … ".join(f"{100 * value:.1f} %" for value in sorted({min(values), max(values)})) if values else ""
        return Part(statement, seen, min(values) >= 0.4 if len(values) == complete else None)

    statement = "forward and backward, peak with inputs and gradients: at least 40 % less, "
    tiled = [x for n in (2048, 4096, 8192, 16384) for x in saved(problem="attention", queries=n, way="tiled")]
    yield part(statement + "n = m = 2,048 to 16,384 by tiles", tiled, 4)
    graph = [x for way in ("one worker", "two workers") for x in saved(problem="WordNet GATv2", queries=82115, way=way)]
    yield part(statement + "GATv2 on WordNet's nouns, one worker and two (against E×H×C and its gradient)", graph, 2)


def h4():
    def less(name, recall):
        router, single = (
            of("adaptive_search.csv", {"warm_up": 12, "recall": recall, "arm": arm}, name)
            for arm in ("router", "single")
        )
        return paired(router, single, lambda x, single: 100 * (1 - x / single))

    for name, text in (("ns_p50", "p50, the router's cost included,"), ("dcs", "distances")):
        for recall in (0.95, 0.99):
            yield difference(
                f"expert choice, {text} at recall {recall}: at least 15 % less than the best single search",
                less(name, recall),
                lambda mean, half: mean >= 15 and mean - half > 0,
                1,
                " %",
            )


def h5():
    for k in (5, 10, 20):
        for model, statement, holds in (
            ("gatv2", "100 %", lambda x: min(x) == 1),
            ("gatv1", "at most 50 %", lambda x: max(x) <= 0.5),
            ("v1", "at most 50 %", lambda x: max(x) <= 0.5),
        ):
            values = list(of("dictionary_lookup.csv", {"model": model, "k": k, "heads": 1}, "test_accuracy").values())
            seen = f"{min(values):.3f} … {max(values):.3f} ({len(values)} seeds)" if values else ""
            enough = len(values) >= 2
            yield Part(f"{model}, k = {k}: test accuracy {statement}", seen, holds(values) if enough else None)


def h6():
    def forgetting(data, arm):
        return of("continual.csv", {"data": data, "scenario": "task", "arm": arm, "iterations": 100}, "forgetting")

    for data, name in (("fashion", "split Fashion-MNIST"), ("wordnet", "five subtrees of WordNet")):
        yield difference(
            f"{name}, task-incremental: forgetting of none minus that of EWC above 0",
            paired(forgetting(data, "none"), forgetting(data, "ewc")),
            lambda mean, half: mean - half > 0,
        )


WORDS = {True: "holds", False: "does not hold", None: "no data yet"}
HYPOTHESES = [
    ("H1", "hierarchical retrieval: recall@10 from 85 % to 92–95 % (E4)", h1, any),
    ("H1b", "hyperbolic space is 15–30 % better (E1)", h1b, all),
    ("H2", "edge features are worth +20 % accuracy (E6)", h2, None),
    ("H3", "memory −40 % (E8)", h3, all),
    ("H4", "latency −15 % (E9)", h4, all),
    ("H5", "GATv2's score looks up what static scores cannot (E5)", h5, all),
    ("H6", "EWC forgets less (E7)", h6, all),
]


def verdict(parts, rule):
    known = [part.holds for part in parts]
    if all(holds is None for holds in known):
        return "no data yet"
    if False in known and rule is not any:
        return "partly" if True in known and rule is all else "not confirmed"
    if None in known:
        return "no data yet for all of it"
    return "confirmed" if all(known) else "partly" if any(known) else "not confirmed"


CLAIMS = ["claim: verdict", "tested", "measured", ""]


def claims():
    """The table of claims in the README: what was measured of each claim, whether it holds or not."""
    for id, claim, parts, rule in HYPOTHESES:
        parts = list(parts())
        first = f"{id}: {claim}: **{verdict(parts, rule)}**"
        for part in parts:
            if part.measured:
                yield [first, part.statement, part.measured, WORDS[part.holds]]
                first = ""
        if first:
            yield [first, "", "", ""]


# --- The report ---


def cell(values):
    if not values:
        return "no data yet"
    if len(values) == 1:
        return f"{values[0]:.4g}" if abs(values[0]) < 1e4 else f"{values[0]:.0f}"
    mean, half = interval(values)
    digits = max(0, 3 - len(str(int(abs(mean))))) if abs(mean) >= 10 else 3
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def report():
    text = [
        "# Experiments",
        "",
        "Written by `run.py` from the CSV files beside it: mean ± half of the 95 % interval (Student's t) over seeds.",
        "Thin bars in the figures are these intervals, cut off where an axis ends.",
        "",
        "## Hypotheses",
        "",
    ]
    judged = [(id, claim, list(parts()), rule) for id, claim, parts, rule in HYPOTHESES]
    text += table(["", "claim", "verdict"], [[id, claim, verdict(parts, rule)] for id, claim, parts, rule in judged])
    for id, claim, parts, _ in judged:
        text += ["", f"### {id}: {claim}", ""]
        text += table(["statement", "measured", ""], [[p.statement, p.measured, WORDS[p.holds]] for p in parts])
        if id == "H1b":
            text += ["", f"Euclidean space, tuned, overtakes the ball: {crossover('tuned')}, tuned as well;"]
            text += [f"{crossover('published')}, by the published recipe; Lorentz: {crossover('lorentz')}."]
    for e in EXPERIMENTS:
        text += ["", f"## {e.id}: {e.title}", "", f"`{e.program}`, [{e.file}]({e.file})", ""]
        names = list((e.rows or e.arms)[0])
        rows = []
        for arm in e.rows or e.arms:
            lines = e.lines(arm)
            if e.rows and not lines:  # FAISS, say, is not everywhere
                continue
            values = [cell([*column(lines, {}, name).values()]) for name in e.values]
            # The seeds of the lines, which must differ.
            seeds = str(len(by_seed(lines, {})))
            rows.append([*map(str, arm.values()), *values, seeds, e.published.get(tuple(arm.values()), "")])
        text += table([*names, *e.values, "seeds", f"published: {e.source}" if e.source else "published"], rows)
        picture = (RESULTS / e.file).with_suffix(".svg")
        if picture.exists():
            text += ["", f"![{e.title}]({picture.name})"]
        if chart := charts.draw(e):
            text += ["", "![{}]({})".format(*chart)]
    text += ["", "## Speeds", "", f"`speeds.py`, [{speeds.FILE.name}]({speeds.FILE.name})", ""]
    text += table(*speeds.report())
    (RESULTS / "report.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    write_into_readme(CLAIMS, claims())
    write_into_readme(speeds.HEADER, speeds.shown())


def main():
    parser = argparse.ArgumentParser(description="Runs what is missing of the experiments, and writes the report.")
    parser.add_argument("ids", nargs="*", help="experiments (default: all): " + ", ".join(e.id for e in EXPERIMENTS))
    parser.add_argument("--programs", type=pathlib.Path, help="folder of the built examples")
    parser.add_argument("--budget", type=float, help="stop after so many seconds, as Ctrl-C does")
    parser.add_argument("--report", action="store_true", help="the report alone")
    add_provenance(parser)
    arguments = parser.parse_args()
    unknown = set(arguments.ids) - {e.id for e in EXPERIMENTS}
    if unknown or (arguments.programs is None and not arguments.report):
        parser.error(f"unknown: {', '.join(sorted(unknown))}" if unknown else "--programs is needed")
    code = 0
    if not arguments.report:
        wanted = [e for e in EXPERIMENTS if not arguments.ids or e.id in arguments.ids]
        code = run(wanted, arguments.programs.resolve(), provenance(arguments), arguments.budget)
    report()
    return code


if __name__ == "__main__":
    sys.exit(main())
