# SPDX-License-Identifier: Apache-2.0
"""Random jobs on random graphs in use, against a model: see tests/lib/job_model.py."""

import io
import random
import unittest

from job_model import run_model
from tidemark import tool

SECONDS = 15


class JobModel(unittest.TestCase):
    def check(self, *only):
        seed = random.randrange(1 << 30)
        log = io.StringIO()
        try:
            steps = run_model(seed, SECONDS, 8 << 20, tool("daemon"), only, log)
        except Exception:
            self.fail(f"seed {seed}:\n{log.getvalue()}")
        self.assertGreater(steps, 10)

    def test_chains_that_change(self):
        self.check("snapshot", "stream", "commit_middle", "commit_active", "restart")

    def test_copies(self):
        self.check("backup", "pull", "mirror", "snapshot")

    def test_everything(self):
        self.check()

    def test_kills(self):
        self.check("kill", "snapshot", "commit_active", "mirror", "stream")


if __name__ == "__main__":
    unittest.main()
