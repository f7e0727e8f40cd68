# SPDX-License-Identifier: Apache-2.0
"""Look into qcow2 images, and damage them in ways that are known."""

import os
import struct

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET_MASK = 0x00FFFFFFFFFFFE00


class Image:
    """An image file that nobody has open. Values are read and written at once."""

    def __init__(self, path):
        self.path = path
        self.version = self.u32(4)
        self.cluster_size = 1 << self.u32(20)
        self.size = self.u64(24)
        self.l1_size = self.u32(36)
        self.l1 = self.u64(40)
        self.reftable = self.u64(48)
        self.refcount_bits = 1 << self.u32(96) if self.version >= 3 else 16

    def read(self, offset, size):
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def write(self, offset, data):
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def u32(self, offset):
        return struct.unpack(">I", self.read(offset, 4))[0]

    def u64(self, offset):
        return struct.unpack(">Q", self.read(offset, 8))[0]

    def put32(self, offset, value):
        self.write(offset, struct.pack(">I", value))

    def put64(self, offset, value):
        self.write(offset, struct.pack(">Q", value))

    def file_size(self):
        return os.path.getsize(self.path)

    def l2_table(self, index=0):
        """Offset of the L2 table of an L1 entry."""
        return self.u64(self.l1 + 8 * index) & OFFSET_MASK

    def l2_place(self, cluster):
        """Where the L2 entry of a guest cluster lies."""
        per_table = self.cluster_size // 8
        return self.l2_table(cluster // per_table) + 8 * (cluster % per_table)

    def host(self, cluster):
        """Offset of the data of a guest cluster."""
        return self.u64(self.l2_place(cluster)) & OFFSET_MASK

    def refblock(self, index=0):
        return self.u64(self.reftable + 8 * index) & OFFSET_MASK

    def _refcount_place(self, offset):
        cluster = offset // self.cluster_size
        per_block = self.cluster_size * 8 // self.refcount_bits
        return self.refblock(cluster // per_block), cluster % per_block

    def refcount(self, offset):
        """Of the cluster at an offset in the file."""
        block, index = self._refcount_place(offset)
        bits = self.refcount_bits
        if bits >= 8:
            return int.from_bytes(self.read(block + index * bits // 8, bits // 8), "big")
        byte = self.read(block + index * bits // 8, 1)[0]
        return byte >> (index * bits % 8) & ((1 << bits) - 1)

    def put_refcount(self, offset, value):
        block, index = self._refcount_place(offset)
        bits = self.refcount_bits
        if bits >= 8:
            self.write(block + index * bits // 8, value.to_bytes(bits // 8, "big"))
            return
        place, shift = block + index * bits // 8, index * bits % 8
        mask = ((1 << bits) - 1) << shift
        byte = self.read(place, 1)[0] & ~mask | value << shift
        self.write(place, bytes([byte]))

    def extension(self, magic):
        """Offset of the data of a header extension; None if there is none."""
        at = self.u32(100) if self.version >= 3 else 72
        while True:
            found, size = self.u32(at), self.u32(at + 4)
            if found == magic:
                return at + 8
            if found == 0:
                return None
            at += 8 + (size + 7) // 8 * 8

    def bitmap_directory(self):
        return self.u64(self.extension(0x23852875) + 16)

    def bitmaps(self):
        """{name: (place of its directory entry, flags, set of dirty granules)}"""
        extension = self.extension(0x23852875)
        if extension is None:
            return {}
        found, at = {}, self.bitmap_directory()
        for _ in range(self.u32(extension)):
            name_size = struct.unpack(">H", self.read(at + 18, 2))[0]
            extra_size = self.u32(at + 20)
            name = self.read(at + 24 + extra_size, name_size).decode()
            found[name] = (at, self.u32(at + 12), self._dirty(self.u64(at), self.u32(at + 8)))
            at += (24 + extra_size + name_size + 7) // 8 * 8
        return found

    def _dirty(self, table, entries):
        dirty, per_cluster = set(), self.cluster_size * 8
        for index in range(entries):
            entry = self.u64(table + 8 * index)
            data = b"\xff" * self.cluster_size if entry & 1 else b""
            if entry & OFFSET_MASK:
                data = self.read(entry & OFFSET_MASK, self.cluster_size)
            for byte, value in enumerate(data):
                dirty.update(
                    index * per_cluster + byte * 8 + bit for bit in range(8) if value >> bit & 1
                )
        return dirty
