# SPDX-License-Identifier: Apache-2.0
"""img compare finds a single byte, wherever it is."""

import subprocess

from tidemark import TestCase, img, qemu_io, tool

MIB = 1 << 20


class OneByte(TestCase):
    def compare(self, a, b, *words):
        result = img("compare", *words, a, b, check=False)
        return result.returncode, result.stdout

    def pair(self, size=3 * MIB):
        """Two raw images full of the same."""
        paths = [self.path("a.raw"), self.path("b.raw")]
        for path in paths:
            with open(path, "wb") as f:
                f.write(b"\5" * size)
        return paths

    def change(self, path, offset, byte=b"\6"):
        with open(path, "r+b") as f:
            f.seek(offset)
            f.write(byte)

    def test_anywhere_in_data(self):
        for offset in (0, 511, 512, MIB - 1, 2 * MIB + 12345, 3 * MIB - 1):
            for which in (0, 1):
                with self.subTest(offset=offset, which=which):
                    paths = self.pair()
                    self.change(paths[which], offset)
                    status, out = self.compare(*paths)
                    self.assertEqual(status, 1)
                    self.assertIn(f"mismatch at offset {offset // 512 * 512}!", out)

    def test_anywhere_where_the_other_has_a_hole(self):
        for offset in (0, 511, MIB, 3 * MIB - 1):
            for which in (0, 1):
                with self.subTest(offset=offset, which=which):
                    paths = [self.create(f"{name}.raw", "3M", "raw") for name in "ab"]
                    self.change(paths[which], offset)
                    status, out = self.compare(*paths)
                    self.assertEqual(status, 1)
                    self.assertIn(f"mismatch at offset {offset // 512 * 512}!", out)

    def test_beyond_the_end_of_the_other(self):
        for offset in (3 * MIB, 4 * MIB - 1):
            for order in (0, 1):
                with self.subTest(offset=offset, order=order):
                    paths = self.pair()
                    with open(paths[order], "r+b") as f:
                        f.truncate(4 * MIB)
                    self.assertEqual(self.compare(*paths)[0], 0)
                    self.change(paths[order], offset)
                    self.assertEqual(self.compare(*paths)[0], 1)


class Order(TestCase):
    def test_an_error_comes_before_the_warning_about_sizes(self):
        small, large = self.create("small.raw", "1M", "raw"), self.create("large.raw", "2M", "raw")
        with open(large, "r+b") as f:
            f.seek(MIB)
            f.write(b"\1")
        failing = (f"driver=raw,file.driver=blkdebug,file.image.filename={large},"
                   "file.inject-error.0.event=none,file.inject-error.0.sector=2048")  # fmt: skip
        words = [*tool("img"), "compare", "--image-opts", f"driver=raw,file.filename={small}", failing]
        result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        lines = result.stdout.splitlines()
        self.assertEqual((result.returncode, len(lines)), (4, 2), lines)
        self.assertIn("Error while reading offset 1048576", lines[0])
        self.assertEqual(lines[1], "Warning: Image size mismatch!")


class Strict(TestCase):
    def test_what_is_allocated_in_one_only(self):
        a, b = self.create("a.qcow2", "1M"), self.create("b.qcow2", "1M")
        qemu_io(b, "write -P 0 512k 64k", fmt="qcow2")
        self.assertEqual(img("compare", a, b, check=False).returncode, 0)
        result = img("compare", "-s", a, b, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("block status mismatch", result.stdout)
        self.assertEqual(img("compare", "-s", b, b, check=False).returncode, 0)
