# SPDX-License-Identifier: Apache-2.0
"""What tests of encrypted repositories share."""

import datetime
import json
import os
import random
import shutil

from made_repository import CLUSTER, MadeRepository
from tidemark import TestCase, run, tool

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
MATERIAL = b"k" * 40
FILES = ("manifest.json", "checksums", "disk.qcow2")


def flip(path, offset, bit=1):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ bit]))


class EncryptedCase(TestCase):
    def setUp(self):
        super().setUp()
        self.random = random.Random(31)
        self.key = self.make_file("key", MATERIAL)
        self.keys = ["--key-file", self.key]

    def make_file(self, name, content):
        with open(self.path(name), "wb") as f:
            f.write(content)
        return self.path(name)

    def make(self, count=4):
        """An encrypted repository of a chain; self.made has what its backups hold."""
        self.made = MadeRepository(self.path("plain"))
        for i in range(count):
            change = {n: self.random.randbytes(CLUSTER) for n in (i, 7)}
            self.made.add(START + datetime.timedelta(hours=i), {**change, 12: None})
        run(*tool("repair"), "--sign", *self.keys, self.made.path)
        self.repository = self.path("repository")
        run(*tool("copy"), "--encrypt", *self.keys, self.made.path, self.repository)
        self.order = self.made.order

    def ask(self, face, *words, keys=None, status=0):
        keys = self.keys if keys is None else keys
        result = run(*tool(face), "--output=json", *keys, *words, check=False)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return json.loads(result.stdout)

    def file(self, n, name):
        return os.path.join(self.repository, self.order[n], name)

    def try_restore(self, n, keys=None):
        """The restored bytes; None if it was refused, with what was said in self.said."""
        out = self.path("out.raw")
        result = run(*tool("restore"), *(keys or self.keys), self.repository, "--force",
                     "--at", self.order[n], out, check=False)  # fmt: skip
        self.said = result.stderr
        if result.returncode != 0:
            return None
        with open(out, "rb") as f:
            return f.read()

    def assert_restores(self, n):
        self.assertEqual(self.try_restore(n), bytes(self.made.models[self.order[n]]), self.said)

    def damaged(self):
        """Ids that verify says are damaged."""
        result = run(*tool("verify"), *self.keys, self.repository, check=False)
        self.said = result.stdout + result.stderr
        return sorted(line.split()[0] for line in result.stdout.splitlines() if "DAMAGED" in line)

    def snapshot(self, name="kept"):
        shutil.rmtree(self.path(name), ignore_errors=True)
        shutil.copytree(self.repository, self.path(name))
        return self.path(name)
