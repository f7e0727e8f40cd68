# SPDX-License-Identifier: Apache-2.0
"""Random work on one image by Tidemark and QEMU in turns; a model says what it has to hold.

More than in the suite: TIDEMARK_TURNS=FIRST-LAST, and another QEMU: TIDEMARK_QEMU=FOLDER of its
tools.
"""

import os
import random
import shutil
import tempfile
import unittest

from qcow2_turns import Turns
from tidemark import TestCase

# Every cluster size once, with every refcount width.
NUMBERS = range(13)


def numbers():
    first, _, last = os.environ.get("TIDEMARK_TURNS", "").partition("-")
    return range(int(first), int(last) + 1) if last else NUMBERS


class InTurns(TestCase):
    def test_random_work(self):
        where = "/dev/shm" if os.path.isdir("/dev/shm") else None
        for number in numbers():
            with self.subTest(number), tempfile.TemporaryDirectory(prefix="tm-", dir=where) as folder:
                turns = Turns(folder, random.Random(number), number)
                try:
                    turns.play(4 if numbers() is NUMBERS else 12)
                except Exception as error:
                    kept = os.environ.get("TIDEMARK_KEEP")
                    if kept:
                        shutil.copytree(folder, os.path.join(kept, str(number)), dirs_exist_ok=True)
                    log = "\n".join(turns.log)
                    raise AssertionError(f"number {number}, {turns.format}:\n{log}\n{error}") from error


if __name__ == "__main__":
    unittest.main()
