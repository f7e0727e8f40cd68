# SPDX-License-Identifier: Apache-2.0
"""Persistent bitmaps as the specification allows them, also those that no tool makes."""

import json
import os
import resource
import unittest

from qcow2_build import AUTO, IN_USE, ONES, Bitmap, build
from qcow2_edit import Image
from tidemark import TestCase, img, io, qemu_img, qemu_io

EXTRA_COMPATIBLE = 4
M = 1 << 20
MOST = 65535


def processor_seconds():
    """What the programs that were run have used; a busy machine takes longer for it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def bits(cluster, *numbers):
    data = bytearray(cluster)
    for n in numbers:
        data[n // 8] |= 1 << n % 8
    return bytes(data)


class Bitmaps(TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        self.image = self.path("a.qcow2")

    def dirty(self, name):
        return sorted(Image(self.image).bitmaps()[name][2])

    def flags(self, name):
        return Image(self.image).bitmaps()[name][1]

    def listed(self, tool):
        found = json.loads(tool("info", "-f", "qcow2", "--output=json", self.image).stdout)
        listed = found["format-specific"]["data"].get("bitmaps", [])
        return [{k: v for k, v in b.items() if k != "x-tidemark-state"} for b in listed]

    def refused(self, *words):
        result = img(*words, check=False)
        self.assertEqual(result.returncode, 1, words)
        return result.stderr

    def sound(self):
        for tool in (img, qemu_img):
            tool("check", "-q", "-f", "qcow2", self.image)

    # --- states ----------------------------------------------------------------------------

    def test_all_forms_of_bits(self):
        """Zero, all ones and data, in one bitmap of several clusters."""
        for cluster_bits in (9, 12):
            cluster = 1 << cluster_bits
            per_cluster = cluster * 8
            clusters = {1: ONES, 2: bits(cluster, 0, 77)}
            size = 4 * per_cluster * 512
            b = Bitmap("b", 9, clusters=clusters)
            build(self.image, size, cluster_bits, [b])
            expected = [*range(per_cluster, 2 * per_cluster), 2 * per_cluster, 2 * per_cluster + 77]
            self.sound()
            self.assertEqual(self.dirty("b"), expected)
            io(self.image, "write 512 512", fmt="qcow2")
            self.assertEqual(self.dirty("b"), [1, *expected])
            qemu_io(self.image, "write 1024 512", fmt="qcow2")
            io(self.image, f"write {3 * per_cluster * 512} {per_cluster * 512}", fmt="qcow2")
            last = range(3 * per_cluster, 4 * per_cluster)
            self.assertEqual(self.dirty("b"), [1, 2, *expected, *last])
            self.sound()

    def test_flags(self):
        cluster = 65536
        build(
            self.image,
            4 * M,
            bitmaps=[
                Bitmap("auto", clusters={0: bits(cluster, 3)}),
                Bitmap("still", flags=0, clusters={0: bits(cluster, 4)}),
                Bitmap("used", flags=AUTO | IN_USE, clusters={0: bits(cluster, 5)}),
            ],
        )
        self.assertEqual(self.listed(img), self.listed(qemu_img))
        io(self.image, "write 0 64k", fmt="qcow2")
        self.assertEqual(self.dirty("auto"), [0, 3])
        self.assertEqual(self.dirty("still"), [4])
        self.assertEqual(self.flags("used"), AUTO | IN_USE)
        for words in (("--merge", "used"), ("--clear",), ("--enable",), ("--disable",)):
            name = "still" if words[0] == "--merge" else "used"
            message = self.refused("bitmap", "-f", "qcow2", *words, self.image, name)
            self.assertIn("'used' is inconsistent", message)
        img("bitmap", "-f", "qcow2", "--remove", self.image, "used")
        img("bitmap", "-f", "qcow2", "--merge", "auto", self.image, "still")
        self.assertEqual(self.dirty("still"), [0, 3, 4])
        self.assertEqual(self.listed(img), self.listed(qemu_img))
        self.sound()

    def test_what_is_not_known_is_kept(self):
        strange = {
            "type": Bitmap("type", flags=0, kind=7, clusters={0: b"\x55" * 65536}),
            "flag": Bitmap("flag", flags=1 << 20, clusters={0: b"\x33" * 65536}),
            "extra": Bitmap("extra", flags=0, extra=b"what is this?", clusters={0: bits(65536, 1)}),
        }
        build(self.image, 4 * M, bitmaps=[*strange.values(), Bitmap("ours")])
        before = Image(self.image).bitmaps()
        changes = (
            lambda: io(self.image, "write 1M 64k", fmt="qcow2"),
            lambda: img("bitmap", "-f", "qcow2", "--add", self.image, "more"),
            lambda: img("snapshot", "-f", "qcow2", "-c", "s", self.image),
            lambda: img("bitmap", "-f", "qcow2", "--remove", self.image, "ours"),
            lambda: img("amend", "-f", "qcow2", "-o", "refcount_bits=32", self.image),
            lambda: img("snapshot", "-f", "qcow2", "-a", "s", self.image),
        )
        for change in changes:
            change()
            image = Image(self.image)
            after = image.bitmaps()
            for name, b in strange.items():
                place, flags, dirty = after[name]
                self.assertEqual((flags, dirty), before[name][1:], name)
                entry = image.read(place, 24 + len(b.extra))
                self.assertEqual(entry[16], b.kind)
                self.assertEqual(entry[24:], b.extra)
            img("check", "-q", "-f", "qcow2", self.image)
        self.assertEqual([b["name"] for b in self.listed(img)], ["type", "flag", "extra", "more"])
        for name in strange:
            message = self.refused("resize", "-f", "qcow2", self.image, "5M")
            self.assertIn("bitmap", message)
            self.assertIn("'img bitmap --remove'", message)
        img("bitmap", "-f", "qcow2", "--remove", self.image, "more")
        for name in strange:
            img("bitmap", "-f", "qcow2", "--remove", self.image, name)
        self.assertIn("not found", self.refused("bitmap", "-f", "qcow2", "--remove", self.image, "type"))
        img("resize", "-f", "qcow2", self.image, "5M")
        self.sound()

    def test_no_larger_than_qemu_opens(self):
        img("create", "-q", "-f", "qcow2", self.image, "2T")
        add = ("bitmap", "-f", "qcow2", "--add", "-g")
        img(*add, "512", self.image, "most")
        self.assertEqual(len(self.listed(qemu_img)), 1)
        message = self.refused("resize", "-f", "qcow2", self.image, "3T")
        self.assertIn("'most'", message)
        self.assertIn("larger granularity", message)
        img("bitmap", "-f", "qcow2", "--remove", self.image, "most")
        img("resize", "-f", "qcow2", self.image, "3T")
        self.assertIn("larger granularity", self.refused(*add, "512", self.image, "more"))
        img(*add, "1024", self.image, "more")
        self.assertEqual(len(self.listed(qemu_img)), 1)

    def test_removing_frees_no_other_metadata(self):
        """Of a bitmap whose table is the refcount table, by mistake."""
        build(self.image, 4 * M, bitmaps=[Bitmap("b", flags=0)])
        image = Image(self.image)
        io(self.image, "write -P 1 0 4M", fmt="qcow2")
        image.put64(image.bitmaps()["b"][0], image.reftable)
        counted = [image.refcount(offset) for offset in (image.reftable, image.refblock())]
        img("bitmap", "-f", "qcow2", "--remove", self.image, "b")
        self.assertEqual([image.refcount(offset) for offset in (image.reftable, image.refblock())], counted)
        img("check", "-q", "-f", "qcow2", "-r", "leaks", self.image)
        self.sound()

    def test_what_should_record_and_cannot_is_marked(self):
        build(self.image, 4 * M, bitmaps=[Bitmap("b", extra=b"what is this?")])
        io(self.image, "read 1M 64k", fmt="qcow2")
        self.assertEqual(self.flags("b"), AUTO)
        io(self.image, "write 1M 64k", fmt="qcow2")
        self.assertEqual(self.flags("b"), AUTO | IN_USE)

    def test_extra_data_that_is_compatible(self):
        """Used as any other; the data and what says so stay."""
        extra = b"more of it"
        b = Bitmap("b", flags=AUTO | EXTRA_COMPATIBLE, extra=extra, clusters={0: bits(65536, 9)})
        build(self.image, 4 * M, bitmaps=[b])
        for n in range(3):
            io(self.image, f"write {n}M 64k", fmt="qcow2")
            image = Image(self.image)
            place, flags, dirty = image.bitmaps()["b"]
            self.assertEqual(flags, AUTO | EXTRA_COMPATIBLE)
            self.assertEqual(dirty, {9, *range(0, 16 * n + 1, 16)})
            self.assertEqual(image.read(place + 24, len(extra)), extra)
        img("check", "-q", "-f", "qcow2", self.image)

    def test_impossible_granularity_is_kept(self):
        build(self.image, 4 * M, bitmaps=[Bitmap("fine", 5), Bitmap("ours")])
        io(self.image, "write 0 64k", fmt="qcow2")
        self.assertEqual(list(Image(self.image).bitmaps()), ["fine", "ours"])
        self.assertEqual(self.dirty("ours"), [0])

    def test_bitmaps_that_another_program_did_not_keep_are_void(self):
        build(self.image, 4 * M, bitmaps=[Bitmap("b", clusters={0: bits(65536, 1)})])
        Image(self.image).put64(88, 0)
        self.assertEqual(self.listed(img), self.listed(qemu_img))
        io(self.image, "write 0 64k", fmt="qcow2")
        img("bitmap", "-f", "qcow2", "--add", self.image, "b")
        self.assertEqual(self.dirty("b"), [])

    def test_version_2_has_none(self):
        for tool in (img, qemu_img):
            img("create", "-q", "-f", "qcow2", "-o", "compat=v2", self.image, "1M")
            before = Image(self.image).read(0, os.path.getsize(self.image))
            result = tool("bitmap", "--add", "-f", "qcow2", self.image, "b", check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("v2", result.stderr)
            self.assertEqual(Image(self.image).read(0, os.path.getsize(self.image)), before)

    # --- as many as there may be -----------------------------------------------------------

    def test_the_greatest_number(self):
        build(self.image, 65536, 9, [Bitmap(f"b{n:05}", flags=0, kind=1 if n else 7) for n in range(MOST)])
        begun = processor_seconds()
        self.assertEqual(len(self.listed(img)), MOST)
        img("check", "-q", "-f", "qcow2", self.image)
        message = self.refused("bitmap", "--add", "-f", "qcow2", self.image, "one-more")
        self.assertIn(str(MOST), message)
        img("bitmap", "--remove", "-f", "qcow2", self.image, "b00007")
        img("bitmap", "--add", "-f", "qcow2", self.image, "one-more")
        io(self.image, "write 0 64k", fmt="qcow2")
        names = [b["name"] for b in self.listed(img)]
        self.assertEqual((len(names), names[-1]), (MOST, "one-more"))
        self.assertNotIn("b00007", names)
        self.assertLess(processor_seconds() - begun, 60)
        img("check", "-q", "-f", "qcow2", self.image)


if __name__ == "__main__":
    unittest.main()
