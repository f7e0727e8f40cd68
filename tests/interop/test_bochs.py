# SPDX-License-Identifier: Apache-2.0
"""Growing images of Bochs, built here byte by byte: what they read as, compared with QEMU, and
damaged ones.
"""

import json
import os
import random
import re
import resource
import struct
import subprocess
import unittest

from tidemark import TestCase, compat, img, io, qemu, qemu_img, run, tool

SECTOR = 512
ABSENT = 0xFFFFFFFF
V1, V2 = 0x10000, 0x20000
MEMORY_MAX = 256 << 20


def header(version=V2, header_size=512, catalog=16, bitmap=512, extent=64 << 10, disk=1 << 20, subtype=b"Growing"):
    data = struct.pack("<32s16s16s", b"Bochs Virtual HD Image", b"Redolog", subtype)
    data += struct.pack("<5I", version, header_size, catalog, bitmap, extent)
    data += struct.pack("<Q", disk) if version == V1 else struct.pack("<IQ", 0x5A5A5A5A, disk)
    return data.ljust(header_size, b"\0")


class Growing:
    """An image with some sectors written at random, and the disk that it has to read as. Other
    sectors of extents hold rubbish.
    """

    def __init__(self, seed, version, extent, bitmap, disk, spare=0):
        rng = random.Random(seed)
        count = -(-disk // extent)
        present = [i for i in range(count) if rng.random() < 0.6]
        place = rng.sample(range(len(present)), len(present))
        catalog = [ABSENT] * (count + spare)
        self.disk, self.written = bytearray(count * extent), []
        extents = [b""] * len(present)
        for i, where in zip(present, place):
            catalog[i] = where
            extents[where] = self.fill(rng, i, extent, bitmap)
        del self.disk[disk:]
        self.written = [at for at in self.written if at < disk]
        self.bytes = header(version, 512, len(catalog), bitmap, extent, disk)
        self.bytes += struct.pack(f"<{len(catalog)}I", *catalog) + b"".join(extents)

    def fill(self, rng, i, extent, bitmap):
        bits, data = bytearray(-(-bitmap // SECTOR) * SECTOR), bytearray(rng.randbytes(extent))
        chance = rng.choice((0.02, 0.5, 0.98, 1))
        for n in range(extent // SECTOR):
            if rng.random() < chance:
                bits[n // 8] |= 1 << n % 8
                at = i * extent + n * SECTOR
                self.disk[at : at + SECTOR] = data[n * SECTOR : (n + 1) * SECTOR]
                self.written.append(at)
        return bytes(bits + data)


# Version, size of extents, of bitmaps, of the disk, entries of the catalog that no part of the disk
# has.
SHAPES = (
    (V1, 64 << 10, 16, 1 << 20, 0),
    (V2, 64 << 10, 512, (1 << 20) - 7 * SECTOR, 3),
    (V2, 512, 1, 300 * SECTOR, 0),
    (V2, 4 << 20, 1024, 9 << 20, 1),  # bitmaps of two sectors, of which more is read than at once
    (V1, 1 << 20, 513, 5 << 20, 0),
)


class BochsCase(TestCase):
    def write(self, data, name="disk.bochs"):
        path = self.path(name)
        with open(path, "wb") as f:
            f.write(data)
        return path

    def converted(self, convert, source):
        target = self.path("raw")
        convert("convert", "-f", "bochs", "-O", "raw", source, target)
        with open(target, "rb") as f:
            return f.read()


class Reading(BochsCase):
    def test_reads_as_with_qemu(self):
        for seed, shape in enumerate(SHAPES):
            with self.subTest(shape=shape):
                image = Growing(seed, *shape)
                path = self.write(image.bytes)
                self.assertTrue(self.converted(img, path) == image.disk, "contents")
                self.assertTrue(self.converted(qemu_img, path) == image.disk, "contents with QEMU")

    def test_map_shows_what_was_written(self):
        for seed, shape in enumerate(SHAPES):
            image = Growing(seed, *shape)
            found = []
            for e in json.loads(img("map", "--output=json", self.write(image.bytes)).stdout):
                self.assertEqual((e["present"], e["data"]), (True, not e["zero"]))
                if e["data"]:
                    end = e["start"] + e["length"]
                    found += range(e["start"], end, SECTOR)
                    lies = image.bytes[e["offset"] : e["offset"] + e["length"]]
                    self.assertTrue(lies == image.disk[e["start"] : end], e)
            self.assertEqual(found, image.written)

    def test_map_from_within_a_sector(self):
        image = Growing(1, *SHAPES[1])
        path = self.write(image.bytes)
        start = image.written[3]
        options = (f"--start-offset={start + 100}", "--max-length=13", "--output=json")
        [extent] = json.loads(img("map", *options, path).stdout)
        self.assertEqual((extent["start"], extent["length"], extent["data"]), (start + 100, 13, True))
        at = extent["offset"]
        self.assertEqual(image.bytes[at : at + 13], image.disk[start + 100 : start + 113])

    def test_unaligned_reads(self):
        image = Growing(2, *SHAPES[0])
        path = self.write(image.bytes)
        for offset, length in ((1, 1), (511, 2), (65535, 70001), ((1 << 20) - 5, 5)):
            dump = io(path, f"read -v {offset} {length}", options=("-r",), fmt="bochs").stdout
            found = bytes.fromhex("".join(re.findall(r"^[0-9a-f]{8}: ((?: [0-9a-f]{2}){1,16})", dump, re.M)))
            self.assertTrue(found == image.disk[offset : offset + length], (offset, length))

    def test_info_is_qemus(self):
        for version in (V1, V2):
            path = self.write(Growing(0, version, 64 << 10, 512, 1 << 20).bytes)
            ours = run(compat("qemu-img"), "info", path).stdout
            self.assertTrue(ours.startswith(qemu_img("info", path).stdout), ours)

    def test_as_a_backing_file(self):
        image = Growing(3, *SHAPES[0])
        base, top = self.write(image.bytes), self.path("top.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "bochs", top)
        io(top, "write -P 7 4k 1k", fmt="qcow2")
        image.disk[4096:5120] = b"\7" * 1024
        img("convert", "-O", "raw", top, self.path("raw"))
        with open(self.path("raw"), "rb") as f:
            self.assertTrue(f.read() == image.disk)


class Writing(BochsCase):
    """There is none, and QEMU says so in the same words."""

    def refused(self, program, *arguments):
        image = Growing(0, *SHAPES[0])
        path = self.write(image.bytes)
        arguments = [path if word == "IMAGE" else word for word in arguments]
        ours = run(compat(program), *arguments, check=False)
        theirs = run(qemu(program), *arguments, check=False)
        self.assertEqual((ours.returncode, theirs.returncode), (1, 1))
        self.assertIn(theirs.stderr.strip(), ours.stderr)
        with open(path, "rb") as f:
            self.assertTrue(f.read() == image.bytes)
        return ours.stderr, path

    def test_io(self):
        ours, path = self.refused("qemu-io", "-f", "bochs", "-c", "write 0 512", "IMAGE")
        self.assertIn(f"'{path}'", ours)

    def test_resize(self):
        self.refused("qemu-img", "resize", "-f", "bochs", "IMAGE", "2M")

    def test_create(self):
        self.refused("qemu-img", "create", "-f", "bochs", self.path("new"), "1M")

    def test_convert_into_one(self):
        self.refused("qemu-img", "convert", "-O", "bochs", "IMAGE", self.path("new"))

    def test_check(self):
        path = self.write(Growing(0, *SHAPES[0]).bytes)
        ours = run(compat("qemu-img"), "check", path, check=False)
        theirs = qemu_img("check", path, check=False)
        self.assertEqual((ours.returncode, ours.stderr), (theirs.returncode, theirs.stderr))


class Damaged(BochsCase):
    """Refused at open with a sentence that names the image; QEMU takes some of them, and reads
    zeroes or anything.
    """

    def refused(self, message, data):
        path = self.write(data)
        result = subprocess.run(
            [*tool("img"), "info", "-f", "bochs", path], capture_output=True, text=True, timeout=30, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MAX, MEMORY_MAX)),
        )  # fmt: skip
        self.assertEqual(result.returncode, 1, result)
        self.assertRegex(result.stderr, message)
        self.assertEqual(result.stderr.count("\n"), 1)
        self.assertIn(f"'{path}'", result.stderr.split(": ", 2)[2])

    def with_header(self, message, tail=b"\xff" * 64, **fields):
        with self.subTest(**fields):
            self.refused(message, header(**fields) + tail)

    def test_other_kinds(self):
        self.refused("not in Bochs format", b"")
        self.refused("not in Bochs format", b"B" + bytes(4095))
        self.with_header("not of the type", subtype=b"Undoable")
        self.with_header("not of the type", subtype=b"Growing" + b"x" * 9)
        self.with_header("version 0x00030000", version=0x30000)

    def test_catalog(self):
        self.with_header("Catalog size .* too large", catalog=ABSENT)
        self.with_header("Catalog size .* too large", catalog=(1 << 20) + 1)
        self.with_header("Catalog size .* too small", catalog=15)
        self.with_header("Catalog size .* too small", disk=(1 << 20) + SECTOR)
        self.with_header("Catalog size .* too small", disk=(1 << 64) - 1)
        self.with_header("is not between", tail=b"", catalog=1 << 20)
        self.with_header("is not between", tail=b"", header_size=100)
        self.refused("is not between", header(header_size=512).replace(
            struct.pack("<2I", V2, 512), struct.pack("<2I", V2, ABSENT)))  # fmt: skip

    def test_sizes(self):
        for extent in (0, 256, 1000, 1536, 16 << 20, 1 << 31):
            self.with_header("Extent size", extent=extent)
        for bitmap in (0, 1, 15, 1 << 31, ABSENT):
            self.with_header("Bitmap size", bitmap=bitmap)

    def test_extents_beyond_the_file(self):
        extent = bytes(512 + (64 << 10))
        catalog = [ABSENT] * 15
        for entry in (1, 1 << 31, ABSENT - 1):
            data = header() + struct.pack("<16I", *catalog, entry) + extent
            self.refused("Extent 15 .* not within the file", data)
        data = header() + struct.pack("<16I", *catalog, 0) + extent[:-1024]
        self.refused("Extent 15 .* not within the file", data)

    def test_the_largest_is_accepted(self):
        data = header(catalog=1 << 20, bitmap=2048, extent=8 << 20, disk=8 << 40) + b"\xff" * (4 << 20)
        info = json.loads(img("info", "--output=json", self.write(data)).stdout)
        self.assertEqual((info["format"], info["virtual-size"]), ("bochs", 8 << 40))


if __name__ == "__main__":
    unittest.main()
