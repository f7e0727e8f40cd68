#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_qed: small images with clusters of 4 KiB and tables of one cluster."""

import os
import struct
import sys


def image(features, entries, name=b"", autoclear=0):
    """Header, L1 table, one L2 table, and clusters of data."""
    data = b"QED\0" + struct.pack("<III", 4096, 1, 1) + struct.pack("<QQQ", features, 0, autoclear)
    data += struct.pack("<QQII", 4096, len(entries) * 4096, 64 if name else 0, len(name)) + name
    data = data.ljust(4096, b"\0") + struct.pack("<Q", 8192).ljust(4096, b"\0")
    data += struct.pack(f"<{len(entries)}Q", *entries).ljust(4096, b"\0")
    return data + b"".join(bytes([i + 1]) * 4096 for i in range(3))


SEEDS = {
    "plain": image(0, [12288, 0, 16384, 20480, 1]),
    "overlay": image(1, [0, 1, 12288, 0, 16384], b"parent"),
    "raw_parent": image(5, [0, 20480, 0], b"parent"),
    "to_be_checked": image(2, [12288, 1 << 40, 16385], autoclear=1),
}

for seed, data in SEEDS.items():
    with open(os.path.join(sys.argv[1], seed), "wb") as f:
        f.write(data)
