# SPDX-License-Identifier: Apache-2.0
"""A first backup that fails leaves nothing, neither where it was to go nor in the daemon."""

import os
import signal

from backup_case import MIB, BackupCase
from tidemark import run, tool


class FirstRun(BackupCase):
    size = MIB

    def setUp(self):
        super().setUp()
        self.key = self.path("key")
        with open(self.key, "w", encoding="ascii") as f:
            f.write("short")
        self.before = self.everything()

    def everything(self):
        return sorted(
            os.path.join(folder, name)
            for folder, folders, names in os.walk(self.dir)
            for name in folders + names
        )

    def fails(self, *words, why, status=1):
        """The command fails, and nothing is there that was not there before."""
        result = run(*words, check=False)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        self.assertIn(why, result.stderr)
        self.assertEqual(self.everything(), self.before)
        self.assertEqual(self.own_nodes(), [])
        self.assertEqual(self.own_bitmaps(), {})

    def backup_of(self, *words):
        return [*tool("backup"), "--to", self.repository, *words]

    def here(self, *words):
        return self.backup_of("--qmp", self.server.qmp_path, "--node", "disk", *words)

    def in_each_directory(self, *words, why):
        """In one that the run would make, and in one that is there and stays."""
        self.fails(*words, why=why)
        os.mkdir(self.repository)
        self.before = self.everything()
        self.fails(*words, why=why)
        os.rmdir(self.repository)
        self.before = self.everything()

    def test_a_disk_that_is_not_there(self):
        monitor = ("--qmp", self.server.qmp_path)
        self.in_each_directory(*self.backup_of(*monitor, "--node", "wrong"), why="'wrong'")
        for words, why in (
            (("--qmp", self.path("no.sock"), "--node", "disk"), "no.sock"),
            (("--image", self.path("no.raw"), "--format", "raw"), "no.raw"),
            (("--image", f"nbd+unix:///?socket={self.path('no.sock')}"), "no.sock"),
            ((*monitor, "--node", "disk", "--nbd", f"nbd+unix:///?socket={self.path('x')}"), "x"),
            ((*monitor, "--vm", "web", "--node", "disk", "--node", "wrong"), "'wrong'"),
            ((*monitor, "--vm", "web", "--node", "a/b"), "'a/b'"),
            ((*monitor, "--vm", "web", "--definition", self.path("no.xml")), "no.xml"),
        ):
            with self.subTest(words=words):
                self.fails(*self.backup_of(*words), why=why)

    def test_a_moment_that_does_not_come(self):
        for words, why in (
            (("--pre-hook", "exit 1"), "hook"),
            (("--agent", self.path("no.sock")), "no.sock"),
            (("--fleece-dir", self.path("no")), "no"),
            (("--encrypt",), "key"),
            (("--encrypt", "--key-file", self.key), "key"),
            (("--append-only", "--pre-hook", "exit 1"), "hook"),
            (("--vm", "web", "--pre-hook", "exit 1"), "hook"),
        ):
            with self.subTest(words=words):
                self.fails(*self.here(*words), why=why)

    def test_storage_that_fails_at_some_sync(self):
        last = 0
        for number in range(1, 20):
            words = ["strace", "-f", "-o", "/dev/null", "-e", f"inject=fsync:error=EIO:when={number}",
                     *self.here()]  # fmt: skip
            result = run(*words, check=False, env={**os.environ, "TIDEMARK_LOOP": "epoll"})
            if result.returncode == 0:
                break
            last = number
            with self.subTest(number=number):
                self.assertEqual(result.returncode, 1)
                self.assertIn("Input/output error", result.stderr)
            if os.path.exists(self.repository) and len(self.list_backups()) > 0:
                break
            self.assertEqual(self.everything(), self.before)
            self.assertEqual(self.own_bitmaps(), {})
        self.assertGreaterEqual(last, 5)

    def test_a_stop(self):
        held = self.hold_backup(guard=True)
        held.process.send_signal(signal.SIGTERM)
        status, _ = held.release()
        self.assertEqual(status, 1)
        self.assertEqual(self.everything(), self.before)
        self.assertEqual(self.own_bitmaps(), {})

    def test_what_is_no_backup(self):
        run(*self.here("--abort"), check=False)
        self.assertEqual(self.everything(), self.before)
        self.fails(*tool("audit"), "--qmp", self.server.qmp_path, "--node", "disk",
                   "--to", self.repository, why="")  # fmt: skip

    def test_a_copy_that_fails(self):
        self.backup()
        manifest = os.path.join(self.repository, self.list_backups()[0]["id"], "checksums")
        with open(manifest, "r+b") as f:
            f.write(b"damage")
        self.before = self.everything()
        result = run(*tool("copy"), self.repository, self.path("copy"), "--last", "1", check=False)
        self.assertEqual(result.returncode, 1, result.stderr)
        made = [p for p in self.everything() if p not in self.before]
        # What is begun is continued by the next run: then all of it stays.
        self.assertTrue(not made or any("-part-" in p for p in made), made)
        result = run(*tool("copy"), self.repository, self.path("other"), "--at", "no", check=False)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertFalse(os.path.exists(self.path("other")))
