# SPDX-License-Identifier: Apache-2.0
"""A repository with a key: what somebody without it has changed is noticed."""

import datetime
import hashlib
import json
import os
import shutil
import subprocess
import time
import unittest

from backup_case import MIB, BackupCase, heed_signals
from made_repository import CLUSTER, MadeRepository, change_manifest
from tidemark import TestCase, run, tool, wait_until

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


class KeyCase(TestCase):
    def setUp(self):
        super().setUp()
        self.key = self.make_key("key", b"k" * 32)
        self.made = MadeRepository(self.path("repository"))
        for i in range(4):
            self.made.add(START + datetime.timedelta(hours=i), {i: bytes([i + 1]) * CLUSTER})
        self.sign()

    def make_key(self, name, content):
        with open(self.path(name), "wb") as f:
            f.write(content)
        return self.path(name)

    def sign(self):
        run(*tool("repair"), "--sign", "--key-file", self.key, self.made.path)

    def ask(self, face, *words, key=True, status=0):
        keys = ["--key-file", self.key] if key is True else ["--key-file", key] if key else []
        result = run(*tool(face), "--output=json", *keys, *words, check=False)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        self.said = result.stderr
        return json.loads(result.stdout)

    def problems(self):
        listed = self.ask("backups", self.made.path)
        return [b["id"] for b in listed if "problem" in b]

    def manifest(self, n):
        return os.path.join(self.made.path, self.made.order[n], "manifest.json")

    def restore(self, n, status=0, key=True):
        return self.ask("restore", self.made.path, "--at", self.made.order[n], "--force",
                        self.path("out.raw"), status=status, key=key)  # fmt: skip


class Keys(KeyCase):
    def test_with_the_key_all_works_as_before(self):
        self.assertEqual(self.problems(), [])
        self.restore(2)
        with open(self.path("out.raw"), "rb") as f:
            self.assertEqual(f.read(), self.made.models[self.made.order[2]])
        self.ask("verify", self.made.path)
        self.ask("prune", "--keep-last=2", self.made.path)
        self.made.order = self.made.order[2:]
        self.assertEqual(self.problems(), [])
        self.restore(0)
        self.ask("copy", self.made.path, self.path("copy"))
        listed = self.ask("backups", self.path("copy"))
        self.assertEqual([b["id"] for b in listed if "problem" not in b], self.made.order)
        os.unlink(self.manifest(1))
        self.ask("repair", self.made.path)
        self.assertEqual(self.problems(), [])

    def test_without_the_key_it_is_read_but_not_changed(self):
        self.restore(1, key=None)
        for words in (["prune", "--keep-last=1", self.made.path],
                      ["copy", self.made.path, self.path("copy")],
                      ["repair", "--new-id", self.made.path]):  # fmt: skip
            error = self.ask(*words, key=None, status=1)["error"]
            self.assertEqual(error["kind"], "key")
        self.assertEqual(len(self.ask("backups", self.made.path)), 4)

    def test_wrong_and_unusable_keys_are_said(self):
        other = self.make_key("other", b"o" * 32)
        error = self.ask("backups", self.made.path, key=other, status=1)["error"]
        self.assertEqual(error["kind"], "key")
        self.assertIn("another key", error["message"])
        for content in (b"short", b"", b"x" * 5000):
            bad = self.make_key("bad", content)
            self.assertIn("Key file", self.ask("backups", self.made.path, key=bad, status=1)
                          ["error"]["message"])  # fmt: skip
        self.ask("backups", self.made.path, key=self.path("absent"), status=1)

    def test_newlines_of_the_file_do_not_count(self):
        self.ask("backups", self.made.path, key=self.make_key("line", b"k" * 32 + b"\n"))

    def test_key_by_the_environment(self):
        env = {**os.environ, "TIDEMARK_KEY_FILE": self.key}
        run(*tool("prune"), "--keep-last=1", self.made.path, env=env)

    def test_repository_without_a_key_is_refused_with_one(self):
        plain = MadeRepository(self.path("plain"), ident="11111111")
        plain.add(START, {0: b"p" * CLUSTER})
        for face in ("backups", "verify"):
            error = self.ask(face, plain.path, status=1)["error"]
            self.assertEqual(error["kind"], "key")


class KeyThatDoesNotCome(KeyCase):
    def test_a_stop_ends_the_wait(self):
        begun = self.path("begun")
        for command in (f"echo >{begun}; sleep 60", f"cat {self.key}; echo >{begun}; exec >&-; sleep 60",
                        f"trap '' TERM; echo >{begun}; sleep 60"):  # fmt: skip
            for words in (["verify", self.made.path],
                          ["restore", self.made.path, self.path("out.raw")],
                          ["prune", "--keep-last=1", self.made.path]):  # fmt: skip
                with self.subTest(command=command, words=words):
                    process = subprocess.Popen(
                        [*tool(words[0]), "--key-command", command, *words[1:]],
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                        preexec_fn=heed_signals,
                    )  # fmt: skip
                    self.addCleanup(process.kill)
                    wait_until(lambda: os.path.exists(begun), "the command")
                    begin = time.monotonic()
                    process.terminate()
                    self.assertIn(process.wait(50), (1, 4))
                    self.assertLess(time.monotonic() - begin, 30)
                    os.unlink(begun)


class Rewritten(KeyCase):
    def test_a_manifest_that_was_made_again(self):
        change_manifest(self.manifest(2), node="another")
        self.assertEqual(self.problems(), self.made.order[2:])  # and what builds on it
        self.restore(2, status=1)
        self.assertIn("without the key", self.said)
        self.restore(1)

    def test_a_backup_that_was_replaced_with_all_its_checksums(self):
        forged = MadeRepository(self.path("forged"))
        for i in range(4):
            forged.add(START + datetime.timedelta(hours=i), {i: b"forged!!" * (CLUSTER // 8)})
        n = self.made.order[0]
        shutil.rmtree(os.path.join(self.made.path, n))
        shutil.copytree(os.path.join(forged.path, n), os.path.join(self.made.path, n))
        self.assertIn(n, self.problems())
        self.restore(3, status=1)
        # Without the key nobody can tell.
        self.restore(3, key=None)

    def test_files_of_one_backup_put_in_the_place_of_another(self):
        for name in ("disk.qcow2", "checksums", "manifest.json"):
            shutil.copy(os.path.join(self.made.path, self.made.order[1], name),
                        os.path.join(self.made.path, self.made.order[2], name))  # fmt: skip
        self.assertEqual(self.problems(), self.made.order[2:])  # and what builds on it

    def test_a_description_without_the_key(self):
        path = os.path.join(self.made.path, "repository.json")
        with open(path, encoding="utf-8") as f:
            description = json.load(f)
        for change in ({"key": None, "mac": None}, {"former": "deadbeef"}, {"mac": "0" * 64}):
            changed = {k: v for k, v in {**description, **change}.items() if v is not None}
            del changed["sha256"]
            text = json.dumps(changed, separators=(",", ":"))
            changed["sha256"] = hashlib.sha256(text.encode()).hexdigest()
            with open(path, "w", encoding="utf-8") as f:
                json.dump(changed, f)
            self.ask("prune", "--keep-last=1", self.made.path, status=1)
        # The backups themselves are proved.
        self.restore(3)
        self.ask("repair", self.made.path)
        self.assertEqual(self.problems(), [])


class Backups(BackupCase):
    size = 4 * MIB

    def test_new_repository_gets_the_key(self):
        key = self.path("key")
        with open(key, "w", encoding="utf-8") as f:
            f.write("0123456789abcdef" * 2)
        self.write_random(0, MIB)
        first = self.backup("--key-file", key)
        with open(os.path.join(self.repository, first["id"], "manifest.json"), "rb") as f:
            self.assertEqual(len(json.load(f)["mac"]), 64)
        self.write_random(0, MIB)
        self.backup_fails_at_once(why="has a key")
        second = self.backup("--key-file", key)
        self.assertEqual(second["kind"], "incremental")
        run(*tool("verify"), "--key-file", key, self.repository)
        self.assert_restores(second, self.model)


if __name__ == "__main__":
    unittest.main()
