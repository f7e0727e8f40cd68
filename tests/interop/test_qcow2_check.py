# SPDX-License-Identifier: Apache-2.0
"""img check on damaged images: the figures of qemu-img check, and repairs that lose nothing.

qemu-img 7.2 drops internal snapshots when it repairs, so images that have one are repaired by us
only.
"""

import json
import os
import shutil
import unittest

from qcow2_edit import COMPRESSED, COPIED, ZERO, Image
from tidemark import TestCase, img, qemu_img, qemu_io

CLUSTER = 4096
EXT_BITMAPS = 0x23852875
DIRTY, CORRUPT = 1, 2

# Guest clusters of the images: 0-3 written twice, 256-271 and 1024-1027 once, 1536-1543 compressed.
READS = (
    "read -P 6 0 16k",
    "read -P 1 16k 48k",
    "read -P 2 1M 64k",
    "read -P 3 4M 16k",
    "read -P 4 6M 32k",
)


def flip(image, place, bits):
    image.put64(place, image.u64(place) ^ bits)


def add(image, place, value):
    image.put64(place, image.u64(place) + value)


def end_of(image):
    return (image.file_size() + CLUSTER - 1) // CLUSTER * CLUSTER


def set_l2(cluster, make):
    return lambda i: i.put64(i.l2_place(cluster), make(i))


# What can be repaired: nothing that the guest can read is touched.
REPAIRABLE = {
    "nothing wrong": lambda i: None,
    "leaked cluster": lambda i: i.put_refcount(i.host(256), 3),
    "refcount 0 of data": lambda i: i.put_refcount(i.host(0), 0),
    "refcount 0 of an L2 table": lambda i: i.put_refcount(i.l2_table(), 0),
    "refcount 0 of the header": lambda i: i.put_refcount(0, 0),
    "refcount 0 of a refcount block": lambda i: i.put_refcount(i.refblock(), 0),
    "refcount 0 of the bitmap directory": lambda i: i.put_refcount(i.bitmap_directory(), 0),
    "COPIED missing in an L2 entry": lambda i: flip(i, i.l2_place(256), COPIED),
    "COPIED missing in an L1 entry": lambda i: flip(i, i.l1, COPIED),
    "COPIED changed in another L1 entry": lambda i: flip(i, i.l1 + 16, COPIED),
    "no refcount block": lambda i: i.put64(i.reftable, 0),
    "one refcount block twice": lambda i: i.put64(i.reftable + 8, i.u64(i.reftable)),
    "data as a refcount block": lambda i: i.put64(i.reftable + 8, i.host(0)),
    "refcount block not aligned": lambda i: i.put64(i.reftable + 8, 3 * CLUSTER + 512),
    "marked dirty": lambda i: flip(i, 72, DIRTY),
    "marked corrupt": lambda i: flip(i, 72, CORRUPT),
    "dirty, with wrong refcounts": lambda i: (
        flip(i, 72, DIRTY),
        i.put_refcount(i.host(256), 3),
        i.put_refcount(i.host(0), 0),
    ),
}

# What is lost already, or ambiguous; the figures are the same, and so is what a repair leaves.
DAMAGED = {
    "data not aligned": lambda i: add(i, i.l2_place(0), 512),
    "zero cluster not aligned": set_l2(0, lambda i: i.u64(i.l2_place(0)) + 512 | ZERO),
    "reserved bits in an L2 entry": lambda i: flip(i, i.l2_place(1), 1 << 58),
    "low reserved bits in an L2 entry": lambda i: flip(i, i.l2_place(1), 2),
    "data far beyond the end": set_l2(2, lambda i: COPIED | 1 << 40),
    "data just beyond the end": set_l2(2, lambda i: COPIED | end_of(i)),
    "data in an L2 table": set_l2(3, lambda i: COPIED | i.l2_table()),
    "two entries for one cluster": set_l2(3, lambda i: i.u64(i.l2_place(2))),
    "data in the refcount table": set_l2(3, lambda i: COPIED | i.reftable),
    "compressed and COPIED": lambda i: flip(i, i.l2_place(1536), COPIED),
    "compressed beyond the end": set_l2(1536, lambda i: COMPRESSED | 1 << 39),
    "reserved bits in an L1 entry": lambda i: flip(i, i.l1, 1 << 60),
    "L2 table beyond the end": lambda i: i.put64(i.l1, COPIED | 1 << 40),
}

# qemu-img throws the bitmap away when it repairs; the figures are the same.
DAMAGED_BITMAPS = {
    "bitmap data beyond the end": lambda i: i.put64(i.u64(i.bitmap_directory()), 1 << 40),
    "bitmap table beyond the end": lambda i: i.put64(i.bitmap_directory(), 1 << 40),
}

# qemu-img refuses to open these at all.
BROKEN_BITMAPS = {
    "reserved bits in a bitmap table": lambda i: flip(i, i.u64(i.bitmap_directory()), 2),
    "bitmap table not aligned": lambda i: add(i, i.bitmap_directory(), 8),
    "impossible granularity": lambda i: i.write(i.bitmap_directory() + 17, b"\x46"),
    "name longer than the directory": lambda i: i.write(i.bitmap_directory() + 18, b"\xff\xff"),
    "directory beyond the end": lambda i: i.put64(i.extension(EXT_BITMAPS) + 16, 1 << 40),
    "more bitmaps than there are": lambda i: i.put32(i.extension(EXT_BITMAPS), 2),
    "no directory": lambda i: i.put64(i.extension(EXT_BITMAPS) + 8, 0),
    "directory not aligned": lambda i: add(i, i.extension(EXT_BITMAPS) + 16, 8),
}


def figures(tool, path, *options):
    """Exit status and figures, without what the programs may lay out differently in a repair."""
    result = tool("check", "-f", "qcow2", "--output=json", *options, path, check=False)
    if not result.stdout.startswith("{"):
        return result.returncode, result.stderr
    found = json.loads(result.stdout)
    found.pop("filename")
    if options:
        found.pop("image-end-offset", None)
    return result.returncode, found


def make(path, snapshot):
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, "8M")
    qemu_io(path, "write -P 1 0 64k", "write -P 2 1M 64k", "write -P 3 4M 16k", fmt="qcow2")
    qemu_io(path, "write -c -P 4 6M 32k", fmt="qcow2")
    if snapshot:
        qemu_img("snapshot", "-c", "s", path)
    qemu_img("bitmap", "--add", "--enable", path, "b")
    qemu_io(path, "write -P 6 0 16k", fmt="qcow2")


class Check(TestCase):
    def setUp(self):
        super().setUp()
        self.plain = self.path("plain.qcow2")
        make(self.plain, False)
        self.with_snapshot = self.path("snapshot.qcow2")
        make(self.with_snapshot, True)

    def damaged(self, base, damage):
        path = self.path("damaged.qcow2")
        shutil.copy(base, path)
        damage(Image(path))
        return path

    def copy_of(self, path, name):
        return shutil.copy(path, self.path(name))

    def test_figures(self):
        for base in (self.plain, self.with_snapshot):
            for name, damage in {**REPAIRABLE, **DAMAGED, **DAMAGED_BITMAPS}.items():
                with self.subTest(name, snapshot=base == self.with_snapshot):
                    path = self.damaged(base, damage)
                    self.assertEqual(figures(img, path), figures(qemu_img, path))

    def test_repair_has_the_same_figures(self):
        for name, damage in {**REPAIRABLE, **DAMAGED}.items():
            with self.subTest(name):
                path = self.damaged(self.plain, damage)
                ours, theirs = self.copy_of(path, "ours"), self.copy_of(path, "theirs")
                self.assertEqual(
                    figures(img, ours, "-r", "all"), figures(qemu_img, theirs, "-r", "all")
                )
                left = figures(qemu_img, ours)
                self.assertEqual(left[0], figures(qemu_img, theirs)[0])
                self.assertEqual(figures(img, ours), left)

    def test_repair_loses_nothing(self):
        for base in (self.plain, self.with_snapshot):
            for name, damage in REPAIRABLE.items():
                with self.subTest(name, snapshot=base == self.with_snapshot):
                    path = self.damaged(base, damage)
                    img("check", "-q", "-f", "qcow2", "-r", "all", path)
                    qemu_img("check", path)
                    qemu_io(path, *READS, fmt="qcow2")
                    self.assertIn('"name": "b"', qemu_img("info", "--output=json", path).stdout)
                    if base == self.with_snapshot:
                        out = self.path("out.raw")
                        qemu_img("convert", "-l", "s", "-O", "raw", path, out)
                        qemu_io(out, "read -P 1 0 64k", *READS[2:], fmt="raw")

    def test_leaks_only(self):
        path = self.damaged(
            self.with_snapshot, lambda i: (i.put_refcount(i.host(0), 2), i.put_refcount(i.host(8), 1))
        )
        status, found = figures(img, path, "-r", "leaks")
        self.assertEqual((status, found["leaks-fixed"], found["corruptions"]), (2, 1, 2))
        self.assertEqual(Image(path).refcount(Image(path).host(0)), 1)
        self.assertEqual(Image(path).refcount(Image(path).host(8)), 1)

    def test_what_cannot_be_read_is_not_repaired_around(self):
        """A table that can't be read may refer to anything that seems to be leaked."""
        image = Image(self.plain)
        with open(self.plain, "rb") as file:
            before = file.read()
        for place in (image.l2_table(), image.u64(image.bitmap_directory())):
            for mode in ("leaks", "all"):
                result = img(
                    "check", "-r", mode, "--image-opts",
                    f"driver=qcow2,file.driver=blkdebug,file.image.filename={self.plain},"
                    "file.image.driver=file,file.inject-error.0.event=none,"
                    f"file.inject-error.0.iotype=read,file.inject-error.0.sector={place // 512}",
                    check=False,
                )  # fmt: skip
                self.assertEqual(result.returncode, 1, result.stderr)
                with open(self.plain, "rb") as file:
                    self.assertEqual(file.read(), before)

    def test_a_file_that_was_cut_off(self):
        """What is left of data in one piece is in use."""
        path = self.path("cut.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "8M")
        qemu_io(path, "write -P 1 0 1M", fmt="qcow2")
        os.truncate(path, Image(path).host(8))
        for options in ((), ("-r", "leaks")):
            ours, theirs = self.copy_of(path, "ours"), self.copy_of(path, "theirs")
            expected = figures(qemu_img, theirs, *options)
            self.assertEqual(figures(img, ours, *options), expected)
            self.assertEqual(expected[1]["corruptions"], 8)
            self.assertNotIn("leaks-fixed", expected[1])

    def test_leaks_only_where_refcounts_have_to_be_rebuilt(self):
        path = self.damaged(
            self.plain, lambda i: (i.put_refcount(i.host(256), 2), i.put_refcount(i.host(1024), 0))
        )
        with open(path, "rb") as file:
            before = file.read()
        for tool in (img, qemu_img):
            status, said = figures(tool, path, "-r", "leaks")
            self.assertEqual(status, 1)
            self.assertIn("ERROR need to rebuild refcount structures", said)
            with open(path, "rb") as file:
                self.assertEqual(file.read() == before, tool == img)

    def test_new_refcounts_lie_as_qemu_lays_them(self):
        path = self.damaged(self.plain, lambda i: i.put_refcount(i.host(1024), 0))
        for tool in (img, qemu_img):
            copy = self.copy_of(path, tool.__name__)
            tool("check", "-q", "-f", "qcow2", "-r", "all", copy, check=False)
            with open(copy, "rb") as file:
                fields = file.read(64)[48:60]
            if tool == img:
                ours = fields
        self.assertEqual(ours, fields)

    def test_no_refcount_table(self):
        path = self.damaged(self.plain, lambda i: i.put32(56, 0))
        self.assertEqual(img("map", path, check=False).returncode, 1)
        img("check", "-q", "-f", "qcow2", "-r", "all", path)
        qemu_img("check", path)
        qemu_io(path, *READS, fmt="qcow2")

    def test_snapshot_table_is_repaired(self):
        for name, size in {"incomplete": 0, "too long": 2000}.items():
            with self.subTest(name):
                path = self.damaged(self.with_snapshot, lambda i: i.put32(i.u64(64) + 36, size))
                self.assertEqual(figures(img, path)[0], figures(qemu_img, path)[0])
                self.assertNotEqual(figures(img, path)[0], 0)
                img("check", "-q", "-f", "qcow2", "-r", "all", path)
                qemu_img("check", path)
                self.assertEqual(Image(path).u32(60), 1)
                qemu_io(path, *READS, fmt="qcow2")

    def test_flags_of_what_a_snapshot_shares(self):
        for damage in (
            lambda i: flip(i, i.l2_place(8), COPIED),
            lambda i: i.put_refcount(i.host(8), 1),
            lambda i: flip(i, i.l1 + 16, COPIED),
        ):
            path = self.damaged(self.with_snapshot, damage)
            self.assertEqual(figures(img, path), figures(qemu_img, path))
            img("check", "-q", "-f", "qcow2", "-r", "all", path)
            # A write would go into the snapshot if the flag were still there.
            qemu_io(path, "write -P 9 32k 4k", "write -P 9 4M 4k", fmt="qcow2")
            out = self.path("out.raw")
            img("convert", "-l", "s", "-O", "raw", path, out)
            qemu_io(out, "read -P 1 0 64k", "read -P 3 4M 16k", fmt="raw")

    def test_rebuilt_refcounts_of_every_width(self):
        for bits in (1, 2, 4, 8, 16, 32, 64):
            with self.subTest(bits):
                path = self.path("width.qcow2")
                options = f"cluster_size=512,refcount_bits={bits}"
                qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "4M")
                qemu_io(path, "write -P 1 0 64k", "write -P 2 3M 64k", fmt="qcow2")
                Image(path).put64(Image(path).reftable, 0)
                img("check", "-q", "-f", "qcow2", "-r", "all", path)
                qemu_img("check", path)
                qemu_io(path, "read -P 1 0 64k", "read -P 2 3M 64k", "write 1M 64k", fmt="qcow2")
                qemu_img("check", path)

    def test_broken_bitmaps_are_found(self):
        for name, damage in BROKEN_BITMAPS.items():
            with self.subTest(name):
                path = self.damaged(self.plain, damage)
                self.assertNotEqual(figures(qemu_img, path)[0], 0)
                status, found = figures(img, path)
                self.assertIn(status, (1, 2), found)
                if status == 2:
                    self.assertGreaterEqual(found["corruptions"], 1)

    def test_a_table_in_the_header_is_not_repaired(self):
        """An L1 entry that names the header as a table: what is there does not get better by
        setting flags.
        """
        image = self.path("a.qcow2")
        options = f"cluster_size=4k,data_file={self.path('data')},data_file_raw=on"
        img("create", "-q", "-f", "qcow2", "-o", options, image, "4M")
        opened = Image(image)
        opened.put64(opened.l1, COPIED)
        header = opened.read(0, CLUSTER)
        img("check", "-f", "qcow2", "-r", "all", image, check=False)
        self.assertEqual(opened.read(0, CLUSTER), header)

    def test_a_table_in_the_place_of_an_old_refcount_table_is_repaired(self):
        path = self.create("a.qcow2", "512k", options=("-o", "cluster_size=16k,extended_l2=on"))
        qemu_io(path, "write -P 1 0 1k", "write -P 2 16k 20k", fmt="qcow2")
        image = Image(path)
        image.put64(image.l1, image.reftable | COPIED)
        again = self.path("b.qcow2")
        shutil.copyfile(path, again)
        results = [
            json.loads(program("check", "-f", "qcow2", "--output=json", "-r", "all", copy).stdout)
            for program, copy in ((img, path), (qemu_img, again))
        ]
        for key in ("corruptions-fixed", "leaks-fixed"):
            self.assertEqual(results[0][key], results[1][key], key)
        img("check", path)
        qemu_img("check", path)


if __name__ == "__main__":
    unittest.main()
