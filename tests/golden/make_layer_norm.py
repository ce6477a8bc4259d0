#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""PyTorch's LayerNorm (Debian python3-torch) in double, for tests/nn/test_layer_norm.cpp.
usage: make_layer_norm.py DIRECTORY

Inputs are numbers of float, so that the test can read them in either precision without a further error."""
import sys
import numpy as np
import torch

DIM = 37
rng = np.random.default_rng(7)
noise = lambda: rng.standard_normal(DIM).astype(np.float32).astype(np.float64)
x = np.stack([noise(), noise(), 1000 + np.round(64 * noise()) / 64, 2e-3 * noise(), np.full(DIM, 0.75), 100 * noise()])
x = x.astype(np.float32).astype(np.float64)
d_y = np.stack([noise() for _ in x])
gamma, beta = 1 + 0.25 * np.round(4 * noise()) / 4, noise()

t = torch.tensor(x, requires_grad=True)
g, b = torch.tensor(gamma, requires_grad=True), torch.tensor(beta, requires_grad=True)
y = torch.nn.functional.layer_norm(t, (DIM,), g, b, eps=1e-5)
y.backward(torch.tensor(d_y))

for name, value in {
        "x": x,
        "d_y": d_y,
        "parameters": np.stack([gamma, beta]),
        "y": y.detach().numpy(),
        "d_x": t.grad.numpy(),
        "d_parameters": np.stack([g.grad.numpy(), b.grad.numpy()]),
}.items():
    np.save(f"{sys.argv[1]}/layer_norm_{name}.npy", np.ascontiguousarray(value))
