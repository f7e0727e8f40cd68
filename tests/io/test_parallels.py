# SPDX-License-Identifier: Apache-2.0
"""Images of Parallels: both magics, places that are used again, the mark "in use", repairs, and
the dirty bitmaps of the format extension, which a write must not make invalid.
"""

import hashlib
import json
import os
import random
import struct
import unittest

from qmp import QmpError
from tidemark import TestCase, compat, img, io, qemu, qemu_io, run, tool

MIB = 1 << 20
SECTORS, EXTENDED = b"WithoutFreeSpace", b"WithouFreSpacExt"
IN_USE, CLOSED = 0x746F6E59, 0x312E3276


def image(magic=EXTENDED, bat=(), size=8 * MIB, tracks=128, data=128, in_use=0, flags=0, extension=0, places=0):
    """An image with clusters of 64 KiB; the first `places` places have a byte of their own."""
    entries = max(-(-size // (tracks * 512)), len(bat))
    head = struct.pack("<16sIIIII", magic, 2, 16, 32, tracks, entries)
    head += struct.pack("<QIIIQ", size // 512, in_use, data, flags, extension)
    content = head + struct.pack(f"<{len(bat)}I", *bat)
    content = content.ljust(64 + 4 * entries, b"\0")
    if data:
        content = content.ljust(data * 512, b"\0")
    content = content.ljust(-(-len(content) // 512) * 512, b"\0")
    return content + b"".join(bytes([n + 1]) * (tracks * 512) for n in range(places))


def bitmap_feature(name, size, granularity, table):
    data = struct.pack("<Q16sII", size // 512, bytes.fromhex(name.replace("-", "")), granularity // 512, len(table))
    data += struct.pack(f"<{len(table)}Q", *table)
    return struct.pack("<QQII", 0x20385FAE252CB34A, 0, len(data), 0) + data.ljust(-(-len(data) // 8) * 8, b"\0")


def extension(*features, cluster=65536):
    body = (b"".join(features) + bytes(24)).ljust(cluster - 24, b"\0")
    return struct.pack("<Q", 0xAB234CEF23DCEA87) + hashlib.md5(body).digest() + body


class ParallelsCase(TestCase):
    def write(self, data, name="disk.hds"):
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def read(self, name="disk.hds"):
        with open(self.path(name), "rb") as file:
            return file.read()

    def field(self, offset, form="<I", name="disk.hds"):
        return struct.unpack_from(form, self.read(name), offset)[0]

    def bat(self, count):
        return list(struct.unpack_from(f"<{count}I", self.read(), 64))

    def io(self, path, *commands, **more):
        return io(path, *commands, fmt="parallels", **more)

    def check(self, path, *more):
        result = img("check", "-f", "parallels", "--output=json", *more, path, check=False)
        return json.loads(result.stdout), result.stderr


class Reading(ParallelsCase):
    def test_both_magics(self):
        for magic, bat in (EXTENDED, (2, 0, 1)), (SECTORS, (256, 0, 128)):
            path = self.write(image(magic, bat, places=2))
            self.assertIn("file format: parallels", img("info", path).stdout)
            for program in self.io, lambda p, *c: qemu_io(p, *c, fmt="parallels"):
                program(path, "read -P 2 0 64k", "read -P 0 64k 64k", "read -P 1 128k 64k", "read -P 0 192k 1M")

    def test_data_that_follow_the_bat_at_once(self):
        """Images in sectors need no field for the begin of the data, nor clusters on its grid."""
        first = 2  # 64 + 4 * 128 bytes are two sectors
        for data in (0, 2):
            path = self.write(image(SECTORS, (first, first + 128), data=data, places=2))
            self.io(path, "read -P 1 0 64k", "read -P 2 64k 64k", "write -P 5 1M 64k", "read -P 5 1M 64k")
            qemu_io(path, "read -P 1 0 64k", "read -P 5 1M 64k", fmt="parallels")
            self.assertEqual(self.check(path)[0]["check-errors"], 0)
            self.assertEqual(self.bat(17)[16], first + 256)

    def test_clusters_of_63_sectors(self):
        path = self.path("old.hds")
        img("create", "-q", "-f", "parallels", "-o", "cluster_size=32256", path, "3M")
        self.io(path, "write -P 1 1k 100k", "write -P 2 2M 64k", "discard 32256 32256")
        for program in self.io, lambda p, *c: qemu_io(p, *c, fmt="parallels"):
            program(path, "read -P 0 0 1k", "read -P 1 1k 31232", "read -P 0 32256 32256", "read -P 1 64512 38912")
            program(path, "read -P 2 2M 64k")
        self.assertNotIn("corruptions", self.check(path)[0])

    def test_a_cluster_outside_is_an_error_where_it_is_read(self):
        path = self.write(image(bat=(1, 9, 0xFFFFFFFF), places=2))
        self.io(path, "read -P 1 0 64k", options=("-r",))
        for offset in "64k", "128k":
            result = self.io(path, f"read {offset} 64k", options=("-r",), check=False)
            self.assertIn("Input/output error", result.stdout)
        path = self.write(image(SECTORS, bat=(1,), places=1))  # in the BAT
        self.assertIn("Input/output error", self.io(path, "read 0 64k", options=("-r",), check=False).stdout)

    def test_headers_are_refused_in_qemus_words(self):
        good = image()
        for offset, value, what in (
            (16, 3, "Image not in Parallels format"),
            (28, 0, "Invalid image: Zero sectors per track"),
            (28, 0xFFFFFFFF, "Invalid image: Too big cluster"),
            (28, 4186128, "Invalid image: Too big cluster"),
            (32, 0x20000000, "Catalog too large"),
            (32, 1, "has 1 entries, its disk has 128 clusters"),
            (32, 5000000, "The BAT of 'disk.hds' is not within the file"),
            (40, 0x80000000, "sectors: too many"),
        ):
            path = self.write(good[:offset] + struct.pack("<I", value) + good[offset + 4 :])
            result = run(*tool("img"), "check", "-f", "parallels", path, check=False)
            self.assertEqual(result.returncode, 1, what)
            self.assertIn(what, result.stderr.replace(self.path(""), ""))
        result = img("info", "-f", "parallels", self.write(good[:40]), check=False)
        self.assertIn("is not within the file", result.stderr)

    def test_a_raw_disk_does_not_become_an_image(self):
        """A guest writes a header to a raw disk whose format is probed."""
        for magic in EXTENDED, SECTORS:
            path = self.create("guest.raw", "1M", "raw")
            head = self.write(image(magic)[:512], "head")
            result = run(compat("qemu-io"), "-c", f"write -s {head} 0 512", path, check=False)
            self.assertIn("Operation not permitted", result.stdout + result.stderr)


class Writing(ParallelsCase):
    def setUp(self):
        super().setUp()
        self.disk = self.path("disk.hds")
        img("create", "-q", "-f", "parallels", "-o", "cluster_size=64k", self.disk, "8M")

    def test_the_mark_is_there_while_the_image_is_written(self):
        io(self.disk, "read 0 64k", "sigraise 9", fmt="parallels", check=False)
        self.assertEqual(self.field(44), 0)
        self.io(self.disk, "write -P 1 0 64k", "flush", "sigraise 9", check=False)
        self.assertEqual(self.field(44), IN_USE)
        found, log = self.check(self.disk)
        self.assertEqual(found["corruptions"], 1)
        self.assertIn("ERROR image was not closed correctly", log)
        result = self.io(self.disk, "read -P 1 0 64k")
        self.assertIn("Repairing image was not closed correctly", result.stderr)
        self.assertEqual(self.field(44), 0)
        self.assertEqual(os.path.getsize(self.disk), 131072)
        self.assertNotIn("corruptions", self.check(self.disk)[0])

    def test_places_are_used_again(self):
        self.io(self.disk, "write -P 1 0 192k", "discard 64k 64k", "write -P 2 1M 64k", "write -z 0 64k")
        self.assertEqual(self.bat(3) + [self.bat(17)[16]], [0, 0, 3, 2])
        self.io(self.disk, "read -P 0 0 128k", "read -P 1 128k 64k", "read -P 2 1M 64k")
        self.io(self.disk, "write -P 3 2M 1k", "read -P 0 2098176 63k")
        self.assertEqual(self.bat(33)[32], 1)
        self.assertEqual(os.path.getsize(self.disk), 4 * 65536)
        qemu_io(self.disk, "read -P 3 2M 1k", "read -P 0 2098176 63k", "read -P 1 128k 64k", fmt="parallels")
        # the last one is given back to the file
        self.io(self.disk, "discard 128k 64k")
        self.assertEqual(os.path.getsize(self.disk), 3 * 65536)
        self.assertNotIn("leaks", self.check(self.disk)[0])

    def test_zeroes_of_a_part_of_a_cluster(self):
        self.io(self.disk, "write -P 1 0 64k", "write -z 0 32k", "read -P 0 0 32k", "read -P 1 32k 32k")
        self.assertEqual(self.bat(1), [1])

    def test_a_backing_file_of_the_options(self):
        """The image names none; what is zeroed or discarded over one must not show it."""
        base = self.create("base.raw", "8M", "raw")
        io(base, "write -P 9 0 8M", fmt="raw")
        top = f"driver=parallels,file.filename={self.disk},backing.driver=raw,backing.file.filename={base}"
        words = ("write -P 1 1k 512", "write -z 64k 64k", "discard 0 64k", "write -z 1M 100", "read -P 9 0 1k")
        words += ("read -P 1 1k 512", "read -P 9 1536 64000", "read -P 0 64k 64k", "read -P 0 1M 100")
        run(*tool("io"), "--image-opts", *(w for word in words for w in ("-c", word)), top)

    def test_the_flag_of_an_empty_image_goes_with_the_first_write(self):
        path = self.write(image(flags=1))
        self.io(path, "write -P 1 0 64k")
        self.assertEqual(self.field(52), 0)

    def test_what_is_not_supported(self):
        self.assertIn("does not support resize", img("resize", "-f", "parallels", self.disk, "9M", check=False).stderr)
        result = img("create", "-f", "parallels", "-b", "x", "-F", "raw", self.path("new"), "1M", check=False)
        self.assertIn("Backing file not supported for file format 'parallels'", result.stderr)
        for options, size, what in (
            ("cluster_size=2G", "1M", "Cluster size is too large"),
            ("cluster_size=0", "1M", "Image size is too large for this cluster size"),
            ("cluster_size=512", "9G", "Image size is too large for this cluster size"),
        ):
            result = img("create", "-f", "parallels", "-o", options, self.path("new"), size, check=False)
            self.assertIn(what, result.stderr)
            self.assertFalse(os.path.exists(self.path("new")))


class Repair(ParallelsCase):
    def test_entries_outside_become_zero(self):
        path = self.write(image(bat=(1, 9, 0xFFFFFFFF, 2), places=2))
        found, log = self.check(path)
        self.assertEqual(found["corruptions"], 2)
        self.assertIn("ERROR cluster 1 is outside image\nERROR cluster 2 is outside image", log)
        found, log = self.check(path, "-r", "all")
        self.assertEqual((found["corruptions-fixed"], self.bat(4)), (2, [1, 0, 0, 2]))
        self.assertIn("Repairing cluster 1 is outside image", log)
        self.io(path, "read -P 1 0 64k", "read -P 0 64k 128k", "read -P 2 192k 64k")

    def test_a_last_cluster_that_is_cut_keeps_its_bytes(self):
        path = self.write(image(bat=(1, 2), places=2)[:-1000])
        self.assertEqual(self.check(path)[0]["corruptions"], 1)
        self.io(path, "read -P 2 64k 64536", "read -P 0 130072 1000")
        self.assertEqual((self.bat(2), os.path.getsize(path)), ([1, 2], 3 * 65536))
        self.assertNotIn("corruptions", self.check(path)[0])
        qemu_io(path, "read -P 2 64k 64536", fmt="parallels")

    def test_a_place_of_two_owners_is_copied(self):
        for fix in "check", "open", "write":
            path = self.write(image(bat=(1, 2, 2, 1), places=2))
            if fix == "check":
                self.assertEqual(self.check(path)[0]["corruptions"], 2)
                self.assertEqual(self.check(path, "-r", "leaks")[0]["corruptions"], 2)
                found, log = self.check(path, "-r", "all")
                self.assertEqual(found["corruptions-fixed"], 2)
                self.assertIn("Repairing duplicate offset in BAT entry 2\nRepairing duplicate offset in BAT", log)
            elif fix == "open":
                self.io(path, "read 0 64k")
            else:
                self.io(path, "write -P 7 128k 512")
            self.assertEqual((self.bat(4), os.path.getsize(path)), ([1, 2, 3, 4], 5 * 65536))
            self.io(path, "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 2 129k 63k", "read -P 1 192k 64k")
            self.assertNotIn("corruptions", self.check(path)[0])

    def test_places_that_overlap_off_the_grid(self):
        """Entries in sectors can lead anywhere."""
        content = image(SECTORS, bat=(128, 256 - 4, 400), places=4)
        path = self.write(content)
        self.assertEqual(self.check(path)[0]["corruptions"], 1)
        self.check(path, "-r", "all")
        self.assertEqual(self.bat(3)[0::2], [128, 400])
        self.io(path, "read -P 1 0 64k", "read -P 1 64k 2k", "read -P 2 66k 62k", "write -P 9 64k 64k")
        self.io(path, "read -P 1 0 64k", f"read -P 3 128k {(512 - 400) * 512}")
        self.assertNotIn("corruptions", self.check(path)[0])

    def test_the_begin_of_the_data(self):
        for magic, wrong, right in (EXTENDED, 0, 128), (EXTENDED, 0xFFFFFFFF, 128), (SECTORS, 1, 2):
            content = image(magic, bat=(1 if magic == EXTENDED else 128,), places=1)
            path = self.write(content[:48] + struct.pack("<I", wrong) + content[52:])
            self.assertIn("ERROR data_off field has incorrect value", self.check(path)[1])
            self.assertEqual(self.check(path, "-r", "all")[0]["corruptions-fixed"], 1)
            self.assertEqual(self.field(48), right)
            self.io(path, "read -P 1 0 64k")

    def test_a_leak_at_the_end(self):
        path = self.write(image(bat=(1,), places=3))
        self.assertEqual(self.check(path)[0]["leaks"], 2)
        found, log = self.check(path, "-r", "leaks")
        self.assertEqual((found["leaks-fixed"], os.path.getsize(path)), (2, 2 * 65536))
        self.assertIn("Repairing space leaked at the end of the image 131072", log)

    def test_many_owners_of_a_place_do_not_fill_the_disk(self):
        """An image from a stranger that is opened for writing."""
        size = 2000 * 65536
        path = self.write(image(bat=(1,) * 2000, size=size, places=1))
        before = self.read()
        result = self.io(path, "read 0 64k", check=False)
        self.assertIn("more than 1000 clusters with two owners", result.stderr)
        self.assertLess(os.path.getsize(path), 1100 * 65536)
        self.io(path, "read -P 1 0 64k", f"read -P 1 {size - 65536} 64k", options=("-r",))
        self.check(path, "-r", "all")
        self.assertNotIn("corruptions", self.check(path)[0])
        self.io(path, "read -P 1 0 64k", f"read -P 1 {size - 65536} 64k")
        self.assertTrue(before)

    def test_a_repair_that_finds_no_room_changes_no_owner(self):
        path = self.write(image(bat=(1, 1), places=1))
        rule = "file.driver=blkdebug,file.inject-error.0.event=none,file.inject-error.0.iotype=write"
        image_opts = f"driver=parallels,{rule},file.inject-error.0.errno=28,file.image.filename={path}"
        result = run(*tool("io"), "-c", "read 0 64k", "--image-opts", image_opts, check=False)
        self.assertIn("No space left on device", result.stderr)
        self.assertEqual(self.bat(2), [1, 1])
        self.io(path, "read -P 1 0 128k", options=("-r",))


class Extension(ParallelsCase):
    NAME = "e4f2eed0-37fe-4539-b50b-85d2e7fd235f"

    def build(self, *features, name="disk.hds", **more):
        """Data in the first place, bits in the second one, the extension in the third one."""
        bits = bytes([0b00000110]) + bytes(65535)
        content = image(bat=(1,), places=1, in_use=CLOSED, extension=3 * 128, **more)
        return self.write(content + bits + (b"".join(features) if features else self.extension()), name)

    def extension(self, size=8 * MIB, granularity=65536, table=(2 * 128,)):
        return extension(bitmap_feature(self.NAME, size, granularity, table))

    def dirty(self, path):
        """What a client of a server sees."""
        socket = self.path("nbd")
        server = self.daemon(
            "--blockdev", f"parallels,node-name=d,read-only=on,file.driver=file,file.filename={path}",
            "--nbd-server", f"addr.type=unix,addr.path={socket}",
            "--export", f"nbd,id=e,node-name=d,name=d,bitmaps.0={self.NAME}",
        )  # fmt: skip
        opts = f"driver=nbd,server.type=unix,server.path={socket},export=d,x-dirty-bitmap=qemu:dirty-bitmap:{self.NAME}"
        found = json.loads(img("map", "--output=json", "--image-opts", opts).stdout)
        server.stop()
        return [(e["start"], e["length"]) for e in found if not e["data"]]

    def test_bitmaps_are_read(self):
        path = self.build()
        self.assertEqual(self.dirty(path), [(65536, 131072)])
        for table, dirty in ((0,), []), ((1,), [(0, 8 * MIB)]):
            path = self.build(self.extension(table=table))
            self.assertEqual(self.dirty(path), dirty)

    def test_their_image_is_not_written(self):
        path = self.build()
        before = self.read()
        for command in "read 0 64k", "write 0 64k":
            result = self.io(path, command, check=False)
            self.assertIn("has a format extension with dirty bitmaps", result.stderr)
        self.io(path, "read -P 1 0 64k", options=("-r",))
        img("convert", "-O", "raw", path, self.path("out.raw"))
        found, _ = self.check(path, "-r", "all")
        self.assertNotIn("leaks-fixed", found)
        self.assertEqual(self.read(), before)
        server = self.daemon("--blockdev", f"parallels,node-name=d,read-only=on,file.driver=file,file.filename={path}")
        options = {"driver": "parallels", "node-name": "d", "file": {"driver": "file", "filename": path}}
        with self.assertRaisesRegex(QmpError, "has a format extension"):
            server.qmp.command("blockdev-reopen", options=[{**options, "read-only": False}])

    def test_a_repair_keeps_them(self):
        content = self.build()
        data = bytearray(self.read())
        data[68:72] = struct.pack("<I", 77)
        self.write(data)
        self.assertEqual(self.check(content, "-r", "all")[0]["corruptions-fixed"], 1)
        self.assertEqual(self.dirty(content), [(65536, 131072)])

    def test_one_that_is_not_up_to_date_is_dropped(self):
        """Its image was written by a program that does not know it, or was not closed."""
        for in_use in 0, IN_USE:
            path = self.build()
            data = bytearray(self.read())
            data[44:48] = struct.pack("<I", in_use)
            self.write(data)
            self.io(path, "write -P 5 1M 64k", "read -P 1 0 64k")
            self.assertEqual(self.field(56, "<Q"), 0)
            qemu_io(path, "read -P 1 0 64k", "read -P 5 1M 64k", fmt="parallels")

    def test_what_is_wrong_is_said_and_the_disk_is_read(self):
        good = self.extension()
        names = [f"{i:08x}{self.NAME[8:]}" for i in range(200)]
        on_one_place = [bitmap_feature(name, 8 * MIB, 512, (2 * 128,)) for name in names]
        for data, what in (
            (extension(b"".join(on_one_place)), "dirty bitmaps have more bytes than the file"),
            (bytes(65536), "it has the magic 0x0"),
            (good[:100] + b"x" + good[101:], "its checksum is wrong"),
            (self.extension(size=4 * MIB), "of a disk of another size"),
            (self.extension(granularity=3 * 512), "a granularity of 3 sectors"),
            (self.extension(table=(2, 3)), "a table of 2 entries"),
            (self.extension(table=(1 << 40,)), "is not within the file"),
            (self.extension(table=(1 << 60,)), "is not within the file"),
            (extension(bitmap_feature(self.NAME, 8 * MIB, 65536, (1,)) * 2), "it has two dirty bitmaps"),
            (extension(struct.pack("<QQII", 5, 0, 1 << 31, 0)), "a feature has 2147483648 bytes"),
            (extension(struct.pack("<QQII", 5, 1, 65472, 0)), "it has no end"),
        ):
            path = self.build(data)
            result = self.io(path, "read -P 1 0 64k", options=("-r",))
            self.assertIn(f"the format extension is not used: {what}".split(":")[0], result.stderr, what)
            self.assertIn(what, result.stderr)
            result = img("check", "-f", "parallels", "-r", "all", path, check=False)
            if what == "it has two dirty bitmaps":
                continue  # a repair can keep both
            self.assertIn("can't be read, and a repair could damage it", result.stderr)


class Damaged(ParallelsCase):
    def test_damaged_metadata_are_refused_or_read(self):
        rng = random.Random("parallels")
        path = self.path("disk.hds")
        img("create", "-q", "-f", "parallels", "-o", "cluster_size=4k", path, "4M")
        self.io(path, "write 1M 64k", "write 0 64k")
        good = self.read()
        for _ in range(60):
            data = bytearray(good)
            for _ in range(rng.choice((1, 2, 8))):
                at = rng.choice((rng.randrange(4096), rng.randrange(64), 64 + 4 * rng.randrange(16)))
                data[at : at + 4] = rng.choice((rng.randbytes(4), b"\xff" * 4, bytes(4)))
            self.write(data)
            for command in ("map",), ("check", "-r", "all"), ("check",):
                result = run(*tool("img"), *command, "-f", "parallels", path, check=False, timeout=20)
                self.assertIn(result.returncode, (0, 1, 2, 3), result.stderr)

    def test_qemu_finds_what_is_written_here(self):
        """A journey by both programs, with the same result."""
        rng, path = random.Random(5), self.path("disk.hds")
        run(qemu("qemu-img"), "create", "-q", "-f", "parallels", "-o", "cluster_size=64k", path, "4M")
        expected = bytearray(4 * MIB)
        for n in range(40):
            at, length, fill = rng.randrange(0, 3 * MIB, 512), rng.randrange(512, 200 << 10, 512), n + 1
            kind = rng.choice(("write -P %d" % fill, "write -P %d" % fill, "write -z"))
            expected[at : at + length] = bytes([0 if kind == "write -z" else fill]) * length
            program = compat("qemu-io") if n % 2 else qemu("qemu-io")
            run(program, "-f", "parallels", "-c", f"{kind} {at} {length}", path)
        for program in compat("qemu-img"), qemu("qemu-img"):
            run(program, "convert", "-f", "parallels", "-O", "raw", path, self.path("out"))
            self.assertTrue(self.read("out") == expected, program)
            run(program, "check", "-f", "parallels", path)


if __name__ == "__main__":
    unittest.main()
