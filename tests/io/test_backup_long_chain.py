# SPDX-License-Identifier: Apache-2.0
"""A thousand increments, and a large disk, take little memory, time and few open files."""

import contextlib
import datetime
import os
import subprocess

from made_repository import CLUSTER, MadeRepository
from test_backup_mount import MountCase
from tidemark import TestCase, img, io, run, tool

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
BACKUPS = 1000
# Of the whole process, in KiB; the layers of the chain take about 8 each.
MEMORY = 64 * 1024
# Without the tables of a restored qcow2 image, which were up to 32 MiB more.
LARGE_MEMORY = 40 * 1024
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


def memory_of(*words):
    """What a command takes that succeeds, in KiB."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return usage.ru_maxrss


class LargeDisk(TestCase):
    in_memory = True

    def test_ten_tebibytes(self):
        """Data here and there: each piece has a table of its own in the image."""
        image, out = self.create("disk.qcow2", "10T"), self.path("out.qcow2")
        for n in range(0, 800, 100):
            io(image, *(f"write -q -P {i % 255 + 1} {i * 12}G 4k" for i in range(n, n + 100)),
               fmt="qcow2")  # fmt: skip
        to = self.path("repository")
        taken = memory_of(*tool("backup"), "--image", image, "--format", "qcow2", "--to", to)
        restored = memory_of(*tool("restore"), to, "-f", "qcow2", out)
        self.assertLess(taken, MEMORY)
        self.assertLess(restored, LARGE_MEMORY)
        img("compare", "-f", "qcow2", "-F", "qcow2", image, out)


class LongChain(TestCase):
    def test_a_thousand_increments(self):
        made = make_chain(self.path("repository"))
        memory = memory_of(*tool("restore"), made.path, self.path("out.raw"))
        with open(self.path("out.raw"), "rb") as f:
            self.assertEqual(f.read(), bytes(made.models[made.order[-1]]))
        self.assertLess(memory, MEMORY)

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
