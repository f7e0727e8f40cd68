# SPDX-License-Identifier: Apache-2.0
"""qcow2 in all its forms: what one of us and QEMU writes, the other reads, changes and finds sound.
"""

import itertools
import json
import os
import unittest

from qcow2_edit import Image
from tidemark import TestCase, img, io, qemu_img, qemu_io

OURS, THEIRS = (img, io), (qemu_img, qemu_io)
# Version, cluster size, refcount width. Two bits are too few for what is done here.
FORMATS = (
    (2, 512, 16),
    (2, 65536, 16),
    (3, 512, 8),
    (3, 4096, 4),
    (3, 65536, 16),
    (3, 65536, 64),
    (3, 2 << 20, 32),
)
M = 1 << 20


def creation_options(version, cluster_size, refcount_bits):
    options = f"compat=v{version},cluster_size={cluster_size}"
    return options if version == 2 else f"{options},refcount_bits={refcount_bits}"


class Formats(TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        self.image = self.path("a.qcow2")

    def make(self, tools, size, options, *more):
        if os.path.exists(self.image):
            os.unlink(self.image)
        tools[0]("create", "-q", "-f", "qcow2", "-o", options, *more, self.image, size)

    def sound(self):
        for tools in (OURS, THEIRS):
            tools[0]("check", "-q", "-f", "qcow2", self.image)

    def info(self):
        return json.loads(qemu_img("info", "--output=json", self.image).stdout)

    def pairs(self, formats, test):
        """Call test(the program that makes the image, the other one, the format) for each."""
        for (one, other), form in itertools.product(((OURS, THEIRS), (THEIRS, OURS)), formats):
            with self.subTest(made_by=one[0].__name__, format=form):
                test(one, other, form)

    def snapshot(self, tools, *words, **more):
        how = ("-f", "qcow2") if tools is OURS else ()
        return tools[0]("snapshot", *how, *words, self.image, **more)

    def resize(self, *words, **more):
        return img("resize", "-q", "-f", "qcow2", "--shrink", self.image, *words, **more)

    # --- snapshots -------------------------------------------------------------------------

    def test_snapshots_by_turns(self):
        def turns(one, other, form):
            self.make(one, "6M", creation_options(*form))
            # Compressed clusters share a host cluster, which needs more bits to count.
            compressed = "-c" if form[2] >= 16 else ""
            one[1](self.image, "write -P 1 0 3M", f"write {compressed} -P 2 4M 2M", fmt="qcow2")
            self.snapshot(other, "-c", "s1")
            one[1](self.image, "write -P 3 1M 64k", "write -P 4 4100k 10k", fmt="qcow2")
            self.sound()
            self.snapshot(one, "-c", "s2")
            other[1](self.image, "write -P 5 0 1M", "discard 2M 1M", fmt="qcow2")
            self.snapshot(other, "-a", "s1")
            self.sound()
            other[1](self.image, "read -P 1 0 3M", "read -P 2 4M 2M", fmt="qcow2")
            one[1](self.image, "read -P 1 0 3M", "read -P 2 4M 2M", fmt="qcow2")
            one[1](self.image, "write -P 6 2M 100k", "write -P 7 5M 512", fmt="qcow2")
            self.snapshot(one, "-d", "s1")
            self.sound()
            other[1](
                self.image,
                "read -P 1 0 2M",
                "read -P 6 2M 100k",
                "read -P 7 5M 512",
                "read -P 2 4M 1M",
                fmt="qcow2",
            )
            self.snapshot(one, "-a", "s2")
            other[1](
                self.image,
                "read -P 1 0 1M",
                "read -P 3 1M 64k",
                "read -P 4 4100k 10k",
                "read -P 2 4110k 1M",
                fmt="qcow2",
            )
            self.snapshot(other, "-d", "s2")
            one[1](self.image, "write -P 8 0 3M", "read -P 3 1M 0", fmt="qcow2")
            self.sound()

        self.pairs(FORMATS, turns)

    def test_a_width_of_one_bit_has_no_snapshots(self):
        self.make(OURS, "4M", creation_options(3, 4096, 1))
        io(self.image, "write -P 1 0 1M", fmt="qcow2")
        result = self.snapshot(OURS, "-c", "s", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("1 bits", result.stderr)
        self.sound()
        io(self.image, "write -P 2 0 2M", "read -P 2 0 2M", fmt="qcow2")
        self.sound()

    def test_as_many_snapshots_as_two_bits_count(self):
        self.make(OURS, "4M", creation_options(3, 4096, 2))
        io(self.image, "write -P 1 0 1M", fmt="qcow2")
        for name in ("a", "b"):
            self.snapshot(OURS, "-c", name)
        self.assertEqual(self.snapshot(OURS, "-c", "c", check=False).returncode, 1)
        self.sound()
        self.snapshot(OURS, "-d", "a")
        self.snapshot(OURS, "-c", "c")
        self.sound()

    def test_snapshots_of_an_empty_disk(self):
        def turns(one, other, _):
            self.make(one, "0", "cluster_size=65536")
            self.snapshot(other, "-c", "s")
            one[0]("resize", "-q", "-f", "qcow2", self.image, "1M")
            one[1](self.image, "write -P 1 0 1M", fmt="qcow2")
            self.sound()
            self.snapshot(OURS, "-a", "s")
            self.assertEqual(self.info()["virtual-size"], 0)
            self.snapshot(OURS, "-d", "s")
            self.sound()

        self.pairs(((3, 65536, 16),), turns)

    # --- preallocation ---------------------------------------------------------------------

    def test_preallocation(self):
        for form, mode in itertools.product(
            ((2, 65536, 16), (3, 512, 1), (3, 2 << 20, 64)),
            ("metadata", "falloc", "full"),
        ):
            with self.subTest(format=form, mode=mode):
                self.make(OURS, "8M", f"{creation_options(*form)},preallocation={mode}")
                self.sound()
                if mode != "metadata":
                    self.assertGreaterEqual(os.stat(self.image).st_blocks * 512, 8 * M)
                qemu_io(self.image, "read -P 0 0 8M", "write -P 1 1M 1M", fmt="qcow2")
                io(self.image, "read -P 1 1M 1M", "read -P 0 2M 6M", fmt="qcow2")
                size = os.path.getsize(self.image)
                img("resize", "-q", "-f", "qcow2", "--preallocation", mode, self.image, "12M")
                self.assertGreater(os.path.getsize(self.image), size)
                qemu_io(self.image, "read -P 1 1M 1M", "read -P 0 2M 10M", fmt="qcow2")
                self.sound()
                extents = json.loads(qemu_img("map", "--output=json", self.image).stdout)
                self.assertTrue(all("offset" in extent for extent in extents), extents)

    # --- size ------------------------------------------------------------------------------

    def test_resize(self):
        def turns(one, other, form):
            self.make(one, "5M", creation_options(*form))
            one[1](self.image, "write -P 1 0 5M", fmt="qcow2")
            if form[0] == 3:
                self.snapshot(other, "-c", "s")
            self.resize(str(M + 1536))
            self.sound()
            qemu_io(self.image, f"read -P 1 0 {M + 1536}", fmt="qcow2")
            self.resize("40M")
            self.sound()
            qemu_io(
                self.image,
                f"read -P 1 0 {M + 1536}",
                f"read -P 0 {M + 1536} {39 * M - 1536}",
                "write -P 2 39M 1M",
                fmt="qcow2",
            )
            self.sound()
            if form[0] == 3:
                self.snapshot(OURS, "-a", "s")
                self.assertEqual(self.info()["virtual-size"], 5 * M)
                qemu_io(self.image, "read -P 1 0 5M", fmt="qcow2")
                self.sound()

        self.pairs(FORMATS[2:6], turns)

    def test_version_2_with_snapshots_keeps_its_size(self):
        self.make(OURS, "5M", "compat=v2")
        self.snapshot(OURS, "-c", "s")
        result = self.resize("6M", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("snapshots", result.stderr)

    def test_growth_hides_a_longer_backing_file(self):
        base = self.path("base.raw")
        img("create", "-q", "-f", "raw", base, "4M")
        qemu_io(base, "write -P 9 0 4M", fmt="raw")
        for form in ((2, 65536, 16), (3, 65536, 16), (3, 512, 16), (2, 4096, 16)):
            with self.subTest(format=form):
                self.make(OURS, str(M + 512), creation_options(*form), "-b", base, "-F", "raw")
                self.resize("6M")
                qemu_io(
                    self.image,
                    f"read -P 9 0 {M + 512}",
                    f"read -P 0 {M + 512} {5 * M - 512}",
                    fmt="qcow2",
                )
                self.sound()

    def test_vm_state_behind_the_disk_does_not_show(self):
        self.make(OURS, "1M", "cluster_size=4096")
        io(self.image, "write -P 1 0 1M", fmt="qcow2")
        # As after applying a snapshot with the state of a machine: data is mapped past the end.
        io(self.image, "write -P 1 0 1M", fmt="qcow2")
        image = Image(self.image)
        size = image.size
        self.resize("8M")
        io(self.image, "write -P 7 3M 1M", "write -P 7 6M 64k", fmt="qcow2")
        image.put64(24, size)
        self.sound()
        self.resize("8M")
        qemu_io(self.image, "read -P 1 0 1M", "read -P 0 1M 7M", fmt="qcow2")
        self.sound()

    # --- bitmaps ---------------------------------------------------------------------------

    def dirty(self, name="b"):
        """Dirty ranges of 64 KiB, read from the file and as QEMU finds the image."""
        self.sound()
        entry = Image(self.image).bitmaps()[name]
        self.assertEqual(entry[1] & 1, 0, "marked in use")
        return sorted(entry[2])

    def make_with_bitmap(self, size, cluster_size=65536):
        self.make(OURS, size, f"cluster_size={cluster_size}")
        img("bitmap", "-f", "qcow2", "--add", "-g", "64k", self.image, "b")

    def test_bitmaps_are_resized(self):
        for cluster_size in (512, 65536, 2 << 20):
            with self.subTest(cluster_size):
                self.make_with_bitmap("1M", cluster_size)
                io(self.image, "write 0 64k", "write 960k 64k", fmt="qcow2")
                self.assertEqual(self.dirty(), [0, 15])
                self.resize("2M")
                self.assertEqual(self.dirty(), [0, 15])
                self.resize("512k")
                self.assertEqual(self.dirty(), [0])
                # What the disk had is zero now; what it never had is clean.
                self.resize("4M")
                self.assertEqual(self.dirty(), [0, *range(8, 32)])

    def test_regrown_area_is_dirty_across_reopening(self):
        self.make_with_bitmap("2M")
        self.resize("1M")
        io(self.image, "write 0 64k", fmt="qcow2")
        qemu_io(self.image, "read 0 64k", fmt="qcow2")
        self.resize("1536k")
        self.assertEqual(self.dirty(), [0, *range(16, 24)])
        self.resize("3M")
        self.assertEqual(self.dirty(), [0, *range(16, 32)])
        self.resize("4M")
        self.assertEqual(self.dirty(), [0, *range(16, 32)])

    def test_qemu_goes_on_with_resized_bitmaps(self):
        self.make_with_bitmap("1M")
        self.resize("2M")
        qemu_io(self.image, "write 1536k 64k", fmt="qcow2")
        self.assertEqual(self.dirty(), [24])
        qemu_img("resize", "-q", self.image, "3M")
        io(self.image, "write 2560k 64k", fmt="qcow2")
        self.assertEqual(self.dirty(), [24, 40])

    def test_unusable_bitmaps_refuse_before_anything_is_written(self):
        for flags, word in ((1, "inconsistent"), (8, "not loaded")):
            with self.subTest(word):
                self.make_with_bitmap("1M")
                image = Image(self.image)
                place, old, _ = image.bitmaps()["b"]
                image.put32(place + 12, old | flags)
                before = image.read(0, image.file_size())
                for size in ("2M", "512k"):
                    result = self.resize(size, check=False)
                    self.assertEqual(result.returncode, 1)
                    self.assertIn("'b'", result.stderr)
                    self.assertIn(word, result.stderr)
                    self.assertIn("emove", result.stderr)
                self.assertEqual(image.read(0, image.file_size()), before)

    # --- amend -----------------------------------------------------------------------------

    def test_amend(self):
        steps = (
            ("compat=0.10", "0.10", 16),
            ("compat=1.1", "1.1", 16),
            ("refcount_bits=64", "1.1", 64),
            ("lazy_refcounts=on", "1.1", 64),
            ("refcount_bits=2", "1.1", 2),
            ("compat=v3,lazy_refcounts=off,refcount_bits=16", "1.1", 16),
            ("compat=v2", "0.10", 16),
            ("compat=1.1,refcount_bits=1", "1.1", 1),
        )
        reads = ("read -P 1 0 1M", "read -P 0 1M 1M", "read -P 3 2M 1M", "read -P 4 3M 64k")
        def turns(one, other, cluster_size):
            self.make(one, "8M", f"cluster_size={cluster_size}")
            one[1](
                self.image,
                "write -P 1 0 1M",
                "write -P 9 1M 1M",
                "write -z 1M 1M",
                "write -P 3 2M 1M",
                "write -c -P 4 3M 1M",
                "write -P 3 2M 1M",
                "write -z -u 5M 1M",
                fmt="qcow2",
            )
            for options, compat, bits in steps:
                if bits < 8:
                    # Compressed clusters share a host cluster, which needs more bits to count.
                    one[1](self.image, "write -P 4 2M 2M", "write -P 3 2M 1M", fmt="qcow2")
                other[0]("amend", "-f", "qcow2", "-o", options, self.image)
                data = self.info()["format-specific"]["data"]
                self.assertEqual((data["compat"], data["refcount-bits"]), (compat, bits))
                self.sound()
                one[1](self.image, *reads, fmt="qcow2")
            one[1](self.image, "write -P 5 6M 1M", "write -z 0 8M", fmt="qcow2")
            self.sound()

        self.pairs((512, 65536), turns)

    def test_amend_with_snapshots(self):
        self.make(OURS, "4M", "cluster_size=4096")
        io(self.image, "write -P 1 0 2M", fmt="qcow2")
        self.snapshot(OURS, "-c", "s")
        io(self.image, "write -P 2 0 1M", "write -z 3M 64k", fmt="qcow2")
        result = img("amend", "-f", "qcow2", "-o", "refcount_bits=1", self.image, check=False)
        self.assertEqual(result.returncode, 1)
        self.sound()
        for options in ("refcount_bits=2", "refcount_bits=16", "compat=0.10", "compat=1.1"):
            img("amend", "-f", "qcow2", "-o", options, self.image)
            self.sound()
            qemu_io(self.image, "read -P 2 0 1M", "read -P 0 3M 64k", fmt="qcow2")
        self.snapshot(THEIRS, "-a", "s")
        io(self.image, "read -P 1 0 2M", fmt="qcow2")

    def test_subclusters_behind_the_end_do_not_come_back(self):
        """What the last cluster has behind a smaller disk's end: zeroes first, data behind them."""
        self.make(OURS, "128k", "extended_l2=on")
        io(self.image, "write -P 1 0 128k", "write -z 4k 12k", fmt="qcow2")
        for size in ("5k", "128k"):
            self.resize(size)
        qemu_io(self.image, "read -P 1 0 4k", "read -P 0 4k 124k", fmt="qcow2")

    def test_downgrade_keeps_zeroes_over_a_backing_file(self):
        base = self.path("base.raw")
        img("create", "-q", "-f", "raw", base, "4M")
        qemu_io(base, "write -P 9 0 4M", fmt="raw")
        self.make(OURS, "6M", "cluster_size=4096", "-b", base, "-F", "raw")
        io(self.image, "write -z 1M 1M", "write -z -u 3M 2M", "discard 0 64k", fmt="qcow2")
        img("amend", "-f", "qcow2", "-o", "compat=0.10", self.image)
        self.assertEqual(self.info()["format-specific"]["data"]["compat"], "0.10")
        qemu_io(
            self.image,
            "read -P 9 64k 960k",
            "read -P 0 1M 1M",
            "read -P 9 2M 1M",
            "read -P 0 3M 3M",
            fmt="qcow2",
        )
        self.sound()

    def test_amend_refuses(self):
        self.make_with_bitmap("1M")
        for options, word in (
            ("compat=0.10", "bitmaps"),
            ("cluster_size=4096", "only supported for image creation"),
            ("compression_type=zstd", "only supported for image creation"),
            ("refcount_bits=3", "power of two"),
            ("refcount_bits=128", "64"),
            ("nonsense=1", "nonsense"),
        ):
            before = Image(self.image).read(0, os.path.getsize(self.image))
            result = img("amend", "-f", "qcow2", "-o", options, self.image, check=False)
            self.assertEqual(result.returncode, 1, options)
            self.assertIn(word, result.stderr)
            self.assertEqual(Image(self.image).read(0, os.path.getsize(self.image)), before)


if __name__ == "__main__":
    unittest.main()
