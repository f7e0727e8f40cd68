# SPDX-License-Identifier: Apache-2.0
"""x-debug-block-dirty-bitmap-sha256: the digests are those that QEMU's daemon computes."""

import os
import random

import tidemark
from same_answers import SameAnswersCase

SUM = "x-debug-block-dirty-bitmap-sha256"


class BitmapSum(SameAnswersCase):
    def add(self, node, size, **more):
        self.same(
            "blockdev-add",
            {"driver": "null-co", "node-name": node, "size": size, "read-zeroes": True, **more},
        )

    def add_bitmap(self, node, name, granularity, **more):
        self.same(
            "block-dirty-bitmap-add",
            {"node": node, "name": name, "granularity": granularity, **more},
        )

    def sum(self, node, name):
        return self.same(SUM, {"node": node, "name": name})["return"]["sha256"]

    def export(self, node):
        """The node, writable, at the socket "s" of both."""
        self.same("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "s"}}})
        self.same(
            "block-export-add", {"type": "nbd", "id": "e", "node-name": node, "writable": True}
        )

    def write(self, node, *commands):
        for folder in self.folders():
            uri = tidemark.nbd_uri(os.path.join(folder, "s"), node)
            tidemark.io(uri, *commands, fmt="raw")

    def test_clean_bitmaps_of_all_sizes(self):
        for i, size in enumerate((512, 64 << 10, 4 << 20, (4 << 20) + 512, (1 << 30) + 512)):
            self.add(f"n{i}", size)
            for granularity in 512, 65536, 1 << 20:
                self.add_bitmap(f"n{i}", f"b{granularity}", granularity)
                self.sum(f"n{i}", f"b{granularity}")

    def test_a_bitmap_that_would_take_days_is_refused(self):
        """QEMU has no such bitmaps."""
        size = 1 << 62
        node = {"driver": "null-co", "node-name": "n", "size": size}
        self.assertEqual(self.alone("blockdev-add", node), {"return": {}})
        bitmap = {"node": "n", "name": "b", "granularity": 65536}
        self.assertEqual(self.alone("block-dirty-bitmap-add", bitmap), {"return": {}})
        answer = self.alone(SUM, {"node": "n", "name": "b"})
        self.assertEqual(
            answer["error"]["desc"],
            f"Bitmap 'b' has {size >> 16} granules; a digest takes at most {1 << 33}",
        )

    def test_dirty_bitmaps(self):
        size = (200 << 20) + 512 * 3
        self.add("n", size)
        for granularity in 512, 4096, 65536:
            self.add_bitmap("n", f"b{granularity}", granularity)
        self.export("n")
        rng = random.Random(11)
        seen = set()
        for _ in range(4):
            offsets = [rng.randrange(0, size >> 9) << 9 for _ in range(20)]
            self.write("n", *(f"write {o} 512" for o in offsets), f"write {size - 512} 512")
            for granularity in 512, 4096, 65536:
                seen.add(self.sum("n", f"b{granularity}"))
        self.assertEqual(len(seen), 12)

    def test_disabled_busy_and_without_a_node(self):
        self.add("n", 1 << 20)
        self.add_bitmap("n", "off", 65536, disabled=True)
        self.sum("n", "off")
        self.add_bitmap("n", "busy", 65536, disabled=True)
        self.same("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "s"}}})
        self.same(
            "block-export-add", {"type": "nbd", "id": "e", "node-name": "n", "bitmaps": ["busy"]}
        )
        self.sum("n", "busy")
        self.same(SUM, {"node": "n", "name": "none"})
        self.same(SUM, {"node": "none", "name": "off"})
        self.same(SUM, {"node": "n"})
        self.same(SUM, {"node": "n", "name": 5})

    def test_stored_bits_are_read_and_inconsistent_ones_are_none(self):
        for folder in self.folders():
            image = os.path.join(folder, "disk.qcow2")
            tidemark.img("create", "-q", "-f", "qcow2", image, "64M")
            tidemark.img("bitmap", "-f", "qcow2", "--add", image, "stored")
            tidemark.io(image, "write 1M 64k", "write 9M 1M", fmt="qcow2")
            tidemark.img("bitmap", "-f", "qcow2", "--add", image, "crashed")
            tidemark.io(image, "write 5M 64k", "abort", fmt="qcow2", check=False)
            tidemark.img("bitmap", "-f", "qcow2", "--remove", image, "stored")
            tidemark.img("bitmap", "-f", "qcow2", "--add", image, "stored")
            tidemark.io(image, "write 3M 64k", "write 13M 1M", fmt="qcow2")
        self.same(
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": "disk",
                "file": {"driver": "file", "filename": "disk.qcow2"},
            },
        )
        stored = self.sum("disk", "stored")
        self.assertNotEqual(stored, self.sum("disk", "crashed"))
        self.add_bitmap("disk", "new", 65536)
        self.assertEqual(self.sum("disk", "new"), self.sum("disk", "crashed"))


class QueryBlock(SameAnswersCase):
    def test_there_is_no_disk_of_a_guest(self):
        self.same("query-block")
        self.same("query-block", {"x": 1})
        self.same("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 1 << 20})
        self.same("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "s"}}})
        self.same("block-export-add", {"type": "nbd", "id": "e", "node-name": "n"})
        self.assertEqual(self.same("query-block"), {"return": []})
