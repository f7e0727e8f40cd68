# SPDX-License-Identifier: Apache-2.0
"""QEMU as a witness: it finds no corruption in states that a crash can leave, and reads in them
what we read. What is marked dirty is repaired first, as the next program that writes to it
would, and so are COPIED flags of version 2, which has no such mark.
"""

import glob
import os
import unittest

from qcow2_edit import Image
from tidemark import BUILD, TestCase, img, io, qemu_img, run

STATES = 6  # of each kind of image
CHAIN_STATES = 2  # likewise, if that is a chain
EXPLORED = 90
GROUPS = ("images", "jobs", "formats")
# The explorer itself opens these, by the passphrases that may be in force.
ENCRYPTED = ("luks", "luks-detached", "luks-qcow2")
FORMATS = ("vmdk", "vpc", "vhdx", "vdi", "qed", "parallels", "qcow")
VERSION, BACKING, INCOMPATIBLE, DIRTY = 4, 8, 72, 1  # places in the header, bit
EXPLORER = os.path.join(os.path.abspath(BUILD), "tests", "crash", "crash_explorer")


def is_dirty(image):
    header = Image(image)
    return header.u32(VERSION) >= 3 and bool(header.u64(INCOMPATIBLE) & DIRTY)


def backing_file(image):
    """The name that the header has; None: there is none."""
    header = Image(image)
    offset, length = header.u64(BACKING), header.u32(BACKING + 8)
    return header.read(offset, length).decode() if offset else None


def options(image):
    """How to open it: its data file and the images of its chain are next to it."""
    opts = f"driver=qcow2,file.driver=file,file.filename={image}"
    stem, below, prefix = image.replace(".qcow2", ""), image, ""
    if os.path.exists(stem + ".data"):
        opts += f",data-file.driver=file,data-file.filename={stem}.data"
    while (name := backing_file(below)) is not None:
        below, prefix = f"{stem}.{name}", prefix + "backing."
        opts += f",{prefix}driver=qcow2,{prefix}file.driver=file,{prefix}file.filename={below}"
    return opts


class WitnessTest(TestCase):
    def compare(self, image):
        raw = self.path("by-qemu.raw")
        qemu_img("convert", "--image-opts", options(image), "-O", "raw", raw)
        img("compare", "--image-opts", options(image), f"driver=raw,file.driver=file,file.filename={raw}")

    def repair_flags(self, image):
        """The only thing that may be wrong, and only in version 2; we put it right."""
        found = qemu_img("check", "--image-opts", options(image), check=False)
        if found.returncode == 2:
            self.assertEqual(Image(image).u32(VERSION), 2)
            for line in (found.stdout + found.stderr).splitlines():
                if line.startswith("ERROR"):
                    self.assertIn("OFLAG_COPIED", line)
            img("check", "-r", "all", "--image-opts", options(image))

    def check(self, image):
        if is_dirty(image):
            self.compare(image)
            io(options(image), "flush", options=["--image-opts"])
            self.assertFalse(is_dirty(image))
        self.repair_flags(image)
        result = qemu_img("check", "--image-opts", options(image), check=False)
        self.assertIn(result.returncode, (0, 3), f"{image}: {result.stdout}{result.stderr}")

    def test_qemu_finds_at_most_leaks(self):
        for kind in run(EXPLORER, "--config", "list").stdout.split():
            if kind not in GROUPS + FORMATS + ENCRYPTED:
                self.check_kind(kind)

    def test_qemu_reads_other_formats_alike(self):
        for kind in FORMATS:
            for image in self.explore(kind, CHAIN_STATES):
                with self.subTest(kind=kind, image=os.path.basename(image)):
                    self.compare_format(kind, image)
            self.clear()

    def compare_format(self, kind, image):
        """A log of vhdx is replayed first, as the next program that writes to it would."""
        raw, opts = self.path("by-qemu.raw"), f"driver={kind},file.driver=file,file.filename={image}"
        if kind == "vhdx":
            qemu_img("check", "-q", "-r", "all", "--image-opts", opts)
        qemu_img("convert", "--image-opts", opts, "-O", "raw", raw)
        img("compare", "--image-opts", opts, f"driver=raw,file.driver=file,file.filename={raw}")

    def check_kind(self, kind):
        states = CHAIN_STATES if kind.startswith(("job-", "live-")) else STATES
        for number, image in enumerate(self.explore(kind, states)):
            with self.subTest(kind=kind, image=os.path.basename(image)):
                self.check(image)
                if number % 3 == 0:
                    self.compare(image)
        self.clear()

    def explore(self, kind, states):
        run(EXPLORER, "--config", kind, "--states", EXPLORED, "--dump", states, "--seed", 40, cwd=self.dir)
        images = sorted(glob.glob(self.path("crash-*.qcow2")))
        self.assertEqual(len(images), states)
        return images

    def clear(self):
        for path in glob.glob(self.path("crash-*")):
            os.unlink(path)


if __name__ == "__main__":
    unittest.main()
