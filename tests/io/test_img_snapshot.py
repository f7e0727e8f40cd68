# SPDX-License-Identifier: Apache-2.0
"""img snapshot, and reading snapshots with convert -l, judged by qemu-img."""

import json
import os
import re
import unittest

from qcow2_edit import Image
from tidemark import TestCase, compat, img, io, qemu, qemu_img, qemu_io, run


class Snapshot(TestCase):
    def setUp(self):
        super().setUp()
        self.image = self.create("a.qcow2", "8M")
        io(self.image, "write -P 1 0 128k", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "one", self.image)
        io(self.image, "write -P 2 64k 128k", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "two", self.image)
        io(self.image, "write -P 3 0 64k", fmt="qcow2")

    def names(self):
        info = json.loads(qemu_img("info", "--output=json", self.image).stdout)
        return [snapshot["name"] for snapshot in info.get("snapshots", ())]

    def test_list(self):
        out = img("snapshot", "-l", self.image).stdout
        self.assertEqual(out, img("snapshot", self.image).stdout)
        lines = out.splitlines()
        self.assertEqual(lines[0], "Snapshot list:")
        row = r"\d +one +0 B \d{4}-\d\d-\d\d \d\d:\d\d:\d\d +0000:00:00.000 +(--|0)"
        self.assertTrue(re.fullmatch(row, lines[2]), lines[2])
        self.assertIn(lines[2] + "\n", img("info", self.image).stdout)
        self.assertEqual(self.names(), ["one", "two"])

    def test_list_of_an_image_without_any_is_empty(self):
        self.assertEqual(img("snapshot", "-l", self.create("b.qcow2", "1M")).stdout, "")

    def test_json_is_that_of_qemu_img(self):
        ours = json.loads(img("info", "--output=json", self.image).stdout)
        theirs = json.loads(qemu_img("info", "--output=json", self.image).stdout)
        self.assertEqual(ours["snapshots"], theirs["snapshots"])
        self.assertEqual(list(ours["snapshots"][0]), list(theirs["snapshots"][0]))

    def test_ours_and_theirs_look_alike(self):
        """Also the count of instructions, which qemu-img stores as 0."""
        qemu_img("snapshot", "-c", "three", self.image)
        snapshots = json.loads(img("info", "--output=json", self.image).stdout)["snapshots"]
        self.assertEqual([snapshot["icount"] for snapshot in snapshots], [0, 0, 0])

    def test_apply(self):
        img("snapshot", "-f", "qcow2", "-a", "one", self.image)
        qemu_io(self.image, "read -P 1 0 128k", "read -P 0 128k 64k", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-a", "2", self.image)
        qemu_io(self.image, "read -P 1 0 64k", "read -P 2 64k 128k", fmt="qcow2")
        qemu_img("check", self.image)

    def test_delete(self):
        img("snapshot", "-f", "qcow2", "-d", "one", self.image)
        self.assertEqual(self.names(), ["two"])
        qemu_img("check", self.image)
        qemu_io(self.image, "read -P 3 0 64k", "read -P 2 64k 128k", fmt="qcow2")

    def test_a_number_deletes_by_name_only(self):
        disk = self.create("numbers.qcow2", "1M")
        for name in ("a", "b", "1"):
            img("snapshot", "-f", "qcow2", "-c", name, disk)
        img("snapshot", "-f", "qcow2", "-d", "1", disk)
        self.assertNotEqual(img("snapshot", "-f", "qcow2", "-d", "2", disk, check=False).returncode, 0)
        snapshots = json.loads(img("info", "--output=json", disk).stdout)["snapshots"]
        self.assertEqual([s["name"] for s in snapshots], ["a", "b"])

    def test_convert_reads_one(self):
        target = self.path("t.raw")
        for how in ("one", "1", "snapshot.name=one", "snapshot.id=1,snapshot.name=one"):
            img("convert", "-l", how, "-O", "raw", self.image, target)
            qemu_io(target, "read -P 1 0 128k", "read -P 0 128k 64k", fmt="raw")

    def test_what_is_wrong_is_named(self):
        raw = self.create("a.raw", "1M", "raw")
        for words, word in (
            (("snapshot", "-f", "qcow2", "-a", "gone", self.image), "'gone'"),
            (("snapshot", "-f", "qcow2", "-d", "gone", self.image), "'gone'"),
            (("snapshot", "-f", "raw", "-c", "x", raw), "no snapshots"),
            (("snapshot", "-l", "-c", "x", self.image), "Cannot mix"),
            (("snapshot", "-c", "x", "-c", "y", self.image), "Cannot mix"),
            (("snapshot", "-d", "one", "-d", "two", self.image), "Cannot mix"),
            (("convert", "-l", "gone", "-O", "raw", self.image, self.path("t")), "gone"),
            (("convert", "-l", "snapshot.x=1", self.image, self.path("t")), "snapshot.x=1"),
        ):
            result = img(*words, check=False)
            self.assertEqual(result.returncode, 1, words)
            self.assertIn(word, result.stderr)

    def through(self, driver, *more, command=("snapshot", "-a", "one"), child="file", last=None):
        options = (f"driver={driver}", f"{child}.driver=qcow2", f"{child}.file.filename={self.image}", *more)
        return img(*command, "--image-opts", ",".join(options), *([last] if last else []), check=False)

    def test_filters_pass_on_what_leaves_the_disk_as_it_is(self):
        self.assertIn("one", self.through("blkdebug", command=("snapshot", "-l"), child="image").stdout)
        for command in (("-c", "three"), ("-d", "three")):
            result = self.through("blkdebug", command=("snapshot", *command), child="image")
            self.assertEqual(result.returncode, 0, result.stderr)

    def test_nothing_changes_the_disk_below_a_filter(self):
        """A filter has a size, bitmaps or a log, which would be wrong afterwards."""
        target = self.create("target.qcow2", "8M")
        log = self.create("log.raw", "1M", "raw")
        for driver, more, child in (
            ("blkdebug", (), "image"),
            ("copy-before-write", ("target.driver=qcow2", f"target.file.filename={target}"), "file"),
            ("blklogwrites", (f"log.filename={log}",), "file"),
        ):
            for command in (("snapshot", "-a", "one"), ("amend", "-o", "size=16M")):
                result = self.through(driver, *more, command=command, child=child)
                self.assertEqual(result.returncode, 1, driver)
                self.assertIn(f"'{driver}'", result.stderr)
            io(self.image, "read -P 3 0 64k", fmt="qcow2")

    def test_a_snapshot_of_another_size_is_not_shown_cut_off(self):
        """A filter above would keep the size of the disk: half of the snapshot would be missing."""
        out = self.path("out.raw")
        img("resize", "-q", "--shrink", "-f", "qcow2", self.image, "1M")
        result = self.through("blkdebug", command=("convert", "-O", "raw", "-l", "one"), child="image", last=out)
        self.assertEqual(result.returncode, 1)
        self.assertIn("format 'blkdebug' has no snapshots", result.stderr)
        img("convert", "-f", "qcow2", "-O", "raw", "-l", "one", self.image, out)
        self.assertGreater(os.path.getsize(out), 1 << 20)


class Damaged(TestCase):
    """What can be opened is opened, what can't be done is refused, in the words of qemu-img."""

    def setUp(self):
        super().setUp()
        self.image = self.create("a.qcow2", "1M")
        io(self.image, "write -P 1 0 64k", fmt="qcow2")

    def refused_by_both(self, *words):
        said = []
        for tool in (compat("qemu-img"), qemu("qemu-img")):
            result = run(tool, *words, check=False)
            self.assertEqual(result.returncode, 1, result.stderr)
            # Older ones say "-27 (File too large)".
            said.append(re.sub(r"-\d+ \((.*)\)", r"\1", result.stderr))
        self.assertEqual(said[0], said[1])
        return said[0]

    def test_as_many_as_can_be_behind_the_end_of_the_file(self):
        image = Image(self.image)
        image.put32(60, 65536)
        image.put64(64, 16 << 20)
        self.assertIn("File too large", self.refused_by_both("snapshot", "-c", "x", self.image))
        io(self.image, "read -P 1 0 64k", fmt="qcow2")

    def test_an_entry_that_points_where_nothing_can_be(self):
        """Refusing is enough: the image is not marked as corrupt."""
        image = Image(self.image)
        for place in (0xFFFFFFFFFF0000, 0xFFFFFF0000):
            image.put64(image.l2_place(0), 1 << 63 | place)
            self.refused_by_both("snapshot", "-c", "x", self.image)
            self.assertEqual(image.u64(72), 0)

    def test_an_l1_table_that_is_none(self):
        """What it seems to refer to can't be given back: that is found after the snapshot is gone.
        """
        img("snapshot", "-f", "qcow2", "-c", "x", self.image)
        image = Image(self.image)
        image.put64(image.u64(64), image.reftable)
        image.write(image.reftable + 8, bytes.fromhex("0001000100010000"))
        result = img("snapshot", "-f", "qcow2", "-d", "x", self.image, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Marking image as corrupt", result.stderr)

    def test_an_l1_table_that_can_not_be(self):
        img("snapshot", "-f", "qcow2", "-c", "x", self.image)
        image = Image(self.image)
        entry = image.u64(64)
        kept = image.read(entry, 12)
        for place, value, words in ((0, 0x400200, "offset invalid"), (4, 1 << 28, "too large")):
            image.put64(entry + place, value)
            for command in (
                ("snapshot", "-a", "x", self.image),
                ("snapshot", "-d", "x", self.image),
                ("amend", "-o", "compat=0.10", self.image),
                ("convert", "-l", "x", "-O", "raw", self.image, self.path("b")),
            ):
                said = self.refused_by_both(*command)
                self.assertIn(f"Snapshot L1 table {words}", said)
            image.write(entry, kept)


if __name__ == "__main__":
    unittest.main()
