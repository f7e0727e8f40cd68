# SPDX-License-Identifier: Apache-2.0
"""Commands end soon after a signal, also while they read a file that never seems to end."""

import datetime
import glob
import json
import os
import signal
import subprocess

from made_repository import CLUSTER, MadeRepository, change_manifest
from tidemark import TestCase, tool, wait_until

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
HOUR = datetime.timedelta(hours=1)


def has_open(pid, path):
    for link in glob.glob(f"/proc/{pid}/fd/*"):
        try:
            if os.readlink(link) == path:
                return True
        except FileNotFoundError:
            pass
    return False


class Stop(TestCase):
    def setUp(self):
        super().setUp()
        self.made = MadeRepository(self.path("backups"))
        for i in range(2):
            self.made.add(START + i * HOUR, {i: b"x" * CLUSTER})
        self.sums = os.path.join(self.made.path, self.made.order[0], "checksums")

    def make_endless(self):
        os.truncate(self.sums, 1 << 40)
        path = os.path.join(os.path.dirname(self.sums), "manifest.json")
        with open(path, encoding="utf-8") as f:
            sums = json.load(f)["checksums"]
        change_manifest(path, checksums={**sums, "size": 1 << 40})

    def stops(self, name, *words, number=signal.SIGTERM, status=1, said=True):
        process = subprocess.Popen(
            [*tool(name), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.addCleanup(process.kill)
        wait_until(lambda: has_open(process.pid, self.sums), "its reading")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, status, err)
        if said:
            self.assertEqual(json.loads(out)["error"]["kind"], "stopped", err)

    def test_hashing_of_checksums(self):
        self.make_endless()
        path, image = self.made.path, self.path("image.raw")
        with open(image, "wb") as f:
            f.truncate(self.made.size)
        for number in signal.SIGTERM, signal.SIGINT:
            for name, *words in (
                ("restore", path, self.path("out.raw")),
                ("verify", path),
                ("repair", path),
                ("prune", path, "--keep-last", "1"),
                ("copy", path, self.path("copy"), "--last", "1"),
                ("test-restore", path),
                ("files", path),
                ("backup", "--image", image, "--format", "raw", "--same-disk", "--to", path),
            ):
                with self.subTest(name=name, number=number):
                    self.stops(
                        name, "--output=json", *words, number=number,
                        status=4 if name == "verify" else 1, said=name != "verify",
                    )  # fmt: skip
