# SPDX-License-Identifier: Apache-2.0
"""Bitmaps when images leave a chain: every differential that could be computed before `commit` or
`rebase` can be computed after it, exact or a superset. The disks here are written and drawn in
clusters of 64 KiB, one character each.
"""

import json
import os
import random
import subprocess
import time
import unittest

from tidemark import TestCase, compat, img, io, qemu, qemu_img, run, tool

CLUSTER = 65536


def union(*drawings):
    return "".join("1" if "1" in column else "-" for column in zip(*drawings))


def covers(more, less):
    return all(a == "1" or b == "-" for a, b in zip(more, less))


class Chain(TestCase):
    def disk(self, name, clusters=8, backing=None, fmt="qcow2", options=()):
        below = ("-b", backing, "-F", "qcow2") if backing else ()
        return self.create(name, str(clusters * CLUSTER), fmt, options=(*below, *options))

    def draw(self, image, drawing):
        """Write what is no '-' of a drawing, each letter as a pattern."""
        writes = [
            f"write -P {ord(letter)} {at * CLUSTER} {CLUSTER}"
            for at, letter in enumerate(drawing)
            if letter != "-"
        ]
        io(image, *writes, fmt="qcow2")

    def contents(self, image):
        raw = self.path("contents.raw")
        qemu_img("convert", "-O", "raw", image, raw)
        with open(raw, "rb") as disk:
            data = disk.read()
        return "".join(chr(data[at]) if data[at] else "-" for at in range(0, len(data), CLUSTER))

    def bitmap(self, image, name, *actions):
        img("bitmap", "-f", "qcow2", *(actions or ("--add", "-g", "64k")), image, name)

    def bitmaps(self, image):
        """{name: recording} as QEMU's tool reports it."""
        info = json.loads(qemu_img("info", "--output=json", image).stdout)
        listed = info["format-specific"]["data"].get("bitmaps", [])
        for bitmap in listed:
            self.assertNotIn("in-use", bitmap["flags"])
        return {b["name"]: "auto" in b["flags"] for b in listed}

    def dirty(self, image, name):
        """A drawing of the bitmap as QEMU's server shows it."""
        extents = self.bitmap_extents(image, name)
        size = max(e["start"] + e["length"] for e in extents)
        drawing = ["-"] * (-(-size // CLUSTER))
        for e in extents:
            if not e["data"]:
                for at in range(e["start"] // CLUSTER, -(-(e["start"] + e["length"]) // CLUSTER)):
                    drawing[at] = "1"
        return "".join(drawing)

    def break_bitmaps(self, image):
        """Leave the enabled bitmaps of an image marked in use, as a crash does."""
        subprocess.run(
            [qemu("qemu-io"), "-f", "qcow2", "-c", "write -P 88 7k 1k", "-c", "abort", image],
            check=False,
            capture_output=True,
        )


class Commit(Chain):
    """Checkpoint 1 after A, checkpoint 2 after B (bitmap1 is frozen then), external snapshot after
    C, then D.
    """

    def setUp(self):
        super().setUp()
        self.base = self.disk("base.qcow2")
        self.draw(self.base, "AAAA----")
        self.bitmap(self.base, "bitmap1")
        self.draw(self.base, "--BB----")
        self.bitmap(self.base, "bitmap1", "--disable")
        self.bitmap(self.base, "bitmap2")
        self.draw(self.base, "----CC--")
        self.active = self.disk("active.qcow2", backing=self.base)

    def snapshot_bitmap(self, name="bitmap3"):
        self.bitmap(self.active, name)
        self.draw(self.active, "---D-DD-")

    def commit(self, *options):
        result = img("commit", "-f", "qcow2", *options, self.active)
        self.assertEqual(self.contents(self.base), "AABDCDD-")
        qemu_img("check", self.base)
        return result

    def assert_differentials(self):
        """Those of the three checkpoints, as they were computed over both images before."""
        later = [self.dirty(self.base, n) for n in ("bitmap1", "bitmap2", "bitmap3")]
        self.assertEqual(union(*later), "--11111-")
        self.assertEqual(union(*later[1:]), "---1111-")
        self.assertEqual(later[2], "---1-11-")

    def test_before(self):
        self.snapshot_bitmap()
        self.assertEqual(self.dirty(self.base, "bitmap1"), "--11----")
        self.assertEqual(self.dirty(self.base, "bitmap2"), "----11--")
        self.assertEqual(self.dirty(self.active, "bitmap3"), "---1-11-")

    def test_left_enabled(self):
        self.snapshot_bitmap()
        self.commit()
        self.assertEqual(self.dirty(self.base, "bitmap1"), "--11----")
        self.assertEqual(self.dirty(self.base, "bitmap2"), "---1111-")
        self.assertEqual(
            self.bitmaps(self.base), {"bitmap1": False, "bitmap2": True, "bitmap3": True}
        )
        self.assert_differentials()

    def test_disabled_before(self):
        self.snapshot_bitmap()
        self.bitmap(self.base, "bitmap2", "--disable")
        self.commit()
        self.assertEqual(self.dirty(self.base, "bitmap2"), "----11--")
        self.assertEqual(
            self.bitmaps(self.base), {"bitmap1": False, "bitmap2": False, "bitmap3": True}
        )
        self.assert_differentials()

    def test_disabled_too_late(self):
        self.snapshot_bitmap()
        self.commit()
        self.bitmap(self.base, "bitmap2", "--disable")
        self.assertEqual(self.dirty(self.base, "bitmap2"), "---1111-")
        self.assert_differentials()

    def test_without_the_bitmaps_of_the_top(self):
        self.snapshot_bitmap()
        self.commit("--no-bitmaps")
        self.assertEqual(self.bitmaps(self.base), {"bitmap1": False, "bitmap2": True})
        self.assertEqual(self.dirty(self.base, "bitmap2"), "---1111-")

    def test_bitmaps_of_the_top_stay(self):
        self.snapshot_bitmap()
        self.commit()
        self.assertEqual(self.dirty(self.active, "bitmap3"), "---1-11-")
        self.assertEqual(self.bitmaps(self.active), {"bitmap3": True})

    def test_dropped_top(self):
        self.snapshot_bitmap()
        self.commit("-d")
        os.unlink(self.active)
        self.assert_differentials()

    def test_same_name_in_both(self):
        self.bitmap(self.base, "bitmap2", "--disable")
        self.snapshot_bitmap("bitmap2")
        self.commit()
        self.assertEqual(self.dirty(self.base, "bitmap2"), "---1111-")
        self.assertEqual(self.bitmaps(self.base), {"bitmap1": False, "bitmap2": True})

    def test_frozen_one_of_the_top_stays_frozen(self):
        self.snapshot_bitmap()
        self.bitmap(self.active, "bitmap3", "--disable")
        self.commit()
        self.assertFalse(self.bitmaps(self.base)["bitmap3"])
        self.assert_differentials()

    def test_finer_and_coarser_granularity(self):
        self.bitmap(self.active, "fine", "--add", "-g", "4k")
        self.bitmap(self.active, "bitmap2", "--add", "-g", "128k")
        io(self.active, f"write -P 1 {3 * CLUSTER} 4k", fmt="qcow2")
        img("commit", "-f", "qcow2", self.active)
        info = json.loads(qemu_img("info", "--output=json", self.base).stdout)
        listed = info["format-specific"]["data"]["bitmaps"]
        self.assertEqual({b["name"]: b["granularity"] for b in listed}["fine"], 4096)
        self.assertEqual(self.dirty(self.base, "fine"), "---1----")
        self.assertEqual(self.dirty(self.base, "bitmap2"), "--1111--")

    def test_larger_top(self):
        img("resize", "-f", "qcow2", self.active, str(10 * CLUSTER))
        self.bitmap(self.active, "bitmap3")
        self.draw(self.active, "---D-DD--E")
        img("commit", "-f", "qcow2", self.active)
        self.assertEqual(self.contents(self.base), "AABDCDD--E")
        self.assertEqual(self.dirty(self.base, "bitmap3"), "---1-11--1")
        self.assertEqual(self.dirty(self.base, "bitmap2"), "---1111--1")

    def test_smaller_top(self):
        """What the base has beyond the end of the top is new to who has the top's state."""
        self.draw(self.base, "-------Z")
        img("resize", "-f", "qcow2", "--shrink", self.active, str(6 * CLUSTER))
        self.bitmap(self.active, "bitmap3")
        self.draw(self.active, "---D-D")
        img("commit", "-f", "qcow2", self.active)
        self.assertEqual(self.contents(self.base), "AABDCD-Z")
        self.assertEqual(self.dirty(self.base, "bitmap3"), "---1-111")

    def test_through_several_layers(self):
        self.snapshot_bitmap()
        top = self.disk("top.qcow2", backing=self.active)
        self.bitmap(top, "bitmap4")
        self.draw(top, "E-------")
        img("commit", "-f", "qcow2", "-b", self.base, top)
        self.assertEqual(self.contents(self.base), "EABDCDD-")
        self.assertEqual(self.dirty(self.base, "bitmap4"), "1-------")
        # It was enabled, and what is above its image came by as a write would have.
        self.assertEqual(self.dirty(self.base, "bitmap3"), "1--1-11-")
        self.assertEqual(self.dirty(self.base, "bitmap2"), "1--1111-")

    def test_one_name_in_two_layers(self):
        self.snapshot_bitmap()
        top = self.disk("top.qcow2", backing=self.active)
        self.bitmap(self.active, "bitmap3", "--disable")
        self.bitmap(top, "bitmap3", "--add", "-g", "32k")
        self.draw(top, "E-------")
        img("commit", "-f", "qcow2", "-b", self.base, top)
        self.assertEqual(self.dirty(self.base, "bitmap3"), "1--1-11-")
        self.assertTrue(self.bitmaps(self.base)["bitmap3"])

    def test_one_name_gets_its_finest_granularity(self):
        top = self.disk("top.qcow2", backing=self.active)
        self.bitmap(self.active, "both", "--add", "-g", "4k")
        self.bitmap(top, "both", "--add", "-g", "128k")
        img("commit", "-f", "qcow2", "-b", self.base, top)
        info = json.loads(qemu_img("info", "--output=json", self.base).stdout)
        listed = info["format-specific"]["data"]["bitmaps"]
        self.assertEqual({b["name"]: b["granularity"] for b in listed}["both"], 4096)

    def test_inconsistent_in_the_base_is_refused_before_anything_is_written(self):
        self.snapshot_bitmap("bitmap2")
        self.break_bitmaps(self.base)
        with open(self.base, "rb") as file:
            before = file.read()
        result = img("commit", "-f", "qcow2", self.active, check=False)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("'bitmap2'", result.stderr)
        self.assertIn("inconsistent", result.stderr)
        self.assertIn("--no-bitmaps", result.stderr)
        with open(self.base, "rb") as file:
            self.assertEqual(file.read(), before)
        img("bitmap", "-f", "qcow2", "--remove", self.base, "bitmap2")
        img("commit", "-f", "qcow2", self.active)
        self.assertEqual(self.dirty(self.base, "bitmap2"), "---1-11-")

    def test_inconsistent_in_the_top_is_left_out(self):
        self.snapshot_bitmap()
        self.break_bitmaps(self.active)
        result = img("commit", "-f", "qcow2", self.active)
        self.assertIn("'bitmap3'", result.stderr)
        self.assertEqual(self.bitmaps(self.base), {"bitmap1": False, "bitmap2": True})

    def test_base_that_stores_none(self):
        raw = self.create("base.raw", str(8 * CLUSTER), "raw")
        old = self.disk("old.qcow2", options=("-o", "compat=0.10"))
        for base, fmt in ((raw, "raw"), (old, "qcow2")):
            top = self.create(
                f"over-{fmt}", str(8 * CLUSTER), options=("-b", base, "-F", fmt)
            )
            self.bitmap(top, "b")
            self.draw(top, "---D----")
            result = img("commit", "-f", "qcow2", top)
            self.assertRegex(result.stderr, "warning: Bitmap 'b' .* stays where it is")
            self.assertEqual(self.dirty(top, "b"), "---1----")

    def test_called_as_qemu_img(self):
        """Bitmaps stay where they are, as scripts expect that merge them afterwards; unless it is
        asked for.
        """
        self.snapshot_bitmap()
        run(compat("qemu-img"), "commit", self.active)
        self.assertEqual(self.bitmaps(self.base), {"bitmap1": False, "bitmap2": True})
        run(compat("qemu-img"), "bitmap", "--add", self.base, "bitmap3")
        merge = ("--merge", "bitmap3", "-b", self.active, "-F", "qcow2")
        run(compat("qemu-img"), "bitmap", *merge, self.base, "bitmap3")
        self.assert_differentials()
        run(compat("qemu-img"), "bitmap", "--remove", self.base, "bitmap3")
        run(compat("qemu-img"), "commit", "--bitmaps", self.active)
        self.assert_differentials()

    def test_qemu_agrees_on_the_enabled_ones(self):
        """The bitmaps that the base had are what QEMU's commit makes of them."""
        self.snapshot_bitmap()
        copies = [self.path("base2.qcow2"), self.path("active2.qcow2")]
        for source, copy in zip((self.base, self.active), copies):
            subprocess.run(["cp", source, copy], check=True)
        img("rebase", "-f", "qcow2", "-u", "-b", copies[0], "-F", "qcow2", copies[1])
        qemu_img("commit", "-f", "qcow2", copies[1])
        self.commit()
        for name in ("bitmap1", "bitmap2"):
            self.assertEqual(self.dirty(self.base, name), self.dirty(copies[0], name))


class KilledCommit(Chain):
    """`img commit` is killed at any time, and run again. What was frozen for it is as it was; each
    bitmap that recorded has everything, or is inconsistent and says so; the overlay has everything
    until the base has.
    """

    in_memory = True
    clusters = 48

    def make(self, frozen):
        for name in ("base", "active"):
            if os.path.exists(self.path(name + ".qcow2")):
                os.unlink(self.path(name + ".qcow2"))
        n = self.clusters
        self.base = self.disk("base.qcow2", n)
        self.draw(self.base, "A" * n)
        self.bitmap(self.base, "bitmap1")
        self.draw(self.base, "-B" * (n // 4))
        self.bitmap(self.base, "bitmap1", "--disable")
        self.bitmap(self.base, "bitmap2")
        self.draw(self.base, "-" * (n // 2) + "-C" * (n // 4))
        if frozen:
            self.bitmap(self.base, "bitmap2", "--disable")
        self.active = self.disk("active.qcow2", n, backing=self.base)
        self.draw(self.active, "D-" * (n // 4))
        self.bitmap(self.active, "bitmap3")
        self.draw(self.active, "--E-" * (n // 4))
        self.wanted = self.contents(self.active)
        self.before = {name: self.dirty(self.base, name) for name in ("bitmap1", "bitmap2")}
        self.before["bitmap3"] = self.dirty(self.active, "bitmap3")

    def states(self, image):
        info = json.loads(qemu_img("info", "--output=json", image).stdout)
        listed = info["format-specific"]["data"].get("bitmaps", [])
        return {b["name"]: b["flags"] for b in listed}

    def kill_and_look(self, after):
        """Whether the commit was killed before it ended."""
        command = [*tool("img"), "commit", "-q", "-f", "qcow2", "-r", "8M", self.active]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            time.sleep(after)
            process.kill()
            process.wait()
        self.assertEqual(self.contents(self.active), self.wanted)
        self.assertNotIn("in-use", self.states(self.active)["bitmap3"])
        self.assertEqual(self.dirty(self.active, "bitmap3"), self.before["bitmap3"])
        self.assertEqual(self.dirty(self.base, "bitmap1"), self.before["bitmap1"])
        return process.returncode != 0

    def check_all(self, frozen, killed):
        base = self.states(self.base)
        self.assertEqual(self.contents(self.base), self.wanted)
        self.assertEqual(base["bitmap1"], [])
        self.assertEqual(self.dirty(self.base, "bitmap1"), self.before["bitmap1"])
        self.assertEqual(base["bitmap3"], ["auto"])
        self.assertTrue(covers(self.dirty(self.base, "bitmap3"), self.before["bitmap3"]))
        if frozen:
            self.assertEqual(base["bitmap2"], [])
            self.assertEqual(self.dirty(self.base, "bitmap2"), self.before["bitmap2"])
        elif "in-use" in base["bitmap2"]:
            self.assertTrue(killed)
        else:
            wanted = union(self.before["bitmap2"], self.before["bitmap3"])
            self.assertTrue(covers(self.dirty(self.base, "bitmap2"), wanted))

    def test_killed_at_any_time(self):
        """Twice, then once to the end. A bitmap of the base that was lost on the way has another
        name, so that the commit is not refused.
        """
        seed = random.Random(os.environ.get("TIDEMARK_SEED", "1"))
        for frozen in (True, False, True, False):
            with self.subTest(frozen=frozen):
                self.make(frozen)
                killed = [self.kill_and_look(seed.uniform(0, 0.35)) for _ in range(2)]
                if "in-use" in self.states(self.base).get("bitmap3", []):
                    img("bitmap", "-f", "qcow2", "--remove", self.base, "bitmap3")
                img("commit", "-q", "-f", "qcow2", self.active)
                self.check_all(frozen, any(killed))
                img("check", "-q", "-f", "qcow2", "-r", "leaks", self.base)


class Rebase(Chain):
    def setUp(self):
        super().setUp()
        self.base = self.disk("base.qcow2")
        self.draw(self.base, "AAAA----")
        self.middle = self.disk("middle.qcow2", backing=self.base)
        self.draw(self.middle, "-XB-----")
        self.bitmap(self.middle, "m")
        self.draw(self.middle, "-A------")
        self.top = self.disk("top.qcow2", backing=self.middle)
        self.bitmap(self.top, "t")
        self.draw(self.top, "---D----")

    def rebase(self, *options):
        before = self.contents(self.top)
        result = img("rebase", "-f", "qcow2", *options, self.top)
        self.assertEqual(self.contents(self.top), before)
        return result

    def test_copied_data_is_no_change(self):
        self.rebase("-b", self.base, "-F", "qcow2")
        self.assertEqual(self.dirty(self.top, "t"), "---1----")

    def test_zeroes_are_no_change_either(self):
        empty = self.disk("ones.qcow2")
        self.draw(empty, "FFFFFFFF")
        self.rebase("-b", empty, "-F", "qcow2")
        self.assertEqual(self.dirty(self.top, "t"), "---1----")

    def test_bitmaps_of_an_image_that_leaves(self):
        """Also of a place that reads as in the new backing file, and so is not copied."""
        self.rebase("-b", self.base, "-F", "qcow2")
        os.unlink(self.middle)
        self.assertEqual(self.dirty(self.top, "m"), "-1-1----")
        self.assertEqual(self.bitmaps(self.top), {"t": True, "m": True})

    def test_without_a_backing_file(self):
        self.bitmap(self.base, "b")
        self.rebase("-b", "")
        self.assertEqual(set(self.bitmaps(self.top)), {"t", "m", "b"})
        self.assertEqual(self.dirty(self.top, "b"), "-111----")

    def test_images_that_stay_keep_theirs(self):
        self.bitmap(self.base, "b")
        self.rebase("-b", self.base, "-F", "qcow2")
        self.assertEqual(set(self.bitmaps(self.top)), {"t", "m"})
        self.assertEqual(self.bitmaps(self.base), {"b": True})

    def test_left_out_if_wanted(self):
        self.rebase("--no-bitmaps", "-b", self.base, "-F", "qcow2")
        self.assertEqual(self.bitmaps(self.top), {"t": True})

    def test_unsafe_mode_leaves_bitmaps_alone(self):
        img("rebase", "-f", "qcow2", "-u", "-b", self.base, "-F", "qcow2", self.top)
        self.assertEqual(self.bitmaps(self.top), {"t": True})
        self.assertEqual(self.dirty(self.top, "t"), "---1----")


class Convert(Chain):
    def test_bitmaps_go_to_the_copy(self):
        image, copy = self.disk("image.qcow2"), self.path("copy.qcow2")
        self.bitmap(image, "b")
        self.draw(image, "-A-BB---")
        img("convert", "--bitmaps", "-f", "qcow2", "-O", "qcow2", image, copy)
        self.assertEqual(self.dirty(copy, "b"), "-1-11---")
        self.assertEqual(self.bitmaps(copy), {"b": True})


if __name__ == "__main__":
    unittest.main()
