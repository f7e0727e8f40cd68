#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_vhdx: the parts of images in the order that the target expects, with blocks in the
file, without, with a log, and with a parent.
"""

import os
import struct
import sys
import uuid


def guid(text):
    return uuid.UUID(text).bytes_le


BAT, METADATA = guid("2dc27766-f623-4200-9d64-115e9bfd4a08"), guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
ITEMS = (
    ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", 0, 8, 4),
    ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", 8, 8, 6),
    ("beca12ab-b2e6-4523-93ef-c309e000c746", 16, 16, 6),
    ("8141bf1d-a96f-4709-ba47-f233a8faab5f", 32, 4, 6),
    ("cda348c7-445d-4471-9cc9-e9885251c556", 36, 4, 6),
)
LOCATOR = (guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c"), 64, 256, 4)
LOG = bytes(range(1, 17))
MIB = 1 << 20


def locator(texts):
    """Keys and values, in turn."""
    encoded = [t.encode("utf-16-le") for t in texts]
    data = guid("b04aefb7-d19e-4a81-b789-25b8e9445913") + struct.pack("<HH", 0, len(texts) // 2)
    at = [20 + 6 * len(texts) + sum(map(len, encoded[:i])) for i in range(len(texts))]
    for i in range(0, len(texts), 2):
        data += struct.pack("<IIHH", at[i], at[i + 1], len(encoded[i]), len(encoded[i + 1]))
    return data + b"".join(encoded)


def image(entries, log=b"", log_guid=bytes(16), sector=512, parent=None):
    data = struct.pack("<4sIQ32s16sHHIQ", b"head", 0, 1, bytes(32), log_guid, 0, 1, MIB, MIB)
    regions = b"regi" + struct.pack("<III", 0, 2, 0)
    for name, at in ((BAT, 2 * MIB), (METADATA, 3 * MIB)):
        regions += name + struct.pack("<QII", at, MIB, 1)
    data += regions.ljust(112, b"\0")
    items = [(guid(name), *rest) for name, *rest in ITEMS] + ([LOCATOR] if parent else [])
    table = b"metadata" + struct.pack("<HH20s", 0, len(items), b"")
    for name, offset, length, flags in items:
        table += name + struct.pack("<IIII", 65536 + offset, length, flags, 0)
    data += table.ljust(264, b"\0")
    values = struct.pack("<IIQ16sII", MIB, 2 if parent else 0, len(entries) * MIB, b"", sector, sector)
    data += values.ljust(64, b"\0") + struct.pack(f"<{len(entries)}Q", *entries).ljust(128, b"\0")
    return data + (locator(parent) if parent else b"").ljust(256, b"\0") + log


def entry(sequence, tail, offset, fill):
    head = b"loge" + struct.pack("<IIIQII", 0, 8192, tail, sequence, 1, 0) + LOG + struct.pack("<QQ", 0, 0)
    head += struct.pack("<4s4s8sQQ", b"desc", fill[-4:], fill[:8], offset, sequence)
    high, low = sequence >> 32, sequence & 0xFFFFFFFF
    return head.ljust(4096, b"\0") + b"data" + struct.pack("<I", high) + fill[8:-4] + struct.pack("<I", low)


SEEDS = {
    "dynamic": image([4 * MIB + 6, 0, 2, 3, 5 * MIB + 6]),
    "empty": image([2] * 16),
    "sectors": image([4 * MIB + 6, 0], sector=4096),
    "parent": image(
        [0, 4 * MIB + 6, 2],
        parent=("parent_linkage", "{00112233-4455-6677-8899-aabbccddeeff}", "relative_path", ".\\\U0001f4bfa.vhdx"),
    ),
    "log": image([0, 0], entry(7, 0, 2 * MIB, struct.pack("<QQ", 4 * MIB + 6, 2).ljust(4096, b"\0")), LOG),
    "logs": image(
        [0, 0],
        entry(7, 0, 2 * MIB, bytes(4096)) + entry(8, 0, 2 * MIB, struct.pack("<Q", 5 * MIB + 6).ljust(4096, b"\0")),
        LOG,
    ),
}

for seed, data in SEEDS.items():
    with open(os.path.join(sys.argv[1], seed), "wb") as f:
        f.write(data)
