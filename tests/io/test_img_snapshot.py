# SPDX-License-Identifier: Apache-2.0
"""img snapshot, and reading snapshots with convert -l, judged by qemu-img."""

import json
import re
import unittest

from tidemark import TestCase, img, io, qemu_img, qemu_io


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
            (("convert", "-l", "gone", "-O", "raw", self.image, self.path("t")), "gone"),
            (("convert", "-l", "snapshot.x=1", self.image, self.path("t")), "snapshot.x=1"),
        ):
            result = img(*words, check=False)
            self.assertEqual(result.returncode, 1, words)
            self.assertIn(word, result.stderr)


if __name__ == "__main__":
    unittest.main()
