# SPDX-License-Identifier: Apache-2.0
"""Sixteen clients on one image that four reactors serve: see tests/lib/nbd_crowd.py."""

import random
import unittest

from nbd_crowd import CLIENTS, run_crowd


class NbdCrowd(unittest.TestCase):
    def test_each_finds_what_it_wrote(self):
        for form in "qcow2", "raw":
            requests = run_crowd(random.randrange(1 << 30), 1, form)
            self.assertGreater(requests, CLIENTS)


if __name__ == "__main__":
    unittest.main()
