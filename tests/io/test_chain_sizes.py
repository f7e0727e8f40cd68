# SPDX-License-Identifier: Apache-2.0
"""Images of a chain that differ in size: what lies beyond the end of one reads as zeroes, and stays
so.
"""

import itertools
import os

from tidemark import TestCase, img

MIB = 1 << 20


class Sizes(TestCase):
    def raw(self, name, size, byte):
        path = self.path(name)
        with open(path, "wb") as f:
            f.write(bytes([byte]) * size)
        return path

    def overlay(self, name, backing, fmt, size):
        path = self.path(name)
        img("create", "-q", "-f", "qcow2", "-b", backing, "-F", fmt, path, str(size))
        return path

    def bytes_of(self, image, fmt):
        out = self.path("out.raw")
        img("convert", "-f", fmt, "-O", "raw", image, out)
        with open(out, "rb") as f:
            return f.read()

    def test_commit_through_a_shorter_image(self):
        base = self.raw("base.raw", 4 * MIB, 1)
        short = self.overlay("short.qcow2", base, "raw", MIB)
        top = self.overlay("top.qcow2", short, "qcow2", 4 * MIB)
        before = self.bytes_of(top, "qcow2")
        self.assertEqual(before, b"\1" * MIB + bytes(3 * MIB))
        img("commit", "-q", "-f", "qcow2", "-b", base, top)
        self.assertEqual(self.bytes_of(base, "raw"), before)

    def test_rebase_between_all_sizes(self):
        sizes = (MIB, 2 * MIB, 3 * MIB, 4 * MIB)
        for old, new in itertools.product(sizes, sizes):
            with self.subTest(old=old, new=new):
                a, b = self.raw("a.raw", old, 1), self.raw("b.raw", new, 2)
                top = self.overlay("top.qcow2", a, "raw", 3 * MIB)
                before = self.bytes_of(top, "qcow2")
                img("rebase", "-f", "qcow2", "-b", b, "-F", "raw", top)
                self.assertEqual(self.bytes_of(top, "qcow2"), before)
                img("rebase", "-f", "qcow2", "-b", "", top)
                self.assertEqual(self.bytes_of(top, "qcow2"), before)
                os.unlink(top)
