# SPDX-License-Identifier: Apache-2.0
"""The end of the daemon while a disk hangs: seconds, unless writes would be lost."""

import json
import os
import signal
import time

from hung_file import PATIENCE
from hung_image import HungImageCase
from tidemark import img, io

SECONDS = 3 * PATIENCE
# What nothing is waited for any longer that loses no writes.
SOON = 5


class HungEnd(HungImageCase):
    def setUp(self):
        super().setUp()
        for name in "sick", "good":
            self.server.qmp.command("block-dirty-bitmap-add", node=name, name="b", persistent=True)

    def end(self):
        os.kill(self.server.process.pid, signal.SIGTERM)

    def bitmaps(self, image):
        info = json.loads(img("info", "--output=json", image).stdout)
        return [(b["name"], b["flags"]) for b in info["format-specific"]["data"]["bitmaps"]]

    def test_bitmaps_of_a_disk_that_hangs_are_given_up(self):
        self.write("good")
        self.write("sick", flush=True)
        self.freeze()
        monitor = self.server.connect(timeout=2 * PATIENCE)
        self.addCleanup(monitor.close)
        self.end()
        # The process itself is gone as soon as the system lets go of its files.
        self.assertRaises(EOFError, monitor.receive_answer)
        log = self.server.log()
        self.assertIn("node 'sick' is left incomplete: its storage hangs", log)
        self.assertNotIn("'good'", log)
        self.assertEqual(self.bitmaps(self.good), [("b", ["auto"])])
        self.thaw()
        self.assertEqual(self.server.wait(SECONDS), 1)
        self.assertEqual(self.bitmaps(self.sick), [("b", ["in-use", "auto"])])
        io(self.sick, "read -P 0x73 4k 4k", fmt="qcow2")

    def test_writes_that_would_be_lost_are_waited_for(self):
        self.write("sick")
        self.freeze()
        self.end()
        time.sleep(SOON + 2)
        self.assertTrue(self.server.is_running(), self.server.log())
        self.thaw()
        self.assertEqual(self.server.wait(SECONDS), 0, self.server.log())
        self.assertEqual(self.bitmaps(self.sick), [("b", ["auto"])])
        io(self.sick, "read -P 0x73 4k 4k", fmt="qcow2")
