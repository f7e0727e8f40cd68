#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_qcow1: small images with clusters of 512 bytes and tables of 64 entries."""

import os
import struct
import sys
import zlib


def packed(data):
    c = zlib.compressobj(9, zlib.DEFLATED, -12)
    return c.compress(data) + c.flush()


def image(entries, clusters, name=b"", cluster_bits=9, crypt=0):
    """Header, L1 table, one L2 table at 512, and clusters from 1024 on."""
    head = b"QFI\xfb" + struct.pack(">IQIIQ", 1, 48 if name else 0, len(name), 0, 20000)
    table = -(-(48 + len(name)) // 8) * 8
    head += struct.pack(">BBHIQ", cluster_bits, 6, 0, crypt, table) + name
    data = head.ljust(table, b"\0") + struct.pack(">Q", 512)
    data = data.ljust(512, b"\0") + struct.pack(f">{len(entries)}Q", *entries)
    return data.ljust(1024, b"\0") + clusters


STREAM = packed(b"\7" * 512)
PACKED = 1 << 63 | len(STREAM) << 54 | 1024
DATA = b"\1" * 512 + b"\2" * 512
SEEDS = {
    "plain": image([1024, 0, 1536], DATA),
    "overlay": image([1024, 0, 1536], DATA, b"parent"),
    "compressed": image([PACKED, 0, PACKED], STREAM.ljust(512, b"\0")),
    "compressed_overlay": image([0, PACKED], STREAM.ljust(512, b"\0"), b"parent"),
    "larger_clusters": image([1024, 0], DATA, cluster_bits=12),
    "encrypted": image([1024], DATA, crypt=1),
}

for seed, data in SEEDS.items():
    with open(os.path.join(sys.argv[1], seed), "wb") as f:
        f.write(data)
