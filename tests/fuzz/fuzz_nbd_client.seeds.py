#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_nbd_client: replies of each kind to the requests that the target makes."""

import os
import struct
import sys

# Bits of the first byte: see the target.
HELLO, EXTENDED, STRUCTURED, CONTEXTS, GO, LIST = 1, 2, 4, 8, 16, 32
SIMPLE = HELLO | GO
CHUNKS = HELLO | STRUCTURED | CONTEXTS | GO
LONG = HELLO | EXTENDED | CONTEXTS | GO
QUARTER = 1 << 18


def option(number, kind, data=b""):
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, len(data)) + data


def simple(request, error=0, data=b""):
    return struct.pack(">IIQ", 0x67446698, error, request << 32) + data


def chunk(request, kind, data=b"", done=True):
    return struct.pack(">IHHQI", 0x668E33EF, int(done), kind, request << 32, len(data)) + data


def long_chunk(request, kind, data=b"", done=True, offset=0):
    head = struct.pack(">IHHQQQ", 0x6E8A278C, int(done), kind, request << 32, offset, len(data))
    return head + data


def data(offset, size):
    return struct.pack(">Q", offset) + b"d" * size


def hole(offset, size):
    return struct.pack(">QI", offset, size)


def status(context, *extents):
    return struct.pack(">I", context) + b"".join(struct.pack(">II", *e) for e in extents)


def long_status(context, *extents):
    count = struct.pack(">II", context, len(extents))
    return count + b"".join(struct.pack(">QQ", *e) for e in extents)


def error(code, text=b"no"):
    return struct.pack(">IH", code, len(text)) + text


REST = (1 << 20) - 4096
SEEDS = {
    "simple": (SIMPLE, simple(1, 0, b"a" * 4096) + simple(2, 0, b"b" * QUARTER)
               + b"".join(simple(n) for n in range(3, 8))),
    "simple-error": (SIMPLE, simple(1, 5) + simple(2, 22) + simple(3, 28)),
    "chunks": (CHUNKS, chunk(1, 1, data(0, 4096)) + chunk(2, 2, hole(65536, 65536), False)
               + chunk(2, 1, data(131072, QUARTER - 65536))
               + chunk(3, 5, status(5, (65536, 3), (REST - 65536, 0)), False)
               + chunk(3, 5, status(9, (REST, 1))) + b"".join(chunk(n, 0) for n in range(4, 9))),
    "chunks-error": (CHUNKS, chunk(1, 32769, error(5)) + chunk(2, 1, data(65536, 4096), False)
                     + chunk(2, 32770, error(5) + struct.pack(">Q", 65536))),
    "overlap": (CHUNKS, chunk(1, 1, data(0, 2048), False) + chunk(1, 1, data(0, 2048))),
    "long": (LONG, long_chunk(1, 1, data(0, 4096)) + long_chunk(2, 2, struct.pack(
        ">QI", 65536, QUARTER)) + long_chunk(3, 6, long_status(5, (REST, 1)), False)
             + long_chunk(3, 6, long_status(9, (4096, 1), (REST - 4096, 2)))
             + b"".join(long_chunk(n, 0) for n in range(4, 9))),
    "oldstyle": (0, b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53" + struct.pack(">QI", 1 << 20, 1)
                 + bytes(124) + simple(1, 0, b"a" * 4096)),
    "export-name": (HELLO, option(11, 0x80000001) + option(8, 0x80000001)
                    + option(7, 0x80000001) + struct.pack(">QH", 1 << 20, 1)),
    "go-sizes": (HELLO | STRUCTURED, option(10, 1) + option(7, 3, struct.pack(
        ">HIII", 3, 512, 4096, 1 << 25)) + option(7, 3, struct.pack(">HQH", 0, 1 << 20, 0x6D))
                 + option(7, 1)),
    "list": (LIST | HELLO, option(11, 0x80000001) + option(8, 1)
             + option(3, 2, struct.pack(">I", 1) + b"xtext") + option(3, 1)
             + option(6, 3, struct.pack(">HQH", 0, 1 << 20, 1)) + option(6, 1)
             + option(9, 4, struct.pack(">I", 0) + b"base:allocation") + option(9, 1)),
}  # fmt: skip

for name, (how, rest) in SEEDS.items():
    with open(os.path.join(sys.argv[1], name), "wb") as file:
        file.write(bytes([how]) + rest)
