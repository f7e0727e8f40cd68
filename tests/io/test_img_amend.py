# SPDX-License-Identifier: Apache-2.0
"""img amend, judged by qemu-img."""

import json
import unittest

from tidemark import TestCase, compat, img, io, qemu_img, run


class Amend(TestCase):
    def data(self, path):
        info = json.loads(qemu_img("info", "--output=json", path).stdout)
        return info["format-specific"]["data"]

    def test_version_down_and_up(self):
        path = self.create("a.qcow2", "8M")
        io(path, "write -P 1 0 1M", "write -z 2M 64k", fmt="qcow2")
        img("amend", "-f", "qcow2", "-o", "compat=0.10", path)
        self.assertEqual(self.data(path)["compat"], "0.10")
        img("amend", "-f", "qcow2", "-o", "compat=1.1,lazy_refcounts=on", path)
        self.assertEqual(self.data(path)["compat"], "1.1")
        self.assertTrue(self.data(path)["lazy-refcounts"])
        io(path, "read -P 1 0 1M", "read -P 0 1M 7M", fmt="qcow2")
        qemu_img("check", path)

    def test_progress(self):
        path = self.create("a.qcow2", "8M")
        words = ("amend", "-p", "-f", "qcow2", "-o", "refcount_bits=64", path)
        out = run(compat("qemu-img"), *words).stdout
        self.assertIn("(100.00/100%)", out)
        self.assertEqual(self.data(path)["refcount-bits"], 64)

    def test_what_cannot_be_changed_is_named(self):
        path = self.create("a.qcow2", "8M")
        raw = self.create("a.raw", "1M", "raw")
        for words, word in (
            (("-f", "qcow2", "-o", "nonsense=1", path), "nonsense"),
            (("-f", "qcow2", "-o", "cluster_size=1k", path), "only supported for image creation"),
            (("-f", "raw", "-o", "size=1", raw), "'raw'"),
            (("-f", "qcow2", path), "-o"),
            (("-f", "qcow2", "-o", ",", path), "Invalid option list"),
        ):
            result = img("amend", *words, check=False)
            self.assertEqual(result.returncode, 1, words)
            self.assertIn(word, result.stderr)

    def test_help_lists_options(self):
        self.assertIn("refcount_bits=<num>", img("amend", "-f", "qcow2", "-o", "help").stdout)


if __name__ == "__main__":
    unittest.main()
