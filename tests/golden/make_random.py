#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Writes random.txt: what ruvector::Rng has to give, from a second implementation in exact integers and fractions.

Each line is a name and the values, doubles and floats as the hexadecimal of their bits. The values of one block come
from one generator, in the order of the lines.
"""
import struct
from fractions import Fraction
from math import frexp, sqrt
from pathlib import Path

import mpmath
from scipy.stats import norm

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def fma(a, b, c):
    return float(Fraction(a) * Fraction(b) + Fraction(c))


def log(s):
    """The series of core/random.hpp, checked against the true logarithm."""
    m, e = frexp(s)
    if m < sqrt(0.5):
        m, e = 2 * m, e - 1
    z = (m - 1) / (m + 1)
    z2 = z * z
    series = 1 / 23
    for k in range(21, 0, -2):
        series = fma(series, z2, 1 / k)
    result = fma(float(e), 0.6931471805599453, 2 * z * series)
    true = mpmath.log(mpmath.mpf(s))
    assert abs(mpmath.mpf(result) - true) <= 4 * abs(true) * 2.0**-53, (s, result)
    return result


class Rng:
    def __init__(self, seed):
        self.state = []
        for _ in range(4):
            seed = (seed + GOLDEN) & MASK
            self.state.append(mix(seed))

    def split(self, stream):
        seed = mix((stream + GOLDEN) & MASK)
        for word in self.state:
            seed = mix(((seed ^ word) + GOLDEN) & MASK)
        return Rng(seed)

    def bits(self):
        def rotate(x, k):
            return (x << k | x >> (64 - k)) & MASK

        s = self.state
        result = (rotate((s[0] + s[3]) & MASK, 23) + s[0]) & MASK
        t = s[1] << 17 & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotate(s[3], 45)
        return result

    def uniform(self):
        return (self.bits() >> 11) / 2**53

    def uniform_between(self, low, high):
        return fma(high - low, self.uniform(), low)

    def below(self, n):
        # The definition: 64 bits that are taken only below the largest multiple of n in Lemire's order.
        while True:
            product = self.bits() * n
            if product % 2**64 >= 2**64 % n:
                return product >> 64

    def normal(self):
        while True:
            u = fma(2.0, self.uniform(), -1.0)
            v = fma(2.0, self.uniform(), -1.0)
            s = fma(u, u, v * v)
            if 0 < s < 1:
                return fma(u, sqrt(-2 * log(s) / s), 0.0)

    def shuffle(self, values):
        for i in range(len(values) - 1, 0, -1):
            j = self.below(i + 1)
            values[i], values[j] = values[j], values[i]


def hex64(x):
    return struct.pack(">d", x).hex()


def hex32(x):
    return struct.pack(">f", x).hex()


def main():
    lines = []

    def line(name, values):
        lines.append(" ".join([name, *map(str, values)]))

    for seed in (0, 1, 42, MASK):
        line(f"seed {seed}", (f"{Rng(seed).state[i]:016x}" for i in range(4)))
        rng = Rng(seed)
        line("bits", (f"{rng.bits():016x}" for _ in range(20)))
        line("uniform", (hex64(rng.uniform()) for _ in range(20)))
        line("uniform_double", (hex64(rng.uniform_between(-0.1, 0.3)) for _ in range(20)))
        low, high = (struct.unpack("f", struct.pack("f", x))[0] for x in (-0.1, 0.3))
        line("uniform_float", (hex32(rng.uniform_between(low, high)) for _ in range(20)))
        for n in (1, 2, 3, 10, 1000, 2**62 + 1, 2**63 - 1):
            line(f"below {n}", (rng.below(n) for _ in range(20)))
        line("normal_double", (hex64(rng.normal()) for _ in range(100)))
        line("normal_float", (hex32(rng.normal()) for _ in range(100)))
        order = list(range(20))
        rng.shuffle(order)
        line("shuffle", order)
        for stream in (0, 1, 2, 2**63, MASK):
            child = rng.split(stream)
            line(f"split {stream}", (f"{child.bits():016x}" for _ in range(8)))
    line("normal_cdf", (f"{k / 4} {norm.cdf(k / 4):.17g}" for k in range(-16, 17)))
    Path(__file__).with_name("random.txt").write_text("\n".join(lines) + "\n")


main()
