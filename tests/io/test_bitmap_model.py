# SPDX-License-Identifier: Apache-2.0
"""Bitmaps through random operations, against a model: see tests/lib/bitmap_model.py."""

import io
import random
import unittest

from bitmap_model import run_model

SECONDS = 4


class BitmapModel(unittest.TestCase):
    def check(self, *only):
        seed = random.randrange(1 << 30)
        log = io.StringIO()
        try:
            steps = run_model(seed, SECONDS, log, only)
        except Exception as error:
            self.fail(f"seed {seed}: {error!r}\n{log.getvalue()}")
        self.assertGreater(steps, 5)

    def test_everything(self):
        self.check()

    def test_chains(self):
        self.check("write", "zero", "checkpoint", "snapshot", "commit", "stream", "restart", "offline")


if __name__ == "__main__":
    unittest.main()
