# SPDX-License-Identifier: Apache-2.0
"""Copies of repositories on an SSH server, which is a plain repository there."""

import datetime
import json
import os
import queue
import random
import re
import shutil
import socket
import subprocess
import threading
import time
import unittest

from made_repository import CLUSTER, KEPT, MadeRepository
from test_ssh import Ssh
from test_ssh_stable import SFTP
from tidemark import run, tool, wait_until

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
HOUR = datetime.timedelta(hours=1)


class UploadCase(Ssh):
    def setUp(self):
        super().setUp()
        self.random = random.Random(self.id())
        self.made = MadeRepository(self.path("source"))
        self.fill(4)
        self.there = self.local("copy")
        # Mirrors are here, and nothing of them is left in the end.
        self.temporary = self.path("mirrors")
        os.mkdir(self.temporary)
        self.environment = {**os.environ, "TMPDIR": self.temporary}

    def fill(self, count):
        for _ in range(count):
            changes = {
                n: self.random.choice([None, self.random.randbytes(CLUSTER)])
                for n in self.random.sample(range(16), 4)
            }
            self.made.add(START + len(self.made.order) * HOUR, changes)

    def copy(self, *words, status=0, name="copy"):
        uri = self.uri(name).replace("ssh://", "sftp://", 1)
        result = run(*tool("copy"), "--output=json", *words, self.made.path, uri,
                     check=False, env=self.environment)  # fmt: skip
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        self.assertEqual(os.listdir(self.temporary), [])
        return json.loads(result.stdout)

    def assert_right(self, ids=None):
        listed = json.loads(run(*tool("backups"), "--output=json", self.there).stdout)
        self.assertEqual([b["id"] for b in listed], ids or self.made.order)
        for backup in listed:
            run(*tool("restore"), self.there, "--at", backup["id"], "--force", self.path("o.raw"))
            with open(self.path("o.raw"), "rb") as f:
                self.assertEqual(f.read(), self.made.models[backup["id"]])
        run(*tool("verify"), self.there)
        left = [n for n in os.listdir(self.there) if n.startswith(".tidemark-") and n not in KEPT]
        self.assertEqual(left, [])


class NoAnswer(UploadCase):
    def sftp(self):
        return f"{shutil.which('sleep')} 100"

    def test_a_stop_is_heard(self):
        uri = self.uri("copy").replace("ssh://", "sftp://", 1)
        process = subprocess.Popen([*tool("copy"), self.made.path, uri], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, env=self.environment)  # fmt: skip
        self.addCleanup(process.kill)
        wait_until(lambda: "Accepted" in self.server.log(), "the session")
        process.terminate()
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, err)
        self.assertIn(b"The copy was stopped", err)


class Uploads(UploadCase):
    def test_all_then_what_is_new(self):
        result = self.copy()
        self.assertEqual((result["copied"], result["present"]), (4, 0))
        self.assertNotEqual(result["id"], self.made.ident)
        self.assert_right()
        self.assertEqual(os.stat(self.there).st_mode & 0o777, 0o700)
        disk = os.path.join(self.there, self.made.order[0], "disk.qcow2")
        self.assertEqual(os.stat(disk).st_mode & 0o777, 0o600)
        self.fill(2)
        again = self.copy()
        self.assertEqual((again["copied"], again["present"], again["id"]), (2, 4, result["id"]))
        self.assert_right()

    def test_a_part_and_a_pruned_source(self):
        self.copy("--last", "2")
        self.assert_right(self.made.order[2:])
        self.fill(3)
        self.assertEqual(self.copy("--at", self.made.order[5])["merged"], 1)
        run(*tool("prune"), "--keep-last=1", self.made.path)
        self.assertEqual(self.copy()["copied"], 1)
        self.assert_right([self.made.order[i] for i in (2, 3, 5, 6)])

    def test_what_was_cut_short_is_continued(self):
        self.copy("--at", self.made.order[0])
        shutil.move(os.path.join(self.there, self.made.order[0]),
                    os.path.join(self.there, ".tidemark-part-" + self.made.order[0]))  # fmt: skip
        part = os.path.join(self.there, ".tidemark-part-" + self.made.order[0], "disk.qcow2")
        size = os.path.getsize(part)
        for wrong in (False, True):
            os.truncate(part, size - CLUSTER)
            if wrong:
                with open(part, "r+b") as f:
                    f.seek(2 * CLUSTER)
                    f.write(b"wrong")
            written = self.copy("--at", self.made.order[0])["written-bytes"]
            self.assertEqual(written < size, not wrong)
            self.assert_right(self.made.order[:1])
            if not wrong:
                os.rename(os.path.join(self.there, self.made.order[0]), os.path.dirname(part))

    def test_a_part_of_what_is_gone_does_not_stay(self):
        self.copy("--last=1")
        for name in (self.made.order[0], "20200101T000000Z"):
            os.mkdir(os.path.join(self.there, ".tidemark-part-" + name))
            with open(os.path.join(self.there, ".tidemark-part-" + name, "disk.qcow2"), "wb") as f:
                f.write(b"part")
        self.copy("--last=1")
        parts = [n for n in os.listdir(self.there) if n.startswith(".tidemark-part-")]
        self.assertEqual(parts, [".tidemark-part-" + self.made.order[0]])

    def test_damage_there_is_mended(self):
        self.copy()
        with open(os.path.join(self.there, self.made.order[1], "manifest.json"), "w",
                  encoding="utf-8"):  # fmt: skip
            pass
        self.assertEqual(self.copy()["copied"], 1)
        self.assert_right()

    def test_damage_here_is_not_sent(self):
        with open(os.path.join(self.made.path, self.made.order[3], "disk.qcow2"), "r+b") as f:
            f.seek(5 * CLUSTER)
            f.write(b"damage")
        self.assertEqual(self.copy(status=1)["error"]["kind"], "damaged")
        shutil.rmtree(os.path.join(self.there, ".tidemark-part-" + self.made.order[3]))
        self.assert_right(self.made.order[:3])

    def test_what_is_no_copy_is_refused(self):
        os.mkdir(self.there)
        with open(os.path.join(self.there, "letter.txt"), "w", encoding="utf-8"):
            pass
        self.assertIn("letter.txt", self.copy(status=1)["error"]["message"])
        self.assertEqual(os.listdir(self.there), ["letter.txt"])
        # One that was copied by hand; what is to be done about it is done on the server.
        shutil.copytree(self.made.path, self.local("by-hand"))
        error = self.copy(status=1, name="by-hand")["error"]
        self.assertIn("same id", error["message"])
        words = f"On the server, 'tidemark repair --new-id {self.local('by-hand')}'"
        self.assertIn(words, error["hint"])
        other = MadeRepository(self.local("other"), ident="aaaaaaaa")
        other.add(START, {0: b"o" * CLUSTER})
        self.assertIn("not from", self.copy(status=1, name="other")["error"]["message"])
        result = run(*tool("copy"), self.made.path, "sftp://127.0.0.1:1/x", check=False)
        self.assertEqual(result.returncode, 1)
        result = run(*tool("copy"), self.made.path, "sftp://127.0.0.1:1", check=False)
        self.assertIn("path", result.stderr)

    def test_killed_copies_are_continued(self):
        uri = self.uri("copy").replace("ssh://", "sftp://", 1)
        left = []
        for step in (12, 25, 60):
            shutil.rmtree(self.there, ignore_errors=True)
            subprocess.run(
                ["strace", "-f", "-o", "/dev/null",
                 "-e", f"inject=sendto,write:signal=SIGKILL:when={step}",
                 *tool("copy"), self.made.path, uri],
                env=self.environment, capture_output=True, check=False,
            )  # fmt: skip
            # The next one removes the mirror that is left on this machine.
            left += os.listdir(self.temporary)
            self.copy()
            self.assert_right()
        self.assertNotEqual(left, [])


class TwoAtOnce(UploadCase):
    """A server knows no locks: a file in the directory says who copies."""

    SIZE = 256

    def setUp(self):
        super().setUp()
        self.lock = os.path.join(self.there, ".tidemark-upload")

    def words(self):
        with open(self.lock, encoding="ascii") as f:
            return f.read().strip()

    def put(self, words):
        os.makedirs(self.there, exist_ok=True)
        with open(self.lock, "r+" if os.path.exists(self.lock) else "w", encoding="ascii") as f:
            f.write(words.ljust(self.SIZE))

    def begin_slowly(self, *words, delay="sendto,write:delay_enter=100000"):
        """A copy that is under way for a while."""
        uri = self.uri("copy").replace("ssh://", "sftp://", 1)
        copy = subprocess.Popen(
            ["strace", "-f", "-o", "/dev/null", "-e", f"inject={delay}",
             *tool("copy"), "--output=json", *words, self.made.path, uri],
            env={**self.environment, "TMPDIR": self.dir}, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.addCleanup(copy.stdout.close)
        wait_until(lambda: os.path.exists(self.lock) and len(self.words()) > 20, "its words")
        return copy

    def test_the_second_is_refused(self):
        first = self.begin_slowly()
        error = self.copy(status=1)["error"]
        self.assertEqual(error["kind"], "busy")
        self.assertIn("under way", error["message"])
        first.kill()  # strace; the copy goes on, without the delays
        self.assertEqual(json.load(first.stdout)["copied"], 4)
        self.assertEqual(first.wait(), -9)
        self.assertEqual(self.words(), "free")
        self.assert_right()
        self.fill(1)
        self.assertEqual(self.copy()["copied"], 1)

    def test_one_that_was_taken_for_dead_gives_way(self):
        first = self.begin_slowly()
        self.put("elsewhere/pid:[1] 5 other 1")
        self.assertEqual(json.load(first.stdout)["error"]["kind"], "busy")
        self.assertEqual(first.wait(), 1)
        self.assertEqual(self.words(), "elsewhere/pid:[1] 5 other 1")

    def test_another_machines_copy_lives_if_its_words_change(self):
        self.put("elsewhere/pid:[1] 5 other 1")
        timer = threading.Timer(2, self.put, ["elsewhere/pid:[1] 5 other 2"])
        timer.start()
        self.addCleanup(timer.join)
        self.assertIn("process 5 on other", self.copy(status=1)["error"]["message"])
        self.assertEqual(self.copy()["copied"], 4)
        self.assert_right()

    def test_a_number_of_a_process_is_used_again(self):
        """As that of the first process of each container is."""
        self.put("")
        script = """
            place=$(cat /proc/sys/kernel/random/boot_id)/$(readlink /proc/self/ns/pid)
            printf '%-255s\\n' "$place $$/1 here 1" > "$0"
            exec "$@"
        """
        uri = self.uri("copy").replace("ssh://", "sftp://", 1)
        run("sh", "-c", script, self.lock, *tool("copy"), self.made.path, uri,
            env=self.environment)  # fmt: skip
        self.assertEqual(self.words(), "free")
        self.assert_right()

    def test_a_copy_that_merges_is_alive(self):
        ident = self.made.order[3]
        copy = self.begin_slowly("--at", ident, delay="pwritev,pwrite64:delay_enter=500000")

        def is_sent():
            names = os.listdir(self.there)
            return ident in names or ".tidemark-part-" + ident in names

        wait_until(lambda: is_sent() or int(self.words().split()[-1]) > 4, "beats")
        self.assertFalse(is_sent())
        copy.kill()  # strace; the copy goes on
        self.assertEqual(json.load(copy.stdout)["merged"], 1)
        self.assertEqual(copy.wait(), -9)


class NamesAreStable(UploadCase):
    """On a server of OpenSSH, which syncs directories, too."""

    def sftp(self):
        return f"strace -f -y -qq -o {self.path('trace')} -e trace=fsync,rename,link,mkdir {SFTP}"

    def calls(self):
        """(call, path) in order: what was synced, made, and given a name."""
        with open(self.path("trace"), encoding="utf-8") as f:
            text = f.read()
        found = re.findall(r'(\w+)\((?:\d+<(.*?)>|.*?"([^"]*)"(?:, \d+)?)\) += 0', text)
        return [(call, synced or named) for call, synced, named in found]

    def test_each_name_is_synced(self):
        there = os.path.realpath(self.directory) + "/copy"
        self.made.order[1:] = []
        ident = self.made.order[0]
        self.copy("--at", ident)
        calls = self.calls()
        part = f"{there}/.tidemark-part-{ident}"
        for before, name, after in (
            ([], there, os.path.dirname(there)),
            ([], f"{there}/repository.json", there),
            ([f"{part}/manifest.json", part], f"{there}/{ident}", there),
        ):
            at = next(i for i, c in enumerate(calls) if c[0] != "fsync" and c[1] == name)
            for path in before:
                self.assertIn(("fsync", path), calls[:at])
            self.assertIn(("fsync", after), calls[at:])


class DirectoryCanNotBeSynced(UploadCase):
    def sftp(self):
        there = os.path.realpath(os.path.dirname(self.path("x"))) + "/files/copy"
        return f"strace -f -qq -o /dev/null -P {there} -e trace=fsync -e inject=fsync:error=EIO {SFTP}"

    def test_the_copy_fails(self):
        error = self.copy(status=1)["error"]["message"]
        self.assertIn("Could not sync", error)


class RenamesDoNotReplace(UploadCase):
    def sftp(self):
        return "internal-sftp -P posix-rename"

    def test_description_that_was_about_to_be_replaced(self):
        self.copy()
        name = os.path.join(self.there, "repository.json")
        with open(name, encoding="utf-8") as f:
            before = json.load(f)["id"]
        os.rename(name, os.path.join(self.there, ".tidemark-repository.json"))
        self.fill(1)
        self.assertEqual(self.copy()["id"], before)
        self.assert_right()


class NothingIsMadeOrRenamed(UploadCase):
    def sftp(self):
        return "internal-sftp -P mkdir,rename,posix-rename"

    def test_the_cause_is_told(self):
        for what in ("make directory", "rename"):
            message = self.copy(status=1)["error"]["message"]
            self.assertIn(f"Could not {what} ", message)
            self.assertIn("Permission denied", message)
            os.makedirs(self.there, exist_ok=True)


class NothingIsRemoved(UploadCase):
    """A server that refuses to remove, replace and cut files takes copies that only grow."""

    def sftp(self):
        return "internal-sftp -P remove,rmdir,posix-rename,setstat,fsetstat"

    def test_all_then_what_is_new(self):
        result = self.copy("--append-only")
        self.assertEqual((result["copied"], result["present"]), (4, 0))
        self.fill(2)
        again = self.copy()
        self.assertEqual((again["copied"], again["present"]), (2, 4))
        self.assert_right()


class Delay:
    """A server behind a slow line: everything arrives some time after it was sent."""

    def __init__(self, port, seconds):
        self.port, self.seconds = port, seconds
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.own_port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            for ends in ((client, server), (server, client)):
                arrived = queue.SimpleQueue()
                threading.Thread(target=self.take, args=(ends[0], arrived), daemon=True).start()
                threading.Thread(target=self.give, args=(ends[1], arrived), daemon=True).start()

    def take(self, end, arrived):
        while True:
            try:
                data = end.recv(65536)
            except OSError:
                data = b""
            arrived.put((time.monotonic() + self.seconds, data))
            if not data:
                return

    def give(self, end, arrived):
        while True:
            due, data = arrived.get()
            time.sleep(max(0, due - time.monotonic()))
            try:
                end.sendall(data) if data else end.shutdown(socket.SHUT_WR)
            except OSError:
                data = b""
            if not data:
                return


class ManyManifests(UploadCase):
    subsystem = "internal-sftp"

    def sftp(self):
        return self.subsystem

    def test_they_are_read_many_at_a_time(self):
        """One after the other, four answers for each: 200 of them take 48 s here."""
        self.fill(196)
        shutil.copytree(self.made.path, self.there)
        run(*tool("repair"), "--new-id", self.there)
        slow = Delay(self.port, 0.03)
        self.addCleanup(slow.listener.close)
        # One that is damaged, one that is lost, and one that is no file.
        victims = [os.path.join(self.there, i, "manifest.json") for i in self.made.order[50:53]]
        with open(victims[0], "w", encoding="utf-8") as f:
            f.write("damage")
        os.unlink(victims[1])
        os.unlink(victims[2])
        os.mkdir(victims[2])
        near, self.port = self.port, slow.own_port
        begun = time.monotonic()
        far = self.copy("--at", self.made.order[0])
        took = time.monotonic() - begun
        self.port = near
        self.assertEqual((far["present"], far["copied"]), (1, 0))
        self.assertLess(took, 24)
        os.rmdir(victims[2])
        self.assertEqual(self.copy()["copied"], 3)
        run(*tool("verify"), self.there)


class OneChannel(UploadCase):
    settings = "MaxSessions 1\n"

    def test_they_are_read_one_by_one(self):
        self.copy()
        self.fill(2)
        self.assertEqual(self.copy()["copied"], 2)
        self.assert_right()


class FewHandles(UploadCase):
    """A server that has no more than some files open at a time."""

    def sftp(self):
        script = self.path("serve")
        with open(script, "w", encoding="utf-8") as f:
            f.write(f"#!/bin/sh\nulimit -n 16\nexec {SFTP}\n")
        os.chmod(script, 0o700)
        return script

    def test_what_could_not_be_opened_is_not_damaged(self):
        self.fill(36)
        self.copy()
        answer = self.copy()
        self.assertEqual((answer["present"], answer["copied"]), (40, 0))


class NoSftp(UploadCase):
    """What the second channel says is not SFTP."""

    def sftp(self):
        script = self.path("serve")
        with open(script, "w", encoding="utf-8") as f:
            f.write(
                "#!/bin/sh\necho >>$0.sessions\n"
                f"[ $(($(wc -l <$0.sessions) % 2)) = 0 ] || exec {SFTP}\n"
                "head -c 9 >/dev/null; cat $0.answer; sleep 5\n"
            )
        os.chmod(script, 0o700)
        return script

    def test_it_ends_the_copy(self):
        shutil.copytree(self.made.path, self.there)
        run(*tool("repair"), "--new-id", self.there)
        version = b"\0\0\0\5\2\0\0\0\3"
        for answer in (
            b"\xff\xff\xff\xff\x66",  # longer than any
            b"\0\0\0\0",
            b"\0\0\0\5\x66\0\0\0\x63",  # of no request
            b"\0\0\0\5\x66\0\0\0\0",  # a handle that is missing
            b"\0\0\0\x0a\x66\0\0\0\0\xff\xff\xff\xff\0",  # and one that is cut
            b"\0\0\0\x0a\x67\0\0\0\0\0\0\0\1x",  # data before it is open
            b"\0\0\1\x0a\x66\0\0\0\0\0\0\1\1" + bytes(257),  # a longer handle
        ):
            with open(self.path("serve.answer"), "wb") as f:
                f.write(version + answer)
            error = self.copy(status=1)["error"]
            self.assertIn("otherwise than SFTP", error["message"])
        # Nothing more comes, and the server ends.
        with open(self.path("serve.answer"), "wb") as f:
            f.write(version)
        self.assertIn("it has ended the connection", self.copy(status=1)["error"]["message"])


if __name__ == "__main__":
    unittest.main()