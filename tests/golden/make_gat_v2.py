#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""GATv2 by its formula in PyTorch (Debian python3-torch), values and all gradients by autograd in double, for
tests/attention/test_gat_v2.cpp.
usage: make_gat_v2.py DIRECTORY

Two cases, one vector each of what goes in and what comes out, tensors one after the other in the order of the lists
below. Inputs are numbers of float, so that the test can read them in either precision without a further error."""
import sys
import numpy as np
import torch

SLOPE = 0.2
rng = np.random.default_rng(22)


def noise(*shape):
    return torch.tensor(rng.standard_normal(shape).astype(np.float32).astype(np.float64), requires_grad=True)


def attend(x_l, x_r, values, W_e, e, att, edges, bias=None, edge_in_value=False):
    """edges: list of (target, source, row of e)"""
    H, C = att.shape
    i, j, r = (torch.tensor(k) for k in zip(*edges))
    project = (e @ W_e.T)[r].view(-1, H, C)
    z = x_r.view(-1, H, C)[i] + x_l.view(-1, H, C)[j] + project
    logit = (torch.nn.functional.leaky_relu(z, SLOPE) * att).sum(-1)
    if bias is not None:
        logit = logit + bias[i, j][:, None]
    out = torch.zeros(x_r.shape[0], H, C, dtype=torch.float64)
    value = values.view(-1, H, C)[j] + (project if edge_in_value else 0)
    for t in range(x_r.shape[0]):
        own = i == t
        if own.any():
            out[t] = (torch.softmax(logit[own], 0)[:, :, None] * value[own]).sum(0)
    return out


def save(name, inputs, out):
    d_out = noise(*out.shape).detach()
    out.backward(d_out)
    flat = lambda tensors: np.concatenate([t.detach().numpy().ravel() for t in tensors])
    np.save(f"{sys.argv[1]}/gat_v2_{name}_in.npy", flat(inputs + [d_out]))
    np.save(f"{sys.argv[1]}/gat_v2_{name}_out.npy", flat([out] + [x.grad for x in inputs]))


# A graph: heads side by side, loops with the mean of the features of the other edges, a linear residual. Node 4 has no
# edges, node 2 has a loop, which is replaced, node 0 two edges from node 5.
N, IN, TARGET, E, H, C = 8, 6, 4, 3, 3, 5
edges = [(0, 5), (0, 5), (0, 1), (1, 0), (2, 2), (2, 3), (3, 7), (5, 0), (5, 6), (5, 7), (5, 1), (6, 6), (7, 2)]
x_source, x_target, e = noise(N, IN), noise(N, TARGET), noise(len(edges), E)
W_l, b_l, W_r, b_r, W_e = noise(H * C, IN), noise(H * C), noise(H * C, TARGET), noise(H * C), noise(H * C, E)
att, W_res, b = noise(H, C), noise(H * C, TARGET), noise(H * C)
kept = [(i, j, k) for k, (i, j) in enumerate(edges) if i != j]
loops = [e[[k for t, _, k in kept if t == i]].mean(0) if any(t == i for t, _, _ in kept) else torch.zeros(E).double()
         for i in range(N)]
features = torch.cat([e, torch.stack(loops)])
out = attend(x_source @ W_l.T + b_l, x_target @ W_r.T + b_r, x_source @ W_l.T + b_l, W_e, features, att,
             kept + [(i, i, len(edges) + i) for i in range(N)])
save("graph", [x_source, x_target, e, W_l, b_l, W_r, b_r, W_e, att, W_res, b],
     out.view(N, H * C) + x_target @ W_res.T + b)

# Dense: one projection for queries, keys and values, the mean of two heads, W_e e in the values, a bias; query i does
# not see key j where (3 i + 5 j) % 4 = 0, query 2 sees nothing.
M, N, D, E, H, C = 6, 7, 5, 2, 2, 9
query, key, value, e, bias = noise(M, D), noise(N, D), noise(N, D), noise(M * N, E), noise(M, N)
W, b_l, W_e, att = noise(H * C, D), noise(H * C), noise(H * C, E), noise(H, C)
out = attend(key @ W.T + b_l, query @ W.T + b_l, value @ W.T + b_l, W_e, e, att,
             [(i, j, i * N + j) for i in range(M) for j in range(N) if (3 * i + 5 * j) % 4 and i != 2], bias, True)
save("dense", [query, key, value, e, bias, W, b_l, W_e, att], out.mean(1))
