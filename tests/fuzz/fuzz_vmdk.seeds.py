#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_vmdk: small images with grains of 4 KiB, plain and compressed, with the tables at
the beginning and at the end, and descriptors.
"""

import os
import struct
import sys
import zlib

TEXT = b"""# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="%s"

RW 64 SPARSE "disk.vmdk"

ddb.adapterType = "ide"
"""


def header(flags, directory, copy=0, version=1):
    data = struct.pack("<4sIIQQQQI", b"KDMV", version, flags, 64, 8, 1, 2, 8)
    data += struct.pack("<QQQB", copy, directory, 3, 0)
    return (data + b"\n \r\n" + struct.pack("<H", flags >> 16 & 1)).ljust(512, b"\0")


def sectors(data):
    return data.ljust(-(-len(data) // 512) * 512, b"\0")


def descriptor(kind):
    return (TEXT % kind).ljust(1024, b"\0")


def sparse(entries, flags=3, version=1):
    """Header, descriptor, directory, table, their copies; grains from sector 7 on."""
    table = sectors(struct.pack("<I", 4)) + sectors(struct.pack("<8I", *entries))
    copy = sectors(struct.pack("<I", 6)) + table[512:]
    return header(flags, 3, 5, version) + descriptor(b"monolithicSparse") + table + copy + b"\x11" * 8192


def stream():
    data = header(0x30001, 2**64 - 1, version=3) + descriptor(b"streamOptimized")
    packed = zlib.compress(bytes(range(256)) * 16)
    data += sectors(struct.pack("<QI", 0, len(packed)) + packed)
    table = sectors(struct.pack("<8I", 3, 0, 0, 0, 0, 0, 0, 0))
    directory = len(data) // 512
    data += sectors(struct.pack("<I", directory + 1)) + table
    return data + bytes(512) + header(0x30001, directory, version=3) + bytes(512)


SEEDS = {
    "sparse": sparse([7, 0, 15, 0, 0, 0, 0, 0]),
    "zeroes": sparse([1, 7, 0, 1, 0, 0, 0, 0], 7, 2),
    "stream": stream(),
    "flat": (TEXT % b"monolithicFlat").replace(b"SPARSE", b"FLAT").replace(b'vmdk"', b'vmdk" 0'),
    "zero": (TEXT % b"custom").replace(b'SPARSE "disk.vmdk"', b"ZERO"),
    "parent": (TEXT % b"custom").replace(b"ffffffff", b'1\nparentFileNameHint="base.vmdk"'),
}

for seed, image in SEEDS.items():
    with open(os.path.join(sys.argv[1], seed), "wb") as f:
        f.write(image)
