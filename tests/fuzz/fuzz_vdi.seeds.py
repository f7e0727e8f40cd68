#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_vdi: small images with blocks of 4 KiB."""

import os
import struct
import sys


def image(kind, entries, blocks):
    data = b"<<< disk >>>\n".ljust(64, b"\0") + struct.pack("<IIII", 0xBEDA107F, 0x10001, 0x180, kind)
    data = data.ljust(0x154, b"\0") + struct.pack("<IIIIIII", 512, 1024, 0, 0, 0, 512, 0)
    data += struct.pack("<QIIII", len(entries) * 4096, 4096, 0, len(entries), blocks)
    data = data.ljust(512, b"\0") + struct.pack(f"<{len(entries)}I", *entries).ljust(512, b"\0")
    return data + b"".join(bytes([i + 1]) * 4096 for i in range(blocks))


NONE = 0xFFFFFFFF
SEEDS = {
    "dynamic": image(1, [1, NONE, 0, 0xFFFFFFFE], 2),
    "static": image(2, [0, 1, 2], 3),
    "differencing": image(4, [NONE, 0, 0xFFFFFFFE, 1], 2),
    "empty": image(1, [NONE] * 100, 0),
}

for seed, data in SEEDS.items():
    with open(os.path.join(sys.argv[1], seed), "wb") as f:
        f.write(data)
