# SPDX-License-Identifier: Apache-2.0
"""The header of qcow2 images: features, extensions, names and sizes that are not of every day."""

import json
import os
import struct
import unittest

from qcow2_build import Snapshot, build
from qcow2_edit import Image
from tidemark import TestCase, img, io, qemu_img, qemu_io

INCOMPATIBLE, AUTOCLEAR = 72, 88
EXT_FEATURE_NAMES, EXT_UNKNOWN, EXT_LUKS = 0x6803F857, 0x12345678, 0x0537BE77
ODD = b"kept through every rewrite"


def round_up(value, unit):
    return -(-value // unit) * unit


class Header(TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        self.image = self.path("a.qcow2")

    def refused(self, *words, tool=img):
        result = tool(*words, check=False)
        self.assertEqual(result.returncode, 1, f"{words}\n{result.stdout}")
        return result.stderr

    def virtual_size(self, tool):
        return json.loads(tool("info", "--output=json", self.image).stdout)["virtual-size"]

    # --- features --------------------------------------------------------------------------

    def test_unknown_features_are_named_by_the_image(self):
        entry = struct.pack("BB46s", 0, 40, b"seven league boots")
        build(self.image, 1 << 20, extensions=[(EXT_FEATURE_NAMES, entry)])
        Image(self.image).put64(INCOMPATIBLE, 1 << 40 | 1 << 41)
        for words in (("info", self.image), ("convert", "-O", "raw", self.image, self.path("b"))):
            for tool in (img, qemu_img):
                message = self.refused(*words, tool=tool)
                self.assertIn("seven league boots", message)
                # The one without a name is reported too.
                self.assertIn("Unknown incompatible feature: 20000000000", message)

    def test_a_name_of_the_whole_length_has_no_end_mark(self):
        entry = struct.pack("BB46s", 0, 63, b"x" * 46)
        build(self.image, 1 << 20, extensions=[(EXT_FEATURE_NAMES, entry)])
        Image(self.image).put64(INCOMPATIBLE, 1 << 63)
        self.assertRegex(self.refused("info", self.image), r"\bx{46}\b")

    def test_names_come_from_all_tables_and_may_be_cut_at_their_end(self):
        tables = [
            (EXT_FEATURE_NAMES, struct.pack("BB46s", 0, 61, b"first") + b"\0\x3esecond"),
            (EXT_FEATURE_NAMES, b"\0\x3fthird"),
        ]
        build(self.image, 1 << 20, extensions=tables)
        Image(self.image).put64(INCOMPATIBLE, 7 << 61)
        message = self.refused("info", self.image)
        self.assertTrue(message.endswith("feature(s): first, second, third\n"), message)

    def test_a_repair_clears_unknown_autoclear_bits(self):
        build(self.image, 1 << 20)
        image = Image(self.image)
        image.put64(AUTOCLEAR, 1 << 50)
        img("check", "-q", "-f", "qcow2", "-r", "all", self.image)
        self.assertEqual(image.u64(AUTOCLEAR), 0)

    def test_unknown_autoclear_bits(self):
        build(self.image, 1 << 20)
        image = Image(self.image)
        image.put64(AUTOCLEAR, 1 << 50)
        img("info", self.image)
        img("check", "-f", "qcow2", self.image)
        io(self.image, "read 0 64k", fmt="qcow2", options=("-r",))
        img("convert", "-f", "qcow2", "-O", "raw", self.image, self.path("b"))
        self.assertEqual(image.u64(AUTOCLEAR), 1 << 50)
        io(self.image, "read 0 64k", fmt="qcow2")
        self.assertEqual(image.u64(AUTOCLEAR), 0)

    def test_unknown_compatible_bits_are_kept(self):
        build(self.image, 1 << 20)
        image = Image(self.image)
        image.put64(80, 1 << 60)
        for change in self.rewrites():
            change()
            self.assertEqual(image.u64(80) & 1 << 60, 1 << 60)

    def test_ours_come_to_as_many_extensions_as_may_be(self):
        extensions = [(EXT_UNKNOWN + n, b"") for n in range(64)]
        build(self.image, 1 << 20, extensions=extensions)
        for change in self.rewrites():
            change()
            img("info", self.image)
        build(self.image, 1 << 20, extensions=extensions + [(EXT_UNKNOWN + 64, b"")])
        self.assertIn("Too many unknown header extensions", self.refused("info", self.image))

    def test_corrupt_images_are_read_only(self):
        build(self.image, 1 << 20)
        io(self.image, "write -P 5 0 64k", fmt="qcow2")
        image = Image(self.image)
        image.put64(INCOMPATIBLE, 2)
        io(self.image, "read -P 5 0 64k", fmt="qcow2", options=("-r",))
        before = image.read(0, image.file_size())
        result = io(self.image, "write 0 64k", fmt="qcow2", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("corrupt", result.stderr)
        self.assertIn("corrupt", self.refused("resize", "-f", "qcow2", self.image, "2M"))
        self.assertEqual(image.read(0, image.file_size()), before)
        img("check", "-q", "-f", "qcow2", "-r", "all", self.image)
        qemu_io(self.image, "read -P 5 0 64k", "write 0 64k", fmt="qcow2")

    def test_encrypted_images_without_a_valid_header_are_refused(self):
        for method, extension in ((2, [(EXT_LUKS, struct.pack(">QQ", 65536, 65536))]), (3, [])):
            build(self.image, 1 << 20, extensions=extension)
            Image(self.image).put32(32, method)
            for words in (
                ("info", self.image),
                ("check", "-f", "qcow2", self.image),
                ("convert", "-f", "qcow2", "-O", "raw", self.image, self.path("b")),
            ):
                message = self.refused(*words)
                if method == 3:
                    expected = "method unknown"
                elif words[0] == "convert":
                    expected = "'encrypt.key-secret' is required"
                else:
                    expected = "in LUKS format"
                self.assertIn(expected, message)

    # --- extensions ------------------------------------------------------------------------

    def rewrites(self):
        """Everything that writes the header."""
        base = self.path("base.raw")
        img("create", "-q", "-f", "raw", base, "1M")

        def run(*words):
            return lambda: img(*words)

        f, image = ("-f", "qcow2"), self.image
        return (
            run("resize", "-q", *f, image, "5M"),
            run("resize", "-q", *f, "--shrink", image, "4M"),
            run("snapshot", *f, "-c", "s", image),
            run("snapshot", *f, "-a", "s", image),
            run("snapshot", *f, "-d", "s", image),
            run("bitmap", *f, "--add", image, "b"),
            lambda: io(image, "write 0 64k", fmt="qcow2"),
            run("bitmap", *f, "--remove", image, "b"),
            run("amend", *f, "-o", "refcount_bits=64", image),
            run("amend", *f, "-o", "lazy_refcounts=on", image),
            run("rebase", *f, "-u", "-b", base, "-F", "raw", image),
            run("rebase", *f, "-b", "", image),
            lambda: qemu_img("resize", "-q", *f, image, "6M"),
            run("check", *f, "-r", "all", image),
        )

    def test_unknown_extensions_are_kept(self):
        many = [(EXT_UNKNOWN + n, ODD * (n + 1)) for n in range(4)]
        build(self.image, 4 << 20, extensions=many)
        image = Image(self.image)
        for number, change in enumerate(self.rewrites()):
            change()
            for kind, data in many:
                at = image.extension(kind)
                self.assertIsNotNone(at, f"lost by rewrite {number}")
                self.assertEqual(image.read(at - 4, 4 + len(data)), struct.pack(">I", len(data)) + data)
            qemu_img("check", "-q", self.image)

    def test_unknown_header_fields_are_kept(self):
        build(self.image, 4 << 20)
        image = Image(self.image)
        # A longer header: 16 bytes more, before the end mark of the extensions.
        image.write(112, struct.pack(">QQ", 0x1122334455667788, 7) + bytes(16))
        image.put32(100, 128)
        for number, change in enumerate(self.rewrites()):
            change()
            self.assertEqual(image.u32(100), 128, f"rewrite {number}")
            self.assertEqual(image.u64(112), 0x1122334455667788, f"rewrite {number}")

    # --- what is not as it should be, but does no harm ---------------------------------------

    def image_over_base(self, extensions):
        """An image that names `base` (pattern 9), and has these extensions."""
        io(self.create("base", "1M"), "write -P 9 0 64k", fmt="qcow2")
        build(self.image, 1 << 20, extensions=extensions)
        image = Image(self.image)
        image.write(4096, b"base")
        image.put64(8, 4096)
        image.put32(16, 4)
        return image

    def check_reads(self, pattern):
        read = f"read -P {pattern} 0 64k"
        out = io(self.image, read, fmt="qcow2", options=("-r",)).stdout
        self.assertNotIn("Pattern", out)

    def test_a_backing_format_of_no_bytes_is_none(self):
        for data in (b"", b"\0\0"):
            self.image_over_base([(0xE2792ACA, data)])
            self.check_reads(9)
            info = img("info", "--output=json", self.image).stdout
            self.assertNotIn("backing-filename-format", info)

    def test_header_lengths_that_are_no_multiple_of_8(self):
        for length in (105, 108, 111, 113, 127):
            with self.subTest(length=length):
                image = self.image_over_base([])
                image.write(104, bytes(64))
                image.put32(100, length)
                self.check_reads(9)
                io(self.image, "write -P 4 64k 64k", fmt="qcow2")
                img("amend", "-f", "qcow2", "-o", "lazy_refcounts=on", self.image)
                self.assertEqual(image.u32(100), max(112, round_up(length, 8)))
                qemu_io(self.image, "read -P 4 64k 64k", "read -P 9 0 64k", fmt="qcow2")
                qemu_img("check", "-q", self.image)

    def test_the_place_of_a_name_that_is_not_there(self):
        for place in (1, 72, 104):
            build(self.image, 1 << 20)
            Image(self.image).put64(8, place)
            self.check_reads(0)
            img("check", "-q", "-f", "qcow2", self.image)

    def test_a_lost_refcount_table_is_built_anew(self):
        for field, size in ((48, 8), (56, 4)):
            with self.subTest(field=field):
                build(self.image, 1 << 20)
                io(self.image, "write -P 5 0 64k", fmt="qcow2")
                image = Image(self.image)
                image.write(field, bytes(size))
                self.check_reads(5)
                err = io(self.image, "write 0 64k", fmt="qcow2", check=False).stderr
                self.assertIn("Image does not contain a reference count table", err)
                img("check", "-q", "-f", "qcow2", "-r", "all", self.image)
                qemu_img("check", "-q", self.image)
                qemu_io(self.image, "read -P 5 0 64k", fmt="qcow2")

    def test_more_snapshots_than_there_can_be(self):
        build(self.image, 1 << 20)
        io(self.image, "write -P 5 0 64k", fmt="qcow2")
        image = Image(self.image)
        image.put32(60, 0xFFFFFFFF)
        image.put64(64, round_up(image.file_size(), 65536))
        self.assertIn("Snapshot table too large", self.refused("info", self.image))
        self.assertIn("overhanging snapshots", self.refused("check", "-f", "qcow2", self.image))
        img("check", "-q", "-f", "qcow2", "-r", "all", self.image)
        self.check_reads(5)
        self.assertEqual(image.u32(60), 65536)

    def test_too_much_extra_data_of_a_snapshot(self):
        """Reported with the way out, which keeps the snapshot."""
        extra = struct.pack(">QQQ", 0, 1 << 20, 0) + bytes(1001)
        build(self.image, 1 << 20, snapshots=[Snapshot("1", "a", 1 << 20, extra)])
        words = "Too much extra metadata in snapshot table entry 0\nYou can force-remove"
        for command in ("info",), ("check", "-f", "qcow2"):
            self.assertIn(words, self.refused(*command, self.image))
        img("check", "-q", "-f", "qcow2", "-r", "all", self.image)
        for tool in (img, qemu_img):
            self.assertRegex(tool("snapshot", "-l", self.image).stdout, r"\n1 +a ")

    def test_a_snapshot_that_is_one_too_many_is_cut_off(self):
        """The table stays where it is."""
        build(self.image, 1 << 20, snapshots=[Snapshot("1", "a", 1 << 20)])
        image = Image(self.image)
        place, entry = image.u64(64), image.read(image.u64(64), 72)
        image.write(place, entry * 65537)
        image.put32(60, 65537)
        out = img("check", "-f", "qcow2", "-r", "all", self.image, check=False)
        self.assertIn("Discarding 1 overhanging snapshots\n", out.stderr)
        self.assertEqual((image.u32(60), image.u64(64)), (65536, place))

    def test_an_image_without_its_data_file_can_be_looked_at(self):
        build(self.image, 1 << 20)
        Image(self.image).put64(INCOMPATIBLE, 4)
        self.assertEqual(self.virtual_size(img), 1 << 20)
        err = io(self.image, "read 0 64k", fmt="qcow2", check=False).stderr
        self.assertIn("'data-file' is required for this image", err)

    def test_bitmaps_that_another_program_made_void_are_told_of(self):
        img("create", "-q", "-f", "qcow2", self.image, "1M")
        img("bitmap", "--add", "-f", "qcow2", self.image, "b")
        Image(self.image).put64(AUTOCLEAR, 0)
        for tool in (img, qemu_img):
            self.assertIn("lacking bitmap support", tool("info", self.image).stderr)

    # --- names and sizes -------------------------------------------------------------------

    def test_a_size_that_needs_too_many_tables(self):
        build(self.image, 1 << 20)
        Image(self.image).put64(24, 1 << 60)
        self.assertIn("Image is too big", self.refused("info", self.image))

    def test_backing_file_names_that_do_not_fit(self):
        for length, cluster in ((1024, 65536), (600, 512)):
            with self.subTest(length=length, cluster=cluster):
                name = "json:" + "x" * (length - 5)
                options = ("-f", "qcow2", "-o", f"cluster_size={cluster}")
                more = ("-u", "-b", name, "-F", "raw", self.image, "1M")
                message = self.refused("create", *options, *more)
                self.refused("create", *options, *more, tool=qemu_img)
                self.assertRegex(message, "(?i)backing file.*(name|long)")
                img("create", "-q", *options, self.image, "1M")
                before = Image(self.image).read(0, os.path.getsize(self.image))
                self.refused("rebase", "-f", "qcow2", *more[:-1])
                self.assertEqual(Image(self.image).read(0, os.path.getsize(self.image)), before)

    def test_bitmaps_come_and_go_beside_the_longest_names_that_fit(self):
        for version in ("1.1", "0.10"):
            for bits in range(9, 13):
                for length in (200, 320, 328, 329, 420, 480, 600, 840, 841, 1023):
                    with self.subTest(version=version, cluster=1 << bits, length=length):
                        self.bitmaps_beside_a_name(version, 1 << bits, length)

    def bitmaps_beside_a_name(self, version, cluster, length):
        # Another name for base.raw in the same folder.
        name, path = "./" * (length // 2 - 4) + "/" * (length % 2) + "base.raw", self.image
        self.create("base.raw", "1M", "raw")
        options = f"cluster_size={cluster},compat={version}"
        made = img(
            *("create", "-f", "qcow2", "-u", "-o", options, "-F", "raw", "-b", name, path, "1M"),
            check=False,
        )
        # What is refused does not fit with what version 3 and bitmaps take.
        self.assertEqual(made.returncode == 0, length + 112 + 16 + 32 + 16 + 8 <= cluster, made.stderr)
        if made.returncode != 0:
            self.assertIn("more room than there is", made.stderr)
            return
        if version == "0.10":
            img("amend", "-f", "qcow2", "-o", "compat=1.1", path)
        for words in (("--add", path, "x"), ("--remove", path, "x"), ("--add", path, "x")):
            img("bitmap", "-f", "qcow2", *words)
            info = json.loads(qemu_img("info", "--output=json", "-f", "qcow2", path).stdout)
            self.assertEqual(info["backing-filename"], name)
            found = [b["name"] for b in info["format-specific"]["data"].get("bitmaps", ())]
            self.assertEqual(found, [] if words[0] == "--remove" else ["x"])
        img("resize", "-f", "qcow2", path, "2M")
        img("snapshot", "-f", "qcow2", "-c", "s", path)
        img("rebase", "-f", "qcow2", "-u", "-b", "", path)
        again = img("rebase", "-f", "qcow2", "-u", "-F", "raw", "-b", name, path, check=False)
        self.assertEqual(again.returncode, 0, again.stderr)
        qemu_img("check", "-f", "qcow2", path)

    def test_a_bitmap_that_the_header_has_no_room_for_is_refused_at_once(self):
        qemu_img(
            *("create", "-f", "qcow2", "-u", "-o", "cluster_size=512", "-F", "raw"),
            *("-b", "./" * 175 + "base.raw", self.image, "1M"),
        )
        self.create("base.raw", "1M", "raw")
        message = self.refused("bitmap", "-f", "qcow2", "--add", self.image, "x")
        self.assertIn("the header can't name bitmaps", message)
        self.assertEqual(img("info", "-f", "qcow2", self.image).returncode, 0)

    def test_the_longest_backing_file_name(self):
        name = "x" * 1023
        img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", self.image, "1M")
        found = json.loads(qemu_img("info", "--output=json", self.image).stdout)
        self.assertEqual(found["backing-filename"], name)

    def test_sizes_that_are_not_whole_sectors(self):
        raw = self.path("a.raw")
        for size in (1, 511, 513, 70001, (1 << 20) + 511):
            with self.subTest(size):
                data = bytes(1 + n % 255 for n in range(size))
                with open(raw, "wb") as file:
                    file.write(data)
                rounded = -(-size // 512) * 512
                for tool in (img, qemu_img):
                    tool("convert", "-f", "raw", "-O", "qcow2", raw, self.image)
                    self.assertEqual(self.virtual_size(qemu_img), rounded)
                    for reader in (img, qemu_img):
                        reader("convert", "-f", "qcow2", "-O", "raw", self.image, raw + ".2")
                        with open(raw + ".2", "rb") as file:
                            self.assertEqual(file.read(), data.ljust(rounded, b"\0"))
                img("create", "-q", "-f", "qcow2", self.image, str(size))
                self.assertEqual(self.virtual_size(qemu_img), rounded)
                img("create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", self.image)
                self.assertEqual(self.virtual_size(qemu_img), rounded)
                img("convert", "-f", "qcow2", "-O", "raw", self.image, raw + ".2")
                with open(raw + ".2", "rb") as file:
                    self.assertEqual(file.read(), data.ljust(rounded, b"\0"))

    def test_a_size_in_the_header_that_is_not_whole_sectors(self):
        """QEMU drops the part of a sector."""
        build(self.image, 1 << 20)
        io(self.image, "write -P 5 0 128k", fmt="qcow2")
        Image(self.image).put64(24, 70001)
        img("convert", "-f", "qcow2", "-O", "raw", self.image, self.path("b.raw"))
        with open(self.path("b.raw"), "rb") as file:
            self.assertEqual(file.read(70001), b"\5" * 70001)
        img("convert", "-f", "qcow2", "-O", "qcow2", self.image, self.path("b.qcow2"))
        qemu_io(self.path("b.qcow2"), "read -P 5 0 70001", fmt="qcow2")
        img("bitmap", "--add", "-f", "qcow2", "-g", "512", self.image, "b")
        io(self.image, "write -P 6 70000 1", "read -P 6 70000 1", fmt="qcow2")
        self.assertEqual(Image(self.image).bitmaps()["b"][2], {136})
        img("check", "-q", "-f", "qcow2", self.image)


if __name__ == "__main__":
    unittest.main()
