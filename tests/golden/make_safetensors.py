#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""An independent reader and writer of safetensors files, for tests/io/test_safetensors.cpp.

usage: make_safetensors.py DIRECTORY      writes safetensors_*.{safetensors,bin}
       make_safetensors.py check FILE     reads a file, its checksum too, and lists the tensors

safetensors_types.safetensors     as PyTorch users have them: no checksum, names in order of writing
safetensors_ours.safetensors      what ruvector writes for the same tensors, byte for byte
safetensors_verdicts.bin          a bit for each of 100,000 mutated headers: 1 = a valid file
"""
import json
import struct
import sys
import numpy as np

BITS = (1 << 64) - 1
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
         "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8}
NUMPY = {"BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2", "I32": "<i4",
         "U32": "<u4", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8"}


class Refused(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Refused(what)


def unique(pairs):
    keys = [key for key, _ in pairs]
    need(len(set(keys)) == len(keys), "duplicate key")
    for key in keys:
        key.encode()  # no lone surrogates
    return dict(pairs)


def natural(text):
    need(not text.startswith("-") and len(text) <= 20, "number")
    need(int(text) <= BITS, "number")
    return int(text)


def refuse(_):
    raise Refused("number")


def parse(file):
    """{name: (dtype, shape, bytes)}, metadata."""
    need(len(file) >= 8, "length")
    (n,) = struct.unpack("<Q", file[:8])
    need(n <= min(100_000_000, len(file) - 8), "length")
    text, payload = file[8:8 + n], file[8 + n:]
    need(text[:1] == b"{", "start")
    text = text.rstrip(b" ")
    need(text[-1:] == b"}", "end")
    header = json.loads(text.decode(), object_pairs_hook=unique, parse_int=natural, parse_float=refuse,
                        parse_constant=refuse)
    metadata = header.pop("__metadata__", {})
    need(isinstance(metadata, dict), "metadata")
    for value in metadata.values():
        need(isinstance(value, str), "metadata")
        value.encode()
    at = 0
    tensors = {}
    for name, tensor in header.items():
        need(isinstance(tensor, dict) and set(tensor) == {"dtype", "shape", "data_offsets"}, "tensor")
        shape, offsets = tensor["shape"], tensor["data_offsets"]
        need(isinstance(tensor["dtype"], str) and tensor["dtype"] in SIZES, "dtype")
        need(isinstance(shape, list) and len(shape) <= 64 and all(type(s) is int for s in shape), "shape")
        need(all(s <= 1 << 38 for s in shape), "shape")
        need(isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets), "offsets")
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = tensor["data_offsets"]
        items = 1
        for s in tensor["shape"]:  # a product may not overflow on the way, even if a 0 follows
            items *= s
            need(items < 1 << 63, "shape")
        need(items <= 1 << 38 and begin == at and end - begin == items * SIZES[tensor["dtype"]], "offsets")
        tensors[name] = (tensor["dtype"], tensor["shape"], payload[begin:end])
        at = end
    need(at == len(payload), "size")
    return tensors, metadata


def checksum(data):
    state = 0
    words = struct.unpack(f"<{len(data) // 8}Q", data[:len(data) // 8 * 8])
    tail = int.from_bytes(data[len(data) // 8 * 8:], "little")
    for word in words + (tail, len(data), 0):
        state = (state ^ word) * 0x9E3779B97F4A7C15 & BITS
        state ^= state >> 32
    return f"{state:016x}"


def check(path):
    file = open(path, "rb").read()
    tensors, metadata = parse(file)
    if "ruvector.format" in metadata:
        digits = metadata["ruvector.checksum"].encode()
        at = file.index(digits)
        assert checksum(file[:at] + file[at + 16:]) == digits.decode(), "checksum"
        print("checksum agrees")
    for name, (dtype, shape, data) in sorted(tensors.items()):
        values = np.frombuffer(data, NUMPY.get(dtype, "V" + str(SIZES[dtype]))).reshape(shape)
        print(f"{name!r:40} {dtype:5} {shape} {values.ravel()[:4]}")


def quoted(text):
    short = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(short.get(c, f"\\u{ord(c):04x}" if c < " " else c) for c in text) + '"'


def entry(name, dtype, shape, offset, size):
    sizes = ",".join(str(s) for s in shape)
    return f'{quoted(name)}:{{"dtype":"{dtype}","shape":[{sizes}],"data_offsets":[{offset},{offset + size}]}}'


def build(tensors, start):
    """The file of [(name, dtype, shape, bytes)] whose header begins with `start`."""
    parts, offset = start, 0
    for name, dtype, shape, data in tensors:
        parts.append(entry(name, dtype, shape, offset, len(data)))
        offset += len(data)
    text = ("{" + ",".join(parts) + "}").encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for *_, data in tensors)


def ours(tensors, metadata):
    tensors = sorted(tensors, key=lambda t: (-SIZES[t[1]], t[0].encode()))
    fields = {"ruvector.checksum": "0" * 16, "ruvector.format": "1", **dict(sorted(metadata.items()))}
    text = ",".join(quoted(key) + ":" + quoted(value) for key, value in fields.items())
    file = build(tensors, ['"__metadata__":{' + text + "}"])
    at = file.index(b"0" * 16)
    return file[:at] + checksum(file[:at] + file[at + 16:]).encode() + file[at + 16:]


def example():
    """Element i of every tensor is 7 i - 3, in its own type; a bool is true where i is odd."""
    tensors = []
    shapes = {"matrix": (3, 5), "vector": (7,), "scalar": (), "empty": (0, 4), "cube": (2, 1, 3)}
    for dtype in ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"]:
        for kind, shape in shapes.items():
            x = 7 * np.arange(int(np.prod(shape))) - 3
            if dtype == "BOOL":
                data = (x % 2 == 0).astype("?").tobytes()
            elif dtype == "BF16":
                data = (x.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()  # these are exact
            else:
                data = x.astype(NUMPY[dtype]).tobytes()
            tensors.append((f"{dtype.lower()}.{kind}", dtype, shape, data))
    tensors.append(("größe/../\"quoted\"\\\t", "U8", (1,), b"\x04"))
    return tensors


# --- mutants ---

class SplitMix:
    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & BITS
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & BITS
        z = (z ^ z >> 27) * 0x94D049BB133111EB & BITS
        return (z ^ z >> 31) % n


PAYLOAD = 24
BASES = [
    b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}',
    b'{"__metadata__":{"k":"v","\xc3\xa9":"\\u00e9"},"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},'
    b'"b":{"dtype":"U8","shape":[12],"data_offsets":[12,24]}}   ',
    b'{ "a" : {"shape":[], "dtype":"F64", "data_offsets":[16,24]},\n"b":{"dtype":"I64","shape":[2,1,1],'
    b'"data_offsets":[0,16]},"c":{"dtype":"BF16","shape":[0],"data_offsets":[16,16]}}',
    b'{"a":{"dtype":"BOOL","shape":[10],"data_offsets":[0,10]},"aa":{"dtype":"I8","shape":[14],"data_offsets":[10,24]}}',
]
PIECES = [b"0", b"1", b"2", b"4", b"9", b"-", b".", b"e", b"E1", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ",
          b"\n", b"\t", b"\0", b"\x01", b"\x7f", b"\x80", b"\xc3\xa9", b"\xff", b"\xef\xbb\xbf", b"a", b"b", b"null", b"true",
          b"NaN", b"1e309", b"99999999999999999999", b"18446744073709551616", b"9223372036854775808", b"F32", b"U8",
          b"__metadata__", b"\\u0061", b"\\ud800", b"\\ud83d\\ude00", b"[[[", b'"a":', b",0", b"/*x*/", b"[]", b"{}"]


def mutant(number):
    random = SplitMix(number)
    text = bytearray(BASES[random.below(len(BASES))])
    for _ in range(1 + random.below(3)):
        kind, at = random.below(8), random.below(len(text))
        if kind == 0:
            text[at:at + 1] = PIECES[random.below(len(PIECES))]
        elif kind == 1:
            text[at:at] = PIECES[random.below(len(PIECES))]
        elif kind == 2:
            del text[at:at + 1 + random.below(3)]
        elif kind == 3:
            start = random.below(len(text))
            text[at:at] = text[start:start + 1 + random.below(60)]
        else:
            text[at:at] = b" \n\t "[random.below(4):][:1]  # often harmless
        if not text:
            break
    length = len(text) + [0, 0, 0, 0, 0, 0, -1, 1][random.below(8)]
    return struct.pack("<Q", length & BITS) + bytes(text) + bytes(PAYLOAD)


def verdict(file):
    try:
        parse(file)
        return 1
    except (Refused, ValueError, RecursionError):  # ValueError: JSON or UTF-8
        return 0


if __name__ == "__main__":
    if sys.argv[1] == "check":
        check(sys.argv[2])
    else:
        directory = sys.argv[1]
        tensors = example()
        with open(f"{directory}/safetensors_types.safetensors", "wb") as out:
            out.write(build(tensors, ['"__metadata__":{"format":"pt"}']))
        with open(f"{directory}/safetensors_ours.safetensors", "wb") as out:
            out.write(ours(tensors, {"epoch": "3", "näme": "a\nb"}))
        verdicts = np.array([verdict(mutant(i)) for i in range(100_000)], np.uint8)
        print(f"{verdicts.sum()} of {verdicts.size} mutants are valid")
        with open(f"{directory}/safetensors_verdicts.bin", "wb") as out:
            out.write(np.packbits(verdicts, bitorder="little").tobytes())
