# SPDX-License-Identifier: Apache-2.0
"""How `img convert` moves data: by the system, at a rate, past the page cache. And what it refuses
to make.
"""

import glob
import json
import os
import re
import struct
import time
import unittest

from tidemark import Process, TestCase, img, io, qemu, qemu_img, run, tool

O_DIRECT = 0o40000


def file_flags(pid, path):
    """Flags of the descriptors that a process has of a file."""
    found = set()
    for link in glob.glob(f"/proc/{pid}/fd/*"):
        try:
            if os.readlink(link) != path:
                continue
            with open(link.replace("/fd/", "/fdinfo/"), encoding="ascii") as info:
                found.add(int(re.search(r"flags:\s*(\d+)", info.read()).group(1), 8))
        except OSError:
            continue
    return found


class CopyRange(TestCase):
    def setUp(self):
        super().setUp()
        self.disk = self.create("disk.raw", "8M", "raw")
        io(self.disk, "write -P 1 0 1M", "write -P 0 2M 2M", "write -P 3 7M 1M", fmt="raw")

    def stored(self, image):
        return os.stat(image).st_blocks * 512

    def convert(self, source, *options, fmt="raw"):
        target = self.path(f"copy.{fmt}")
        img("convert", *options, "-O", fmt, source, target)
        self.assertIn("identical", qemu_img("compare", self.disk, target).stdout)
        return target

    def test_the_system_copies(self):
        """It does not look at the data: zeroes in it take space in the target."""
        self.assertEqual(self.stored(self.convert(self.disk, "-f", "raw")), 2 << 20)
        self.assertEqual(self.stored(self.convert(self.disk, "-f", "raw", "-C")), 4 << 20)

    def test_from_qcow2(self):
        source = self.path("source.qcow2")
        img("convert", "-f", "raw", "-S", "0", "-O", "qcow2", self.disk, source)
        self.assertEqual(self.stored(self.convert(source, "-C")), 8 << 20)

    def test_blocks_larger_than_clusters(self):
        """Such a block begins where its first cluster lies, but the others lie elsewhere."""
        source = self.path("source.qcow2")
        img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", source, "64k")
        io(source, *(f"write -P {i + 1} {i * 512} 512" for i in reversed(range(128))), fmt="qcow2")
        blocks = {"driver": "blkdebug", "align": 4096,
                  "image": {"driver": "qcow2", "file": {"driver": "file", "filename": source}}}  # fmt: skip
        target = self.path("copy.raw")
        img("convert", "-C", "-O", "raw", "json:" + json.dumps(blocks), target)
        self.assertIn("identical", qemu_img("compare", source, target).stdout)

    def test_what_the_system_cannot_copy_is_read_and_written(self):
        self.convert(self.disk, "-f", "raw", "-C", fmt="qcow2")
        packed = self.path("packed.qcow2")
        img("convert", "-c", "-f", "raw", "-O", "qcow2", self.disk, packed)
        self.convert(packed, "-C")
        target = self.create("there.raw", "8M", "raw")
        options = f"driver=raw,detect-zeroes=unmap,file.filename={target}"
        img("convert", "-C", "-n", "--target-image-opts", self.disk, options)
        self.assertIn("identical", qemu_img("compare", self.disk, target).stdout)
        self.assertEqual(self.stored(target), 2 << 20)

    def test_several_sources_and_workers(self):
        target = self.path("both.raw")
        img("convert", "-f", "raw", "-C", "-W", "-m", "3", self.disk, self.disk, target)
        io(target, "read -P 1 0 1M", "read -P 3 7M 1M", "read -P 1 8M 1M", "read -P 3 15M 1M", fmt="raw")


class Pace(TestCase):
    def test_convert_keeps_to_the_rate(self):
        disk = self.create("disk.raw", "4M", "raw")
        io(disk, "write -P 1 0 4M", fmt="raw")
        began = time.monotonic()
        img("convert", "-f", "raw", "-r", "4M", disk, self.path("copy.raw"))
        self.assertGreater(time.monotonic() - began, 0.6)


class CacheModes(TestCase):
    def setUp(self):
        super().setUp()
        self.disk = self.create("disk.qcow2", "4M")
        io(self.disk, "write -P 1 0 4M", fmt="qcow2")

    def assert_direct(self, source, target, *options):
        """Whether source and target pass the page cache, seen while a slow convert runs."""
        path = self.path("target.raw")
        command = tool("img") + ["convert", *options, "-r", "256k", "-O", "raw", self.disk, path]
        process = Process(command, self.path("log"))

        def seen():
            found = [file_flags(process.pid, name) for name in (self.disk, path)]
            return [{bool(flags & O_DIRECT) for flags in each} for each in found]

        try:
            process.wait_for(lambda: seen() == [{source}, {target}], f"{options}: the flags")
        finally:
            process.process.kill()
            process.process.wait()
        os.unlink(path)

    def test_none_and_directsync_pass_the_page_cache(self):
        self.assert_direct(False, False)
        self.assert_direct(False, True, "-t", "none")
        self.assert_direct(True, False, "-T", "none")
        self.assert_direct(True, True, "-t", "directsync", "-T", "off")

    def test_contents_are_right_past_the_page_cache(self):
        for mode in ("none", "directsync", "writethrough", "writeback", "unsafe"):
            target = self.path(f"{mode}.qcow2")
            img("convert", "-t", mode, "-T", mode, "-O", "qcow2", self.disk, target)
            self.assertIn("identical", qemu_img("compare", self.disk, target).stdout)

    def stable_writes(self, mode):
        """Flushes, and writes that are flushes, that come to the target's file."""
        target = self.create("target.raw", "4M", "raw")
        log = self.create("log.raw", "64M", "raw")
        node = (
            f"driver=raw,file.driver=blklogwrites,file.file.driver=file,file.file.filename={target},"
            f"file.log.driver=file,file.log.filename={log}"
        )
        img("convert", "-n", "--target-image-opts", "-t", mode, self.disk, node)
        with open(log, "rb") as file:
            data = file.read()
        entries, sector = struct.unpack_from("<QI", data, 16)
        at, stable = sector, 0
        for _ in range(entries):
            _where, length, flags = struct.unpack_from("<QQQ", data, at)
            stable += bool(flags & 3)
            at += sector + (0 if flags & 4 else length * sector)
        return stable

    def test_writethrough_makes_every_write_stable(self):
        self.assertGreaterEqual(self.stable_writes("writethrough"), 4)
        self.assertLessEqual(self.stable_writes("writeback"), 2)


class Interrupted(TestCase):
    def test_sigusr1_shows_progress_and_sigint_ends_it(self):
        disk = self.create("disk.raw", "4M", "raw")
        io(disk, "write -P 1 0 4M", fmt="raw")
        target = self.path("copy.qcow2")
        command = tool("img") + ["convert", "-f", "raw", "-O", "qcow2", "-r", "1M", disk, target]
        process = Process(command, self.path("log"))
        process.wait_for(lambda: os.path.exists(target), "the target")
        time.sleep(0.3)
        process.process.send_signal(10)
        process.wait_for(lambda: "/100%)" in process.log(), "the progress line")
        process.stop(sig=2, expect=None)
        self.assertIn("file format: qcow2", qemu_img("info", target).stdout)
        img("convert", "-f", "raw", "-O", "qcow2", disk, target)
        self.assertIn("identical", qemu_img("compare", disk, target).stdout)


class NotSupported(TestCase):
    def refused(self, message, *arguments):
        result = img(*arguments, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(message, result.stderr)

    def test_formats_are_named(self):
        disk = self.create("disk.raw", "1M", "raw")
        for fmt in ("cloop",):
            foreign = self.path(f"foreign.{fmt}")
            with open(foreign, "wb") as file:
                file.write(b"#!/bin/sh\n#V2.0 Format\n".ljust(4096, b"\0"))
            message = f"The format '{fmt}' is not supported"
            self.refused(message, "info", foreign)
            self.refused(message, "convert", foreign, self.path("out"))
            self.refused(message, "convert", "-f", fmt, foreign, self.path("out"))
            message = f"Format driver '{fmt}' does not support image creation"
            self.refused(message, "convert", "-O", fmt, disk, self.path("out"))
            self.refused(message, "create", "-f", fmt, self.path("out"), "1M")
            self.assertFalse(os.path.exists(self.path("out")))

    def test_encryption_is_not_begun_by_accident(self):
        new = self.path("new.qcow2")
        for option in ("encrypt.format=luks", "encrypt.format=luks,encrypt.cipher-alg=aes-256"):
            self.refused("is required for cipher", "create", "-f", "qcow2", "-o", option, new, "1M")
            self.assertFalse(os.path.exists(new))
        img("create", "-f", "qcow2", "-o", "encryption=off", new, "1M")
        self.assertNotIn("encrypt", qemu_img("info", new).stdout)


if __name__ == "__main__":
    unittest.main()
