#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Optimizers of PyTorch (Debian python3-torch), and geoopt's published Riemannian Adam in plain numpy, for
tests/train/test_*.cpp.   usage: make_optimizers.py DIRECTORY

Every run starts at x_i = (i + 1) / 16 and is fed the gradients g_t,i = 10^(i mod 4 - 2) (((7919 t + 104729 i) mod 2003) /
1001 - 1), t from 1, in double. A file holds the parameters after the steps of CHECKPOINTS, one row each."""
import sys
import numpy as np

CHECKPOINTS = [1, 2, 3, 10, 100, 1000]
SIZE = 24  # 8 points of 3 columns for the Riemannian runs


def start():
    return (np.arange(SIZE) + 1) / 16


def gradient(t):
    i = np.arange(SIZE)
    return np.array([0.01, 0.1, 1.0, 10.0])[i % 4] * (((7919 * t + 104729 * i) % 2003) / 1001 - 1)


def pytorch():
    import torch
    runs = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
        "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.05),
        "sgd_nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.05),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-8),
        "adam_decay": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.05),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
        "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.9), amsgrad=True),
        "adamw_amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.9), weight_decay=0.05, amsgrad=True),
    }
    for name, make in runs.items():
        x = torch.tensor(start(), requires_grad=True)
        optimizer = make([x])
        rows = []
        for t in range(1, max(CHECKPOINTS) + 1):
            x.grad = torch.tensor(gradient(t))
            optimizer.step()
            if t in CHECKPOINTS:
                rows.append(x.detach().numpy().copy())
        np.save(f"{sys.argv[1]}/optimizer_{name}.npy", np.stack(rows))


def schedules():
    """Factors at 40 steps, a row each; the plateau is told the metric 1 / (1 + min(t, 12)) + 0.01 (t mod 3) at step t."""
    import torch
    from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ExponentialLR, ReduceLROnPlateau, StepLR
    rows = []
    for make in (lambda o: StepLR(o, step_size=7, gamma=0.5), lambda o: ExponentialLR(o, gamma=0.9),
                 lambda o: CosineAnnealingWarmRestarts(o, T_0=12, eta_min=0.125),
                 lambda o: ReduceLROnPlateau(o, factor=0.5, patience=3, min_lr=0.1)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule, row = make(optimizer), []
        for t in range(40):
            row.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            plateau = isinstance(schedule, ReduceLROnPlateau)
            schedule.step(*[1 / (1 + min(t, 12)) + 0.01 * (t % 3)] if plateau else [])
        rows.append(row)
    np.save(f"{sys.argv[1]}/schedules.npy", np.array(rows))


# Operations on one point, written from the definitions (Ungar's addition and gyration; Minkowski's product), not from
# the library's forms of them.
class Ball:
    def __init__(self, c):
        self.c = c

    def start(self):
        return start().reshape(-1, 3) / 4 / np.sqrt(self.c)

    def add(self, x, y):
        c, xy, xx, yy = self.c, x @ y, x @ x, y @ y
        return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c * c * xx * yy)

    def factor(self, x):
        return 2 / (1 - self.c * x @ x)

    def gradient(self, x, g):
        return g / self.factor(x) ** 2

    def inner(self, x, v):
        return self.factor(x) ** 2 * v @ v

    def project(self, x, margin):
        limit = (1 - margin) / np.sqrt(self.c)
        norm = np.sqrt(x @ x)
        return x * limit / norm if norm > limit else x

    def exp(self, x, v):
        s, norm = np.sqrt(self.c), np.sqrt(v @ v)
        return self.add(x, np.tanh(s * self.factor(x) * norm / 2) * v / (s * norm))

    def transport(self, x, y, v):
        # gyr[y, -x] v lambda_x / lambda_y; gyr[a, b] v = -(a + b) + (a + (b + v))
        a, b = y, -x
        v = v / 100  # inside the ball; gyrations are linear
        return 100 * self.add(-self.add(a, b), self.add(a, self.add(b, v))) * self.factor(x) / self.factor(y)


class Hyperboloid:
    def __init__(self, c):
        self.c = c

    def lift(self, space):
        return np.concatenate([[np.sqrt(1 / self.c + space @ space)], space])

    def start(self):
        return np.stack([self.lift(row[1:]) for row in start().reshape(-1, 3)])

    def product(self, x, y):
        return x[1:] @ y[1:] - x[0] * y[0]

    def gradient(self, x, g):
        h = np.concatenate([[-g[0]], g[1:]])
        return h + self.c * self.product(x, h) * x

    def inner(self, x, v):
        return self.product(v, v)

    def project(self, x, margin):
        limit = 1 / margin / np.sqrt(self.c)
        norm = np.sqrt(x[1:] @ x[1:])
        return self.lift(x[1:] * limit / norm if norm > limit else x[1:])

    def exp(self, x, v):
        norm = np.sqrt(self.c * self.product(v, v))
        return np.cosh(norm) * x + np.sinh(norm) / norm * v

    def transport(self, x, y, v):
        return v + self.c * self.product(y, v) / (1 - self.c * self.product(x, y)) * (x + y)


def riemannian_adam(manifold, exponential, clip, lr=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8, margin=1e-5):
    x = manifold.start()
    m, v, rows = np.zeros_like(x), np.zeros(len(x)), []
    for t in range(1, max(CHECKPOINTS) + 1):
        g = gradient(t).reshape(x.shape)
        for i in range(len(x)):
            r = manifold.gradient(x[i], g[i])
            norm = np.sqrt(manifold.inner(x[i], r))
            r = r * min(1, clip / norm)
            m[i] = beta1 * m[i] + (1 - beta1) * r
            v[i] = beta2 * v[i] + (1 - beta2) * manifold.inner(x[i], r)
            step = -lr * (m[i] / (1 - beta1**t)) / (np.sqrt(v[i] / (1 - beta2**t)) + epsilon)
            y = manifold.project(manifold.exp(x[i], step) if exponential else x[i] + step, margin)
            m[i] = manifold.transport(x[i], y, m[i])
            x[i] = y
        if t in CHECKPOINTS:
            rows.append(x.flatten())
    return np.stack(rows)


pytorch()
schedules()
for name, manifold in {"ball": Ball(1.0), "ball07": Ball(0.7), "lorentz07": Hyperboloid(0.7)}.items():
    for way, exponential, clip in (("retraction", False, np.inf), ("exp", True, 2.0)):
        np.save(f"{sys.argv[1]}/optimizer_riemannian_adam_{name}_{way}.npy", riemannian_adam(manifold, exponential, clip))
