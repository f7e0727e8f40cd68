#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_parallels: small images with clusters of 4 KiB, and of 3 sectors."""

import os
import struct
import sys

SECTORS, EXTENDED = b"WithoutFreeSpace", b"WithouFreSpacExt"
IN_USE, CLOSED = 0x746F6E59, 0x312E3276


def image(magic, bat, tracks=8, data=8, in_use=0, extension=0, tail=b""):
    """Header, BAT, three clusters of data, and `tail`."""
    head = struct.pack("<16sIIIII", magic, 2, 16, 32, tracks, len(bat))
    head += struct.pack("<QIIIQ", len(bat) * tracks, in_use, data, 0, extension)
    head = (head + struct.pack(f"<{len(bat)}I", *bat)).ljust(max(data, 1) * 512, b"\0")
    return head + b"".join(bytes([i + 1]) * (tracks * 512) for i in range(3)) + tail


def extension(bat):
    bitmap = struct.pack("<Q16sIIQ", len(bat) * 8, b"0123456789abcdef", 8, 1, 16)
    feature = struct.pack("<QQII", 0x20385FAE252CB34A, 0, len(bitmap), 0) + bitmap
    return struct.pack("<Q16s", 0xAB234CEF23DCEA87, b"") + (feature + bytes(24)).ljust(4072, b"\0")


BAT = [1, 0, 2, 3, 0, 0, 0, 0]
SEEDS = {
    "plain": image(EXTENDED, BAT),
    "sectors": image(SECTORS, [8, 0, 16, 24]),
    "sectors_at_once": image(SECTORS, [1, 4, 0, 7], tracks=3, data=0),
    "three_sectors": image(EXTENDED, [1, 0, 3, 2], tracks=3, data=3),
    "not_closed": image(EXTENDED, [1, 1, 9, 0, 2], in_use=IN_USE),
    "off_the_grid": image(SECTORS, [8, 12, 20, 0]),
    "bitmap": image(EXTENDED, BAT, in_use=CLOSED, extension=32, tail=extension(BAT)),
}

for seed, data in SEEDS.items():
    with open(os.path.join(sys.argv[1], seed), "wb") as f:
        f.write(data)
