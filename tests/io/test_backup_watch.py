# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of many repositories: figures for monitoring, and a program that learns how
each run ended.
"""

import json
import os
import re
import stat
import time
import unittest

import prometheus
from backup_case import MIB, BackupCase
from tidemark import run, tool

PAGE = os.path.join(os.environ.get("TIDEMARK_SOURCE", "."), "docs", "backup.md")


class WatchCase(BackupCase):
    size = 4 * MIB

    def figures(self, *words, directory=None):
        text = run(*tool("metrics"), *words, directory or self.repository).stdout
        prometheus.Metrics(text)
        return self.parse(text)

    def parse(self, text):
        found = {}
        for line in text.splitlines():
            m = re.fullmatch(r'(\w+)\{repository="(.*)",disk="(.*)"\} (.*)', line)
            if m:
                found[m[1].removeprefix("tidemark_"), os.path.basename(m[2])] = float(m[4])
        return found


class Metrics(WatchCase):
    def test_the_newest_backup(self):
        self.write_random(0, MIB)
        self.backup()
        self.write_random(0, 65536)
        manifest = self.backup()
        f = self.figures()
        now = time.time()
        self.assertAlmostEqual(
            f["backup_last_success_timestamp_seconds", "backups"], now, delta=60
        )
        self.assertLess(f["backup_age_seconds", "backups"], 60)
        for name, value in (
            ("backup_disk_bytes", self.size),
            ("backup_changed_bytes", manifest["changed-bytes"]),
            ("backup_moved_bytes", manifest["moved-bytes"]),
            ("backup_stored_bytes", manifest["stored-bytes"]),
            ("backup_duration_seconds", manifest["duration-ms"] / 1000),
            ("backup_full", 0),
            ("backups", 2),
            ("backups_damaged", 0),
            ("backups_never_verified", 2),
            ("backups_verified_oldest_timestamp_seconds", 0),
            ("repository_problem", 0),
            ("backups_stored_bytes", sum(b["stored-bytes"] for b in self.list_backups())),
        ):
            self.assertAlmostEqual(f[name, "backups"], value, msg=name)

    def test_what_was_verified(self):
        self.write_random(0, MIB)
        first = self.backup()
        self.backup()
        run(*tool("verify"), "--at", first["id"], self.repository)
        f = self.figures()
        self.assertEqual(f["backups_never_verified", "backups"], 1)
        self.assertEqual(f["backups_verified_oldest_timestamp_seconds", "backups"], 0)
        self.assertAlmostEqual(
            f["backups_verified_newest_timestamp_seconds", "backups"], time.time(), delta=60
        )
        path = self.image_of(first)
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            f.write(b"damage")
        run(*tool("verify"), self.repository, check=False)
        f = self.figures()
        self.assertEqual(f["backups_damaged", "backups"], 2)
        self.assertGreater(f["backups_verified_oldest_timestamp_seconds", "backups"], 0)

    def test_repositories_below_a_directory(self):
        root = self.path("root")
        for name in "b", 'a"\\', "c/d":
            os.makedirs(os.path.join(root, name))
            self.repository = os.path.join(root, name)
            self.backup()
        os.unlink(os.path.join(root, "b", "repository.json"))
        os.makedirs(os.path.join(root, "other"))
        f = self.figures(directory=root)
        names = {repository for _, repository in f}
        self.assertEqual(names, {"b", r"a\"\\", "d"})
        self.assertEqual(f["repository_problem", "b"], 1)

    def test_a_file_is_replaced_as_a_whole(self):
        self.backup()
        target = self.path("out.prom")
        run(*tool("metrics"), "--to", target, self.repository)
        with open(target, encoding="utf-8") as f:
            text = f.read()
        self.assertEqual(self.parse(text)["backups", "backups"], 1)
        self.assertEqual(stat.S_IMODE(os.stat(target).st_mode), 0o644)
        result = run(*tool("metrics"), "--to", target, self.path("none"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("none", result.stderr)
        with open(target, encoding="utf-8") as f:
            self.assertEqual(f.read(), text)
        self.assertEqual([n for n in os.listdir(self.dir) if n.startswith("out")], ["out.prom"])

    def test_the_guide_lists_them(self):
        self.backup()
        names = {name for name, _ in self.figures()}
        with open(PAGE, encoding="utf-8") as page:
            listed = set(re.findall(r"^\| `tidemark_(\w+)`", page.read(), re.M))
        self.assertEqual(names, listed)


class Notify(WatchCase):
    def setUp(self):
        super().setUp()
        self.program = self.path("tell")
        with open(self.program, "w", encoding="utf-8") as f:
            f.write(f'#!/bin/sh\necho "$@" > {self.dir}/words\ncat > {self.dir}/result\n')
        os.chmod(self.program, 0o755)

    def heard(self):
        with open(self.path("words"), encoding="utf-8") as f:
            words = f.read().split()
        with open(self.path("result"), encoding="utf-8") as f:
            text = f.read()
        return words, json.loads(text) if text.strip() else None

    def test_results(self):
        printed = self.backup("--notify", self.program)
        self.assertEqual(self.heard(), (["backup", "0"], printed))
        run(*tool("verify"), "--notify", self.program, self.repository)
        words, result = self.heard()
        self.assertEqual(words, ["verify", "0"])
        self.assertTrue(result[0]["sound"])
        run(*tool("restore"), "--notify", self.program, self.repository, self.path("x"))
        words, result = self.heard()
        self.assertEqual((words, result["id"]), (["restore", "0"], printed["id"]))

    def test_failures(self):
        self.repository = self.path("none/none")
        run(*self.backup_words("--notify", self.program), check=False)
        words, result = self.heard()
        self.assertEqual(words, ["backup", "1"])
        self.assertIn("none", result["error"]["message"])

    def test_the_result_is_json_if_there_is_none(self):
        run(*tool("backup"), "--notify", self.program, "--to", self.repository, check=False)
        words, result = self.heard()
        self.assertEqual((words, result["error"]["kind"]), (["backup", "1"], "failed"))
        run(*self.backup_words("--notify", self.program, "--abort"))
        self.assertEqual(self.heard(), (["backup", "0"], {}))

    def test_a_program_that_fails_changes_nothing(self):
        for program in "/none", "false":
            result = run(*self.backup_words("--notify", program))
            self.assertIn("warning", result.stderr)
        with open(self.program, "w", encoding="utf-8") as f:
            f.write("#!/bin/sh\nexec <&-\n")
        run(*self.backup_words("--notify", self.program))


if __name__ == "__main__":
    unittest.main()
