#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Rows G1 and G3 of bench_gnn in PyTorch (written for 1.13), on one thread.

usage: gnn_torch.py             prints each row in milliseconds, the median of 21 runs
       gnn_torch.py --serve     runs a row each time its name is read from standard input, for bench_gnn --torch

The products are those of the BLAS that PyTorch was linked with. Debian's default is the reference BLAS, 20 times slower
than a good one: install libopenblas0 (and, on CPUs that are newer than it, try OPENBLAS_CORETYPE=SkylakeX); the first
row says what a product of 1024x1024 matrices reaches."""
import ctypes
import sys
import time
import warnings
import torch

torch.set_num_threads(1)
torch.manual_seed(1)
warnings.filterwarnings("ignore", "scatter_reduce")  # is in beta
# glibc gives large blocks back to the system at once, and fetching them anew costs PyTorch more than its arithmetic
# (GATv2: 3 to 5 times): M_MMAP_THRESHOLD and M_TRIM_THRESHOLD keep them.
ctypes.CDLL(None).mallopt(-3, 2**30)
ctypes.CDLL(None).mallopt(-1, 2**31 - 1)


class GATv2(torch.nn.Module):
    """As PyTorch Geometric's GATv2Conv without its compiled extensions: gathers, a softmax over the edges of a node by
    scatter, a sum by index_add; the fastest of several forms of each, and edges sorted by target, which they like."""

    def __init__(self, inputs, heads, channels):
        super().__init__()
        self.heads, self.channels = heads, channels
        self.left = torch.nn.Linear(inputs, heads * channels)
        self.right = torch.nn.Linear(inputs, heads * channels)
        self.attention = torch.nn.Parameter(torch.randn(heads, channels))
        self.bias = torch.nn.Parameter(torch.zeros(heads * channels))

    def forward(self, x, source, target):
        n = x.shape[0]
        left = self.left(x).view(n, self.heads, self.channels)
        right = self.right(x).view(n, self.heads, self.channels)
        value = left[source]
        z = torch.nn.functional.leaky_relu(value + right[target], 0.2)
        logit = (z * self.attention).sum(-1)
        index = target[:, None].expand_as(logit)
        with torch.no_grad():
            top = logit.new_zeros(n, self.heads).scatter_reduce(0, index, logit, "amax", include_self=False)
        weight = (logit - top[target]).exp()
        total = weight.new_zeros(n, self.heads).index_add(0, target, weight)
        weight = weight / total[target]
        message = (value * weight[:, :, None]).flatten(1)
        return message.new_zeros(message[:n].shape).index_add(0, target, message) + self.bias


def rows():
    """name -> a function that does the work of a row once"""
    result = {}
    n, edges = 10000, 160000
    layer = GATv2(64, 8, 8)
    x = torch.randn(n, 64, requires_grad=True)
    source, target, d_out = torch.randint(n, (edges,)), torch.randint(n, (edges,)).sort()[0], torch.randn(n, 64)

    @torch.no_grad()
    def gat_forward():
        layer(x, source, target)

    def gat_forward_backward():
        layer(x, source, target).backward(d_out)

    result["G1 forward"] = gat_forward
    result["G1 forward and backward"] = gat_forward_backward

    cell = torch.nn.GRUCell(128, 128)
    x_in, h, d_h = (torch.randn(n, 128) for _ in range(3))
    x_in.requires_grad_()
    h.requires_grad_()

    @torch.no_grad()
    def gru_forward():
        cell(x_in, h)

    def gru_forward_backward():
        cell(x_in, h).backward(d_h)

    result["G3 forward"] = gru_forward
    result["G3 forward and backward"] = gru_forward_backward
    return result


def serve(work):
    for line in sys.stdin:
        work[line.strip()]()
        print("done", flush=True)


def show(work):
    a = torch.randn(1024, 1024)
    work = {"a product 1024x1024x1024": lambda: a @ a, **work}
    for name, run in work.items():
        times = []
        for _ in range(22):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        median = sorted(times[1:])[10]
        rate = f"  {2 * 1024**3 / median / 1e9:7.1f} GFLOP/s" if run is next(iter(work.values())) else ""
        print(f"{name:30} {1e3 * median:9.2f} ms{rate}", flush=True)


serve(rows()) if "--serve" in sys.argv else show(rows())
