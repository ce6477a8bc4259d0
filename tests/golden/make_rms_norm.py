#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""RMSNorm by its formula in PyTorch (Debian python3-torch, 1.13, which has no such layer) in double, gradients by
autograd, for tests/nn/test_rms_norm.cpp.
usage: make_rms_norm.py DIRECTORY

One vector: x, ∂L/∂y, γ, then y and the gradients by x and γ. Inputs are numbers of float, so that the test can read
them in either precision without a further error."""
import sys
import numpy as np
import torch

N, DIM = 5, 37
rng = np.random.default_rng(42)
noise = lambda *shape: torch.tensor(rng.standard_normal(shape).astype(np.float32).astype(np.float64))
x, d_y, gamma = noise(N, DIM), noise(N, DIM), 1 + noise(DIM) / 4
gamma = gamma.float().double()
x[1] *= 1024  # large
x[2] /= 512  # ε counts
x[3] = 0.75
x[4] = 0
x.requires_grad_()
gamma.requires_grad_()
y = gamma * x / torch.sqrt((x * x).mean(1, keepdim=True) + 1e-5)
y.backward(d_y)
tensors = [x, d_y, gamma, y, x.grad, gamma.grad]
np.save(f"{sys.argv[1]}/rms_norm.npy", np.concatenate([t.detach().numpy().ravel() for t in tensors]))
