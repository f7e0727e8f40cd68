#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_bochs: small images of both versions, with extents of one sector and of several.
"""

import os
import struct
import sys


def image(version, extent, bitmap, catalog, extents):
    data = struct.pack("<32s16s16s", b"Bochs Virtual HD Image", b"Redolog", b"Growing")
    data += struct.pack("<5I", version, 512, len(catalog), bitmap, extent)
    disk = len(catalog) * extent
    data += struct.pack("<Q", disk) if version == 0x10000 else struct.pack("<IQ", 0, disk)
    data = data.ljust(512, b"\0") + struct.pack(f"<{len(catalog)}I", *catalog)
    for i in range(extents):
        data += bytes([0x35, 0xFF, 0, 0x81]).ljust(512, b"\xaa") + bytes([i + 1]) * extent
    return data


ABSENT = 0xFFFFFFFF
SEEDS = {
    "v1": image(0x10000, 4096, 1, [1, ABSENT, 0], 2),
    "v2": image(0x20000, 4096, 512, [ABSENT, 0, 1, ABSENT], 2),
    "sectors": image(0x20000, 512, 1, [0, 2, ABSENT, 1], 3),
    "large": image(0x20000, 16384, 4, [0], 1),
    "empty": image(0x20000, 8 << 20, 2048, [ABSENT] * 16, 0),
}

for name, data in SEEDS.items():
    with open(os.path.join(sys.argv[1], name), "wb") as f:
        f.write(data)
