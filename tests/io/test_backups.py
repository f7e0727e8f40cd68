# SPDX-License-Identifier: Apache-2.0
"""Many disks of many machines under one directory, and which disk belongs where."""

import datetime
import json
import os
import shutil
import subprocess
import unittest

from backup_case import MIB, BackupCase
from made_repository import CLUSTER, MadeRepository, change_manifest
from tidemark import TestCase, run, tool

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


class Catalogue(TestCase):
    def setUp(self):
        super().setUp()
        self.root = self.path("root")
        self.made = {}
        for n, path in enumerate(("alpha/vda", "alpha/vdb", "beta/vms/mail/vda")):
            os.makedirs(os.path.join(self.root, os.path.dirname(path)), exist_ok=True)
            self.made[path] = MadeRepository(os.path.join(self.root, path), ident=f"0000000{n}")
            for i in range(n + 1):
                self.made[path].add(START + datetime.timedelta(hours=i), {n: b"x" * CLUSTER})

    def list(self):
        return json.loads(run(*tool("backups"), "--output=json", self.root).stdout)

    def rows(self):
        return {r["path"]: r for r in self.list()["repositories"]}

    def test_every_disk_below_is_listed_with_its_newest_backup(self):
        listed = self.list()
        self.assertEqual(listed["root"], self.root)
        self.assertEqual([r["path"] for r in listed["repositories"]], sorted(self.made))
        for row in listed["repositories"]:
            made = self.made[row["path"]]
            self.assertEqual(row["newest"], made.order[-1])
            self.assertEqual(row["backups"], len(made.order))
            self.assertEqual((row["node"], row["virtual-size"]), ("disk", made.size))
            self.assertNotIn("problem", row)
        text = run(*tool("backups"), self.root).stdout
        self.assertEqual(len(text.splitlines()), 4)
        self.assertIn("in order", text)

    def test_list_that_can_not_be_written_is_a_failure(self):
        one = self.made["alpha/vda"].path
        for words in (("backups", one), ("backups", self.root), ("metrics", one)):
            with open("/dev/full", "w", encoding="utf-8") as full:
                result = subprocess.run([*tool(words[0]), words[1]], stdout=full,
                                        stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
            self.assertEqual((words, result.returncode), (words, 1))
            self.assertIn("Could not write to standard output", result.stderr)

    def test_damage_and_lost_files_are_said(self):
        vda, vdb = self.made["alpha/vda"], self.made["alpha/vdb"]
        os.unlink(os.path.join(vda.path, vda.order[-1], "manifest.json"))
        os.unlink(os.path.join(vdb.path, "repository.json"))
        rows = self.rows()
        self.assertIn("newest", rows["alpha/vda"]["problem"])
        self.assertIn("repository.json", rows["alpha/vdb"]["problem"])
        self.assertEqual(rows["alpha/vdb"]["backups"], 2)

    def test_empty_description_without_backups_is_said(self):
        os.makedirs(os.path.join(self.root, "gamma"))
        with open(os.path.join(self.root, "gamma", "repository.json"), "w", encoding="utf-8"):
            pass
        self.assertIn("problem", self.rows()["gamma"])

    def test_links_and_hidden_directories_are_left_out(self):
        outside = self.path("outside")
        shutil.copytree(self.made["alpha/vda"].path, outside)
        os.symlink(outside, os.path.join(self.root, "link"))
        os.symlink("/", os.path.join(self.root, "alpha", "rootlink"))
        shutil.copytree(outside, os.path.join(self.root, ".hidden"))
        os.mkfifo(os.path.join(self.root, "fifo"))
        self.assertEqual(sorted(self.rows()), sorted(self.made))

    def test_copy_by_hand_is_noticed(self):
        shutil.copytree(self.made["alpha/vda"].path, os.path.join(self.root, "copy"))
        rows = self.rows()
        self.assertIn("alpha/vda", rows["copy"]["problem"])
        self.assertIn("copy", rows["alpha/vda"]["problem"])
        run(*tool("repair"), "--new-id", os.path.join(self.root, "copy"))
        self.assertFalse([r for r in self.rows().values() if "problem" in r])

    def test_hundred_disks(self):
        for i in range(100):
            path = os.path.join(self.root, f"m{i}", "vda")
            os.makedirs(os.path.dirname(path))
            MadeRepository(path, size=CLUSTER, ident=f"1{i:07d}").add(START, {0: b"y" * CLUSTER})
        self.assertEqual(len(self.rows()), 103)


class Identity(BackupCase):
    size = 4 * MIB

    def setUp(self):
        super().setUp()
        self.write_random(0, MIB)

    def lose_bitmap(self):
        (name,) = self.own_bitmaps()
        self.server.qmp.command("block-dirty-bitmap-remove", node="disk", name=name)

    def test_manifest_names_the_machine(self):
        manifest = self.backup()
        self.assertEqual(manifest["machine"], os.uname().nodename)

    def test_disk_of_another_machine_is_refused(self):
        manifest = self.backup()
        path = os.path.join(self.repository, manifest["id"], "manifest.json")
        change_manifest(path, **{"machine": "elsewhere", "machine-id": "0" * 16})
        # The bitmap proves that it is the same disk, moved to this machine.
        self.assertEqual(self.backup()["kind"], "incremental")
        last = self.list_backups()[-1]["id"]
        path = os.path.join(self.repository, last, "manifest.json")
        change_manifest(path, **{"machine": "elsewhere", "machine-id": "0" * 16})
        self.lose_bitmap()
        if not os.path.exists("/etc/machine-id"):
            return
        self.backup_fails_at_once(why="elsewhere")
        self.assertIn("machine", self.backup("--same-disk"))
        self.assertEqual(len(self.list_backups()), 3)

    def test_numbers_that_are_used_up_make_no_backup_that_nobody_can_read(self):
        path = os.path.join(self.repository, self.backup()["id"], "manifest.json")
        change_manifest(path, sequence=(1 << 63) - 1)
        self.backup_fails_at_once(why="'sequence' is out of range")
        self.assertEqual(["problem" in b for b in self.list_backups()], [False])
        self.assert_clean_directory()

    def test_copy_of_a_repository_that_is_still_there_is_refused(self):
        self.backup()
        original = self.repository
        shutil.copytree(original, self.path("copy"))
        self.repository = self.path("copy")
        self.backup_fails_at_once(why="is a copy of")
        self.assertEqual(len(self.list_backups()), 1)
        # The original goes on as before.
        self.repository = original
        self.assertEqual(self.backup()["kind"], "incremental")
        self.repository = self.path("copy")
        run(*tool("repair"), "--new-id", self.repository)
        self.backup()
        self.repository = original
        self.assertEqual(self.backup()["kind"], "incremental")

    def test_a_file_system_that_is_not_mounted_is_no_new_directory(self):
        self.repository = self.path("mount/backups")
        self.backup_fails_at_once(why="is its file system mounted?")
        self.assertFalse(os.path.exists(self.path("mount")))

    def test_moved_repository_goes_on(self):
        self.backup()
        os.rename(self.repository, self.path("moved"))
        self.repository = self.path("moved")
        self.assertEqual(self.backup()["kind"], "incremental")
        # By a link it is the same directory.
        os.symlink(self.repository, self.path("backups"))
        self.repository = self.path("backups")
        self.assertEqual(self.backup()["kind"], "incremental")


if __name__ == "__main__":
    unittest.main()
