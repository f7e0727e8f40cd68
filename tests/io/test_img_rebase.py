# SPDX-License-Identifier: Apache-2.0
"""img rebase: the disk reads the same on another backing file."""

import json
import os
import unittest

from tidemark import TestCase, compat, img, io, qemu_img, run


class Rebase(TestCase):
    def setUp(self):
        super().setUp()
        self.old = self.create("old.qcow2", "8M")
        self.new = self.create("new.qcow2", "8M")
        io(self.old, "write -P 1 0 256k", "write -P 1 1M 64k", "write -P 9 4M 1M", fmt="qcow2")
        io(self.new, "write -P 2 64k 256k", "write -P 1 1M 64k", "write -P 8 6M 1M", fmt="qcow2")
        self.top = self.create("top.qcow2", "8M", options=("-b", self.old, "-F", "qcow2"))
        io(self.top, "write -P 3 128k 64k", "write -z 4M 64k", fmt="qcow2")
        self.before = self.path("before.raw")
        img("convert", "-O", "raw", self.top, self.before)

    def rebase(self, *words, **more):
        return img("rebase", "-f", "qcow2", *words, self.top, **more)

    def assert_reads_as_before(self):
        qemu_img("check", self.top)
        self.assertIn("identical", qemu_img("compare", self.before, self.top).stdout)

    def backing(self):
        info = json.loads(qemu_img("info", "--output=json", self.top).stdout)
        return info.get("backing-filename"), info.get("backing-filename-format")

    def test_a_new_header_makes_no_file_longer(self):
        """A new image ends within its last cluster."""
        path = self.create("fresh.qcow2", "8M", options=("-b", self.old, "-F", "qcow2"))
        size = os.stat(path).st_size
        self.assertNotEqual(size % 65536, 0)
        img("rebase", "-u", "-f", "qcow2", "-b", self.new, "-F", "qcow2", path)
        self.assertEqual(os.stat(path).st_size, size)
        io(path, "write -P 1 0 1", fmt="qcow2")
        self.assertEqual(os.stat(path).st_size % 65536, 0)

    def test_progress_is_shown_where_only_the_name_changes(self):
        words = ("rebase", "-p", "-u", "-b", self.new, "-F", "qcow2", self.top)
        self.assertEqual(
            run(compat("qemu-img"), *words).stdout, "    (0.00/100%)\n    (100.00/100%)\n"
        )

    def test_to_another_image(self):
        self.rebase("-b", self.new, "-F", "qcow2")
        self.assertEqual(self.backing(), (self.new, "qcow2"))
        self.assert_reads_as_before()

    def test_what_is_the_same_in_both_is_not_copied(self):
        self.rebase("-b", self.new, "-F", "qcow2")
        extents = json.loads(qemu_img("map", "--output=json", self.top).stdout)
        own = [(e["start"], e["length"]) for e in extents if e["depth"] == 0 and e["present"]]
        for start, length in own:
            self.assertFalse(start <= (1 << 20) < start + length, own)

    def test_with_extended_entries_only_subclusters_are_copied(self):
        extended = ("-o", "extended_l2=on,cluster_size=1M")
        base = self.create("base.qcow2", "1M")
        middle = self.create("middle.qcow2", "1M", options=("-b", base, "-F", "qcow2"))
        top = self.create("over.qcow2", "1M", options=(*extended, "-b", middle, "-F", "qcow2"))
        io(middle, "write -P 1 64k 64k", "write -P 2 960k 64k", fmt="qcow2")
        img("rebase", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        extents = json.loads(qemu_img("map", "--output=json", top).stdout)
        own = [(e["start"], e["length"]) for e in extents if e["depth"] == 0 and e["data"]]
        self.assertEqual(own, [(64 << 10, 64 << 10), (960 << 10, 64 << 10)])
        io(top, "read -P 1 64k 64k", "read -P 0 128k 832k", "read -P 2 960k 64k", fmt="qcow2")
        qemu_img("check", top)

    def test_to_none_and_back(self):
        self.rebase("-b", "")
        self.assertEqual(self.backing(), (None, None))
        self.assert_reads_as_before()
        self.rebase("-b", self.new, "-F", "qcow2")
        self.assertEqual(self.backing(), (self.new, "qcow2"))
        self.assert_reads_as_before()

    def test_to_a_shorter_and_a_raw_image(self):
        short = self.create("short.raw", "1M", "raw")
        io(short, "write -P 7 0 1M", fmt="raw")
        self.rebase("-b", short, "-F", "raw")
        self.assert_reads_as_before()

    def test_compressed(self):
        self.rebase("-c", "-b", self.new, "-F", "qcow2")
        self.assert_reads_as_before()
        check = json.loads(qemu_img("check", "--output=json", self.top).stdout)
        self.assertGreater(check["compressed-clusters"], 0)

    def test_compressed_beside_subclusters(self):
        """A cluster of which the image has a part is completed by data that is not compressed."""
        for place in ("20k", "50k", "65k", "4100k", "5116k"):
            with self.subTest(place):
                os.unlink(self.top)
                self.create("top.qcow2", "8M",
                            options=("-b", self.old, "-F", "qcow2", "-o", "extended_l2=on"))  # fmt: skip
                io(self.top, f"write -P 3 {place} 3k", fmt="qcow2")
                img("convert", "-O", "raw", self.top, self.before)
                self.rebase("-c", "-b", self.new, "-F", "qcow2")
                self.assert_reads_as_before()
                check = json.loads(img("check", "--output=json", self.top).stdout)
                self.assertGreater(check["compressed-clusters"], 10)

    def test_unsafe_changes_the_name_only(self):
        self.rebase("-u", "-b", "gone.qcow2", "-F", "qcow2")
        self.assertEqual(self.backing(), ("gone.qcow2", "qcow2"))
        self.rebase("-u", "-b", self.old, "-F", "qcow2")
        self.assert_reads_as_before()

    def test_relative_name_is_seen_from_the_image(self):
        self.rebase("-b", "new.qcow2", "-F", "qcow2")
        self.assertEqual(self.backing(), ("new.qcow2", "qcow2"))
        self.assert_reads_as_before()

    def test_problems_leave_the_image_as_it_was(self):
        for words, word in (
            (("-b", self.path("gone"), "-F", "raw"), "gone"),
            (("-b", self.new), "backing format must be specified"),
            (("-b", self.new, "-F", "nonsense"), "nonsense"),
            (("-u", "-b", "x" * 1024, "-F", "raw"), "1023"),
            ((), "-b"),
        ):
            result = self.rebase(*words, check=False)
            self.assertEqual(result.returncode, 1, words)
            self.assertIn(word, result.stderr)
            self.assertEqual(self.backing(), (self.old, "qcow2"))
        self.assert_reads_as_before()


if __name__ == "__main__":
    unittest.main()
