#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Files as numpy writes them, for tests/io/test_npy.cpp. Element (i, j) of every array is 10 i + j - 7.5, of the
integer ones 10 i + j - 7; vectors are the first row.   usage: make_npy.py DIRECTORY"""
import sys
import numpy as np
from numpy.lib import format as npy

directory = sys.argv[1]
rows, cols = 5, 3
base = 10.0 * np.arange(rows)[:, None] + np.arange(cols)[None, :] - 7.5


def save(name, array, version=None):
    with open(f"{directory}/npy_{name}.npy", "wb") as file:
        npy.write_array(file, array, version=version)


for name, dtype in {"f4": "<f4", "f8": "<f8", "i4": "<i4", "i8": "<i8"}.items():
    x = (base + 0.5 if name[0] == "i" else base).astype(dtype)
    save(f"{name}_matrix", np.ascontiguousarray(x))
    save(f"{name}_vector", x[0])
save("f4_fortran", np.asfortranarray(base.astype("<f4")))
save("f4_version2", base.astype("<f4"), version=(2, 0))
save("f4_version3", base.astype("<f4"), version=(3, 0))
save("f4_no_rows", np.zeros((0, 3), "<f4"))
save("f4_no_cols", np.zeros((3, 0), "<f4"))
save("bad_big_endian", base.astype(">f4"))
save("bad_half", base.astype("<f2"))
save("bad_record", np.zeros(2, dtype=[("a", "<f4"), ("b", "<i4")]))
save("bad_three_dims", np.zeros((1, 2, 3), "<f4"))
save("bad_scalar", np.float32(1).reshape(()))
np.save(f"{directory}/npy_bad_object.npy", np.array([{}, None], dtype=object), allow_pickle=True)
