# SPDX-License-Identifier: Apache-2.0
"""img convert, compare, resize, dd and bitmap, judged by qemu-img."""

import filecmp
import itertools
import json
import os
import re
import time
import unittest
from pathlib import Path

from nbd_server import Nbdkit
from tidemark import TestCase, compat, img, io, qemu_img, qemu_io, run

PATTERN = ("write -P 1 0 100k", "write -P 2 1M 3M", "write -z 2M 256k", "write -P 9 7340000 512")


class Convert(TestCase):
    def source(self, fmt="raw", size="8M"):
        path = self.create(f"source.{fmt}", size, fmt)
        qemu_io(path, *PATTERN, fmt=fmt)
        return path

    def assert_same(self, a, b):
        self.assertEqual(qemu_img("compare", a, b).stdout, "Images are identical.\n")

    def test_all_directions(self):
        for source_format in ("raw", "qcow2"):
            source = self.source(source_format)
            for target_format in ("raw", "qcow2"):
                with self.subTest(source=source_format, target=target_format):
                    target = self.path(f"{source_format}-to.{target_format}")
                    img("convert", "-f", source_format, "-O", target_format, source, target)
                    self.assert_same(source, target)
                    if target_format == "qcow2":
                        qemu_img("check", target)

    def test_a_full_target_is_overwritten(self):
        """In place: what the source has as zeroes, small runs too, hides what was there."""
        for fmt, options in itertools.product(("raw", "qcow2"), ((), ("-W",), ("-m", "1"))):
            with self.subTest(fmt=fmt, options=options):
                target = self.create(f"full.{fmt}", "40M", fmt)
                qemu_io(target, "write -P 7 0 40M", fmt=fmt)
                source = self.create("source.raw", "40M", "raw")
                qemu_io(source, *PATTERN, "write -P 3 20M 15M", "write -z 24M 36k", fmt="raw")
                img("convert", "-n", "-f", "raw", "-O", fmt, *options, source, target)
                self.assert_same(source, target)
                os.unlink(source)

    def test_zeroes_take_no_space(self):
        source = self.path("zero.raw")
        with open(source, "wb") as f:
            f.write(bytes(4 << 20))
        target = self.path("t.raw")
        img("convert", "-f", "raw", "-O", "raw", source, target)
        self.assertEqual(os.path.getsize(target), 4 << 20)
        self.assertLess(os.stat(target).st_blocks * 512, 64 << 10)

    def test_sparse_0_writes_everything(self):
        source = self.create("holes.raw", "2M", "raw")
        target = self.path("t.raw")
        img("convert", "-f", "raw", "-O", "raw", "-S", "0", source, target)
        self.assertGreaterEqual(os.stat(target).st_blocks * 512, 2 << 20)

    def test_shortest_run_of_zeroes_is_kept_to(self):
        source = self.path("s.raw")
        with open(source, "wb") as f:
            for _ in range(64):
                f.write(b"x" * 4096 + bytes(4096))
        for sparse, extents in (("4k", 128), ("8k", 1)):
            target = self.path("t.raw")
            img("convert", "-f", "raw", "-O", "raw", "-S", sparse, source, target)
            found = json.loads(img("map", "-f", "raw", "--output=json", target).stdout)
            self.assertEqual(len(found), extents, sparse)

    def test_progress_lines(self):
        target = self.path("t.raw")
        tool = compat("qemu-img")
        out = run(tool, "convert", "-p", "-f", "raw", "-O", "raw", self.source(), target).stdout
        # Carriage returns arrive as line ends, and one before a line end as none.
        self.assertTrue(out.startswith("    (0.00/100%)\n"), out)
        self.assertTrue(out.endswith("    (100.00/100%)\n"), out)
        self.assertEqual(
            run(tool, "convert", "-q", "-p", "-O", "raw", self.source(), target).stdout, ""
        )

    def test_existing_target_is_overwritten_with_zeroes_too(self):
        target = self.create("t.raw", "8M", "raw")
        qemu_io(target, "write -P 7 0 8M", fmt="raw")
        source = self.source()
        img("convert", "-n", "-f", "raw", "-O", "raw", source, target)
        self.assert_same(source, target)

    def test_too_small_a_target_is_refused(self):
        target = self.create("t.raw", "1M", "raw")
        result = img("convert", "-n", "-f", "raw", "-O", "raw", self.source(), target, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("smaller", result.stderr)

    def test_sources_are_joined(self):
        a = self.create("a.raw", "1000448", "raw")
        b = self.create("b.raw", "1M", "raw")
        qemu_io(a, "write -P 1 999936 512", fmt="raw")
        qemu_io(b, "write -P 2 0 512", fmt="raw")
        for fmt, options in (("raw", ()), ("qcow2", ("-c",))):
            target = self.path("joined." + fmt)
            img("convert", *options, "-f", "raw", "-O", fmt, a, b, target)
            qemu_io(
                target,
                "read -P 0 0 999936",
                "read -P 1 999936 512",
                "read -P 2 1000448 512",
                "read -P 0 1000960 1048064",
                fmt=fmt,
            )

    def test_target_with_backing_file_holds_only_the_difference(self):
        base = self.source("qcow2")
        top = self.create("top.qcow2", "8M", options=("-b", base, "-F", "qcow2"))
        qemu_io(top, "write -P 5 64k 64k", "write -z 3M 64k", fmt="qcow2")
        target = self.path("t.qcow2")
        img("convert", "-O", "qcow2", "-B", base, "-F", "qcow2", top, target)
        self.assert_same(top, target)
        own = [
            entry
            for entry in json.loads(qemu_img("map", "--output=json", target).stdout)
            if entry["depth"] == 0 and entry["present"]
        ]
        self.assertEqual(
            [(entry["start"], entry["length"]) for entry in own],
            [(64 << 10, 64 << 10), (3 << 20, 64 << 10)],
        )

    def test_beyond_the_backing_file_of_the_target(self):
        """There it has nothing of the source's backing file, and in place whatever it had."""
        base = self.create("base.raw", "4M", "raw")
        qemu_io(base, "write -P 5 0 4M", fmt="raw")
        source = self.path("source.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", source, "8M")
        qemu_io(source, "write -P 6 3M 512", "write -P 7 5000000 512", fmt="qcow2")
        short = self.create("short.raw", "1M", "raw")
        qemu_io(short, "write -P 5 0 1M", fmt="raw")
        target = self.path("target.qcow2")
        for words in ((), ("-c",), ("-n",), ("-n", "-S", "0")):
            with self.subTest(words=words):
                if "-n" in words:
                    qemu_img("create", "-q", "-f", "qcow2", "-b", short, "-F", "raw", target, "8M")
                    qemu_io(target, "write -P 9 1M 7M", fmt="qcow2")
                img(
                    "convert", *words, "-O", "qcow2", "-B", short, "-F", "raw", source, target
                )  # fmt: skip
                self.assert_same(source, target)

    def test_compressed(self):
        source = self.source()
        for kind in ("zlib", "zstd"):
            target = self.path(kind + ".qcow2")
            options = ("-o", f"compression_type={kind}")
            img("convert", "-c", "-f", "raw", "-O", "qcow2", *options, source, target)
            self.assert_same(source, target)
            check = json.loads(qemu_img("check", "--output=json", target).stdout)
            self.assertGreater(check["compressed-clusters"], 30)
            self.assertEqual(check["compressed-clusters"], check["allocated-clusters"])

    def real_data(self, size):
        """A disk of what programs and texts look like, with what can't be compressed and zeroes."""
        path = self.path("real.raw")
        files = sorted(Path(os.__file__).parent.glob("*.py"))
        with open(path, "wb") as f:
            for index in itertools.cycle(range(len(files))):
                if f.tell() >= size:
                    break
                f.write(files[index].read_bytes())
                if index % 7 == 0:
                    f.write(os.urandom(100_000))
                    f.seek(300_000, os.SEEK_CUR)
            f.truncate(size + 1536)
        return path

    def test_qemu_reads_what_we_compress(self):
        source = self.real_data(40 << 20)
        for kind in ("zlib", "zstd"):
            for cluster in ("4k", "64k", "2M"):
                with self.subTest(kind=kind, cluster=cluster):
                    target = self.path("t.qcow2")
                    options = ("-o", f"compression_type={kind},cluster_size={cluster}")
                    img("convert", "-c", "-f", "raw", "-O", "qcow2", *options, source, target)
                    self.assert_same(source, target)
                    back = self.path("back.raw")
                    qemu_img("convert", "-O", "raw", target, back)
                    self.assertTrue(filecmp.cmp(source, back, shallow=False))
                    check = json.loads(qemu_img("check", "--output=json", target).stdout)
                    self.assertGreater(
                        check["compressed-clusters"] * 2, check["allocated-clusters"]
                    )

    def test_we_read_what_qemu_compresses(self):
        source = self.real_data(40 << 20)
        for kind in ("zlib", "zstd"):
            for cluster in ("4k", "64k", "2M"):
                with self.subTest(kind=kind, cluster=cluster):
                    packed = self.path("t.qcow2")
                    options = ("-o", f"compression_type={kind},cluster_size={cluster}")
                    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", *options, source, packed)
                    back = self.path("back.raw")
                    img("convert", "-f", "qcow2", "-O", "raw", packed, back)
                    self.assertTrue(filecmp.cmp(source, back, shallow=False))

    def test_compressed_is_hardly_larger_than_by_qemu(self):
        source = self.real_data(40 << 20)
        for kind in ("zlib", "zstd"):
            options = ("-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}", source)
            ours, theirs = self.path("ours.qcow2"), self.path("theirs.qcow2")
            img("convert", *options, ours)
            qemu_img("convert", *options, theirs)
            self.assertLessEqual(os.path.getsize(ours), os.path.getsize(theirs) * 1.05, kind)

    def test_much_data_is_copied_by_two_threads(self):
        source = self.real_data(100 << 20)
        for words in ((), ("-m", "2"), ("-m", "16", "-W"), ("-S", "0")):
            with self.subTest(words=words):
                target = self.path("t.qcow2")
                img("convert", *words, "-f", "raw", "-O", "qcow2", source, target)
                self.assert_same(source, target)
                qemu_img("check", target)
                back = self.path("back.raw")
                img("convert", *words, "-f", "qcow2", "-O", "raw", target, back)
                self.assertTrue(filecmp.cmp(source, back, shallow=False))

    def test_the_target_is_laid_out_in_order(self):
        source, later = self.path("much.raw"), self.path("later")
        with open(source, "wb") as f:
            f.write(os.urandom(32 << 20))
        # The beginning comes last of what is read at a time: the others have to wait for it.
        read = f"dd if='{source}' bs=2M skip=$4 count=$3 iflag=skip_bytes,count_bytes"
        wait = f"for i in $(seq 1000); do [ -e '{later}' ] && break; sleep 0.01; done; sleep 0.3"
        server = self.own(
            Nbdkit(
                self.dir, "eval", f"get_size=echo {32 << 20}", "thread_model=echo parallel",
                f"pread=if [ $4 = 0 ]; then {wait}; {read}; else {read}; touch '{later}'; fi",
            )  # fmt: skip
        )
        target = self.path("t.qcow2")
        img("convert", "-f", "raw", "-O", "qcow2", server.uri(), target)
        self.assertTrue(os.path.exists(later))
        self.assert_same(source, target)
        extents = json.loads(qemu_img("map", "--output=json", target).stdout)
        offsets = [e["offset"] for e in extents]
        self.assertEqual(offsets, sorted(offsets))
        self.assertLess(len(extents), 4)  # but for the places of L2 tables and refcount blocks

    def test_odd_number_of_workers_and_a_rate(self):
        source = self.source()
        for words in (("-m", "1"), ("-m", "16", "-W"), ("-r", "64M")):
            target = self.path("t.qcow2")
            img("convert", *words, "-f", "raw", "-O", "qcow2", source, target)
            self.assert_same(source, target)

    def test_a_rate_is_of_what_is_moved(self):
        source, target = self.path("s.raw"), self.path("t.raw")
        with open(source, "wb") as f:
            f.truncate(8 << 30)
            f.seek(5 << 30)
            f.write(b"x" * 65536)
        img("convert", "-r", "64k", "-f", "raw", "-O", "raw", source, target, timeout=60)
        self.assert_same(source, target)

    def test_an_error_does_not_wait_for_the_rate_limit(self):
        source = self.path("s.raw")
        with open(source, "wb") as f:
            f.write(b"x" * (8 << 20))
        options = (
            f"driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={source},"
            "file.inject-error.0.event=read_aio"
        )
        begin = time.monotonic()
        result = img(
            "convert", "-r", "64k", "--image-opts", "-O", "raw", options, self.path("t.raw"),
            check=False,
        )  # fmt: skip
        self.assertEqual(result.returncode, 1)
        self.assertIn("error while reading", result.stderr)
        self.assertLess(time.monotonic() - begin, 10)

    def failing(self, size, what):
        """Options of a source whose reads, or whatever else, all fail."""
        source = self.path("failing.raw")
        with open(source, "wb") as f:
            f.write(b"x" * size)
        return (
            f"driver=blkdebug,image.driver=file,image.filename={source},"
            f"inject-error.0.event=none,inject-error.0.iotype={what}"
        )

    def test_a_status_that_fails_is_told_once(self):
        for words in ((), ("-W",), ("-m", "16")):
            with self.subTest(words=words):
                result = img(
                    "convert", *words, "--image-opts", "-O", "raw",
                    self.failing(1 << 20, "block-status"), self.path("t.raw"), check=False,
                )  # fmt: skip
                self.assertEqual(result.returncode, 1)
                self.assertRegex(result.stderr, r"\A[^\n]*error while reading block status[^\n]*\n\Z")

    def test_what_can_not_be_read_is_told_line_by_line_and_in_order(self):
        size = 32 << 20
        options = self.failing(size, "read")
        result = img(
            "convert", "--salvage", "--image-opts", "-O", "raw", options, self.path("t.raw")
        )
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), size // 512)
        for i, line in enumerate(lines):
            offset = i * 512
            self.assertRegex(
                line, rf"\A\S+( img)?: warning: error while reading offset {offset}: [^:]*\Z"
            )

    def test_progress_ends_at_100_percent(self):
        source = self.path("dotted.raw")
        with open(source, "wb") as f:
            f.truncate(16 << 20)
            for at in range(0, 16 << 20, 65536):
                f.seek(at)
                f.write(b"x" * 512)
        words = ("convert", "-c", "-p", "-O", "qcow2", "-f", "raw", source, self.path("t.qcow2"))
        shown = [float(n) for n in re.findall(r"([\d.]+)/100%", img(*words).stdout)]
        self.assertEqual(max(shown), 100)

    def test_bitmaps_are_copied(self):
        source = self.create("s.qcow2", "8M")
        qemu_img("bitmap", "--add", source, "one")
        qemu_io(source, "write 1M 1M", fmt="qcow2")
        qemu_img("bitmap", "--disable", source, "one")
        target = self.path("t.qcow2")
        img("convert", "--bitmaps", "-O", "qcow2", source, target)
        info = json.loads(qemu_img("info", "--output=json", target).stdout)
        bitmaps = info["format-specific"]["data"]["bitmaps"]
        self.assertEqual(bitmaps, [{"flags": [], "name": "one", "granularity": 65536}])
        result = img("convert", "--bitmaps", "-O", "raw", source, self.path("t"), check=False)
        self.assertIn("'raw' does not support bitmaps", result.stderr)

    def test_contradicting_options_are_refused(self):
        source = self.source()
        for words, word in (
            (("-C", "-c"), "-c"),
            (("-C", "-S", "8k"), "-S"),
            (("-n", "-o", "size=1M"), "-o has no effect"),
            (("--target-is-zero",), "-n"),
            (("-m", "17"), "between 1 and 16"),
            (("-S", "1000"), "512"),
        ):
            result = img("convert", *words, "-f", "raw", source, self.path("t"), check=False)
            self.assertEqual(result.returncode, 1, words)
            self.assertIn(word, result.stderr)

    def test_a_missing_source_is_named(self):
        result = img("convert", "-O", "raw", self.path("gone"), self.path("t"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(self.path("gone"), result.stderr)
        self.assertFalse(os.path.exists(self.path("t")))


class Device(TestCase):
    """A block device has something on it before it is a target."""

    def setUp(self):
        super().setUp()
        self.content = self.path("content")
        with open(self.content, "wb") as f:
            f.write(b"before" * (2 << 20))
        as_root = () if os.geteuid() == 0 else ("sudo", "-n")
        made = run(*as_root, "losetup", "-f", "--show", self.content, check=False)
        if made.returncode:
            self.skipTest(f"no loop device is available: {made.stderr}")
        self.device = made.stdout.strip()
        self.addCleanup(run, *as_root, "losetup", "-d", self.device)
        if as_root:
            run(*as_root, "chown", str(os.geteuid()), self.device)
        self.source = self.create("source.raw", "8M", "raw")
        qemu_io(self.source, *PATTERN, fmt="raw")

    def test_raw(self):
        for words in ((), ("-C",), ("-W",)):
            with self.subTest(words=words):
                with open(self.device, "r+b") as f:
                    f.write(b"before" * (2 << 20))
                img("convert", *words, "-f", "raw", "-O", "raw", self.source, self.device)
                with open(self.source, "rb") as a, open(self.device, "rb") as b:
                    self.assertEqual(a.read(), b.read(8 << 20))

    def test_qcow2(self):
        for words in ((), ("-o", "preallocation=metadata")):
            with self.subTest(words=words):
                img("convert", *words, "-f", "raw", "-O", "qcow2", self.source, self.device)
                qemu_img("compare", "-f", "raw", "-F", "qcow2", self.source, self.device)
                qemu_img("check", "-f", "qcow2", self.device)
                io(self.device, "write -P 3 5M 3M", fmt="qcow2")
                qemu_io(self.device, "read -P 3 5M 3M", fmt="qcow2")
        too_large = img(
            "create", "-f", "qcow2", "-o", "preallocation=metadata", self.device, "40G", check=False
        )
        self.assertEqual(too_large.returncode, 1)
        self.assertIn("Cannot resize device", too_large.stderr)


class Compare(TestCase):
    def both(self, *arguments):
        ours = run(compat("qemu-img"), "compare", *arguments, check=False)
        theirs = qemu_img("compare", *arguments, check=False)
        self.assertEqual(
            (ours.returncode, ours.stdout), (theirs.returncode, theirs.stdout), ours.stderr
        )
        return ours.returncode

    def test_same_and_different(self):
        a = self.create("a.raw", "4M", "raw")
        b = self.create("b.qcow2", "4M")
        self.assertEqual(self.both(a, b), 0)
        qemu_io(b, "write -P 1 3M 512", fmt="qcow2")
        self.assertEqual(self.both(a, b), 1)
        qemu_io(a, "write -P 1 3M 512", fmt="raw")
        self.assertEqual(self.both(a, b), 0)
        self.assertEqual(self.both("-q", a, b), 0)

    def test_different_sizes(self):
        a = self.create("a.raw", "4M", "raw")
        b = self.create("b.raw", "6M", "raw")
        formats = ("-f", "raw", "-F", "raw")
        self.assertEqual(self.both(*formats, a, b), 0)
        self.assertEqual(self.both(*formats, "-s", a, b), 1)
        qemu_io(b, "write -P 1 5M 512", fmt="raw")
        self.assertEqual(self.both(*formats, a, b), 1)

    def test_a_missing_image_is_status_2(self):
        a = self.create("a.raw", "1M", "raw")
        self.assertEqual(self.both(a, self.path("gone")), 2)
        self.assertEqual(self.both(a), 1)


class Resize(TestCase):
    def test_grow_and_shrink(self):
        for fmt in ("raw", "qcow2"):
            path = self.create("a." + fmt, "4M", fmt)
            self.assertEqual(img("resize", "-f", fmt, path, "+4M").stdout, "Image resized.\n")
            qemu_io(path, "write -P 3 6M 1M", fmt=fmt)
            refused = img("resize", "-f", fmt, path, "5M", check=False)
            self.assertEqual(refused.returncode, 1)
            self.assertIn("--shrink", refused.stderr)
            img("resize", "-q", "--shrink", "-f", fmt, path, "-3M")
            self.assertIn("5242880", qemu_img("info", path).stdout)
            img("resize", "-q", "-f", fmt, path, "8M")
            qemu_io(path, "read -P 0 4M 4M", fmt=fmt)

    def test_size_must_make_sense(self):
        path = self.create("a.raw", "4M", "raw")
        for size in ("0", "-4M", "-5M", "many"):
            self.assertEqual(
                img("resize", "--shrink", "-f", "raw", path, size, check=False).returncode, 1, size
            )


class LargestSize(TestCase):
    in_memory = True  # a file system where files may have 2^63 - 1 bytes

    def test_no_disk_is_larger_than_those_of_qemu(self):
        path, largest = self.path("a.raw"), 2**63 - 2**30
        for size in 2**63 - 1, 2**63 - 1024, largest + 512:
            result = img("create", "-q", "-f", "raw", path, str(size), check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("size is too large", result.stderr)
            self.assertFalse(os.path.exists(path))
        img("create", "-q", "-f", "raw", path, "1M")
        result = img("resize", "-q", "-f", "raw", path, str(largest + 512), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"exceeds maximum({largest})", result.stderr)
        img("resize", "-q", "-f", "raw", path, str(largest))
        self.assertIn(str(largest), qemu_img("info", "-f", "raw", path).stdout)


class Dd(TestCase):
    def test_part_of_a_disk(self):
        source = self.create("a.raw", "1M", "raw")
        io(source, "write -P 1 0 64k", "write -P 2 64k 64k", "write -P 3 128k 64k", fmt="raw")
        target = self.path("t.raw")
        img("dd", "-f", "raw", f"if={source}", f"of={target}", "bs=64k", "skip=1", "count=1")
        self.assertEqual(os.path.getsize(target), 64 << 10)
        qemu_io(target, "read -P 2 0 64k", fmt="raw")

    def test_operands_are_checked(self):
        result = img("dd", "if=x", "nonsense=1", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("nonsense", result.stderr)
        self.assertEqual(img("dd", "if=x", check=False).returncode, 1)


class Bitmap(TestCase):
    def bitmaps(self, path):
        info = json.loads(qemu_img("info", "--output=json", path).stdout)
        data = info["format-specific"]["data"]
        return {b["name"]: (b["flags"], b["granularity"]) for b in data.get("bitmaps", ())}

    def test_life(self):
        path = self.create("a.qcow2", "8M")
        img("bitmap", "--add", "-g", "128k", path, "one", "-f", "qcow2")
        self.assertEqual(self.bitmaps(path), {"one": (["auto"], 131072)})
        img("bitmap", "--disable", path, "one", "-f", "qcow2")
        self.assertEqual(self.bitmaps(path), {"one": ([], 131072)})
        img("bitmap", "--enable", "--clear", path, "one", "-f", "qcow2")
        self.assertEqual(self.bitmaps(path), {"one": (["auto"], 131072)})
        img("bitmap", "--remove", path, "one", "-f", "qcow2")
        self.assertEqual(self.bitmaps(path), {})

    def test_remove_all(self):
        """Broken ones too; mixed with actions on one bitmap in their order."""
        path = self.create("a.qcow2", "8M")
        for name in ("one", "two", "three"):
            img("bitmap", "-f", "qcow2", "--add", path, name)
        with open(path, "r+b") as f:
            # An entry: table offset, table size, flags (in use) ..., in 24 bytes, and the name.
            f.seek(f.read().rindex(b"two") - 24 + 12)
            f.write((3).to_bytes(4, "big"))
        self.assertEqual(sorted(self.bitmaps(path)["two"][0]), ["auto", "in-use"])
        img("bitmap", "-f", "qcow2", "--remove-all", path)
        self.assertEqual(self.bitmaps(path), {})
        qemu_img("check", path)
        img("bitmap", "-f", "qcow2", "--remove-all", path)
        img("bitmap", "-f", "qcow2", "--add", path, "one")
        img("bitmap", "-f", "qcow2", "--remove-all", "--add", path, "two")
        self.assertEqual(list(self.bitmaps(path)), ["two"])
        for words in (("--remove-all", path, "two"), ("--remove-all", "--add", path)):
            self.assertEqual(img("bitmap", "-f", "qcow2", *words, check=False).returncode, 1)

    def test_merge_from_an_overlay_into_its_base(self):
        base = self.create("base.qcow2", "1M")
        overlay = self.path("overlay.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
        img("bitmap", "--add", "-f", "qcow2", overlay, "top")
        options = ("-f", "qcow2", "-b", overlay, "-F", "qcow2")
        img("bitmap", "--add", "--merge", "top", *options, base, "copy")
        self.assertEqual(self.bitmaps(base), {"copy": (["auto"], 65536)})

    def test_merge_from_another_image(self):
        a = self.create("a.qcow2", "8M")
        b = self.create("b.qcow2", "8M")
        qemu_img("bitmap", "--add", a, "dirty")
        qemu_io(a, "write 1M 64k", fmt="qcow2")
        options = ("-f", "qcow2", "-b", a, "-F", "qcow2")
        img("bitmap", "--add", "--disable", "--merge", "dirty", *options, b, "sum")
        self.assertEqual(self.bitmaps(b), {"sum": ([], 65536)})
        qemu_img("check", b)

    def test_problems_are_named(self):
        path = self.create("a.qcow2", "8M")
        for words, word in (
            (("--remove", path, "gone"), "'gone'"),
            ((path, "one"), "at least one of"),
            (("--clear", "-g", "64k", path, "one"), "--add"),
            (("--add", "-b", "x", path, "one"), "--merge"),
            (("--add", path), "bitmap name"),
        ):
            result = img("bitmap", "-f", "qcow2", *words, check=False)
            self.assertEqual(result.returncode, 1, words)
            self.assertIn(word, result.stderr)


if __name__ == "__main__":
    unittest.main()
