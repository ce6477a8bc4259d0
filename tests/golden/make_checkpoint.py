#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Weights and outputs of PyTorch modules, for tests/io/test_checkpoint.cpp.

usage: make_checkpoint.py DIRECTORY      writes checkpoint_torch{,_io}.safetensors
       make_checkpoint.py check FILE     puts the weights of a file of ruvector into the same modules
"""
import sys
import numpy as np
import torch
from make_safetensors import NUMPY, build, parse


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(5, 4)
        self.cell = torch.nn.GRUCell(4, 3)

    def forward(self, x, h):
        return self.cell(self.linear(x), h)


def save(path, tensors):
    entries = [(name, "F32", x.shape, x.detach().numpy().astype("<f4").tobytes()) for name, x in tensors.items()]
    with open(path, "wb") as out:
        out.write(build(entries, ['"__metadata__":{"format":"pt"}']))


def load(path):
    tensors, _ = parse(open(path, "rb").read())
    return {name: torch.tensor(np.frombuffer(data, NUMPY[dtype]).reshape(shape))
            for name, (dtype, shape, data) in tensors.items()}


torch.manual_seed(1)
model = Model()
if sys.argv[1] == "check":
    print(model.load_state_dict(load(sys.argv[2])))  # throws unless names and shapes are the same
    print(model(torch.ones(1, 5), torch.zeros(1, 3)))
else:
    x, h = torch.randn(6, 5), torch.randn(6, 3)
    save(f"{sys.argv[1]}/checkpoint_torch.safetensors", model.state_dict())
    save(f"{sys.argv[1]}/checkpoint_torch_io.safetensors", {"x": x, "h": h, "out": model(x, h)})
