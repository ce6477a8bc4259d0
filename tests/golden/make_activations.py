#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""PyTorch's activations (Debian python3-torch, 1.13) and their derivatives in double, for tests/nn/test_activations.cpp.
usage: make_activations.py DIRECTORY

A matrix: a row of arguments, which are numbers of float, then two rows f(x), f'(x) for each function."""
import sys
import numpy as np
import torch
from torch.nn import functional as F

rng = np.random.default_rng(41)
size = np.concatenate([2.0**np.arange(-40, 7), rng.uniform(0, 6, 60), rng.uniform(6, 13, 12)])
x = np.concatenate([-size[::-1], [0], size]).astype(np.float32).astype(np.float64)
rows = [x]
for f in (lambda t: t, F.relu, lambda t: F.leaky_relu(t, 0.01), lambda t: F.elu(t, 1.0), F.gelu,
          lambda t: F.gelu(t, approximate="tanh"), F.silu, torch.tanh, torch.sigmoid):
    t = torch.tensor(x, requires_grad=True)
    y = f(t)
    y.backward(torch.ones_like(y))
    rows += [y.detach().numpy(), t.grad.numpy()]
np.save(f"{sys.argv[1]}/activations.npy", np.stack(rows))
