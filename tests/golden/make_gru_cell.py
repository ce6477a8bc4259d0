#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""torch.nn.GRUCell (Debian python3-torch, 1.13), and the other conventions by their formula, values and all gradients
by autograd in double, for tests/nn/test_gru_cell.cpp.
usage: make_gru_cell.py DIRECTORY

One vector each of what goes in (x, h, ∂L/∂h', the parameters in the order of state_dict()) and, for each pair of
conventions, of what comes out (h', gradients by x, h and the parameters). Inputs are numbers of float, so that the test
can read them in either precision without a further error."""
import sys
import numpy as np
import torch

N, IN, H = 6, 7, 19
rng = np.random.default_rng(40)


def noise(scale, *shape):
    return torch.tensor((scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64))


def formula(x, h, p, replace, before):
    W, U, b, c = (p[k].chunk(3) for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    r = torch.sigmoid(x @ W[0].T + b[0] + h @ U[0].T + c[0])
    z = torch.sigmoid(x @ W[1].T + b[1] + h @ U[1].T + c[1])
    hidden = (r * h) @ U[2].T + c[2] if before else r * (h @ U[2].T + c[2])
    n = torch.tanh(x @ W[2].T + b[2] + hidden)
    return (1 - z) * h + z * n if replace else (1 - z) * n + z * h


x, h, d_out = noise(1, N, IN), noise(1, N, H), noise(1, N, H)
x[4] *= 40  # shut gates
h[5] = 0
cell = torch.nn.GRUCell(IN, H, dtype=torch.float64)
for p in cell.parameters():
    p.data = noise(0.4, *p.shape)
flat = lambda tensors: np.concatenate([t.detach().numpy().ravel() for t in tensors])
np.save(f"{sys.argv[1]}/gru_cell_in.npy", flat([x, h, d_out] + list(cell.state_dict().values())))


def save(name, function):
    inputs = [x.clone().requires_grad_(), h.clone().requires_grad_()]
    cell.zero_grad()
    out = function(*inputs)
    out.backward(d_out)
    np.save(f"{sys.argv[1]}/gru_cell_{name}.npy", flat([out] + [i.grad for i in inputs + list(cell.parameters())]))
    return out


parameters = dict(cell.named_parameters())
out = save("keep_after", cell)
assert (out - formula(x, h, parameters, False, False)).abs().max() < 1e-14
for update in (False, True):
    for reset in (False, True):
        if update or reset:
            save(("replace" if update else "keep") + ("_before" if reset else "_after"),
                 lambda x, h: formula(x, h, parameters, update, reset))
