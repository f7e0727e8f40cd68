# SPDX-License-Identifier: Apache-2.0
"""QEMU as a witness: it finds no corruption in states that a crash can leave, and reads in them what
we read. What is marked dirty is repaired first, as the next program that writes to it would."""

import glob
import os
import unittest

from qcow2_edit import Image
from tidemark import BUILD, TestCase, img, io, qemu_img, run

STATES = 60
INCOMPATIBLE, DIRTY = 72, 1  # place in the header, bit


class WitnessTest(TestCase):
    def test_qemu_finds_at_most_leaks(self):
        explorer = os.path.join(os.path.abspath(BUILD), "tests", "crash", "crash_explorer")
        run(explorer, "--states", STATES, "--dump", STATES, "--seed", 40, cwd=self.dir)
        images = sorted(glob.glob(self.path("crash-*.qcow2")))
        self.assertEqual(len(images), STATES)
        for number, image in enumerate(images):
            raw = self.path("by-qemu.raw")
            if Image(image).u64(INCOMPATIBLE) & DIRTY:
                qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
                io(image, "flush", fmt="qcow2")
                self.assertEqual(Image(image).u64(INCOMPATIBLE) & DIRTY, 0)
                img("compare", "-f", "qcow2", "-F", "raw", image, raw)
            result = qemu_img("check", "-f", "qcow2", image, check=False)
            self.assertIn(result.returncode, (0, 3), f"{image}: {result.stdout}{result.stderr}")
            if number % 6 == 0:
                qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
                img("compare", "-f", "qcow2", "-F", "raw", image, raw)


if __name__ == "__main__":
    unittest.main()
