# SPDX-License-Identifier: Apache-2.0
"""img commit: what an overlay stores goes into its backing file; img bench."""

import json
import os
import unittest

from tidemark import TestCase, compat, img, io, qemu_img, run


class Commit(TestCase):
    def setUp(self):
        super().setUp()
        self.base = self.create("base.qcow2", "8M")
        io(self.base, "write -P 1 0 4M", fmt="qcow2")
        self.middle = self.overlay("middle.qcow2", self.base, "8M")
        io(self.middle, "write -P 2 1M 1M", "write -z 3M 64k", fmt="qcow2")
        self.top = self.overlay("top.qcow2", self.middle, "8M")
        io(self.top, "write -P 3 1536k 1M", "write -z 0 64k", fmt="qcow2")

    def overlay(self, name, backing, size):
        return self.create(name, size, options=("-b", backing, "-F", "qcow2"))

    def snapshot_of(self, image):
        copy = self.path("before.raw")
        img("convert", "-O", "raw", image, copy)
        return copy

    def assert_same(self, first, second):
        self.assertIn("identical", qemu_img("compare", first, second).stdout)

    def stored(self, image):
        extents = json.loads(qemu_img("map", "--output=json", image).stdout)
        return [e for e in extents if e["depth"] == 0 and e["present"]]

    def test_into_its_backing_file(self):
        before = self.snapshot_of(self.top)
        result = img("commit", "-f", "qcow2", self.top)
        self.assertEqual(result.stdout, "Image committed.\n")
        for image in (self.top, self.middle):
            qemu_img("check", image)
            self.assert_same(before, image)
        self.assertEqual(self.stored(self.top), [])

    def forget_backing_format(self, image):
        with open(image, "r+b") as file:
            head = file.read(65536)
            file.seek(head.index(b"\xe2\x79\x2a\xca"))  # the extension becomes an unknown one
            file.write(b"none")
        self.assertNotIn("backing file format", img("info", image).stdout)

    def test_a_guest_does_not_choose_the_format_of_the_base(self):
        """One that is raw because it looks like nothing else must not look like another image."""
        base = self.create("base.raw", "1M", fmt="raw")
        top = self.create("guest.qcow2", "1M", options=("-b", base, "-F", "raw"))
        with open(self.path("head"), "wb") as file, open(self.base, "rb") as image:
            file.write(image.read(512))
        io(top, f"write -s {self.path('head')} 0 512", "write -P 5 64k 64k", fmt="qcow2")
        self.forget_backing_format(top)
        result = img("commit", "-f", "qcow2", top, check=False)
        self.assertIn("Operation not permitted", result.stderr)
        self.assertIn("file format: raw", img("info", base).stdout)
        io(top, "write -P 6 0 512", fmt="qcow2")
        img("commit", "-f", "qcow2", top)
        io(base, "read -P 6 0 512", "read -P 5 64k 64k", fmt="raw")

    def test_the_format_of_the_base_is_not_recorded(self):
        """It is probed when the chain is opened; the base is opened a second time for writing."""
        before = self.snapshot_of(self.top)
        self.forget_backing_format(self.top)
        result = run(compat("qemu-img"), "commit", "-f", "qcow2", self.top)
        self.assertEqual(result.stdout, "Image committed.\n")
        qemu_img("check", self.middle)
        self.assert_same(before, self.middle)

    def test_dropped_overlay_keeps_its_contents(self):
        before = self.snapshot_of(self.top)
        stored = self.stored(self.top)
        img("commit", "-f", "qcow2", "-d", self.top)
        self.assert_same(before, self.middle)
        self.assertEqual(self.stored(self.top), stored)

    def test_into_a_base_farther_down(self):
        before = self.snapshot_of(self.top)
        img("commit", "-f", "qcow2", "-b", self.base, self.top)
        qemu_img("check", self.base)
        self.assert_same(before, self.base)
        self.assertNotEqual(self.stored(self.top), [])

    def test_an_emptied_image_takes_no_more_space_than_a_new_one(self):
        new = self.overlay("new.qcow2", self.middle, "8M")
        img("commit", "-q", "-f", "qcow2", self.top)
        # The new one ends with its L1 table.
        self.assertEqual(os.path.getsize(self.top), os.path.getsize(new) + 65536 - 8)

    def test_errors_while_it_is_emptied(self):
        before = self.snapshot_of(self.top)
        config = self.path("blkdebug.conf")
        for event in ("l1_update", "empty_image_prepare", "reftable_update", "refblock_alloc"):
            with open(config, "w", encoding="utf-8") as f:
                f.write(f'[inject-error]\nevent = "{event}"\n')
            name = f"blkdebug:{config}:{self.top}"
            result = run(compat("qemu-img"), "commit", "-f", "qcow2", name, check=False)
            self.assertEqual(
                result.stderr.replace(compat("qemu-img"), "qemu-img"),
                f"qemu-img: Failed to empty {name}: Input/output error\n",
            )
            io(self.top, "read 0 1", fmt="qcow2")  # repairs
            qemu_img("check", self.top)
            self.assert_same(before, self.top)
            io(self.top, "write -P 3 1536k 1M", "write -z 0 64k", fmt="qcow2")

    def test_a_short_image_between_hides_the_base(self):
        short = self.overlay("short.qcow2", self.base, "2M")
        top = self.overlay("long.qcow2", short, "6M")
        before = self.snapshot_of(top)
        img("commit", "-f", "qcow2", "-b", self.base, top)
        img("resize", "--shrink", "-f", "qcow2", self.base, "6M")
        self.assert_same(before, self.base)

    def test_smaller_base_grows(self):
        base = self.create("small.raw", "1M", "raw")
        top = self.create("large.qcow2", "4M", options=("-b", base, "-F", "raw"))
        io(top, "write -P 7 3M 1M", fmt="qcow2")
        before = self.snapshot_of(top)
        img("commit", "-f", "qcow2", "-p", top)
        self.assert_same(before, base)
        self.assert_same(before, top)

    def dirty(self, image, bitmap):
        """Bytes of the disk that a bitmap has as dirty, as QEMU's server shows it."""
        extents = self.bitmap_extents(image, bitmap)
        return sum(e["length"] for e in extents if not e["data"])

    def test_bitmaps_of_the_base_record_it_and_those_of_the_top_stay(self):
        img("bitmap", "-f", "qcow2", "--add", "-g", "64k", self.middle, "b")
        img("bitmap", "-f", "qcow2", "--add", "-g", "64k", self.top, "t")
        io(self.top, "write -P 4 5M 64k", fmt="qcow2")
        img("commit", "-f", "qcow2", self.top)
        self.assertEqual(self.dirty(self.middle, "b"), (1 << 20) + 2 * 65536)
        self.assertEqual(self.dirty(self.top, "t"), 65536)

    def test_no_backing_file(self):
        result = img("commit", "-f", "qcow2", self.base, check=False)
        self.assertIn("Image does not have a backing file", result.stderr)

    def test_relative_names_are_beside_the_image_above(self):
        top = self.path("middle-top.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top)
        folder = os.path.dirname(self.base)
        inside = os.path.join(os.path.basename(folder), "base.qcow2")
        above = os.path.dirname(folder)
        result = img("commit", "-f", "qcow2", "-b", inside, top, check=False, cwd=above)
        self.assertIn(f"Did not find '{inside}' in the backing chain", result.stderr)
        for name in ("base.qcow2", self.base):
            img("commit", "-f", "qcow2", "-b", name, top, cwd=above)

    def test_a_full_disk(self):
        node = {
            "driver": "qcow2",
            "file": {
                "driver": "blkdebug",
                "inject-error": [{"event": "write_aio", "errno": 28, "once": True}],
                "image": {"driver": "file", "filename": self.base},
            },
        }
        top = self.path("over-json.qcow2")
        name = "json:" + json.dumps(node)
        made = run(compat("qemu-img"), "create", "-f", "qcow2", "-b", name, "-F", "qcow2", top, "8M")
        self.assertIn("backing_file=" + name.replace(",", ",,"), made.stdout)
        io(top, "write -P 1 5M 64k", fmt="qcow2")
        result = run(compat("qemu-img"), "commit", top, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("qemu-img: Block job failed: No space left on device", result.stderr)
        io(top, "read -P 1 5M 64k", fmt="qcow2")

    def test_base_that_is_not_in_the_chain(self):
        other = self.create("other.qcow2", "8M")
        result = img("commit", "-f", "qcow2", "-b", other, self.top, check=False)
        self.assertIn(f"Did not find '{other}' in the backing chain", result.stderr)


class Bench(TestCase):
    def test_reads(self):
        disk = self.create("disk.qcow2", "1M")
        result = img("bench", "-c", "100", "-d", "4", "-s", "64k", disk)
        self.assertIn("Sending 100 read requests, 65536 bytes each, 4 in parallel", result.stdout)
        self.assertRegex(result.stdout, r"Run completed in [0-9.]+ seconds\.")

    def test_writes_where_the_step_leads(self):
        disk = self.create("disk.qcow2", "1M")
        img("bench", "-f", "qcow2", "-w", "-c", "2", "-d", "1", "-S", "128k", "--pattern=9", disk)
        io(disk, "read -P 9 0 4k", "read -P 0 4k 124k", "read -P 9 128k 4k", fmt="qcow2")
        qemu_img("check", disk)

    def test_flushes_in_between(self):
        disk = self.create("disk.qcow2", "1M")
        for more in ((), ("--no-drain",)):
            img("bench", "-f", "qcow2", "-w", "-c", "64", "-d", "8", "--flush-interval=8", *more, disk)
        qemu_img("check", disk)

    def test_request_beyond_the_end(self):
        disk = self.create("disk.qcow2", "1M")
        result = img("bench", "-o", "1M", disk, check=False)
        self.assertIn("beyond the end", result.stderr)


if __name__ == "__main__":
    unittest.main()
