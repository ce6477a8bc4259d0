# SPDX-License-Identifier: MIT
"""The report's figures as SVG, lines and grouped bars, with the looks of the C++ programs' pictures. To add one,
describe it in FIGURES by `joined` or `grouped`, or name a function there that makes a Chart of an experiment."""

import dataclasses
import html
import math

from measured import RESULTS, column, interval, load, matches

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 820, 480, 80, 60, 420  # of the picture, and of what the axes enclose
STYLE = (
    "text{font:13px sans-serif;fill:#333}.title{font-size:16px}.grid{stroke:#e4e4e4}.axis{stroke:#888}"
    ".curve{fill:none;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}.interval{stroke-width:1.5}"
)
# Black intervals are seen on each. What the others are compared with is grey.
GREY, BLUE, RED, GREEN, ORANGE = COLOURS = ("#8a939e", "#3b7bbf", "#c4424a", "#3aa578", "#eba13f")


@dataclasses.dataclass(frozen=True)
class Axis:
    label: str
    low: float = None  # without it, a round number below the values
    high: float = None
    log: bool = False
    at_values: bool = False  # ticks at the values themselves, not at round numbers


@dataclasses.dataclass(frozen=True)
class Series:
    name: str  # in the legend, or "" for not to be there
    values: list  # (x, mean, half of the interval) of a line's points; (mean, half) or None of each group's bar
    colour: str
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    title: str
    x: object  # an Axis: lines; the names of groups: bars
    y: Axis
    series: list
    notes: tuple = ()  # lines below the legend
    aside: float = 0  # pixels between the points of two lines at the same x, for their intervals to be seen


# --- Drawing ---


def element(name, words=None, **attributes):
    """Numbers are rounded to a tenth of a pixel; 0 is added lest there be −0."""
    written = f"<{name}"
    for key, value in attributes.items():
        value = value if isinstance(value, str) else f"{round(value, 1) + 0:g}"
        written += f' {key.rstrip("_").replace("_", "-")}="{value}"'
    return written + ("/>" if words is None else f">{html.escape(words, quote=False)}</{name}>")


def line(x1, y1, x2, y2, **attributes):
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def text(x, y, words, anchor="middle", **attributes):
    return element("text", words, x=x, y=y, text_anchor=anchor, **attributes)


def round_numbers(low, high, log):
    """1, 2 and 5 times powers of ten, or multiples of one of these: from the last up to low to the first from high."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        numbers = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        first, last = max(n for n in numbers if n <= low), min(n for n in numbers if n >= high)
        return [n for n in numbers if first <= n <= last]
    about = ((high - low) or 1) / 5
    unit = 10.0 ** math.floor(math.log10(about))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit > about * 0.999)
    return [step * n for n in range(math.floor(low / step + 0.001), math.ceil(high / step - 0.001) + 1)]


class Scale:
    """From values to pixels. What is beyond an axis, such as the end of an interval, is drawn at its end."""

    def __init__(self, axis, values, start, end):
        low = min(values) if axis.low is None else axis.low
        high = max(values) if axis.high is None else axis.high
        self.ticks = sorted(set(values)) if axis.at_values else round_numbers(low, high, axis.log)
        self.of = math.log if axis.log else float
        self.start, self.end = start, end

    def __call__(self, value):
        low, high = self.ticks[0], self.ticks[-1]
        low, value, high = map(self.of, (low, min(max(value, low), high), high))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def labelled(self):
        return [(self(tick), f"{tick:,.6g}") for tick in self.ticks]


def curve(s, path, dots):
    dashes = {"stroke_dasharray": "5 6"} if s.dashed else {}
    written = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
    yield element("polyline", points=written, class_="curve", stroke=s.colour, **dashes)
    yield from (element("circle", cx=x, cy=y, r=2 if s.dashed else 3, fill=s.colour) for x, y in dots)


def spread(x, y, mean, half, colour):
    return [line(x, y(mean - half), x, y(mean + half), class_="interval", stroke=colour)] if half else []


def axes(chart):
    """What both kinds share: the elements, where the x axis ends, and the scale of y."""
    legend = [s for s in chart.series if s.name]
    letters = max(map(len, (*(s.name for s in legend), *chart.notes)), default=0)
    right = WIDTH - (62 + 7.3 * letters if legend else 20)
    signs = (0,) if chart.y.log else (-1, 1)
    ends = [value[-2] + sign * value[-1] for s in chart.series for value in s.values if value for sign in signs]
    y, middle = Scale(chart.y, ends, BOTTOM, TOP), (TOP + BOTTOM) / 2
    drawn = [element("title", chart.title), element("style", STYLE)]
    drawn += [element("rect", width=WIDTH, height=HEIGHT, fill="white")]
    drawn += [text(LEFT, 28, chart.title, "start", class_="title")]
    drawn += [text(22, middle, chart.y.label, transform=f"rotate(-90 22 {middle:g})")]
    for pixel, words in y.labelled():
        drawn += [line(LEFT, pixel, right, pixel, class_="grid"), text(LEFT - 8, pixel + 4, words, "end")]
    x, at = right + 18, TOP + 10
    for s in legend:
        if isinstance(chart.x, Axis):
            drawn += curve(s, [(x, at), (x + 28, at)], [(x + 14, at)])
        else:
            drawn += [element("rect", x=x + 12, y=at - 6, width=16, height=12, fill=s.colour)]
        drawn += [text(x + 36, at + 4, s.name, "start")]
        at += 20
    drawn += [text(x, at + 14 + 18 * row, note, "start") for row, note in enumerate(chart.notes)]
    return drawn, right, y


def lines(chart):
    drawn, right, y = axes(chart)
    x = Scale(chart.x, [value[0] for s in chart.series for value in s.values], LEFT + 20, right - 20)
    for pixel, words in x.labelled():
        drawn += [line(pixel, TOP, pixel, BOTTOM, class_="grid"), text(pixel, BOTTOM + 20, words)]
    drawn += [text((LEFT + right) / 2, BOTTOM + 44, chart.x.label)]
    for number, s in enumerate(chart.series):
        aside = chart.aside * (number - (len(chart.series) - 1) / 2)
        dots = [(x(value) + aside, y(mean)) for value, mean, _ in s.values]
        for (pixel, _), (_, mean, half) in zip(dots, s.values):
            drawn += spread(pixel, y, mean, half, s.colour)
        drawn += curve(s, dots, dots)
    return drawn


def bars(chart):
    drawn, right, y = axes(chart)
    step = (right - LEFT) / len(chart.x)
    width = min(0.8 * step / len(chart.series), 60)
    for group, name in enumerate(chart.x):
        middle = LEFT + (group + 0.5) * step
        drawn += [text(middle, BOTTOM + 20, name)]
        for number, s in enumerate(chart.series):
            if s.values[group]:
                mean, half = s.values[group]
                x = middle + (number - len(chart.series) / 2) * width
                drawn += [element("rect", x=x + 1, y=y(mean), width=width - 2, height=BOTTOM - y(mean), fill=s.colour)]
                drawn += spread(x + width / 2, y, mean, half, "#222")
    return [*drawn, line(LEFT, BOTTOM, right, BOTTOM, class_="axis")]


# --- The figures ---


def of_seeds(runs, name):
    """Mean and half of the 95 % interval, which of one run is 0; None of no run."""
    values = [*column(runs, {}, name).values()]
    return interval(values) if len(values) > 1 else (values[0], 0) if values else None


def split(found, name):
    """Arms or runs, by their values of a column."""
    return {one[name]: [other for other in found if other[name] == one[name]] for one in found}


def joined(title, x, y, columns, arms, looks, aside=0):
    """Lines through the values of two columns: the first one's of arms, the second one's means. `arms` gives those of
    an experiment by the keys of `looks`, which has what else their Series is made of."""

    def chart(e):
        series = []
        for key, (name, *look) in looks.items():
            of_line = sorted(arms(e).get(key, ()), key=lambda arm: arm[columns[0]])
            found = [(arm[columns[0]], of_seeds(e.lines(arm), columns[1])) for arm in of_line]
            series.append(Series(name, [(value, *mean) for value, mean in found if mean], *look))
        return Chart(title, Axis(x, log=True, at_values=True), y, series, aside=aside)

    return chart


def grouped(title, y, name, groups, bars, colours=COLOURS):
    """Bars: the means of a column, of runs with the values of a group and of a bar, which are by their names."""

    def chart(e):
        return Chart(title, list(groups), y, [
            Series(bar, [of_seeds(e.lines({**group, **where}), name) for group in groups.values()], colour)
            for (bar, where), colour in zip(bars.items(), colours)
        ])

    return chart


def by_name(column, **names):
    """For `grouped`: the values of a column, by name."""
    return {name: {column: value} for value, name in names.items()}


def models(e):
    return split(e.arms, "model")


def retrieval(e):
    """Means at each breadth of search. With all intervals one would not see the lines."""
    spaces = {"inner": ("inner product", GREEN), "dual": ("dual", ORANGE), "lorentz": LORENTZ, "poincare": POINCARE}
    runs, series = load(RESULTS / e.curves), []
    for search, worth in (("hnsw", 0), ("ending", 300)):
        for space, (name, colour) in {**spaces, "cosine": ("cosine", GREY)}.items():
            where = {**e.where, "space": space, "loss": "negatives", "search": search, "worth": worth}
            means = []
            for ef, found in split([run for run in runs if matches(run, where)], "ef").items():
                mean, half = of_seeds(found, "r_e2e_10")
                means.append((of_seeds(found, "distances")[0], mean, half * (ef in ("10", "64", "512") and not worth)))
            series.append(Series("" if worth else name, sorted(means), colour, worth > 0))
    x, y = Axis("distance evaluations a query", log=True), Axis("recall of the ten best (R_e2e)", high=1)
    notes = ("dashed: trained search", "intervals at ef 10, 64, 512")
    return Chart(f"WordNet's nouns, d = {e.where['dim']}: recall by cost", x, y, series, notes)


MAP, ACCURACY = Axis("MAP", 0, 1), Axis("test accuracy", 0, 1)
POINCARE, LORENTZ, EUCLID = ("Poincaré", RED), ("Lorentz", BLUE), ("Euclid", GREY)
SPLITS = by_name("split", random="random split", subtree="whole subtrees held out")
WALKS, HOPS = "random walks", "hops to landmarks"
POSITIONS = by_name("positions", none="none", random="random", rwpe=WALKS, landmark=HOPS, spectral="spectral")

# By experiment: what the file is called, and who makes the chart.
FIGURES = {
    "E1": ("map", joined(
        "WordNet's mammals: MAP by dimension", "dimension", MAP, ("dim", "map"), lambda e: e.named,
        {
            "tuned": ("Poincaré, tuned", RED),
            "published": ("Poincaré, as published", ORANGE),
            "lorentz": ("Lorentz, as published", BLUE, True),  # dashed, as it lies on the line before
            "euclidean": ("Euclid, tuned", GREY),
        },
    )),
    "E2": ("map", joined(
        "WordNet's nouns: MAP by dimension", "dimension", MAP, ("dim", "map"), models,
        {"poincare": POINCARE, "lorentz": (*LORENTZ, True), "euclidean": EUCLID},
    )),
    "E4": ("recall", retrieval),
    "E5": ("accuracy", joined(
        "DictionaryLookup, one head: accuracy by k", "k", ACCURACY, ("k", "test_accuracy"), models,
        {"gatv2": ("GATv2", RED), "gatv1": ("GAT", BLUE), "v1": ("version 1", GREY)}, aside=6,
    )),
    "E6": ("accuracy", grouped(
        "WordNet's nouns into 26 classes: accuracy by features of edges", ACCURACY, "test", SPLITS,
        by_name(
            "edges", none="none", scalar="scalar distance", typed="relation",
            shuffled="shuffled relations", directed="relation and direction",
        ),
    )),
    "E7": ("accuracy", grouped(
        "Five tasks one after another: what is right at the end", Axis("accuracy", 0, 1), "at_end",
        {
            f"{name}, {scenario}": {"data": data, "scenario": scenario}
            for data, name in (("fashion", "Fashion-MNIST"), ("wordnet", "WordNet"))
            for scenario in ("task", "class")
        },
        by_name("arm", none="none", ewc="EWC", si="SI", replay="replay", joint="joint"),
    )),
    "E8": ("memory", joined(
        "Attention, forward and backward, d = 64: memory by length", "n = m, queries and keys",
        Axis("peak, MiB", log=True), ("queries", "peak_mib"),
        lambda e: split([row for row in e.rows if row["problem"] == "attention"], "way"),
        {"naive": ("naive", GREY), "weights": ("weights kept", BLUE), "tiled": ("tiled", RED)},
    )),
    "E9": ("distances", grouped(
        "Fashion-MNIST: distance evaluations at equal recall", Axis("distance evaluations a query", 0), "dcs",
        {f"recall@10 = {recall}": {"recall": recall} for recall in (0.95, 0.99)},
        by_name("arm", single="single", random="random", linear="regression", router="router", oracle="oracle"),
    )),
    "R1": ("error", grouped(
        "Small worlds: error of the hops to a marked node, by coordinates", Axis("RMSE, test graphs", 0), "test_rmse",
        POSITIONS, {"": {}}, [BLUE],
    )),
    "R2": ("accuracy", grouped(
        "WordNet's nouns into 26 classes: accuracy by rotary positions", ACCURACY, "test", SPLITS, POSITIONS,
    )),
}


def draw(e):
    """Draws an experiment's chart into results/. Returns its title and file; None where there is no chart or no run."""
    name, make = FIGURES.get(e.id, ("", None))
    chart = make(e) if make else None
    series = [s for s in chart.series if any(s.values)] if chart else []
    if not series:
        return None
    chart = dataclasses.replace(chart, series=series)
    drawn = lines(chart) if isinstance(chart.x, Axis) else bars(chart)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', *drawn, "</svg>"]
    path = RESULTS / f"{e.id.lower()}_{name}.svg"
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return chart.title, path.name
