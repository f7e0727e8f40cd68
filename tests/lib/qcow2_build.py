# SPDX-License-Identifier: Apache-2.0
"""Build qcow2 images of version 3 byte by byte, for what no tool makes, or not quickly."""

import os
import struct

AUTO, IN_USE = 2, 1
ONES = object()  # in place of the bytes of a cluster of a bitmap: every bit is set


class Bitmap:
    """A persistent bitmap. `clusters`: {index: the bits of one cluster, or ONES}; others are zero.
    """

    def __init__(self, name, granularity_bits=16, flags=AUTO, clusters=None, kind=1, extra=b""):
        self.name = name.encode()
        self.granularity_bits = granularity_bits
        self.flags = flags
        self.clusters = clusters or {}
        self.kind = kind
        self.extra = extra

    def entry(self, table, entries):
        entry = struct.pack(
            ">QIIBBHI", table, entries, self.flags, self.kind, self.granularity_bits,
            len(self.name), len(self.extra),
        )  # fmt: skip
        entry += self.extra + self.name
        return entry + bytes(-len(entry) % 8)


class Snapshot:
    """An internal snapshot of an empty disk. `extra`: VM state size, disk size, instruction count,
    and more.
    """

    def __init__(self, ident, name, size, extra=None):
        self.ident, self.name, self.size = ident.encode(), name.encode(), size
        self.extra = struct.pack(">QQQ", 0, size, 2**64 - 1) if extra is None else extra

    def entry(self, l1, l1_entries):
        entry = struct.pack(
            ">QIHHIIQII", l1, l1_entries, len(self.ident), len(self.name), 0, 0, 0, 0, len(self.extra)
        )  # fmt: skip
        entry += self.extra + self.ident + self.name
        return entry + bytes(-len(entry) % 8)


class _Layout:
    """Clusters handed out one after the other; what lies in them is written at once."""

    def __init__(self, file, cluster_size):
        self.file = file
        self.cluster_size = cluster_size
        self.used = 0
        self.end = 0  # of what was written

    def take(self, size):
        offset = self.used * self.cluster_size
        self.used += -(-size // self.cluster_size)
        return offset

    def put(self, data):
        offset = self.take(len(data))
        gap = offset - self.end
        if 0 <= gap < 4096:
            self.file.write(bytes(gap))  # a seek would flush
        else:
            self.file.seek(offset)
        self.file.write(data)
        self.end = offset + len(data)
        return offset


def _put_bitmaps(layout, size, bitmaps):
    """Bits, tables and directory; the data of the header extension."""
    directory = []
    for b in bitmaps:
        granules = -(-size // (1 << b.granularity_bits))
        table = [0] * -(-granules // (8 * layout.cluster_size))
        for index, bits in b.clusters.items():
            table[index] = 1 if bits is ONES else layout.put(bits)
        place = layout.put(struct.pack(f">{len(table)}Q", *table)) if table else 0
        directory.append(b.entry(place, len(table)))
    directory = b"".join(directory)
    place = layout.put(directory)
    return struct.pack(">IIQQ", len(bitmaps), 0, len(directory), place)


def _l1_entries(size, cluster_size):
    return -(-size // (cluster_size * cluster_size // 8))


def _put_snapshots(layout, snapshots):
    """L1 tables and the directory; its place."""
    directory = []
    for s in snapshots:
        entries = _l1_entries(s.size, layout.cluster_size)
        directory.append(s.entry(layout.put(bytes(entries * 8)), entries))
    return layout.put(b"".join(directory))


def _put_refcounts(layout):
    """Refcount blocks and table with 16 bits each; (offset, clusters) of the table."""
    per_block = layout.cluster_size // 2
    blocks = 0
    while True:
        table_clusters = -(-(blocks * 8 or 1) // layout.cluster_size)
        total = layout.used + blocks + table_clusters
        if blocks * per_block >= total:
            break
        blocks = -(-total // per_block)
    first = layout.take(blocks * layout.cluster_size)
    layout.file.seek(first)
    for n in range(blocks):
        ones = min(per_block, total - n * per_block)
        layout.file.write((b"\0\1" * ones).ljust(layout.cluster_size, b"\0"))
    layout.end = first + blocks * layout.cluster_size
    offsets = (first + n * layout.cluster_size for n in range(blocks))
    return layout.put(struct.pack(f">{blocks}Q", *offsets)), table_clusters


def build(path, size, cluster_bits=16, bitmaps=(), extensions=(), snapshots=()):
    """An image with an empty disk. `extensions`: (type, data) more for the header."""
    cluster_size = 1 << cluster_bits
    with open(path, "wb") as file:
        layout = _Layout(file, cluster_size)
        layout.take(cluster_size)
        l1_entries = _l1_entries(size, cluster_size)
        l1 = layout.take(l1_entries * 8)
        extensions, autoclear = list(extensions), 0
        if bitmaps:
            extensions.append((0x23852875, _put_bitmaps(layout, size, bitmaps)))
            autoclear = 1
        snapshot_table = _put_snapshots(layout, snapshots) if snapshots else 0
        reftable, reftable_clusters = _put_refcounts(layout)
        header = struct.pack(
            ">IIQIIQIIQQIIQQQQII8x", 0x514649FB, 3, 0, 0, cluster_bits, size, 0, l1_entries, l1,
            reftable, reftable_clusters, len(snapshots), snapshot_table, 0, 0, autoclear, 4, 112,
        )  # fmt: skip
        for kind, data in extensions:
            header += struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
        header += bytes(8)
        assert len(header) <= cluster_size
        file.seek(0)
        file.write(header)
        file.truncate(layout.used * cluster_size)
    return os.path.getsize(path)
