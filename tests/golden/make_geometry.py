#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Golden values of the manifolds, by the textbook formulas (Ungar 2008, Ganea 2018, Nickel & Kiela 2018) at 60 digits.

Writes geometry_distances.txt (float inputs near the rim; ball and hyperboloid) and geometry_operations.txt (double
inputs). One case a line: operation, curvature, dimension, inputs, outputs; numbers are hexadecimal doubles, so that the
inputs are exactly those of the computation. Run it in its own folder.
"""
import random
import struct

from mpmath import acosh, atanh, cosh, mp, mpf, sinh, sqrt, tanh

mp.dps = 60
random.seed(20260802)


def to_float(x):
    return struct.unpack("f", struct.pack("f", float(x)))[0]


def exact(v):
    return [mpf(x) for x in v]


def dot(a, b):
    return sum((p * q for p, q in zip(a, b)), mpf(0))


def lin(*terms):
    return [sum((k * v[i] for k, v in terms), mpf(0)) for i in range(len(terms[0][1]))]


def direction(d):
    v = [random.gauss(0, 1) for _ in range(d)]
    n = sum(x * x for x in v) ** 0.5
    return [x / n for x in v]


# The ball.
def add(c, x, y):
    xy, xx, yy = dot(x, y), dot(x, x), dot(y, y)
    a, b = 1 + 2 * c * xy + c * yy, 1 - c * xx
    return lin(((a / (1 + 2 * c * xy + c * c * xx * yy)), x), (b / (1 + 2 * c * xy + c * c * xx * yy), y))


def ball_distance(c, x, y):
    m = add(c, [-v for v in x], y)
    return 2 / sqrt(c) * atanh(sqrt(c * dot(m, m)))


def factor(c, x):
    return 2 / (1 - c * dot(x, x))


def exp(c, x, v):
    r = sqrt(dot(v, v))
    return add(c, x, [tanh(sqrt(c) * factor(c, x) * r / 2) / (sqrt(c) * r) * t for t in v])


def log(c, x, y):
    m = add(c, [-v for v in x], y)
    r = sqrt(dot(m, m))
    return [2 / (sqrt(c) * factor(c, x)) * atanh(sqrt(c) * r) / r * t for t in m]


def transport(c, x, y, v):
    # gyr[u, w]v = −(u ⊕ w) ⊕ (u ⊕ (w ⊕ v)) for v in the ball; linear, so scale v down and up again
    u, w, k = y, [-t for t in x], mpf(10) ** -3 / (1 + sqrt(c * dot(v, v)))
    uw = add(c, u, w)
    g = add(c, [-t for t in uw], add(c, u, add(c, w, [k * t for t in v])))
    return [t / k * factor(c, x) / factor(c, y) for t in g]


def midpoint(c, w, points):
    # The Einstein midpoint, in Klein coordinates.
    klein = [[2 * t / (1 + c * dot(p, p)) for t in p] for p in points]
    gamma = [1 / sqrt(1 - c * dot(k, k)) for k in klein]
    total = sum(a * g for a, g in zip(w, gamma))
    k = [sum(a * g * p[i] for a, g, p in zip(w, gamma, klein)) / total for i in range(len(points[0]))]
    return [t / (1 + sqrt(1 - c * dot(k, k))) for t in k]


# The hyperboloid; times come from the space parts.
def lift(c, x):
    return [sqrt(1 / c + dot(x, x))] + list(x)


def minkowski(a, b):
    return dot(a[1:], b[1:]) - a[0] * b[0]


def lorentz_distance(c, x, y):
    return acosh(-c * minkowski(lift(c, x), lift(c, y))) / sqrt(c)


def tangent(x, v):
    return [dot(x[1:], v) / x[0]] + list(v)


def lorentz_exp(c, x, v):
    X = lift(c, x)
    V = tangent(X, v)
    n = sqrt(c * minkowski(V, V))
    return lin((cosh(n), X), (sinh(n) / n, V))


def lorentz_log(c, x, y):
    X, Y = lift(c, x), lift(c, y)
    b = -c * minkowski(X, Y)
    return lin((acosh(b) / sqrt(b * b - 1), lin((1, Y), (-b, X))))


def lorentz_transport(c, x, y, v):
    X, Y = lift(c, x), lift(c, y)
    V = tangent(X, v)
    return lin((1, V), (c * minkowski(Y, V) / (1 - c * minkowski(X, Y)), lin((1, X), (1, Y))))


def lorentz_midpoint(c, w, points):
    n = lin(*[(a, lift(c, p)) for a, p in zip(w, points)])
    return [t / sqrt(-c * minkowski(n, n)) for t in n]


def line(name, c, d, inputs, outputs):
    numbers = [c] + [v for vector in inputs for v in vector] + [v for v in outputs]
    return f"{name} {d} " + " ".join(float(v).hex() for v in numbers) + "\n"


with open("geometry_distances.txt", "w") as f:
    for k in range(1, 8):
        for kind in range(8):
            for d in (1, 2, 5, 10):
                c = [1.0, 1.0, 0.25, 2.0][kind % 4]
                r = (1 - 10.0 ** -k) / c**0.5
                x = [to_float(r * t) for t in direction(d)]
                if kind < 4:  # near pairs, from 0.001 to 1 apart in the metric
                    step = 10.0 ** (-kind) * 10.0 ** -k
                    y = [to_float(p + step * q) for p, q in zip(x, direction(d))]
                else:
                    y = [to_float((1 - 10.0 ** -random.uniform(0, k)) / c**0.5 * t) for t in direction(d)]
                if any(c * dot(exact(v), exact(v)) > (1 - mpf(2) ** -24) ** 2 for v in (x, y)):
                    continue
                if x == y:  # in float
                    continue
                f.write(line("ball", c, d, [x, y], [ball_distance(mpf(c), exact(x), exact(y))]))
                X = [to_float(2 * t / (1 - c * sum(u * u for u in x))) for t in x]
                Y = [to_float(2 * t / (1 - c * sum(u * u for u in y))) for t in y]
                if X == Y:
                    continue
                f.write(line("lorentz", c, d, [X, Y], [lorentz_distance(mpf(c), exact(X), exact(Y))]))

with open("geometry_operations.txt", "w") as f:
    for trial in range(12):
        d = [1, 2, 3, 5, 8, 17][trial % 6]
        c = [1.0, 0.3, 4.0][trial % 3]

        def ball_point():
            r = random.uniform(0, 0.95) / c**0.5
            return [r * t for t in direction(d)]

        def vector():
            return [random.gauss(0, 0.5 / (c * d) ** 0.5) for _ in range(d)]

        def space():
            return [random.gauss(0, 2) for _ in range(d)]

        w = [random.uniform(0.1, 1) for _ in range(3)]
        x, y, z, v = ball_point(), ball_point(), ball_point(), vector()
        C, X, Y, Z, V, W = mpf(c), exact(x), exact(y), exact(z), exact(v), exact(w)
        f.write(line("add", c, d, [x, y], add(C, X, Y)))
        f.write(line("exp", c, d, [x, v], exp(C, X, V)))
        f.write(line("log", c, d, [x, y], log(C, X, Y)))
        f.write(line("transport", c, d, [x, y, v], transport(C, X, Y, V)))
        f.write(line("midpoint", c, d, [w, x, y, z], midpoint(C, W, [X, Y, Z])))
        x, y, z, v = space(), space(), space(), vector()
        X, Y, Z, V = exact(x), exact(y), exact(z), exact(v)
        f.write(line("lorentz_exp", c, d, [x, v], lorentz_exp(C, X, V)))
        f.write(line("lorentz_log", c, d, [x, y], lorentz_log(C, X, Y)))
        f.write(line("lorentz_transport", c, d, [x, y, v], lorentz_transport(C, X, Y, V)))
        f.write(line("lorentz_midpoint", c, d, [w, x, y, z], lorentz_midpoint(C, W, [X, Y, Z])))
