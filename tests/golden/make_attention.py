#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Attention and its gradients by PyTorch (Debian python3-torch) in double, for
tests/attention/test_golden_attention.cpp. usage: make_attention.py DIRECTORY

A file is one vector: the arrays of a case after each other, in the order in which the test reads them. Inputs are
numbers of float, so that the test can read them in either precision without a further error."""
import sys
import numpy as np
import torch

torch.set_default_dtype(torch.float64)
rng = np.random.default_rng(11)


def noise(*shape):
    return torch.tensor(rng.standard_normal(shape).astype(np.float32).astype(np.float64))


def learned(*shape):
    return noise(*shape).requires_grad_()


def save(name, *arrays):
    flat = [np.asarray(a.detach().numpy(), dtype=np.float64).reshape(-1) for a in arrays]
    np.save(f"{sys.argv[1]}/attention_{name}.npy", np.concatenate(flat))


def multi_head(name, heads=2, m=5, n=7, dim=8, kdim=None, vdim=None, attn_mask=None, key_padding_mask=None):
    """nn.MultiheadAttention: inputs, d_out, parameters, output, average weights, gradients of inputs and parameters."""
    layer = torch.nn.MultiheadAttention(dim, heads, kdim=kdim, vdim=vdim, batch_first=True)
    parameters = [p for _, p in layer.named_parameters()]
    with torch.no_grad():
        for p in parameters:
            p.copy_(0.5 * noise(*p.shape))
    names = [key for key, _ in layer.named_parameters()]
    weights = ["in_proj_weight"] if kdim is None else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    assert names == weights + ["in_proj_bias", "out_proj.weight", "out_proj.bias"], names
    inputs = [learned(m, dim), learned(n, kdim or dim), learned(n, vdim or dim)]
    d_out = noise(m, dim)
    out, average = layer(*inputs, attn_mask=attn_mask, key_padding_mask=key_padding_mask)
    out.backward(d_out)
    save(f"multi_head_{name}", *inputs, d_out, *parameters, out, average, *[x.grad for x in inputs + parameters])


multi_head("plain")
multi_head("causal", m=7, attn_mask=torch.ones(7, 7, dtype=torch.bool).triu(1))
multi_head("padding", key_padding_mask=torch.tensor([False, True, False, False, False, True, True]))
multi_head("kdim_vdim", kdim=3, vdim=5)


def attention(q, k, v, visible, bias=None, alibi=0.0, softcap=0.0, tau=None, d_lse=None):
    """softmax(q kᵀ/√d …) v and the log-sum-exp, with rows that see nothing as zeros."""
    m, n = q.shape[0], k.shape[0]
    logits = q @ k.T / q.shape[1]**0.5
    if softcap > 0:
        logits = softcap * torch.tanh(logits / softcap)
    if tau is not None:
        logits = logits / tau
    if bias is not None:
        logits = logits + bias
    position = torch.arange(m)[:, None] + (n - m) - torch.arange(n)[None, :]
    logits = logits - alibi * position.abs()
    sees = visible.any(1)
    logits = torch.where(visible, logits, torch.where(sees[:, None], -torch.inf, 0.0))
    weights = torch.softmax(logits, 1) * sees[:, None]
    lse = torch.where(sees, torch.logsumexp(logits, 1), torch.tensor(0.0))
    return weights @ v, lse, sees


def scaled_dot_product(name, m, n, rule, bias_rows=0, tau=None, **options):
    """q, k, v, [bias], d_out, d_lse; output, log-sum-exp; gradients by q, k, v, [bias], by raw of the temperature."""
    d, width = 6, 5
    inputs = [learned(m, d), learned(n, d), learned(n, width)]
    bias = learned(bias_rows, n) if bias_rows else None
    i, j = torch.arange(m)[:, None] + (n - m), torch.arange(n)[None, :]  # the last query stands at the last key
    # softplus(raw) = τ: the default of the library is τ = 1.
    raw = torch.tensor(np.log(np.expm1(tau or 1.0)), requires_grad=True)
    out, lse, sees = attention(*inputs, rule(i, j), bias=bias, tau=torch.nn.functional.softplus(raw), **options)
    d_out, d_lse = noise(m, width), noise(m)
    ((out * d_out).sum() + (lse * d_lse).sum()).backward()
    all_inputs = inputs + ([bias] if bias_rows else [])
    lse = torch.where(sees, lse, torch.tensor(-torch.inf))
    save(name, *all_inputs, d_out, d_lse, out, lse, *[x.grad for x in all_inputs], raw.grad)


everywhere = lambda i, j: (i == i) & (j == j)
causal = lambda i, j: j <= i
scaled_dot_product("causal", 5, 9, causal)
scaled_dot_product("causal_short", 9, 5, causal)  # the first four queries stand before all keys
scaled_dot_product("window", 6, 11, lambda i, j: (j < 1) | ((j >= i - 2) & (j <= i + 1)))
scaled_dot_product("alibi", 4, 7, everywhere, alibi=0.25)
scaled_dot_product("softcap", 5, 8, causal, softcap=2.0, tau=0.7)
scaled_dot_product("bias", 4, 6, everywhere, bias_rows=4)
scaled_dot_product("bias_row", 4, 6, causal, bias_rows=1)
scaled_dot_product("masked_row", 4, 6, lambda i, j: ((i + j) % 3 != 0) & (i != 3))

# Grouped queries: four heads, two of keys and values. Inputs, d_out, W_q, W_k, W_v, W_o; output; gradients.
m, n, dim, heads, kv_heads, width = 5, 7, 8, 4, 2, 2
inputs = [learned(m, dim), learned(n, dim), learned(n, dim)]
parameters = [learned(heads * width, dim), learned(kv_heads * width, dim), learned(kv_heads * width, dim),
              learned(dim, heads * width)]
q, k, v = (x @ w.T for x, w in zip(inputs, parameters))
parts = []
for h in range(heads):
    g = h // (heads // kv_heads)
    columns = lambda x, c: x[:, c * width:(c + 1) * width]
    parts.append(attention(columns(q, h), columns(k, g), columns(v, g), torch.ones(m, n, dtype=torch.bool))[0])
out = torch.cat(parts, 1) @ parameters[3].T
d_out = noise(m, dim)
out.backward(d_out)
save("grouped", *inputs, d_out, *parameters, out, *[x.grad for x in inputs + parameters])
