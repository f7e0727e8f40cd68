# SPDX-License-Identifier: Apache-2.0
"""img check on images with one field of the metadata changed at random: the figures of qemu-img
check, and what repairs leave.

TIDEMARK_CHECK_SEEDS=100-1000 chooses others. Where the programs differ on purpose is said in
docs/qcow2.md, "Checking".
"""

import json
import os
import shutil
import subprocess
import unittest

from qcow2_damage import damage
from tidemark import TestCase, img, qemu, qemu_img, qemu_io

SEEDS = os.environ.get("TIDEMARK_CHECK_SEEDS", "0-12")

DATA = ("write -P 1 0 64k", "write -P 2 1M 64k", "write -P 3 4M 16k", "write -c -P 4 6M 32k", "write -z 2M 8k")
SMALL = ("write -P 1 0 9k", "write -P 2 20k 512", "write -z 30k 4k", "write -c -P 3 40k 2k")

# Options, size, commands of qemu-io or names of snapshots and bitmaps.
IMAGES = {
    "plain": ("cluster_size=4k", "8M", DATA),
    "bitmaps": ("cluster_size=4k", "8M", (DATA[0], "bitmap b", "bitmap c", *DATA[1:])),
    "snapshots": ("cluster_size=4k", "8M", (DATA[0], "snapshot s", DATA[1], "snapshot t", *DATA[2:])),
    "small": ("cluster_size=512", "64k", SMALL),
    "v2": ("cluster_size=512,compat=0.10", "64k", (SMALL[0], "snapshot s", "write -P 2 2k 2k")),
    "subclusters": (
        "cluster_size=16k,extended_l2=on",
        "512k",
        ("write -P 1 0 1k", "write -P 2 16k 20k", "write -z 17k 1k", "write -c -P 3 64k 16k"),
    ),
    "1 bit": ("cluster_size=512,refcount_bits=1", "64k", SMALL[:1]),
    "64 bits": ("cluster_size=512,refcount_bits=64", "64k", (SMALL[0], "snapshot s", "write 2k 2k")),
    "preallocated": ("cluster_size=512,preallocation=metadata", "16k", ()),
}

# Damage to these loses nothing that the guest can read.
HARMLESS = ("refcounts", "refcount table", "snapshot table", "bitmap directory", "bitmap tables")

# What was done, or what is said, where qemu-img is not followed.
OTHERWISE = (
    "is outside image",  # it makes the file as large as that
    "Could not open",  # we look further
    "overlaps with",  # its repairs fail
    "overhanging snapshots",  # it throws snapshots away that can be read
    "I/O error in check_refcounts_l1",
    "napshot table offset invalid",  # it opens some of them
    "overlap; not all of them are checked",  # it goes on reading
    "L1 size",  # likewise
)


def make(path, options, size, commands):
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, size)
    for command in commands:
        if command.startswith("bitmap "):
            qemu_img("bitmap", "--add", "-g", "4k", path, command[7:])
        elif command.startswith("snapshot "):
            qemu_img("snapshot", "-c", command[9:], path)
        else:
            qemu_io(path, command, fmt="qcow2")


class Result:
    """Of a check: exit status, figures (None if it failed), complaints."""

    def __init__(self, tool, path, *options):
        result = tool("check", "-f", "qcow2", "--output=json", *options, path, check=False)
        self.status, self.complaints, self.figures = result.returncode, result.stderr, None
        if result.stdout.startswith("{"):
            self.figures = json.loads(result.stdout)
            self.figures.pop("filename")
            if options:
                self.figures.pop("image-end-offset", None)


class Check(TestCase):
    def both(self, base, seed, *options):
        """(ours, QEMU's) of a check of copies damaged alike, which are left as ours and theirs."""
        found = []
        for tool, name in ((img, "ours"), (qemu_img, "theirs")):
            path = shutil.copy(base, self.path(name))
            self.what = damage(path, seed)
            found.append(Result(tool, path, *options))
        return found

    def compare(self, base, seed, *options):
        try:
            ours, theirs = self.both(base, seed, *options)
        except subprocess.TimeoutExpired as error:
            self.assertEqual(error.cmd[0], qemu("qemu-img"), self.what)
            return
        said = self.what + ours.complaints + theirs.complaints
        if any(word in said for word in OTHERWISE):
            self.assertIn(ours.status, (0, 1, 2, 3))
            return
        if options == ("-r", "all") and theirs.figures is None and ours.status == 0:
            return  # it could not repair that
        self.assertEqual(
            (ours.status, ours.figures), (theirs.status, theirs.figures),
            f"{self.what} {options}\n{ours.complaints}\n{theirs.complaints}",
        )  # fmt: skip

    def raw_of(self, path, *options):
        """The disk's contents; None if it can't be read."""
        raw = self.path("raw")
        result = img("convert", "-f", "qcow2", "-O", "raw", *options, path, raw, check=False)
        if result.returncode:
            return None
        with open(raw, "rb") as file:
            return file.read()

    def repair(self, base, seed):
        """What could be read before is read after, and QEMU has nothing against what was left."""
        path = shutil.copy(base, self.path("damaged"))
        before = self.raw_of(path)
        what = damage(path, seed, only=HARMLESS)
        ours = Result(img, path, "-r", "all")
        if ours.status == 0:
            self.assertEqual(self.raw_of(path), before, what)
            left = Result(qemu_img, path)
            if "Could not open" not in left.complaints:
                self.assertEqual(left.status, 0, f"{what}\n{left.complaints}")

    def test_figures_and_repairs(self):
        first, last = map(int, SEEDS.split("-"))
        for name, how in IMAGES.items():
            base = self.path("base")
            make(base, *how)
            # QEMU drops what snapshots refer to when it checks what it repaired.
            modes = [()] if any(c.startswith("snapshot") for c in how[2]) else [(), ("-r", "leaks"), ("-r", "all")]
            for seed in (f"{name} {n}" for n in range(first, last)):
                for options in modes:
                    with self.subTest(seed, options=options):
                        self.compare(base, seed, *options)
                with self.subTest(seed, repair=True):
                    self.repair(base, seed)
            os.unlink(base)


if __name__ == "__main__":
    unittest.main()
