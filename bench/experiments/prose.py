# SPDX-License-Identifier: MIT
"""The figures in the README's sentences: what each is computed from, who published it, or which test has it."""

import re
import statistics

from measured import RESULTS, column, interval, load, matches, paired
from run import mammals

FIGURE = re.compile(r"\d[\d,]*\.\d+|\d+(?= (?:%|points|µs|ms|times|seconds))|\d+e-\d+")


def mean(file, name, **where):
    return interval(list(column(load(RESULTS / file), where, name).values()))[0]


def one(file, name, **where):
    (value,) = column(load(RESULTS / file), where, name).values()
    return value


def recall(space, loss="negatives", stage="far"):
    """R_emb of E4 at d = 32, in points."""
    return 100 * mean("hierarchical_retrieval.csv", "r_emb_10", root="", dim=32, space=space, loss=loss, stage=stage)


def far_pairs():
    """What they are worth in each space: the least and the most but for the ball, and in the ball."""
    arms = [("cosine", "all"), *((space, "negatives") for space in ("cosine", "inner", "lorentz", "dual", "poincare"))]
    *others, ball = (recall(*arm) - recall(*arm, stage="base") for arm in arms)
    return min(others), max(others), ball


def at_64(name):
    """Of all spaces and recipes of E4w."""
    lines = load(RESULTS / "hierarchical_retrieval.csv")
    where = {"root": "", "dim": 64, "stage": "far", "seed": 1}
    return {(line["space"], line["loss"]): float(line[name]) for line in lines if matches(line, where)}


def faster():
    """How many times faster than hnswlib: the least and the most of E10."""
    speed = {}
    for line in load(RESULTS / "ann_benchmarks.csv"):
        if line["at_once"] == "1" and line["points"] == "60000" and line["program"] in ("ruvector", "hnswlib"):
            speed[line["program"], line["links"], line["ef"]] = float(line["queries_per_second"])
    ratios = [value / speed["hnswlib", *key] for (program, *key), value in speed.items() if program == "ruvector"]
    return min(ratios), max(ratios)


def positions(kind):
    return mean("graph_positions.csv", "test_rmse", positions=kind, coordinates=5, epochs=100)


def router(name):
    where = {"warm_up": 12, "recall": 0.95, "arm": "router"}
    return statistics.median(column(load(RESULTS / "adaptive_search.csv"), where, name).values()) / 1000


TRIAL = {"model": "poincare", "dim": 5, "learning_rate": 10, "last_factor": 1, "epochs": 300}

# Sentences, and what stands in their places.
COMPUTED = (
    (
        "tuned alike the ball keeps ahead, at d = 50 by {:.4f}:",
        lambda: [interval(paired(mammals("tuned", 50), mammals("euclidean", 50)))[0]],
    ),
    (
        "ten times stays at {:.3f} and {:.0f} (d = 5).",
        lambda: [one("nouns_tuning.csv", name, **TRIAL) for name in ("map", "mean_rank")],
    ),
    (
        "the recipe (negatives that are no ancestors) is worth {:.1f} points, Lorentz against the inner product {:.1f},",
        lambda: [recall("cosine") - recall("cosine", "all"), recall("lorentz") - recall("inner")],
    ),
    ("far pairs {:.1f} to {:.1f}, but {:.1f} in the ball.", far_pairs),
    (
        "R_emb is {:.3f} to {:.3f}",
        lambda: [min(at_64("r_emb_10").values()), max(at_64("r_emb_10").values())],
    ),
    (
        "R_e2e {:.2f} (cosine, negatives) to {:.2f} (inner product):",
        lambda: [at_64("r_e2e_10")["cosine", "negatives"], at_64("r_e2e_10")["inner", "negatives"]],
    ),
    ("and found {:.1f} to {:.1f} times as fast", faster),
    (
        "Spectral coordinates take {:.0f} % of the error away;",
        lambda: [100 * (1 - positions("spectral") / positions("none"))],
    ),
    ("The router about {:.0f} µs of {:.0f} a query", lambda: [router("router_ns"), router("ns_p50")]),
)

# What others published.
PUBLISHED = (
    "published for Poincaré at d = 5: 0.927",  # Nickel & Kiela 2017, README of their code
    "MAP 0.823 and mean rank 4.9 at d = 5, 0.851 and 4.02 at d = 10, 0.855 and 3.84 at d = 20.",  # the same, table 1
    "For Euclid Nickel & Kiela 2017 have 0.024, 0.059, 0.162 and 0.168",
    "Bansal & Benton 2021, without that, 0.889 and 0.922",
    "where Poincaré was published (0.87)",
    "MAP 0.825 and mean rank 5.7, 0.852 and 4.3.",  # Nickel & Kiela 2017, table 1, link prediction
    "report 42 % (0.065 to 0.038)",  # Reid et al. 2025
)
# What was set, and bounds that tests hold.
SET = (
    "CMake ≥ 3.25",
    "version 1's formula to 1e-5",
    "the same to 1e-5",
    "hnswlib (0.6.2 to 0.8;",
    "from 10 % of the labels",
    "half of the 95 % interval",
    "far more than 40 %",  # H3's bound; the table has the figures
    "At recall@10 = 0.95 there is nothing to save even for an oracle; at 0.99",
    "at recall 0.95, and there is nothing to win there",
    "xsimd (8.1 or newer) and Eigen (3.4 or newer)",
    "accurate to 1e-5 in float",
)
# What version 1 did: its sources, and the package @ruvector/gnn 0.1.25.
VERSION_1 = (
    "where 0.5/0.5 was nearly all hyperbolic",
    "(they missed by 0.35)",
    "2 to 4 times smaller (pq8 was 16 times larger)",
    "gave it the weight 0.00027",
)


def check(text):
    """What is wrong with the figures of a text."""
    text = " ".join(text.split())
    for sentence, values in COMPUTED:
        expected = sentence.format(*values())
        if expected not in text:
            yield f"the runs give '{expected}'"
        text = text.replace(expected, "")
    for sentence in (*PUBLISHED, *SET, *VERSION_1):
        if sentence not in text:
            yield f"'{sentence}' is gone: mend prose.py"
        text = text.replace(sentence, "")
    for found in FIGURE.finditer(text):
        yield f"a figure without runs: '{text[max(0, found.start() - 40):found.end() + 20]}'"
