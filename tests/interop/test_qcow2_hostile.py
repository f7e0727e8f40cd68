# SPDX-License-Identifier: Apache-2.0
"""Images that were made to do harm: `info` and `check` take little memory, and open no file but the
image.
"""

import os
import re
import resource
import struct
import subprocess
import unittest

from qcow2_edit import COPIED, Image
from tidemark import TestCase, img, io, tool

MEMORY_MAX = 512 << 20
TIMEOUT = 120
COMMANDS = (("info",), ("info", "--output=json"), ("check",), ("check", "--output=json"))

DATA_FILE = 4
BITMAPS = 1
EXT_BITMAPS = 0x23852875
EXT_DATA_FILE = 0x44415441
EXT_END = 0


def header(cluster_bits=16, size=1 << 29, l1=(1, 3), reftable=(1, 1), snapshots=(0, 0), refcount_order=4,
           incompatible=0, autoclear=0, backing=(0, 0), extensions=b""):  # fmt: skip
    """A header; places are in clusters. l1: entries, place; reftable: clusters, place; snapshots:
    count, place.
    """
    cluster = 1 << cluster_bits
    fields = struct.pack(
        ">IIQIIQIIQQIIQ",
        0x514649FB, 3, backing[0], backing[1], cluster_bits, size, 0, l1[0], l1[1] * cluster,
        reftable[1] * cluster, reftable[0], snapshots[0], snapshots[1] * cluster,
    )  # fmt: skip
    fields += struct.pack(">QQQIIQ", incompatible, 0, autoclear, refcount_order, 112, 0)
    return fields + extensions + struct.pack(">II", EXT_END, 0)


def extension(kind, data):
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def entries(values):
    values = list(values)
    return struct.pack(f">{len(values)}Q", *values)


class Hostile(TestCase):
    in_memory = True

    def image(self, *parts, size=None):
        """A file with (offset, bytes) in it and holes elsewhere; its path."""
        path = self.path("hostile.qcow2")
        with open(path, "wb") as file:
            for offset, data in parts:
                file.seek(offset)
                file.write(data)
            file.truncate(max(size or 0, file.seek(0, os.SEEK_END)))
        return path

    def run_bounded(self, path):
        """Run the commands; their statuses. None may take more memory than is right, or end by a
        signal.
        """
        statuses = {}
        for words in COMMANDS:
            with self.subTest(words):
                with open(os.devnull, "wb") as null:
                    process = subprocess.Popen(
                        [*tool("img"), words[0], "-f", "qcow2", *words[1:], path],
                        stdout=null,
                        stderr=null,
                        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT, TIMEOUT)),
                    )
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                self.assertGreaterEqual(process.returncode, 0)
                self.assertLess(usage.ru_maxrss * 1024, MEMORY_MAX)
                statuses[words] = process.returncode
        return statuses

    def test_largest_tables_full_of_offsets(self):
        cluster = 1 << 16
        l1 = entries((5 + i) * cluster | COPIED for i in range(8)) * (512 << 10)
        reftable = entries((600 + i) * cluster for i in range(128)) * (8 << 10)
        table = entries((700 + i) * cluster | COPIED for i in range(8192))
        # The L1 table is at 1000, the refcount table at 2000, L2 tables at 5..12.
        path = self.image(
            (0, header(size=1 << 50, l1=(4 << 20, 1000), reftable=(128, 2000))),
            (5 * cluster, table * 8),
            (1000 * cluster, l1),
            (2000 * cluster, reftable),
            size=1 << 29,
        )
        statuses = self.run_bounded(path)
        self.assertEqual(statuses["check",], 2)
        self.assertEqual(statuses["info",], 0)

    def test_references_all_over_a_file_of_an_exbibyte(self):
        for bits in (9, 21):
            with self.subTest(bits):
                cluster, far = 1 << bits, 1 << 54
                tables = 4096
                step = far // (tables * cluster // 8) // cluster * cluster
                l1 = entries((100000 + i) * cluster | COPIED for i in range(tables))
                parts = [(0, header(bits, 1 << 32, (tables, 3), (1, 1), refcount_order=6))]
                parts.append((3 * cluster, l1))
                for i in range(0, tables, 16 if bits == 9 else 2048):
                    first = i * cluster // 8
                    table = entries((first + n) * step + (1 << 34) | COPIED for n in range(cluster // 8))
                    parts.append(((100000 + i) * cluster, table))
                try:
                    path = self.image(*parts, size=far)
                except OSError:
                    path = self.image(*parts, size=1 << 43)
                self.assertIn(self.run_bounded(path)["check",], (1, 2))

    def test_most_snapshots(self):
        cluster = 1 << 16
        one = struct.pack(">QIHHIIQII", 3 * cluster, 2, 5, 255, 0, 0, 0, 0, 16) + bytes(16)
        one += b"12345" + b"n" * 255
        one += bytes(-len(one) % 8)
        path = self.image(
            (0, header(snapshots=(65535, 100))),
            (3 * cluster, entries([5 * cluster] * 2)),
            (100 * cluster, one * 65535),
        )
        statuses = self.run_bounded(path)
        self.assertEqual(statuses["info",], 0)
        self.assertEqual(statuses["check",], 2)

    def snapshots_image(self, l1s, parts, **more):
        """Snapshots by their L1 tables: (entries, place)."""
        table = b"".join(
            struct.pack(">QIHHIIQII", place << 16, count, 5, 3, 0, 0, 0, 0, 24)
            + struct.pack(">QQQ", 0, 1 << 29, 0)
            + f"{i:5}s{i % 100:02}".encode()
            for i, (count, place) in enumerate(l1s)
        )
        return self.image((0, header(snapshots=(len(l1s), 100))), (100 << 16, table), *parts, **more)

    def dense_tables(self, count):
        """The first `count` L2 tables from cluster 20000 on, all full; and L1 entries that name
        them.
        """
        table = entries((30000 + i) << 16 for i in range(8192))
        return (20000 << 16, table * count), [20000 + i << 16 for i in range(count)]

    def complaints(self, path):
        return img("check", "-f", "qcow2", path, check=False).stderr

    def test_most_snapshots_with_one_largest_l1_table(self):
        tables, l1 = self.dense_tables(64)
        l1 = entries(l1) * 65536
        parts = [tables, (1000 << 16, l1)]
        path = self.snapshots_image([(4 << 20, 1000)] * 65535, parts, size=1 << 42)
        self.assertEqual(self.run_bounded(path)["check",], 2)

    def test_most_snapshots_whose_l1_tables_overlap(self):
        tables, l1 = self.dense_tables(64)
        l1 = entries(l1) * 256
        path = self.snapshots_image(
            [(1 << 20, 1000 + i % 8000) for i in range(65535)],
            [tables, (1000 << 16, l1 * 32)],
            size=1 << 42,
        )
        self.assertEqual(self.run_bounded(path)["check",], 2)
        reported = [line for line in self.complaints(path).splitlines() if "overlap" in line]
        self.assertEqual(len(reported), 1)
        self.assertRegex(reported[0], r"image '.*hostile.qcow2', snapshot +\d+ \(s\d+\): L1 tables")
        before = os.stat(path).st_mtime_ns
        img("check", "-r", "all", "-f", "qcow2", path, check=False)
        self.assertEqual(os.stat(path).st_mtime_ns, before)

    def test_most_snapshots_with_the_largest_l1_tables_in_holes(self):
        l1s = [(4 << 20, 40000 + i * 512) for i in range(65535)]
        try:
            path = self.snapshots_image(l1s, [], size=1 << 43)
        except OSError:
            self.skipTest("no files of 8 TiB here")
        self.assertEqual(self.run_bounded(path)["check",], 2)

    def test_snapshots_that_share_all_tables_are_right(self):
        path = self.create("many.qcow2", "1G")
        io(path, "write 0 1M", "write 600M 1M", fmt="qcow2")
        for i in range(50):
            img("snapshot", "-f", "qcow2", "-c", f"s{i}", path)
        self.assertEqual(img("check", "-f", "qcow2", path).stdout.splitlines()[0], "No errors were found on the image.")
        edit = Image(path)
        edit.put_refcount(edit.host(0), 49)
        result = img("check", "-f", "qcow2", path, check=False)
        self.assertIn("refcount=49 reference=51", result.stderr + result.stdout)

    def bitmap_image(self, count, name_size, table_entries, step=0, granularity=16, size=None, disk=None):
        cluster = 1 << 16
        padding = bytes(-name_size % 8)
        directory = b"".join(
            struct.pack(">QIIBBHI", (200 + i * step) * cluster, table_entries, 0, 1, granularity, name_size, 0)
            + str(i).encode().rjust(name_size, b"b") + padding for i in range(count)
        )
        bitmaps = extension(
            EXT_BITMAPS, struct.pack(">IIQQ", count, 0, len(directory), 300 * cluster)
        )
        return self.image(
            (0, header(autoclear=BITMAPS, extensions=bitmaps, **(disk or {}))),
            (200 * cluster, entries([1] * 8192)),
            (300 * cluster, directory),
            size=size,
        )

    def test_most_bitmaps_with_the_longest_names(self):
        statuses = self.run_bounded(self.bitmap_image(65535, 1000, 1))
        self.assertEqual(statuses["info",], 0)

    def test_bitmaps_of_which_each_is_as_large_as_the_file(self):
        self.run_bounded(self.bitmap_image(2000, 8, 8 << 20))

    def test_most_bitmaps_with_the_largest_tables(self):
        # A disk of 2 PiB. The tables are one and the same, or in holes.
        more = {"size": 1 << 51, "l1": (4 << 20, 1000)}
        for step in (0, 1024):
            with self.subTest(step=step):
                try:
                    path = self.bitmap_image(20000, 8, 8 << 20, step, 9, size=1 << 43, disk=more)
                except OSError:
                    self.skipTest("no files of 8 TiB here")
                self.assertEqual(self.run_bounded(path)["info",], 0)

    def opened_files(self, *words, path):
        """Names that a command opened, from a trace of its system calls."""
        trace = self.path("trace")
        command = ["strace", "-f", "-qq", "-s", "4096", "-e", "trace=open,openat,creat,connect"]
        subprocess.run(
            [*command, "-o", trace, *tool("img"), *words, path],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=TIMEOUT,
        )
        with open(trace, encoding="utf-8", errors="replace") as file:
            return set(re.findall(r'"([^"]+)"', file.read()))

    def named_files(self):
        """Ways to name another file in an image: {what: (header's part, its name)}."""
        secret = self.path("secret")
        with open(secret, "wb") as file:
            file.truncate(1 << 20)
        json = '{"driver":"raw","file":{"driver":"file","filename":"%s"}}' % secret
        return {
            "a path": secret,
            "a relative path": "secret",
            "json:": "json:" + json,
            "a scheme": "nbd+unix:///x?socket=" + self.path("secret"),
            "file:": "file:" + secret,
        }

    def test_no_file_that_the_image_names_is_opened(self):
        for kind, name in self.named_files().items():
            for how in ("backing", "data file"):
                raw = name.encode()
                more = {"incompatible": DATA_FILE, "extensions": extension(EXT_DATA_FILE, raw)}
                if how == "backing":
                    more = {"backing": (1024, len(raw))}
                path = self.image(
                    (0, header(**more)),
                    (1024, raw if how == "backing" else b""),
                    (3 << 16, bytes(8)),
                    size=5 << 16,
                )
                for words in COMMANDS:
                    for fmt in ((), ("-f", "qcow2")):
                        with self.subTest(kind, how=how, words=words, fmt=fmt):
                            opened = self.opened_files(*words, *fmt, path=path)
                            self.assertIn(path, opened)
                            self.assertFalse([f for f in opened if "secret" in f])

    def test_the_user_may_allow_it(self):
        base = self.create("base.raw", "1M", "raw")
        overlay = self.create("overlay.qcow2", "1M", options=("-b", base, "-F", "raw"))
        self.assertIn(base, self.opened_files("info", "--backing-chain", path=overlay))
        self.assertNotIn(base, self.opened_files("info", path=overlay))

    def test_data_files_of_odd_names_are_not_followed_for_reading_either(self):
        for kind, name in self.named_files().items():
            if kind in ("a path", "a relative path"):
                continue  # a plain file next to the image is what data files are
            with self.subTest(kind):
                raw = extension(EXT_DATA_FILE, name.encode())
                path = self.image(
                    (0, header(incompatible=DATA_FILE, extensions=raw)), (3 << 16, bytes(8)), size=5 << 16
                )
                result = io(path, "read 0 512", fmt="qcow2", check=False)
                self.assertIn("data file", result.stderr)
                self.assertNotEqual(result.returncode, 0)


if __name__ == "__main__":
    unittest.main()
