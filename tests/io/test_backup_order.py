# SPDX-License-Identifier: Apache-2.0
"""What is published is stable first, and its name afterwards: the order of syncs and renames, as
the kernel sees them.
"""

import json
import os
import re

from backup_case import MIB, BackupCase
from tidemark import run, tool

WRITES = ("write", "pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate", "fchmod")
SYNCS = ("fsync", "fdatasync")
# 12 fsync(7</path>) = 0; parts of a call that another thread interrupted are put together first.
CALL = re.compile(r"^(\d+) +(\w+)\((.*)\) += 0?\d*")
UNFINISHED = re.compile(r"^(\d+) +(.*) <unfinished \.\.\.>$")
RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$")
PATH = re.compile(r"<([^<>]*)>")
QUOTED = re.compile(r'"([^"]*)"')


class StableCase(BackupCase):
    size = 4 * MIB

    def setUp(self):
        super().setUp()
        self.write_random(0, 2 * MIB)

    def trace(self, *command):
        """The calls of a command that succeeds, in the order in which they ended: (name, path) or
        (rename, from, to).
        """
        log = self.path("strace.log")
        names = ",".join(WRITES + SYNCS + ("rename", "renameat", "renameat2", "linkat", "mkdir", "mkdirat",
                                           "unlinkat"))
        result = run("strace", "-f", "-y", "-s", "4096", "-o", log, "-e", f"trace={names}",
                     *command, env={**os.environ, "TIDEMARK_LOOP": "epoll"})  # fmt: skip
        calls, begun = [], {}
        with open(log, encoding="utf-8", errors="replace") as f:
            for line in f.read().splitlines():
                if match := UNFINISHED.match(line):
                    begun[match[1]] = match[2]
                    continue
                if match := RESUMED.match(line):
                    line = f"{match[1]} {begun.pop(match[1])}{match[2]}"
                if match := CALL.match(line):
                    calls.append(self.understand(match[2], match[3]))
        return calls, result.stdout

    def understand(self, name, arguments):
        if name == "linkat":
            # A file without a name gets one.
            a, b = QUOTED.findall(arguments)
            return ("rename", a, os.path.join(PATH.findall(arguments)[-1], b))
        if name.startswith("rename"):
            folder = PATH.search(arguments)[1]
            a, b = QUOTED.findall(arguments)
            return ("rename", os.path.join(folder, a), os.path.join(folder, b))
        if name.startswith("mkdir"):
            return ("mkdir", QUOTED.search(arguments)[1])
        if name == "unlinkat":
            return ("unlink", os.path.join(PATH.search(arguments)[1], QUOTED.search(arguments)[1]))
        path = PATH.search(arguments)
        return ("sync" if name in SYNCS else "write", path[1] if path else "")

    def assert_published(self, calls, contents, start, final):
        """Files, and the names in their directory, are stable before the rename to `final`, that
        right after it.
        """
        renames = [i for i, call in enumerate(calls) if call[0] == "rename" and call[2] == final]
        self.assertEqual(len(renames), 1, calls)
        rename = renames[0]
        for path in contents:
            written = [i for i, call in enumerate(calls) if call == ("write", path)]
            synced = [i for i, call in enumerate(calls[:rename]) if call == ("sync", path)]
            self.assertTrue(written, f"no write to {path} was seen")
            self.assertTrue(synced, f"{path} is not made stable before the rename")
            self.assertGreater(max(synced), max(written), f"{path} is written after its sync")
        self.assertEqual(calls[rename][1], start)
        after = calls[rename + 1 :]
        self.assertIn(("sync", os.path.dirname(final)), after, "the rename is not made stable")
        return rename


class TestBackup(StableCase):
    def test_a_backup_is_stable_before_it_has_its_name(self):
        calls, out = self.trace(*self.backup_words("--output=json"))
        backup = json.loads(out)["id"]
        draft = os.path.join(self.repository, ".tidemark-tmp-" + backup)
        files = [os.path.join(draft, n) for n in ("disk.qcow2", "checksums", "manifest.json")]
        rename = self.assert_published(
            calls, files, draft, os.path.join(self.repository, backup)
        )
        self.assertIn(("sync", draft), calls[:rename], "the names of the files are not made stable")
        names = max(i for i, call in enumerate(calls[:rename]) if call == ("sync", draft))
        for path in files:
            self.assertLess(calls.index(("sync", path)), names, "the directory is synced too early")
        self.assertIn(("sync", self.repository), calls[rename:])

    def test_the_rename_is_stable_before_the_daemon_lets_go(self):
        """The old bitmap goes only when the backup that replaces it can't be lost."""
        self.backup()
        calls, out = self.trace(*self.backup_words("--output=json"))
        final = os.path.join(self.repository, json.loads(out)["id"])
        rename = next(i for i, c in enumerate(calls) if c[0] == "rename" and c[2] == final)
        self.assertEqual(calls[rename + 1], ("sync", self.repository))

    def test_a_new_repository_and_its_name(self):
        calls, _ = self.trace(*self.backup_words())
        made = calls.index(("mkdir", self.repository))
        self.assertEqual(calls[made + 1], ("sync", self.dir))
        description = os.path.join(self.repository, "repository.json")
        new = os.path.join(self.repository, ".tidemark-repository.json")
        rename = self.assert_published(calls, [new], new, description)
        self.assertEqual(calls[rename + 1], ("sync", self.repository))


class TestPrune(StableCase):
    def test_a_merge_is_stable_before_what_it_replaces_goes(self):
        older = self.backup()["id"]
        self.write_random(MIB, MIB)
        kept = self.backup()["id"]
        calls, _ = self.trace(*tool("prune"), "--keep-last=1", self.repository)
        draft = os.path.join(self.repository, ".tidemark-tmp-" + kept)
        files = [os.path.join(draft, n) for n in ("disk.qcow2", "checksums", "manifest.json")]
        rename = self.assert_published(calls, files, draft, os.path.join(self.repository, kept))
        self.assertIn(("sync", draft), calls[:rename])
        stable = calls.index(("sync", self.repository), rename)
        gone = [i for i, c in enumerate(calls) if c[0] == "unlink" and c[1].startswith(draft + "/")]
        self.assertLess(stable, min(gone), "the old files go before the new ones are stable")
        removed = next(i for i, c in enumerate(calls)
                       if c[:2] == ("rename", os.path.join(self.repository, older)))  # fmt: skip
        self.assertLess(stable, removed)
        stable = calls.index(("sync", self.repository), removed)
        gone = [i for i, c in enumerate(calls)
                if c[0] == "unlink" and c[1].startswith(calls[removed][2] + "/")]  # fmt: skip
        self.assertLess(stable, min(gone), "files go before the rename is stable")


class TestRestore(StableCase):
    def assert_restored(self, calls, target):
        (new,) = {call[1] for call in calls if call[0] == "sync" and
                  os.path.basename(call[1]).startswith(("#", ".tidemark-restore-"))}  # fmt: skip
        start = next(call[1] for call in calls if call[0] == "rename" and call[2] == target)
        self.assert_published(calls, [new], start, target)

    def test_a_file_is_stable_before_it_has_its_name(self):
        self.backup()
        for fmt in ("raw", "qcow2"):
            target = self.path("out." + fmt)
            calls, _ = self.trace(*tool("restore"), self.repository, "-f", fmt, target)
            self.assert_restored(calls, target)

    def test_so_are_the_owner_and_mode_that_it_takes_over(self):
        self.backup()
        target = self.path("out.raw")
        with open(target, "w", encoding="utf-8"):
            os.chmod(target, 0o640)
        calls, _ = self.trace(*tool("restore"), self.repository, "--force", target)
        self.assert_restored(calls, target)
