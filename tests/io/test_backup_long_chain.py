# SPDX-License-Identifier: Apache-2.0
"""A thousand increments are restored and mounted, with little memory, time and few open files."""

import contextlib
import datetime
import os
import subprocess

from made_repository import CLUSTER, MadeRepository
from test_backup_mount import MountCase
from tidemark import TestCase, run, tool

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
BACKUPS = 1000
# Of the whole process, in KiB; the layers of the chain take about 8 each.
MEMORY = 64 * 1024
FEW_FILES = 400
# Of the processor. With each layer opened for each point in time it were minutes.
LIST_SECONDS = 60


def make_chain(path, count=BACKUPS):
    made = MadeRepository(path)
    for i in range(count):
        content = (b"%d " % i * CLUSTER)[:CLUSTER]
        made.add(START + datetime.timedelta(hours=i), {i * 7 % 16: content})
        # What this process takes would count, too.
        made.models = {made.order[-1]: made.models[made.order[-1]]}
    return made


class LongChain(TestCase):
    def test_a_thousand_increments(self):
        made = make_chain(self.path("repository"))
        process = subprocess.Popen([*tool("restore"), made.path, self.path("out.raw")],
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, 0)
        with open(self.path("out.raw"), "rb") as f:
            self.assertEqual(f.read(), bytes(made.models[made.order[-1]]))
        self.assertLess(usage.ru_maxrss, MEMORY)

    def test_more_increments_than_files_may_be_open(self):
        made = make_chain(self.path("repository"), FEW_FILES)
        few = ("prlimit", f"--nofile={FEW_FILES}:{FEW_FILES}")
        run(*few, *tool("restore"), made.path, self.path("out.raw"))
        with open(self.path("out.raw"), "rb") as f:
            self.assertEqual(f.read(), bytes(made.models[made.order[-1]]))
        run(*few, *tool("verify"), made.path)


class MountedLongChain(MountCase):
    def cpu_seconds(self):
        with open(f"/proc/{self.mounted.process.pid}/stat", encoding="ascii") as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def test_every_point_is_examined(self):
        made = make_chain(self.path("repository"))
        self.mount(source=made.path)
        for backup in made.order:
            self.assertEqual(os.listdir(self.at(backup)), ["disk.raw"])
        self.assertLess(self.cpu_seconds(), LIST_SECONDS)

    def test_points_share_the_files_of_their_layers(self):
        made = make_chain(self.path("repository"), 100)
        self.mount(source=made.path)
        with contextlib.ExitStack() as stack:
            for backup in made.order[-20:]:
                f = stack.enter_context(open(self.at(backup, "disk.raw"), "rb"))
                self.assertEqual(len(f.read()), 16 * CLUSTER)
            opened = len(os.listdir(f"/proc/{self.mounted.process.pid}/fd"))
        self.assertEqual(self.content(made.order[-1], "disk.raw"),
                         bytes(made.models[made.order[-1]]))  # fmt: skip
        # Two for each layer.
        self.assertLess(opened, 3 * 100)
