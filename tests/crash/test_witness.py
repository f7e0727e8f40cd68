# SPDX-License-Identifier: Apache-2.0
"""QEMU as a witness: it finds no corruption in states that a crash can leave, and reads in them what
we read."""

import glob
import os
import unittest

from tidemark import BUILD, TestCase, img, qemu_img, run

STATES = 60


class WitnessTest(TestCase):
    def test_qemu_finds_at_most_leaks(self):
        explorer = os.path.join(os.path.abspath(BUILD), "tests", "crash", "crash_explorer")
        run(explorer, "--states", STATES, "--dump", STATES, "--seed", 40, cwd=self.dir)
        images = sorted(glob.glob(self.path("crash-*.qcow2")))
        self.assertEqual(len(images), STATES)
        for number, image in enumerate(images):
            result = qemu_img("check", "-f", "qcow2", image, check=False)
            self.assertIn(result.returncode, (0, 3), f"{image}: {result.stdout}{result.stderr}")
            if number % 6 == 0:
                raw = self.path("by-qemu.raw")
                qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
                img("compare", "-f", "qcow2", "-F", "raw", image, raw)


if __name__ == "__main__":
    unittest.main()
