# SPDX-License-Identifier: Apache-2.0
"""Other readers of the format, which want whole clusters: 7-Zip, and reads with O_DIRECT."""

import mmap
import os
import unittest

from tidemark import Process, TestCase, compat, img, io, qemu_img, run

KIB, MIB = 1 << 10, 1 << 20
# Ends within a cluster, and within a sector.
SIZE = 3 * MIB + 5 * KIB + 512


class Readers(TestCase):
    cluster = 64 * KIB

    def setUp(self):
        super().setUp()
        self.source = self.create("source.raw", str(SIZE), "raw")
        io(self.source, "write -P 1 0 100k", "write -P 2 1M 4k", "write -P 3 3M 5632", fmt="raw")

    def bytes_of(self, raw):
        with open(raw, "rb") as f:
            return f.read()

    def assert_whole_clusters(self, image):
        self.assertEqual(os.path.getsize(image) % self.cluster, 0, os.path.getsize(image))

    def assert_read_by_7zip(self, image):
        out = self.path("out")
        run("7z", "x", "-y", "-tqcow", f"-o{out}", image)
        (name,) = os.listdir(out)
        self.assertEqual(self.bytes_of(os.path.join(out, name)), self.bytes_of(self.source))
        os.unlink(os.path.join(out, name))

    def assert_read_directly(self, image):
        """To the end, as a program does that has only aligned buffers."""
        fd = os.open(image, os.O_RDONLY | os.O_DIRECT)
        self.addCleanup(os.close, fd)
        total = os.path.getsize(image)
        buffer = mmap.mmap(-1, 4096)
        for at in range(0, total, 4096):
            self.assertEqual(os.preadv(fd, [buffer], at), 4096)

    def test_plain(self):
        image = self.path("a.qcow2")
        img("convert", "-O", "qcow2", self.source, image)
        self.assert_whole_clusters(image)
        self.assert_read_by_7zip(image)
        self.assert_read_directly(image)

    def test_compressed(self):
        image = self.path("a.qcow2")
        img("convert", "-c", "-O", "qcow2", self.source, image)
        self.assert_whole_clusters(image)
        self.assert_read_by_7zip(image)

    def test_cluster_sizes_and_versions(self):
        for options in ("compat=0.10", "cluster_size=4k", "cluster_size=2M", "refcount_bits=1"):
            with self.subTest(options=options):
                image = self.path(options + ".qcow2")
                img("convert", "-O", "qcow2", "-o", options, self.source, image)
                self.assert_read_by_7zip(image)

    def test_a_file_that_is_written_to(self):
        """What a flush has made stable can be read while the image is in use."""
        image = self.create("a.qcow2", str(SIZE))
        process = self.own(
            Process([compat("qemu-io"), "-f", "qcow2", "-c", "write -P 1 0 100k", "-c", "flush", "-c",
                     "write -P 2 1M 4k", "-c", "write -P 3 3M 5632", "-c", "flush", "-c", "sleep 60000", image],
                    self.path("io.log")))  # fmt: skip
        process.wait_for(lambda: process.log().count("wrote") == 3 and os.path.getsize(image) > 5 * 64 * KIB, "writes")
        self.assert_whole_clusters(image)
        self.assert_read_directly(image)
        process.kill()
        self.assert_read_by_7zip(image)

    def test_changes_of_the_whole_image(self):
        image = self.path("a.qcow2")
        img("convert", "-O", "qcow2", self.source, image)
        for change in (
            ("snapshot", "-f", "qcow2", "-c", "s", image),
            ("bitmap", "-f", "qcow2", "--add", image, "b"),
            ("bitmap", "-f", "qcow2", "--remove", image, "b"),
            ("snapshot", "-f", "qcow2", "-a", "s", image),
            ("snapshot", "-f", "qcow2", "-d", "s", image),
            ("resize", "-f", "qcow2", image, "64T"),
            ("resize", "-f", "qcow2", "--shrink", image, str(SIZE)),
            ("amend", "-f", "qcow2", "-o", "refcount_bits=64", image),
            ("amend", "-f", "qcow2", "-o", "compat=0.10,refcount_bits=16", image),
        ):
            with self.subTest(change=change):
                img(*change)
                self.assert_whole_clusters(image)
        self.assert_read_by_7zip(image)
        qemu_img("check", image)

    def test_a_ragged_file_is_completed_by_the_next_writer(self):
        image = self.path("a.qcow2")
        img("convert", "-O", "qcow2", self.source, image)
        os.truncate(image, os.path.getsize(image) - 50 * KIB)
        io(image, "read -P 3 3M 5632", "write -P 1 0 4k", fmt="qcow2")
        self.assert_whole_clusters(image)
        self.assert_read_by_7zip(image)

    def test_compressed_behind_a_driver_that_only_truncates(self):
        image = self.create("a.qcow2", str(SIZE))
        options = f"driver=qcow2,file.driver=raw,file.file.driver=file,file.file.filename={image}"
        io(options, "write -c -P 1 0 64k", options=("--image-opts",))
        self.assert_whole_clusters(image)

    def test_shrinking_cuts_the_file(self):
        image = self.create("a.qcow2", "8M", options=("-o", "preallocation=falloc"))
        img("resize", "-f", "qcow2", "--shrink", image, "2M")
        self.assertLess(os.path.getsize(image), 3 * MIB)
        self.assert_whole_clusters(image)
        qemu_img("check", image)
        io(image, "write -P 5 0 2M", "read -P 5 0 2M", fmt="qcow2")


if __name__ == "__main__":
    unittest.main()
