# SPDX-License-Identifier: Apache-2.0
"""Disks as guests have them: partition tables (UEFI specification, section 5) and file systems."""

import struct
import uuid
import zlib

from tidemark import run

SECTOR = 512
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le


def gpt_header(lba, other, entries_lba, entries, sectors):
    def fields(crc):
        return struct.pack(
            "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, lba, other, 34, sectors - 34,
            b"d" * 16, entries_lba, 128, 128, zlib.crc32(entries),
        )  # fmt: skip

    return fields(zlib.crc32(fields(0))).ljust(SECTOR, b"\0")


def mbr(entries, boot=b""):
    """A sector with the entries (type, first, count)."""
    table = b"".join(struct.pack("<B3sB3sII", 0, b"", t, b"", f, c) for t, f, c in entries)
    return boot.ljust(446, b"\0") + table.ljust(64, b"\0") + b"\x55\xaa"


def put(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def make(path, size):
    with open(path, "wb") as f:
        f.truncate(size)


def make_gpt(path, size, partitions):
    """A disk with partitions [(offset, size)], numbered from 1 on."""
    make(path, size)
    sectors = size // SECTOR
    entries = b"".join(
        struct.pack("<16s16sQQQ72s", LINUX, bytes([i + 1]) * 16, o // SECTOR,
                    (o + s) // SECTOR - 1, 0, b"")
        for i, (o, s) in enumerate(partitions)
    ).ljust(128 * 128, b"\0")  # fmt: skip
    put(path, 0, mbr([(0xEE, 1, sectors - 1)]))
    put(path, SECTOR, gpt_header(1, sectors - 1, 2, entries, sectors))
    put(path, 2 * SECTOR, entries)
    put(path, size - 33 * SECTOR, entries)
    put(path, size - SECTOR, gpt_header(sectors - 1, 1, sectors - 33, entries, sectors))


def make_ext4(path, offset, size, folder=None, *words):
    fill = ("-d", folder) if folder else ()
    run("mke2fs", "-q", "-F", "-t", "ext4", *fill, "-E", f"offset={offset},root_owner=0:0",
        *words, path, f"{size // 1024}k")  # fmt: skip


def make_vfat(path, offset, size):
    run("mkfs.vfat", "--offset", str(offset // SECTOR), path, str(size // 1024))
