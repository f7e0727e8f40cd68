# SPDX-License-Identifier: Apache-2.0
"""Copies of sets to an SSH server, which has a plain root of sets then."""

import os
import shutil
import subprocess
import threading
import unittest

from test_backup_set_root import Roots
from test_ssh import Ssh
from test_ssh_stable import SFTP
from tidemark import run, tool, wait_until


class Server(Ssh):
    """The server alone, for a test case."""

    subsystem = "internal-sftp"

    def sftp(self):
        return self.subsystem


class CopyOfSets(Roots):
    subsystem = "internal-sftp"

    def setUp(self):
        super().setUp()
        self.ssh = Server("setUp")
        self.addCleanup(self.ssh.doCleanups)
        self.ssh.subsystem = self.subsystem
        self.ssh.setUp()
        self.there = self.ssh.local("root")
        self.uri = self.ssh.uri("root").replace("ssh://", "sftp://", 1)
        # Mirrors are here, and nothing of them is left in the end.
        self.temporary = self.path("mirrors")
        os.mkdir(self.temporary)
        os.environ["TMPDIR"] = self.temporary
        self.addCleanup(os.environ.pop, "TMPDIR")

    def copy(self, *words, status=0):
        answer = self.ask("copy", *words, self.repository, self.uri, status=status)
        self.assertEqual(os.listdir(self.temporary), [])
        return answer

    def assert_right(self, *numbers):
        self.assertEqual(self.ids(self.there), [self.set_id(n) for n in numbers])
        for n in numbers:
            self.assert_restores(self.there, n)
        self.ask("verify", self.there)

    def take_two(self):
        self.start()
        definition = self.path("guest1.xml")
        with open(definition, "w", encoding="utf-8") as f:
            f.write("<domain/>\n")
        self.take(2, "--definition", definition)


class Sets(CopyOfSets):
    def test_all_what_is_new_and_the_definition(self):
        self.take_two()
        result = self.copy()
        self.assertEqual((result["sets"], result["copied"], result["present"]), (2, 4, 0))
        self.assert_right(0, 1)
        path = os.path.join(self.there, "sets", self.set_id(1), "definition")
        with open(path, encoding="utf-8") as f:
            self.assertEqual(f.read(), "<domain/>\n")
        self.take(1)
        again = self.copy()
        self.assertEqual((again["sets"], again["copied"], again["present"]), (1, 2, 4))
        self.assert_right(0, 1, 2)
        self.assertEqual(self.copy()["sets"], 0)
        names = os.listdir(self.there) + os.listdir(os.path.join(self.there, "sets"))
        self.assertEqual([n for n in names if n.startswith(".tidemark-part")], [])

    def test_a_manifest_that_is_there_is_fetched_twice_and_not_synced(self):
        """With its disk, and for the sets."""
        self.start()
        self.take(1)
        self.copy()
        trace = self.path("trace")
        run("strace", "-f", "-y", "-o", trace, "-e", "trace=openat,fsync",
            *tool("copy"), self.repository, self.uri, check=False)  # fmt: skip
        with open(trace, encoding="utf-8", errors="replace") as f:
            calls = [line for line in f if "manifest.json" in line or "set.json" in line]
        made = [line for line in calls if "O_CREAT" in line]
        self.assertEqual(["set.json" in line for line in made].count(True), 1, made)
        self.assertEqual(len(made), 1 + 2 * len(self.disks), made)
        self.assertEqual([line for line in calls if "fsync(" in line], [])

    def test_the_newest_and_one(self):
        self.start()
        self.take(3)
        self.assertEqual(self.copy("--last=1")["sets"], 1)
        self.assert_right(2)
        self.assertEqual(self.copy("--at", self.set_id(0))["sets"], 1)
        self.assert_right(0, 2)

    def test_what_a_kill_has_left_is_made_again(self):
        self.take_two()
        self.copy("--at", self.set_id(0))
        part = os.path.join(self.there, "sets", ".tidemark-part-" + self.set_id(1))
        os.mkdir(part)
        for name in ("set.json", "definition", "other"):
            with open(os.path.join(part, name), "w", encoding="utf-8") as f:
                f.write("cut short")
        self.assertEqual(self.copy()["sets"], 1)
        self.assert_right(0, 1)
        self.assertEqual(
            sorted(os.listdir(os.path.join(self.there, "sets", self.set_id(1)))),
            ["definition", "set.json"],
        )

    def test_one_that_is_damaged_there_is_sent_again(self):
        self.take_two()
        self.copy()
        sets = os.path.join(self.there, "sets")
        os.unlink(os.path.join(sets, self.set_id(0), "set.json"))
        with open(os.path.join(sets, self.set_id(1), "set.json"), "w", encoding="utf-8") as f:
            f.write("damage")
        # A killed copy has left this of a set that is gone since.
        left = os.path.join(sets, ".tidemark-part-20200101T000000Z")
        os.mkdir(left)
        with open(os.path.join(left, "set.json"), "w", encoding="utf-8") as f:
            f.write("cut short")
        answer = self.copy()
        self.assertEqual((answer["sets"], answer["copied"]), (2, 0))
        self.assert_right(0, 1)
        self.assertEqual(sorted(os.listdir(sets)), [self.set_id(n) for n in (0, 1)])

    def test_one_that_is_damaged_there_and_cannot_be_made_keeps_no_other(self):
        self.take_two()
        self.copy()
        victim = self.taken[1][0]["backups"][0]["id"]
        for n in (0, 1):
            os.unlink(os.path.join(self.there, "sets", self.set_id(n), "set.json"))
        shutil.rmtree(os.path.join(self.there, "a", victim))
        image = os.path.join(self.repository, "a", victim, "disk.qcow2")
        with open(image, "r+b") as f:
            f.seek(os.path.getsize(image) // 2)
            f.write(b"damage")
        answer = self.copy(status=1)
        self.assertEqual(answer["error"]["kind"], "damaged")
        sets = {s["id"]: s.get("damaged", False) for s in self.ask("sets", self.there)}
        self.assertEqual(sets, {self.set_id(0): False, self.set_id(1): True})

    def test_damage_of_one_disk(self):
        self.start()
        self.take(2)
        path = os.path.join(
            self.repository, "a", self.taken[1][0]["backups"][0]["id"], "disk.qcow2"
        )
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            f.write(b"damage")
        self.assertEqual(self.copy(status=1)["error"]["kind"], "damaged")
        self.assertEqual(self.backups_of("b", self.there), self.backups_of("b"))
        self.assert_right(0)

    def test_a_directory_of_one_disk_is_refused(self):
        self.start()
        self.take(1)
        shutil.copytree(self.at("a"), self.there)
        message = self.copy(status=1)["error"]["message"]
        self.assertIn(f"'{self.uri}' holds the backups of one disk", message)

    def test_errors_name_the_server_or_the_full_disk_here(self):
        self.start()
        self.take(1)
        self.copy()
        result = run("strace", "-f", "-o", "/dev/null", "-e", "inject=mkdirat:error=ENOSPC",
                     *tool("copy"), self.repository, self.uri, check=False)  # fmt: skip
        self.assertIn(f"in '{self.temporary}' on this machine", result.stderr)
        path = os.path.join("a", "repository.json")
        with open(os.path.join(self.there, path), "w", encoding="utf-8") as f:
            f.write("[]")
        message = self.copy(status=1)["error"]["message"]
        self.assertIn(f"'{self.uri.split('?')[0]}/{path}'", message)

    def test_two_keys(self):
        key, other = self.path("key"), self.path("other")
        for path in (key, other):
            with open(path, "wb") as f:
                f.write(os.urandom(32).hex().encode())  # no newline at its end
            os.chmod(path, 0o600)
        self.keys = ["--key-file", key]
        self.start()
        self.take(1, "--encrypt")
        self.assertEqual(self.copy()["sets"], 1)
        path = os.path.join(self.there, "sets", self.set_id(0), "set.json")
        with open(path, "rb") as f:
            self.assertFalse(f.read().startswith(b"{"))
        self.assert_right(0)
        self.keys = ["--key-file", other]
        self.assertIn("key", self.copy(status=1)["error"]["message"])

    def put_words(self, words):
        path = os.path.join(self.there, ".tidemark-upload")
        with open(path, "r+" if os.path.exists(path) else "w", encoding="utf-8") as f:
            f.write(words.ljust(255) + "\n")

    def test_one_copy_of_sets_at_a_time(self):
        """The disks, which have locks of their own, are copied all the same."""
        self.start()
        self.take(1)
        os.mkdir(self.there)
        ended = threading.Event()

        def copy_elsewhere():
            beats = 1
            while not ended.wait(0.5):
                self.put_words(f"elsewhere/pid:[1] 5 other {beats}")
                beats += 1

        self.put_words("elsewhere/pid:[1] 5 other 0")
        other = threading.Thread(target=copy_elsewhere)
        other.start()
        try:
            self.assertEqual(self.copy(status=1)["error"]["kind"], "busy")
        finally:
            ended.set()
            other.join()
        self.assertEqual(self.ids(self.there), [])
        self.assertEqual(self.backups_of("a", self.there), self.backups_of("a"))
        os.unlink(os.path.join(self.there, ".tidemark-upload"))
        self.assertEqual(self.copy()["sets"], 1)
        self.assert_right(0)


class NothingIsRemoved(CopyOfSets):
    subsystem = "internal-sftp -P remove,rmdir,posix-rename,setstat,fsetstat"

    def test_sets_that_only_grow(self):
        self.start()
        self.take(1)
        self.assertEqual(self.copy("--append-only")["sets"], 1)
        self.take(1)
        self.assertEqual(self.copy()["sets"], 1)
        self.assert_right(0, 1)


class BetweenSessions(CopyOfSets):
    """What else is done on the server, or to the copy, when a session begins."""

    @property
    def subsystem(self):
        script = self.path("serve")
        with open(script, "w", encoding="utf-8") as f:
            f.write(
                "#!/bin/sh\necho >>$0.sessions\n"
                "step=$0.$(wc -l <$0.sessions)\n[ ! -e $step ] || . $step\n"
                f"exec {SFTP}\n"
            )
        os.chmod(script, 0o700)
        return script

    def sessions(self):
        with open(self.path("serve.sessions"), encoding="utf-8") as f:
            return len(f.readlines())

    def at_session(self, number, command):
        os.unlink(self.path("serve.sessions"))
        with open(self.path(f"serve.{number}"), "w", encoding="utf-8") as f:
            f.write(command + "\n")

    def test_a_set_that_is_removed_meanwhile_stays_away(self):
        self.start()
        self.take(1)
        self.copy()
        self.take(1)
        self.at_session(self.sessions(), f"rm -r {self.there}/sets/{self.set_id(0)}")
        self.assertEqual(self.copy()["sets"], 1)
        self.assert_right(1)

    def test_a_stop_is_heard_where_a_server_is_fast(self):
        self.start()
        self.take(1)
        self.copy()
        last = self.sessions()
        process = self.path("serve.process")
        for session in (1, 2, last):
            if session == last:
                self.take(1)
            self.at_session(session, f"kill $(cat {process})")
            result = run("sh", "-c", 'echo $$ >$0; exec "$@"', process,
                         *tool("copy"), self.repository, self.uri, check=False)  # fmt: skip
            self.assertEqual(result.returncode, 1, result.stdout)
            self.assertIn("The copy was stopped", result.stderr)
            self.assertEqual((self.sessions(), os.listdir(self.temporary)), (session, []))
            os.unlink(self.path(f"serve.{session}"))
        self.assertEqual(self.copy()["sets"], 1)
        self.assert_right(0, 1)


class NoAnswer(CopyOfSets):
    subsystem = f"{shutil.which('sleep')} 100"

    def test_a_stop_is_heard(self):
        self.start()
        self.take(1)
        process = subprocess.Popen([*tool("copy"), self.repository, self.uri],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
        self.addCleanup(process.kill)
        wait_until(lambda: "Accepted" in self.ssh.server.log(), "the session")
        process.terminate()
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, err)
        self.assertIn(b"The copy was stopped", err)
        self.assertEqual(os.listdir(self.temporary), [])


if __name__ == "__main__":
    unittest.main()
