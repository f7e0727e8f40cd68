#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_vpc: small images of all types, with blocks of 4 KiB. The target makes their
checksums right.
"""

import os
import struct
import sys


def footer(kind, size, header=512):
    data = b"conectix" + struct.pack(">IIQI4sII", 2, 0x10000, header, 0, b"qem2", 0x50003, 0x5769326B)
    return (data + struct.pack(">QQHBBII", size, size, 1, 16, 63, kind, 0) + bytes(range(16))).ljust(512, b"\0")


def dynamic(kind, entries, bits, name="", locator=b""):
    size = len(entries) * 4096
    head = b"cxsparse" + struct.pack(">QQIIII", 2**64 - 1, 1536, 0x10000, len(entries), 4096, 0)
    head += bytes(16) + bytes(8) + name.encode("utf-16-be").ljust(512, b"\0")
    if locator:
        head += struct.pack(">4sIIIQ", b"W2ru", 512, len(locator), 0, 2048)
    data = footer(kind, size) + head.ljust(1024, b"\0")
    data += struct.pack(f">{len(entries)}I", *entries).ljust(512, b"\xff") + locator.ljust(512, b"\0")
    for i in range(sum(e != 0xFFFFFFFF for e in entries)):
        data += bytes([bits]).ljust(512, b"\xff") + bytes([i + 1]) * 4096
    return data + footer(kind, size)


NONE = 0xFFFFFFFF
SEEDS = {
    "fixed": bytes(4096) + footer(2, 4096, 2**64 - 1),
    "dynamic": dynamic(3, [5, NONE, 14], 0xFF),
    "bits": dynamic(3, [5, NONE], 0x35),
    "differencing": dynamic(4, [NONE, 5], 0x81, "base.vhd", ".\\base.vhd".encode("utf-16-le")),
    "empty": dynamic(3, [NONE] * 100, 0),
}

for seed, image in SEEDS.items():
    with open(os.path.join(sys.argv[1], seed), "wb") as f:
        f.write(image)
