#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Losses of PyTorch (Debian python3-torch) in double, for tests/train/test_losses.cpp and test_contrastive.cpp.
usage: make_losses.py DIRECTORY

Inputs are numbers of float, so that the tests can read them in either precision without a further error. A file is one
vector: inputs, then the losses of rows, the value, and the gradients, in the order of the calls of `case` below."""
import sys
import numpy as np
import torch
import torch.nn.functional as F

rng = np.random.default_rng(11)
N, C = 7, 19


def normal(*shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)


def uniform(*shape):
    return rng.random(shape).astype(np.float32).astype(np.float64)


def case(name, inputs, rows, value, constants=()):
    """rows(*inputs) the loss of each row, value(*inputs) the number whose gradient is taken."""
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    row_losses = rows(*tensors).detach().numpy()
    total = value(*tensors)
    total.backward()
    parts = [*constants, *inputs, row_losses, total.detach().numpy(), *(t.grad.numpy() for t in tensors)]
    np.save(f"{sys.argv[1]}/loss_{name}.npy", np.concatenate([np.ravel(p).astype(np.float64) for p in parts]))


# Regression.
p, t = normal(N, C), normal(N, C)
case("mse", [p, t], lambda p, t: ((p - t)**2).sum(1), lambda p, t: F.mse_loss(p, t))

# Classes: large logits in row 2, an ignored label in row 4.
logits = normal(N, C, scale=3.0)
logits[2] *= 100
labels = rng.integers(0, C, N)
labels[4] = -100
weights = (0.25 + uniform(C)).astype(np.float32).astype(np.float64)
y = torch.tensor(labels)
for name, smoothing, w in (("plain", 0.0, None), ("smooth", 0.1, None), ("weighted", 0.0, weights),
                           ("smooth_weighted", 0.25, weights)):
    options = dict(label_smoothing=smoothing, weight=None if w is None else torch.tensor(w))
    case(f"cross_entropy_{name}", [logits], lambda x: F.cross_entropy(x, y, reduction="none", **options),
         lambda x: F.cross_entropy(x, y, **options), [labels, weights])
target = uniform(N, C)
target = (target / target.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)
options = dict(label_smoothing=0.125, weight=torch.tensor(weights))
case("cross_entropy_soft", [logits, target], lambda x, t: F.cross_entropy(x, t, reduction="none", **options),
     lambda x, t: F.cross_entropy(x, t, **options), [weights])

# Two classes: extreme logits and probabilities in row 0.
x, t = normal(N, C, scale=4.0), uniform(N, C)
x[0, :6] = [0, 90, -90, 1e4, -1e4, 20]
omega = (0.5 + 2 * uniform(C)).astype(np.float32).astype(np.float64)


def bce_with_logits(x, t):  # PyTorch 1.13 has no gradient for the target in its kernel; its formula has
    o = torch.tensor(omega)
    soft = torch.log1p(torch.exp(-x.abs())) + torch.clamp(-x, min=0)
    return (1 - t) * x + (1 + (o - 1) * t) * soft


assert torch.allclose(
    bce_with_logits(torch.tensor(x), torch.tensor(t)),
    F.binary_cross_entropy_with_logits(torch.tensor(x), torch.tensor(t), reduction="none", pos_weight=torch.tensor(omega)))
x[0, 0] = 0.5  # |x| has no derivative at 0 for autograd
case("bce_with_logits", [x, t], lambda x, t: bce_with_logits(x, t).sum(1), lambda x, t: bce_with_logits(x, t).mean(),
     [omega])

q = (0.02 + 0.96 * uniform(N, C)).astype(np.float32).astype(np.float64)
q[0, :4] = [0, 1, 0, 1]
t[0, :4] = [0, 1, 1, 0]


def bce_case():
    tensor = torch.tensor(q, requires_grad=True)
    rows = F.binary_cross_entropy(tensor, torch.tensor(t), reduction="none").sum(1).detach().numpy()
    value = F.binary_cross_entropy(tensor, torch.tensor(t))
    value.backward()
    parts = [q, t, rows, value.detach().numpy(), tensor.grad.numpy()]
    np.save(f"{sys.argv[1]}/loss_bce.npy", np.concatenate([np.ravel(p) for p in parts]))


bce_case()

# Triplets.
a, b, c = normal(N, C), normal(N, C), normal(N, C)
b[:3] += a[:3]
case("triplet", [a, b, c], lambda a, b, c: F.triplet_margin_loss(a, b, c, margin=0.75, eps=0, reduction="none"),
     lambda a, b, c: F.triplet_margin_loss(a, b, c, margin=0.75, eps=0))

# InfoNCE: 5 queries, 9 keys; pairs 0 negative, 1 positive, 2 ignored; query 3 has no positive.
Q, K, D, TAU = 5, 9, 6, 0.25
query, key = normal(Q, D), normal(K, D)
pairs = rng.choice([0, 0, 1, 2], size=(Q, K))
pairs[3][pairs[3] == 1] = 0
pairs[0, :2], pairs[1, :3] = [1, 0], [1, 1, 0]
P, N_, ALL = (torch.tensor(m) for m in (pairs == 1, pairs == 0, pairs != 2))


def lse(s, mask):
    return torch.logsumexp(torch.where(mask, s, torch.tensor(-np.inf, dtype=torch.float64)), 1)


def info_nce(form):

    def rows(q, k):
        s = F.cosine_similarity(q[:, None, :], k[None, :, :], dim=2, eps=0) / TAU
        losses = []
        for i in range(Q):
            positives = torch.nonzero(P[i])[:, 0]
            if len(positives) == 0:
                losses.append(0 * s[i, 0])
            elif form == "together":
                losses.append(torch.logsumexp(s[i][ALL[i]], 0) - torch.logsumexp(s[i][P[i]], 0))
            elif form == "all":
                losses.append((torch.logsumexp(s[i][ALL[i]], 0) - s[i][P[i]]).mean())
            else:
                losses.append(
                    torch.stack([torch.logsumexp(torch.cat([s[i][j:j + 1], s[i][N_[i]]]), 0) - s[i, j]
                                 for j in positives]).mean())
        return torch.stack(losses)

    return rows


for form in ("negatives", "all", "together"):
    rows = info_nce(form)
    case(f"info_nce_{form}", [query, key], rows, lambda q, k: rows(q, k).sum() / int(P.any(1).sum()), [pairs])
