# SPDX-License-Identifier: Apache-2.0
"""Copies of repositories: complete, incremental, in part, after kills, and of damaged ones."""

import datetime
import json
import os
import random
import shutil
import subprocess
import unittest

from made_repository import CLUSTER, KEPT, MadeRepository, change_manifest
from tidemark import TestCase, qemu_img, run, tool

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
HOUR = datetime.timedelta(hours=1)
# Kills per run of the suite; TIDEMARK_COPY_KILLS=200 by hand.
KILLS = int(os.environ.get("TIDEMARK_COPY_KILLS", "4"))
CALLS = "renameat,renameat2,unlinkat,mkdirat,fsync,ftruncate,pwrite64"


class CopyCase(TestCase):
    def setUp(self):
        super().setUp()
        self.random = random.Random(self.id())
        self.made = MadeRepository(self.path("source"))
        self.copy_path = self.path("copy")
        self.fill(4)

    def fill(self, count, full=False):
        for _ in range(count):
            self.made.add(START + len(self.made.order) * HOUR, self.changes(), full=full)

    def changes(self):
        return {
            n: self.random.choice([None, self.random.randbytes(CLUSTER)])
            for n in self.random.sample(range(16), 4)
        }

    def copy(self, *words, status=0, to=None):
        result = run(*tool("copy"), "--output=json", *words, self.made.path, to or self.copy_path,
                     check=False)  # fmt: skip
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return json.loads(result.stdout)

    def prune(self, path, *words):
        run(*tool("prune"), *words, path)

    def list(self, path=None):
        out = run(*tool("backups"), "--output=json", path or self.copy_path).stdout
        return json.loads(out)

    def ids(self, path=None):
        return [b["id"] for b in self.list(path)]

    def assert_right(self, path=None):
        """Every backup restores to its point in time; and all is sound."""
        path = path or self.copy_path
        for ident in self.ids(path):
            run(*tool("restore"), path, "--at", ident, "--force", self.path("out.raw"))
            with open(self.path("out.raw"), "rb") as f:
                self.assertEqual(f.read(), self.made.models[ident], ident)
        run(*tool("verify"), path)
        left = [n for n in os.listdir(path) if n.startswith(".tidemark-") and n not in KEPT]
        self.assertEqual(left, [])


class Copies(CopyCase):
    def test_copy_has_all_backups_and_an_id_of_its_own(self):
        result = self.copy()
        self.assertEqual((result["copied"], result["merged"], result["present"]), (4, 0, 0))
        self.assertNotEqual(result["id"], self.made.ident)
        self.assertEqual(self.ids(), self.made.order)
        self.assert_right()
        newest = os.path.join(self.copy_path, self.made.order[-1], "disk.qcow2")
        qemu_img("convert", "-O", "raw", newest, self.path("q.raw"))
        with open(self.path("q.raw"), "rb") as f:
            self.assertEqual(f.read(), self.made.models[self.made.order[-1]])
        self.assertEqual(os.stat(self.copy_path).st_mode & 0o777, 0o700)
        self.assertEqual(os.stat(newest).st_mode & 0o777, 0o600)

    def test_next_run_copies_what_is_new(self):
        self.copy()
        self.fill(2)
        result = self.copy()
        self.assertEqual((result["copied"], result["present"]), (2, 4))
        result = self.copy()
        self.assertEqual((result["copied"], result["present"], result["written-bytes"]), (0, 6, 0))
        self.assert_right()

    def test_part_begins_with_a_full_backup(self):
        result = self.copy("--last", "2")
        self.assertEqual((result["copied"], result["merged"]), (2, 1))
        self.assertEqual([b["kind"] for b in self.list()], ["full", "incremental"])
        self.assert_right()
        self.fill(3)
        # The second of these builds on one that the copy does not get.
        result = self.copy("--at", self.made.order[5])
        self.assertEqual(result["merged"], 1)
        self.assertEqual(self.ids(), [self.made.order[i] for i in (2, 3, 5)])
        self.assert_right()

    def test_each_is_pruned_by_its_own_rules(self):
        self.copy()
        self.prune(self.made.path, "--keep-last=2")
        self.fill(3)
        self.prune(self.copy_path, "--remove", self.made.order[1])
        self.copy()
        self.assertEqual(len(self.ids()), 6)
        self.assert_right()
        self.prune(self.made.path, "--keep-last=1")
        self.prune(self.copy_path, "--keep-last=3", "--remove", self.made.order[-2])
        self.fill(2)
        self.copy("--last", "1")
        self.assert_right()
        self.assert_right(self.made.path)

    def test_new_chain_is_copied_too(self):
        self.copy()
        self.fill(1, full=True)
        self.fill(1)
        self.copy()
        self.assertEqual([b["kind"] for b in self.list()].count("full"), 2)
        self.assert_right()

    def test_copy_of_a_copy(self):
        self.copy("--last", "3")
        third = self.path("third")
        run(*tool("copy"), self.copy_path, third)
        self.assertEqual(self.ids(third), self.made.order[1:])
        self.fill(1)
        self.copy()
        run(*tool("copy"), self.copy_path, third)
        self.assert_right(third)


class Refusals(CopyCase):
    def test_directories_that_are_no_copies(self):
        other = MadeRepository(self.path("other"), ident="aaaaaaaa")
        other.add(START, {0: b"o" * CLUSTER})
        self.assertIn("not from", self.copy(to=other.path, status=1)["error"]["message"])
        shutil.copytree(self.made.path, self.path("by-hand"))
        message = self.copy(to=self.path("by-hand"), status=1)["error"]["message"]
        self.assertIn("same id", message)
        itself = self.copy(to=self.made.path, status=1)["error"]
        self.assertIn("is the repository that is to be copied", itself["message"])
        self.assertNotIn("hint", itself)
        os.mkdir(self.path("full"))
        with open(self.path("full/x"), "w", encoding="utf-8"):
            pass
        self.assertIn("not empty", self.copy(to=self.path("full"), status=1)["error"]["message"])
        self.copy("--at", "nothing", status=1)

    def test_another_backup_of_the_same_id(self):
        self.copy()
        foreign = MadeRepository(self.path("foreign"))
        foreign.add(START, {0: b"o" * CLUSTER})
        with open(os.path.join(self.copy_path, "repository.json"), "rb") as f:
            before = f.read()
        moment = "2026-01-01T00:00:01.000000Z"
        run("sed", "-i", f"s/2026-01-01T00:00:00.000000Z/{moment}/g",
            os.path.join(foreign.path, foreign.order[0], "manifest.json"))  # fmt: skip
        path = os.path.join(foreign.path, foreign.order[0], "manifest.json")
        change_manifest(path)
        result = run(*tool("copy"), foreign.path, self.copy_path, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("another one", result.stderr)
        with open(os.path.join(self.copy_path, "repository.json"), "rb") as f:
            self.assertEqual(f.read(), before)


class Damage(CopyCase):
    def flip(self, ident, name, at):
        path = os.path.join(self.made.path, ident, name)
        with open(path, "r+b") as f:
            f.seek(at)
            byte = f.read(1)
            f.seek(at)
            f.write(bytes([byte[0] ^ 4]))

    def test_damage_is_not_copied_and_what_does_not_need_it_is(self):
        self.made.add(START + 4 * HOUR, {9: b"n" * CLUSTER})
        damaged = self.made.order[4]
        self.fill(1, full=True)
        self.fill(1)
        # The others before and after do not need this cluster.
        self.flip(damaged, "disk.qcow2", 5 * CLUSTER + 9)
        result = self.copy(status=1)
        self.assertEqual(result["error"]["kind"], "damaged")
        self.assertEqual(self.ids(), [i for i in self.made.order if i != damaged])
        shutil.rmtree(os.path.join(self.copy_path, ".tidemark-part-" + damaged))
        self.assert_right()

    def test_unreadable_manifests_are_counted(self):
        self.flip(self.made.order[-1], "manifest.json", 30)
        result = self.copy(status=2)
        self.assertEqual((result["copied"], result["damaged"]), (3, 1))
        self.assert_right()

    def test_copy_mends_what_is_damaged_in_it(self):
        self.copy()
        with open(os.path.join(self.copy_path, self.made.order[1], "manifest.json"), "w",
                  encoding="utf-8"):  # fmt: skip
            pass
        self.copy()
        self.assertEqual(self.ids(), self.made.order)
        self.assert_right()


class Interruptions(CopyCase):
    def test_file_that_was_cut_short_is_continued(self):
        first = self.made.order[0]
        part = os.path.join(self.copy_path, ".tidemark-part-" + first)
        source = os.path.join(self.made.path, first, "disk.qcow2")
        size = os.path.getsize(source)
        for wrong in (False, True):
            shutil.rmtree(self.copy_path, ignore_errors=True)
            self.copy("--at", self.made.order[0])
            os.rename(os.path.join(self.copy_path, first), part)
            with open(os.path.join(part, "disk.qcow2"), "r+b") as f:
                f.truncate(size - 2 * CLUSTER)
                if wrong:
                    f.seek(3 * CLUSTER)
                    f.write(b"wrong")
            written = self.copy()["written-bytes"]
            rest = sum(b["image"]["size"] for b in self.list()[1:])
            self.assertEqual(written < rest + size - 2 * CLUSTER, not wrong)
            self.assert_right()

    def test_links_and_pipes_in_the_place_of_parts_are_not_followed(self):
        self.copy("--at", self.made.order[0])
        victim = self.path("victim")
        os.mkdir(victim)
        with open(os.path.join(victim, "disk.qcow2"), "w", encoding="utf-8") as f:
            f.write("precious")
        part = os.path.join(self.copy_path, ".tidemark-part-" + self.made.order[1])
        os.symlink(victim, part)
        self.copy(status=1)
        os.unlink(part)
        os.mkdir(part)
        os.symlink(os.path.join(victim, "disk.qcow2"), os.path.join(part, "disk.qcow2"))
        self.copy(status=1)
        os.unlink(os.path.join(part, "disk.qcow2"))
        os.mkfifo(os.path.join(part, "disk.qcow2"))
        self.copy(status=1)
        with open(os.path.join(victim, "disk.qcow2"), encoding="utf-8") as f:
            self.assertEqual(f.read(), "precious")
        os.unlink(os.path.join(part, "disk.qcow2"))
        self.copy()
        self.assert_right()

    def test_kill_at_any_step_and_the_next_run_continues(self):
        env = {**os.environ, "TIDEMARK_LOOP": "epoll"}
        command = [*tool("copy"), self.made.path, self.copy_path]
        log = self.path("strace.log")
        run("strace", "-f", "-o", log, "-e", "trace=" + CALLS, *command, env=env)
        with open(log, encoding="utf-8") as f:
            total = sum(1 for line in f if "(" in line)
        for step in self.random.sample(range(1, total), min(KILLS, total - 1)):
            shutil.rmtree(self.copy_path)
            subprocess.run(
                ["strace", "-f", "-o", "/dev/null",
                 "-e", f"inject={CALLS}:signal=SIGKILL:when={step}", *command],
                env=env, capture_output=True, check=False,
            )  # fmt: skip
            with self.subTest(step=step):
                if os.path.exists(os.path.join(self.copy_path, "repository.json")):
                    self.assertFalse([b for b in self.list() if "problem" in b])
                self.copy()
                self.assertEqual(self.ids(), self.made.order)
                self.assert_right()


if __name__ == "__main__":
    unittest.main()
