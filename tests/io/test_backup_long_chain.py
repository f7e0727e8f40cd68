# SPDX-License-Identifier: Apache-2.0
"""A thousand increments are restored, in little memory."""

import datetime
import os
import subprocess

from made_repository import CLUSTER, MadeRepository
from tidemark import TestCase, tool

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
BACKUPS = 1000
# Of the whole process, in KiB; each image of the chain takes about 100.
MEMORY = 160 * 1024


class LongChain(TestCase):
    def test_a_thousand_increments(self):
        made = MadeRepository(self.path("repository"))
        for i in range(BACKUPS):
            content = (b"%d " % i * CLUSTER)[:CLUSTER]
            made.add(START + datetime.timedelta(hours=i), {i * 7 % 16: content})
            # What this process takes would count, too.
            made.models = {made.order[-1]: made.models[made.order[-1]]}
        process = subprocess.Popen([*tool("restore"), made.path, self.path("out.raw")],
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, 0)
        with open(self.path("out.raw"), "rb") as f:
            self.assertEqual(f.read(), bytes(made.models[made.order[-1]]))
        self.assertLess(usage.ru_maxrss, MEMORY)
