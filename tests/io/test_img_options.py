# SPDX-License-Identifier: Apache-2.0
"""The grammar of `img`: long and short names of options, and combinations that are refused."""

import json
import os
import unittest

from tidemark import TestCase, img, io, qemu_img

LONG = {
    "amend": "quiet progress format image-opts cache force options object",
    "bench": "quiet format image-opts cache count buffer-size depth offset step-size aio native write pattern "
    "flush-interval no-drain force-share",
    "bitmap": "format image-opts add granularity remove clear enable disable merge source-file source-format object",
    "check": "quiet format image-opts cache force-share output repair object",
    "commit": "quiet progress format image-opts cache drop base rate object",
    "compare": "quiet progress a-format b-format image-opts strict cache force-share object",
    "convert": "quiet progress source-format image-opts source-snapshot source-cache target-format target-image-opts "
    "target-options compress target-cache backing backing-format no-create target-is-zero sparse-size bitmaps "
    "skip-broken-bitmaps force-share rate parallel copy-range-offloading salvage oob-writes object",
    "create": "quiet format options backing backing-format backing-unsafe object",
    "dd": "format image-opts output-format force-share",
    "info": "format image-opts backing-chain force-share object output",
    "map": "format image-opts start-offset max-length output force-share object",
    "measure": "target-format size format image-opts snapshot output force-share options object",
    "rebase": "quiet progress format image-opts cache backing backing-format backing-cache backing-unsafe compress "
    "force-share object",
    "resize": "quiet format image-opts shrink preallocation object",
    "snapshot": "quiet format image-opts force-share object list create apply delete",
}


class Grammar(TestCase):
    def refused(self, message, *arguments):
        result = img(*arguments, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(message, result.stderr)

    def test_long_names(self):
        for command, names in LONG.items():
            text = img(command, "--help").stdout
            for name in names.split():
                with self.subTest(command=command, option=name):
                    self.assertRegex(text, rf"(?m)^ .*--{name}[ =]")

    def test_long_names_mean_the_short_ones(self):
        disk = self.create("disk.qcow2", "4M")
        io(disk, "write -P 1 0 64k", fmt="qcow2")
        copy = self.path("copy.qcow2")
        img("convert", "--source-format", "qcow2", "--target-format", "qcow2", "--target-options", "cluster_size=4k",
            "--compress", "--parallel", "2", disk, copy)
        info = json.loads(qemu_img("info", "--output=json", copy).stdout)
        self.assertEqual(info["cluster-size"], 4096)
        top = self.path("top.qcow2")
        img("create", "--quiet", "--format", "qcow2", "--backing", copy, "--backing-format", "qcow2", top)
        img("compare", "--strict", "--a-format", "qcow2", "--b-format", "qcow2", disk, disk)
        img("snapshot", "--format", "qcow2", "--create", "s", top)
        self.assertIn("s", img("snapshot", "--list", top).stdout)

    def test_options_of_a_node_say_the_format_themselves(self):
        disk = self.create("disk.qcow2", "1M")
        node = f"driver=qcow2,file.filename={disk}"
        for command in (("info",), ("check",), ("map",), ("resize",), ("bitmap", "--add")):
            more = ("2M",) if command[0] == "resize" else ("b",) if command[0] == "bitmap" else ()
            self.refused(
                "--image-opts and --format are mutually exclusive",
                *command, "--image-opts", "-f", "qcow2", node, *more,
            )
        self.refused(
            "mutually exclusive",
            "convert", "-n", "--target-image-opts", "-O", "qcow2", disk, node,
        )

    def test_convert_runs_of_zeroes_up_to_16_mib(self):
        disk = self.create("disk.raw", "1M", "raw")
        img("convert", "-S", "16M", disk, self.path("a"))
        self.refused("multiples of 512 up to 16777216", "convert", "-S", "1000", disk, self.path("a"))
        self.refused("Invalid buffer size", "convert", "-S", "17M", disk, self.path("a"))

    def test_convert_backing_format(self):
        disk = self.create("disk.qcow2", "1M")
        target = self.path("t.qcow2")
        self.refused(
            "Backing format cannot be used without backing file",
            "convert", "-O", "qcow2", "-F", "qcow2", disk, target,
        )
        self.refused(
            "Use of backing file requires explicit backing format",
            "convert", "-O", "qcow2", "-o", f"backing_file={disk}", disk, target,
        )

    def test_convert_looks_for_room_for_bitmaps_before_it_copies(self):
        disk = self.create("disk.qcow2", "1M")
        img("bitmap", "-f", "qcow2", "--add", disk, "b")
        io(disk, "write -P 1 0 64k", fmt="qcow2")
        taken = self.create("taken.qcow2", "1M")
        img("bitmap", "-f", "qcow2", "--add", taken, "b")
        large = self.create("large.qcow2", "2M")
        old = self.create("old.qcow2", "1M", options=("-o", "compat=0.10"))
        for target, why in (
            (taken, "Failed to create bitmap b: Bitmap already exists: b"),
            (large, "another size"),
            (old, "qcow2 v2"),
        ):
            self.refused(why, "convert", "-n", "--bitmaps", "-O", "qcow2", disk, target)
            io(target, "read -P 0 0 1M", fmt="qcow2")

    def test_measure_looks_at_its_options(self):
        disk = self.create("disk.qcow2", "1M")
        img("bitmap", "-f", "qcow2", "--add", disk, "b")
        self.refused("Invalid parameter 'bogus'", "measure", "-O", "qcow2", "-o", "bogus=1", disk)
        self.assertIn("bitmaps size", img("measure", "-O", "qcow2", disk).stdout)
        self.assertNotIn("bitmaps", img("measure", "-O", "qcow2", "-o", "compat=0.10", disk).stdout)

    def test_trace_points_are_taken(self):
        disk = self.create("disk.qcow2", "1M")
        for words in (("-T", "x"), ("--trace=x",), ("--trace", "enable=x", "-Tfile=y")):
            self.assertIn("file format: qcow2", img(*words, "info", disk).stdout)

    def test_rebase_shares_the_new_backing_file_only(self):
        base, top = self.create("base.qcow2", "1M"), self.create("top.qcow2", "1M")
        img("rebase", "-U", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        self.assertIn("backing file: ", img("info", top).stdout)

    def test_refcount_widths_that_there_are_not(self):
        for bits in ("128", "7", "-1"):
            self.refused("Refcount width must be a power of two and may not exceed 64 bits", "create", "-f", "qcow2",
                         "-o", f"refcount_bits={bits}", self.path("new.qcow2"), "1M")

    def test_names_with_colons(self):
        folder = os.path.dirname(self.path("x"))
        img("create", "-f", "qcow2", "file:an:image.qcow2", "1M", cwd=folder)
        self.assertTrue(os.path.exists(self.path("an:image.qcow2")))
        self.assertIn("image: ./an:image.qcow2", img("info", "file:an:image.qcow2", cwd=folder).stdout)


class Circles(TestCase):
    def test_images_that_refer_to_each_other(self):
        one, two = self.create("one.qcow2", "1M"), self.create("two.qcow2", "1M")
        img("rebase", "-u", "-f", "qcow2", "-b", two, "-F", "qcow2", one)
        img("rebase", "-u", "-f", "qcow2", "-b", one, "-F", "qcow2", two)
        out = self.path("out.raw")
        for command in (
            ("map", one),
            ("convert", one, out),
            ("compare", one, two),
            ("measure", one),
            ("snapshot", "-l", one),
            ("commit", "-f", "qcow2", one),
            ("bitmap", "-f", "qcow2", "--add", one, "b"),
        ):
            result = img(*command, check=False)
            self.assertIn(result.returncode, (1, 2), command)
            self.assertRegex(result.stderr, "circle|infinite loop|lock")
        self.assertIn("infinite loop", img("info", "--backing-chain", one, check=False).stderr)
        img("check", one)  # looks at the one image alone
        # The way out.
        img("rebase", "-u", "-f", "qcow2", "-b", "", two)
        img("map", one)

    def test_a_long_chain_is_none(self):
        below = self.create("0.qcow2", "1M")
        for number in range(1, 100):
            image = self.path(f"{number}.qcow2")
            img("create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", image, "1M")
            below = image
        img("map", below)


class Preallocation(TestCase):
    def unwritten(self, image):
        """Bytes of its file that are a hole for who looks for data."""
        holes, at, size = 0, 0, os.stat(image).st_size
        with open(image, "rb") as file:
            while at < size:
                hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                try:
                    at = os.lseek(file.fileno(), hole, os.SEEK_DATA)
                except OSError:
                    at = size
                holes += at - hole
        return holes

    def test_full_is_written(self):
        made = self.create("made.qcow2", "4M", options=("-o", "preallocation=full"))
        grown = self.create("grown.qcow2", "1M")
        img("resize", "-f", "qcow2", "--preallocation=full", grown, "5M")
        for image in (made, grown):
            self.assertLess(self.unwritten(image), 1 << 20)
            qemu_img("check", image)

    def test_over_a_backing_file(self):
        """Half of the first new cluster is data of the backing file that must not show."""
        base = self.create("base.raw", "128k", "raw")
        io(base, "write -P 1 0 128k", fmt="raw")
        for mode in ("metadata", "falloc", "full"):
            top = self.path(f"{mode}.qcow2")
            img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top, "31k")
            img("resize", "-f", "qcow2", f"--preallocation={mode}", top, "128k")
            io(top, "read -P 1 0 31k", "read -P 0 31k 97k", fmt="qcow2")
            self.assertEqual(os.stat(top).st_size, 7 * 65536)
            extents = json.loads(qemu_img("map", "--output=json", top).stdout)
            self.assertTrue(all(e["depth"] == 0 and "offset" in e for e in extents), extents)
            qemu_img("check", top)


if __name__ == "__main__":
    unittest.main()
