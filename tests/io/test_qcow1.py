# SPDX-License-Identifier: Apache-2.0
"""Images of the first version of qcow: overlays, compressed clusters, and damage."""

import json
import os
import random
import struct
import unittest
import zlib

from tidemark import TestCase, compat, img, io, qemu, qemu_io, run, tool

MIB = 1 << 20
COMPRESSED = 1 << 63


def image(entries=(), clusters=b"", size=2 * MIB, cluster_bits=12, l2_bits=9, l1=None, name=b"", crypt=0, version=1):
    """Header, name, L1 table with one entry, an L2 table at 4096, and clusters from 8192 on."""
    head = b"QFI\xfb" + struct.pack(">IQIIQ", version, 48 if name else 0, len(name), 0, size)
    head += struct.pack(">BBHI", cluster_bits, l2_bits, 0, crypt)
    table = -(-(48 + len(name)) // 8) * 8
    head += struct.pack(">Q", table if l1 is None else l1) + name
    data = head.ljust(table, b"\0") + struct.pack(">Q", 4096 if entries else 0)
    data = data.ljust(4096, b"\0") + struct.pack(f">{len(entries)}Q", *entries)
    return data.ljust(4096 + (8 << l2_bits), b"\0") + clusters


def packed(data):
    c = zlib.compressobj(9, zlib.DEFLATED, -12)
    return c.compress(data) + c.flush()


class QcowCase(TestCase):
    def write(self, data, name="disk.qcow"):
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def read(self, name="disk.qcow"):
        with open(self.path(name), "rb") as file:
            return file.read()

    def io(self, path, *commands, **more):
        return io(path, *commands, fmt="qcow", **more)

    def by_qemu(self, path, *commands):
        return qemu_io(path, *commands, fmt="qcow")

    def new(self, name="disk.qcow", size="8M", *options):
        img("create", "-q", "-f", "qcow", *options, self.path(name), size)
        return self.path(name)


class Reading(QcowCase):
    def test_clusters_and_compressed_ones(self):
        stream = packed(b"\7" * 4096)
        entries = (8192, 0, COMPRESSED | len(stream) << 51 | 12288)
        path = self.write(image(entries, b"\5" * 4096 + stream))
        for program in self.io, self.by_qemu:
            program(path, "read -P 5 0 4k", "read -P 0 4k 4k", "read -P 7 8k 4k", "read -P 7 9k 512")
            program(path, "read -P 0 12k 1M")
        found = json.loads(img("map", "--output=json", path).stdout)
        self.assertEqual([e["compressed"] for e in found], [False, False, True, False])

    def test_all_sizes_of_clusters_and_tables(self):
        for cluster_bits in (9, 10, 16):
            for l2_bits in (6, 13):
                span = 1 << cluster_bits + l2_bits
                clusters = b"\3" * (4096 + (8 << l2_bits))
                path = self.write(image((4096 + (8 << l2_bits),), clusters, min(span, 2 * MIB), cluster_bits, l2_bits))
                self.io(path, "read -P 3 0 512", f"write -P 6 {min(span, 2 * MIB) - 512} 512")
                self.by_qemu(path, "read -P 3 0 512", f"read -P 6 {min(span, 2 * MIB) - 512} 512")

    def test_headers_are_refused_in_qemus_words(self):
        for more, what in (
            ({"size": 1}, "Image size is too small (must be at least 2 bytes)"),
            ({"size": 1 << 63}, "Image too large"),
            ({"size": 1 << 50}, "Image too large"),
            ({"cluster_bits": 8}, "Cluster size must be between 512 and 64k"),
            ({"cluster_bits": 17}, "Cluster size must be between 512 and 64k"),
            ({"l2_bits": 5}, "L2 table size must be between 512 and 64k"),
            ({"l2_bits": 14}, "L2 table size must be between 512 and 64k"),
            ({"name": b"x" * 1024}, "Backing file name too long"),
            ({"name": b"a\0b"}, "has a byte 0 within"),
            ({"crypt": 2}, "invalid encryption method in qcow header"),
            ({"version": 2}, "qcow (v1) does not support qcow version 2"),
            ({"l1": 40}, "begins in its header"),
            ({"l1": 1 << 62}, "is not within the file"),
            ({"l1": (1 << 64) - 8}, "is not within the file"),
        ):
            result = img("info", "-f", "qcow", self.write(image(**more)), check=False)
            self.assertIn(what, result.stderr)
            self.assertEqual(result.returncode, 1)

    def test_entries_that_lead_nowhere_are_errors_where_they_are_read(self):
        junk = b"\xff" * 4096
        for entry in (1 << 40, 8, 55, (1 << 63) - 4096, COMPRESSED | 8192, COMPRESSED | 21 << 51 | 1 << 50,
                      COMPRESSED | 21 << 51 | 8192, COMPRESSED | 4095 << 51 | 8192 + 2):  # fmt: skip
            path = self.write(image((entry, 8192), junk))
            self.assertIn("Input/output error", self.io(path, "read 0 4k", check=False).stdout, hex(entry))
            self.io(path, "read -P 0xff 4k 4k")
        for table in (8, 1 << 40, 8192 + 1, 1 << 63):
            data = bytearray(image((8192,), junk))
            data[48:56] = struct.pack(">Q", table)
            path = self.write(data)
            for command in "read 0 4k", "write 0 4k":
                self.assertIn("Input/output error", self.io(path, command, check=False).stdout)
            self.assertEqual(self.read(), data)

    def test_a_stream_that_is_too_short_or_too_long(self):
        for size in (4095, 4097):
            stream = packed(bytes(size))
            path = self.write(image((COMPRESSED | len(stream) << 51 | 8192,), stream))
            self.assertIn("Input/output error", self.io(path, "read 0 4k", check=False).stdout)

    def test_encryption_is_refused_by_name(self):
        path = self.write(image(crypt=1))
        self.assertIn("encrypted: yes", img("info", path).stdout)
        result = self.io(path, "read 0 4k", check=False)
        self.assertIn("is encrypted, which is not supported", result.stderr)
        for option in "encryption=on", "encrypt.format=aes":
            result = img("create", "-f", "qcow", "-o", option, self.path("new"), "1M", check=False)
            self.assertIn(f"Invalid parameter '{option.split('=')[0]}'", result.stderr)
            self.assertFalse(os.path.exists(self.path("new")))

    def test_a_raw_disk_does_not_become_an_image(self):
        path, head = self.create("guest.raw", "1M", "raw"), self.write(image()[:512], "head")
        result = run(compat("qemu-io"), "-c", f"write -s {head} 0 512", path, check=False)
        self.assertIn("Operation not permitted", result.stdout + result.stderr)


class Writing(QcowCase):
    def test_a_compressed_cluster_gets_another_place(self):
        """What the rest of it has stays, also when the write fails."""
        stream = packed(b"\7" * 4096)
        path = self.write(image((COMPRESSED | len(stream) << 51 | 8192,), stream))
        rule = "file.driver=blkdebug,file.inject-error.0.event=write_aio,file.inject-error.0.errno=28"
        opts = f"driver=qcow,{rule},file.image.filename={path}"
        result = run(*tool("io"), "-c", "write -P 9 1k 512", "--image-opts", opts, check=False)
        self.assertIn("No space left on device", result.stdout)
        self.io(path, "read -P 7 0 4k")
        self.io(path, "write -P 9 1k 512", "read -P 9 1k 512", "read -P 7 0 1k", "read -P 7 1536 2560")
        self.by_qemu(path, "read -P 9 1k 512", "read -P 7 0 1k", "read -P 7 1536 2560")

    def test_compressing(self):
        rng, source = random.Random(1), bytearray(3 * MIB + 1536)
        for i in range(0, len(source), 65536):
            part = rng.randbytes(20000) if i % 131072 else bytes([i >> 16]) * 65536
            source[i : i + len(part)] = part
        source = bytes(source[: 3 * MIB + 1536])
        raw, path = self.write(source, "src.raw"), self.path("disk.qcow")
        img("convert", "-c", "-f", "raw", "-O", "qcow", raw, path)
        self.assertLess(os.path.getsize(path), len(source) * 2 // 3)
        for reader in tool("img"), [qemu("qemu-img")]:
            run(*reader, "convert", "-f", "qcow", "-O", "raw", path, self.path("out.raw"))
            self.assertTrue(self.read("out.raw") == source, reader)
        other = self.new("other.qcow")
        self.by_qemu(other, "write -c -P 1 0 4k", "write -c -P 2 64k 4k")
        self.io(other, "read -P 1 0 4k", "read -P 0 4k 60k", "read -P 2 64k 4k", "write -c -P 3 4k 8k")
        self.by_qemu(other, "read -P 1 0 4k", "read -P 3 4k 8k", "read -P 2 64k 4k")

    def test_a_compressed_write_over_data_is_plain(self):
        path = self.new()
        self.io(path, "write -P 1 0 8k", "write -c -P 2 0 4k", "write -c -P 3 8k 4k", "write -c -P 4 8k 4k")
        self.by_qemu(path, "read -P 2 0 4k", "read -P 1 4k 4k", "read -P 4 8k 4k")

    def test_overlays(self):
        base = self.new("base.qcow")
        self.io(base, "write -P 1 0 8M")
        top = self.new("top.qcow", "7M", "-b", "base.qcow", "-F", "qcow")
        self.assertIn("cluster_size: 512", img("info", top).stdout)
        self.io(top, "write -P 2 1000 1000", "write -P 3 1M 100k", "write -z 2M 64k", "write -P 4 6M 512")
        reads = (
            "read -P 1 0 1000", "read -P 2 1000 1000", "read -P 1 2000 46k", "read -P 3 1M 100k",
            "read -P 1 1150976 100k", "read -P 0 2M 64k", "read -P 1 2162688 64k", "read -P 1 5M 1M",
            "read -P 4 6M 512", "read -P 1 6291968 1k",
        )  # fmt: skip
        self.io(top, *reads)
        self.by_qemu(top, *reads)
        img("commit", "-q", "-f", "qcow", top)
        self.assertLess(os.path.getsize(top), 8192)
        self.io(top, *reads, "write -P 5 0 512", "read -P 1 512 488")
        self.by_qemu(top, *reads[1:], "read -P 5 0 512")

    def test_a_write_of_many_clusters_is_flushed_once(self):
        """Clusters of an overlay have 512 bytes: one flush for each would take minutes."""
        base = self.create("base.raw", "4M", "raw")
        top, log = self.new("top.qcow", "4M", "-b", base, "-F", "raw"), self.path("log")
        with open(log, "wb"):
            pass
        opts = f"driver=qcow,backing.driver=raw,backing.file.filename={base},file.driver=blklogwrites"
        opts += f",file.file.filename={top},file.log.driver=file,file.log.filename={log},file.log-sector-size=512"
        run(*tool("io"), "-c", "write -P 1 0 1M", "--image-opts", opts)
        self.by_qemu(top, "read -P 1 0 1M")
        with open(log, "rb") as file:
            entries = struct.unpack_from("<QQQI", file.read(), 0)[2]
        self.assertLess(entries, 40)

    def test_a_compressed_cluster_is_stable_before_its_entry(self):
        """A loss of power between them would leave a cluster that is no stream."""
        path, log = self.new(), self.path("log")
        with open(log, "wb"):
            pass
        opts = f"driver=qcow,file.driver=blklogwrites,file.file.filename={path}"
        opts += f",file.log.driver=file,file.log.filename={log},file.log-sector-size=512"
        writes = ("-c", "write 1M 4k", "-c", "flush", "-c", "write -c -P 1 0 4k")
        run(*tool("io"), *writes, "--image-opts", opts)
        with open(log, "rb") as file:
            data = file.read()
        entries, at = [], 512
        for _ in range(struct.unpack_from("<QQQI", data, 0)[2]):
            sector, count, flags, _ = struct.unpack_from("<QQQQ", data, at)
            entries.append("flush" if flags & 1 else sector)
            at += 512 * (1 if flags & 4 else 1 + count)
        end = max(e for e in entries[:-2] if e != "flush" and e < 131072)
        self.assertEqual(entries[entries.index(end) + 1], "flush", entries)

    def test_what_is_not_supported(self):
        path = self.new()
        self.assertIn("does not support checks", img("check", path, check=False).stderr)
        self.assertIn("does not support resize", img("resize", "-f", "qcow", path, "9M", check=False).stderr)
        result = img("create", "-f", "qcow", self.path("none"), "0", check=False)
        self.assertIn("Image size is too small, cannot be zero length", result.stderr)
        result = img("create", "-f", "qcow", self.path("none"), "17T", check=False)
        self.assertIn("Image too large", result.stderr)
        self.assertFalse(os.path.exists(self.path("none")))


class Damaged(QcowCase):
    def test_damaged_metadata_are_refused_or_read(self):
        rng, path = random.Random("qcow"), self.new(size="4M")
        self.io(path, "write 1M 64k", "write -c -P 3 2M 64k")
        good = self.read()
        for _ in range(40):
            data = bytearray(good)
            for _ in range(rng.choice((1, 2, 8))):
                at = rng.choice((rng.randrange(9000), rng.randrange(64), 4096 + 8 * rng.randrange(512)))
                data[at : at + 4] = rng.choice((rng.randbytes(4), b"\xff" * 4, bytes(4)))
            self.write(data)
            for command in ("map",), ("info",):
                result = run(*tool("img"), *command, "-f", "qcow", path, check=False, timeout=20)
                self.assertIn(result.returncode, (0, 1), result.stderr)
            result = self.io(path, "read 0 4M", "write 1M 64k", check=False, timeout=20)
            self.assertIn(result.returncode, (0, 1), result.stderr)

    def test_both_programs_on_one_image(self):
        rng, path = random.Random(6), self.path("disk.qcow")
        run(qemu("qemu-img"), "create", "-q", "-f", "qcow", path, "4M")
        expected = bytearray(4 * MIB)
        for n in range(40):
            at, length = rng.randrange(0, 3 * MIB, 512), rng.randrange(512, 100 << 10, 512)
            expected[at : at + length] = bytes([n + 1]) * length
            program = compat("qemu-io") if n % 2 else qemu("qemu-io")
            run(program, "-f", "qcow", "-c", f"write -P {n + 1} {at} {length}", path)
        for program in compat("qemu-img"), qemu("qemu-img"):
            run(program, "convert", "-f", "qcow", "-O", "raw", path, self.path("out"))
            self.assertTrue(self.read("out") == expected, program)


if __name__ == "__main__":
    unittest.main()
