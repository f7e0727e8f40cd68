# SPDX-License-Identifier: Apache-2.0
"""Repositories that only grow: nothing that has its name is touched, so that the file system may
refuse it.
"""

import json
import os
import re
import shutil
import subprocess

from backup_case import MIB
from tidemark import TestCase, run, tool

WORK = ".tidemark-work"
# What takes a name away, or changes a file that has one.
CALLS = "unlink,unlinkat,rmdir,rename,renameat,renameat2,truncate,link,linkat"


class AppendOnly(TestCase):
    def setUp(self):
        super().setUp()
        self.disk, self.root = self.path("disk.raw"), self.path("repository")
        with open(self.disk, "wb") as f:
            f.truncate(8 * MIB)
        self.models = []

    def words(self, *words, to=None):
        return [*tool("backup"), "--image", self.disk, "--format=raw", "--output=json",
                "--to", to or self.root, *words]  # fmt: skip

    def change(self):
        with open(self.disk, "r+b") as f:
            f.seek(len(self.models) * MIB)
            f.write(os.urandom(MIB))
        with open(self.disk, "rb") as f:
            self.models.append(f.read())

    def backup(self, *words, before=()):
        self.change()
        return json.loads(run(*before, *self.words(*words)).stdout)

    def assert_restores(self, root, manifest, model):
        run(*tool("restore"), root, "--at", manifest["id"], "--force", self.path("out.raw"))
        with open(self.path("out.raw"), "rb") as f:
            self.assertEqual(f.read(), model)

    def traced(self, *command):
        """The changes of names in the repository by a command, outside of its work directory."""
        log = self.path("trace")
        run("strace", "-f", "-y", "-s", "200", "-o", log, "-e", "trace=" + CALLS, *command)
        with open(log, encoding="utf-8") as f:
            calls = [line for line in f if self.root in line or self.path("copy") in line]
        os.unlink(log)
        return [line for line in calls if not re.search(r"\(\d+<[^>]*/" + WORK + r"[/>]", line)]

    def test_backups_touch_nothing_that_is_there(self):
        self.backup("--append-only")
        for words in ([], ["--full"], []):
            self.change()
            self.assertEqual(self.traced(*self.words(*words)), [])
        self.assertEqual(self.traced(*tool("verify"), self.root), [])
        self.assertEqual(os.listdir(os.path.join(self.root, WORK)), [".tidemark-verified"])

    def test_copies_touch_nothing_that_is_there(self):
        self.backup()
        copy = self.path("copy")
        words = [*tool("copy"), self.root, copy]
        run(*words, "--append-only")
        self.backup()
        self.assertEqual(self.traced(*words), [])
        self.assertEqual(run(*tool("verify"), copy).stdout.count("sound"), 2)

    def test_a_directory_that_can_only_be_appended_to(self):
        """By the attribute, where it can be set; the other tests do not need that."""
        taken = [self.backup("--append-only")]
        if subprocess.run(["chattr", "+a", self.root], capture_output=True).returncode != 0:
            return
        self.addCleanup(subprocess.run, ["chattr", "-R", "-a", "-i", self.root])
        run("chattr", "-R", "+i", os.path.join(self.root, taken[0]["id"]))
        taken.append(self.backup())
        with self.assertRaises(OSError):
            os.rename(os.path.join(self.root, taken[1]["id"]), self.path("away"))
        run("chattr", "-R", "+i", os.path.join(self.root, taken[1]["id"]))
        taken.append(self.backup())
        for manifest, model in zip(taken, self.models):
            self.assert_restores(self.root, manifest, model)

    def test_what_would_change_it_is_refused(self):
        taken = [self.backup("--append-only"), self.backup()]
        before = self.listing()
        for words in (["prune", "--keep-last=1"], ["prune", "--remove", taken[0]["id"]],
                      ["repair"], ["repair", "--new-id"], ["repair", "--sign"]):  # fmt: skip
            result = run(*tool(words[0]), *words[1:], self.root, check=False)
            self.assertEqual(result.returncode, 1, words)
            self.assertIn("only grows", result.stderr)
        self.assertEqual(self.listing(), before)
        run(*tool("prune"), "--dry-run", "--keep-last=1", self.root)
        run(*tool("repair"), "--append-only=off", self.root)
        run(*tool("prune"), "--keep-last=1", self.root)
        self.assert_restores(self.root, taken[1], self.models[1])
        run(*tool("repair"), "--append-only=on", self.root)
        self.assertEqual(run(*tool("prune"), "--keep-last=1", self.root, check=False).returncode, 1)
        self.assert_restores(self.root, self.backup(), self.models[2])

    def test_a_copy_by_hand_is_refused_and_a_moved_one_goes_on(self):
        self.backup("--append-only")
        original, copy = self.root, self.path("copy")
        shutil.copytree(original, copy)
        refused = run(*self.words(to=copy), check=False)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("is a copy of", json.loads(refused.stdout)["error"]["message"])
        self.assertEqual(os.listdir(os.path.join(copy, WORK)), [])
        self.backup()
        os.rename(original, self.path("moved"))
        self.root = self.path("moved")
        self.assert_restores(self.root, self.backup(), self.models[-1])

    def test_a_damaged_backup_in_a_copy_stays(self):
        taken, copy = self.backup(), self.path("copy")
        run(*tool("copy"), "--append-only", self.root, copy)
        path = os.path.join(copy, taken["id"], "manifest.json")
        with open(path, "a", encoding="utf-8") as f:
            f.write("x")
        result = run(*tool("copy"), self.root, copy, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("no backup is replaced", result.stderr)
        with open(path, encoding="utf-8") as f:
            self.assertTrue(f.read().endswith("x"))

    def test_what_a_killed_backup_leaves_goes(self):
        self.backup("--append-only")
        left = os.path.join(self.root, WORK, ".tidemark-tmp-20260101T000000Z")
        os.mkdir(left)
        with open(os.path.join(left, "disk.qcow2"), "wb") as f:
            f.write(b"x")
        self.assert_restores(self.root, self.backup(), self.models[1])
        self.assertFalse(os.path.exists(left))

    def test_a_link_in_the_place_of_the_work_directory(self):
        self.backup("--append-only")
        victim = self.path("victim")
        os.makedirs(os.path.join(victim, ".tidemark-tmp-x"))
        work = os.path.join(self.root, WORK)
        os.rmdir(work)
        os.symlink(victim, work)
        self.change()
        result = run(*self.words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(os.listdir(victim), [".tidemark-tmp-x"])

    def test_it_is_chosen_when_it_is_made(self):
        self.backup()
        result = run(*self.words("--append-only"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("can be changed", result.stderr)

    def listing(self):
        return sorted((place, sorted(files)) for place, _, files in os.walk(self.root))
