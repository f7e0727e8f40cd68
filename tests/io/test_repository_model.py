# SPDX-License-Identifier: Apache-2.0
"""Random days of backups, prunes, copies, kills, damage and repairs: every point in time that is
kept stays what it was. TIDEMARK_MODEL_DAYS=300 TIDEMARK_MODEL_DISKS=3 by hand.
"""

import datetime
import json
import os
import random
import shutil
import subprocess
import unittest

from made_repository import CLUSTER, MadeRepository
from tidemark import TestCase, run, tool

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
DAYS = int(os.environ.get("TIDEMARK_MODEL_DAYS", "8"))
DISKS = int(os.environ.get("TIDEMARK_MODEL_DISKS", "1"))
SEED = os.environ.get("TIDEMARK_MODEL_SEED", "a")
CALLS = "renameat,renameat2,unlinkat,mkdirat,fsync,ftruncate,pwrite64"


class Disk:
    """A repository with backups of a disk, and a copy of it; and what each of them has to have."""

    def __init__(self, case, path, ident, seed):
        self.case, self.random = case, random.Random(seed)
        self.made = MadeRepository(path, ident=ident)
        self.copy_path = path + "-copy"
        self.here, self.there = [], []
        self.now = START

    def run(self, *command, killed=False):
        """A command; some are killed in the middle, and run again."""
        words = ["--output=json", *command[1:]]
        if killed:
            step = self.random.randrange(1, 60)
            subprocess.run(
                ["strace", "-f", "-o", "/dev/null",
                 "-e", f"inject={CALLS}:signal=SIGKILL:when={step}", *tool(command[0]), *words],
                env={**os.environ, "TIDEMARK_LOOP": "epoll", "TZ": "UTC"},
                capture_output=True, check=False,
            )  # fmt: skip
        return json.loads(run(*tool(command[0]), *words, env={**os.environ, "TZ": "UTC"}).stdout)

    # What can happen.

    def backup(self):
        self.now += datetime.timedelta(hours=self.random.choice([1, 6, 24]))
        if self.random.random() < 0.05:
            self.now -= datetime.timedelta(days=2)
        changes = {
            n: self.random.choice([None, self.random.randbytes(CLUSTER)])
            for n in self.random.sample(range(16), self.random.randrange(6))
        }
        full = self.random.random() < 0.05
        self.made.order = list(self.here)
        self.here.append(self.made.add(self.now, changes, full=full))

    def prune(self):
        copy = os.path.exists(self.copy_path) and self.random.random() < 0.4
        path = self.copy_path if copy else self.made.path
        rules = [self.random.choice(["--keep-last", "--keep-daily", "--keep-hourly"]),
                 str(self.random.randrange(1, 8))]  # fmt: skip
        if self.random.random() < 0.3:
            rules += ["--keep-within", "2d", "--max-chain", str(self.random.randrange(2, 6))]
        planned = self.run("prune", *rules, "--dry-run", path)
        kept = [b["id"] for b in planned["backups"] if b["fate"] == "kept"]
        result = self.run("prune", *rules, path, killed=self.random.random() < 0.3)
        self.case.assertEqual([b["id"] for b in result["backups"] if b["fate"] == "kept"], kept)
        if copy:
            self.there = kept
        else:
            self.here = kept

    def copy(self):
        last = self.random.choice([None, 1, 3])
        words = [] if last is None else ["--last", str(last)]
        self.run("copy", *words, self.made.path, self.copy_path, killed=self.random.random() < 0.3)
        selected = self.here if last is None else self.here[-last:]
        self.there = [i for i in self.made.ever if i in self.there or i in selected]

    def lose_description(self):
        os.unlink(os.path.join(self.made.path, "repository.json"))
        run(*tool("repair"), self.made.path)

    # What has to be.

    def check(self, path, ids, thorough):
        listed = json.loads(run(*tool("backups"), "--output=json", path).stdout)
        self.case.assertEqual([b["id"] for b in listed], ids)
        for ident in ids if thorough else self.random.sample(ids, 1):
            out = self.case.path("out.raw")
            run(*tool("restore"), path, "--at", ident, "--force", out)
            with open(out, "rb") as f:
                self.case.assertEqual(f.read(), self.made.models[ident], ident)
        if thorough:
            run(*tool("verify"), path)

    def check_all(self, thorough=False):
        self.check(self.made.path, self.here, thorough)
        if self.there:
            self.check(self.copy_path, self.there, thorough)


class Model(TestCase):
    def test_random_days(self):
        for n in range(DISKS):
            disk = Disk(self, self.path(f"disk{n}"), f"0000000{n}", f"{SEED}{n}")
            disk.backup()
            for _ in range(DAYS):
                for _ in range(disk.random.randrange(1, 4)):
                    disk.backup()
                for step, chance in ((disk.prune, 0.5), (disk.copy, 0.4),
                                     (disk.lose_description, 0.1)):  # fmt: skip
                    if disk.random.random() < chance:
                        step()
                disk.check_all()
            disk.check_all(thorough=True)
            shutil.rmtree(disk.made.path)


if __name__ == "__main__":
    unittest.main()
