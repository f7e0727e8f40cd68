# SPDX-License-Identifier: Apache-2.0
"""What is lost in a repository and can be made again, is; what can't be is named."""

import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import unittest

from made_repository import CLUSTER, KEPT, MadeRepository
from tidemark import TestCase, open_paths, run, tool, wait_until

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
HOUR = datetime.timedelta(hours=1)


class RepairCase(TestCase):
    def setUp(self):
        super().setUp()
        self.random = random.Random(self.id())
        # The disk ends within a cluster.
        self.made = MadeRepository(self.path("repository"), size=15 * CLUSTER + 5120)
        for i in range(5):
            self.made.add(START + i * HOUR, self.changes())

    def changes(self):
        return {
            n: self.random.choice([None, self.random.randbytes(CLUSTER)])
            for n in self.random.sample(range(15), 4)
        }

    def file(self, n, name):
        return os.path.join(self.made.path, self.made.order[n], name)

    def repair(self, status=0):
        result = run(*tool("repair"), "--output=json", self.made.path, check=False)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return json.loads(result.stdout)

    def listed(self):
        return json.loads(run(*tool("backups"), "--output=json", self.made.path).stdout)

    def assert_right(self, but=()):
        for n, ident in enumerate(self.made.order):
            if n in but:
                continue
            run(*tool("restore"), self.made.path, "--at", ident, "--force", self.path("out.raw"))
            with open(self.path("out.raw"), "rb") as f:
                self.assertEqual(f.read(), self.made.models[ident], ident)

    def assert_sound(self):
        self.assertEqual([b["id"] for b in self.listed()], self.made.order)
        self.assert_right()
        run(*tool("verify"), self.made.path)
        hidden = [n for _, _, names in os.walk(self.made.path) for n in names
                  if n.startswith(".tidemark-") and n not in KEPT]  # fmt: skip
        self.assertEqual(hidden, [])

    def damage(self, path):
        how = self.random.choice(["remove", "empty", "cut", "flip", "link", "fifo", "noise"])
        with open(path, "rb") as f:
            data = bytearray(f.read())
        os.unlink(path)
        if how == "link":
            os.symlink("/etc/hostname", path)
        elif how == "fifo":
            os.mkfifo(path)
        elif how != "remove":
            data[len(data) // 2] ^= 1
            data = {"empty": b"", "cut": data[:-1], "flip": data, "noise": b"x" * 99}[how]
            with open(path, "wb") as f:
                f.write(data)
        return how


class Repairs(RepairCase):
    def test_checksums_are_made_again_exactly(self):
        before = {}
        for n in range(5):
            with open(self.file(n, "checksums"), "rb") as f:
                before[n] = f.read()
            self.damage(self.file(n, "checksums"))
        result = self.repair()
        self.assertEqual([(i["file"], i["repaired"]) for i in result["items"]],
                         [("checksums", True)] * 5)  # fmt: skip
        for n in range(5):
            with open(self.file(n, "checksums"), "rb") as f:
                self.assertEqual(f.read(), before[n])
        self.assert_sound()

    def test_manifests_are_made_again(self):
        for lost in ([0], [2], [4], [1, 2], [0, 1, 2, 3, 4]):
            with self.subTest(lost=lost):
                for n in lost:
                    self.damage(self.file(n, "manifest.json"))
                result = self.repair()
                self.assertEqual(len(result["items"]), len(lost))
                self.assert_sound()
                listed = self.listed()
                self.assertTrue(all(listed[n]["rebuilt"] for n in lost))
                self.assertTrue(all(listed[n]["bitmap"] == "" for n in lost))

    def test_description_and_manifests_at_once(self):
        self.damage(os.path.join(self.made.path, "repository.json"))
        self.damage(self.file(3, "manifest.json"))
        result = self.repair()
        self.assertEqual(result["id"], self.made.ident)
        self.assert_sound()

    def test_a_repaired_chain_is_pruned_and_copied(self):
        self.damage(self.file(1, "manifest.json"))
        self.repair()
        run(*tool("copy"), self.made.path, self.path("copy"))
        run(*tool("verify"), self.path("copy"))
        run(*tool("prune"), "--keep-last=2", self.made.path)
        run(*tool("verify"), self.made.path)

    def test_random_damage_of_what_can_be_made_again(self):
        for _ in range(12):
            for n in self.random.sample(range(5), 3):
                # Each backup loses one of the two.
                self.damage(self.file(n, self.random.choice(["checksums", "manifest.json"])))
            self.repair()
            self.assert_sound()


class Sparse(RepairCase):
    """Full backups as they are taken: zeroes that were read are recorded, holes are not."""

    def setUp(self):
        super().setUp()
        self.image = self.path("disk.raw")
        with open(self.image, "wb") as f:
            f.write(self.random.randbytes(3 * CLUSTER) + bytes(2 * CLUSTER))
            f.truncate(40 * CLUSTER)
        with open(self.image, "rb") as f:
            self.model = f.read()
        with open(self.path("key"), "wb") as f:
            f.write(self.random.randbytes(32))

    def check(self, name, *words):
        for lost in ("checksums", "manifest.json"):
            for key in ([], ["--key-file", self.path("key")]):
                to = self.path(f"{lost}-{len(key)}-{name}")
                encrypt = ["--encrypt"] if key else []
                run(*tool("backup"), "--image", self.image, "--format", "raw", "--to", to, *key,
                    *encrypt)  # fmt: skip
                if words:
                    run(*tool("backup"), "--image", self.image, "--format", "raw", "--to", to, *key)
                    run(*tool(words[0]), to, *words[1:], *key)
                (made,) = json.loads(run(*tool("backups"), "--output=json", to, *key).stdout)
                os.unlink(os.path.join(to, made["id"], lost))
                out = run(*tool("repair"), to, *key, check=False)
                self.assertEqual(out.returncode, 0, out.stdout + out.stderr)
                run(*tool("verify"), to, *key)
                run(*tool("restore"), to, "--force", self.path("out.raw"), *key)
                with open(self.path("out.raw"), "rb") as f:
                    self.assertEqual(f.read(), self.model)

    def test_what_a_full_backup_has_lost_is_made_again(self):
        self.check("taken")

    def test_likewise_after_a_merge(self):
        self.check("merged", "prune", "--keep-last", "1")

    def test_other_contents_are_not_given_a_manifest(self):
        """Zeroes that the checksum file does not record are holes, and no data."""
        to = self.path("other")
        run(*tool("backup"), "--image", self.image, "--format", "raw", "--to", to)
        (ident,) = [n for n in os.listdir(to) if n.endswith("Z")]
        folder = os.path.join(to, ident)
        os.unlink(os.path.join(folder, "manifest.json"))
        run(*tool("io"), "-f", "qcow2", "-c", "write -P 7 2M 64k",
            os.path.join(folder, "disk.qcow2"))  # fmt: skip
        out = run(*tool("repair"), to, check=False)
        self.assertEqual(out.returncode, 2, out.stdout + out.stderr)


class Limits(RepairCase):
    def test_what_is_not_damaged_needs_no_repair(self):
        result = self.repair(status=1)
        self.assertIn("needs no repair", result["error"]["message"])

    def test_lost_images_are_named_and_nothing_else_is_lost(self):
        os.unlink(self.file(2, "disk.qcow2"))
        result = self.repair(status=2)
        (item,) = result["items"]
        self.assertEqual((item["id"], item["file"]), (self.made.order[2], "disk.qcow2"))
        self.assert_right(but=(2, 3, 4))

    def test_lost_backups_are_named_by_what_builds_on_them(self):
        shutil.rmtree(os.path.join(self.made.path, self.made.order[1]))
        result = self.repair(status=2)
        self.assertEqual({i["id"] for i in result["items"]}, set(self.made.order[2:]))
        self.assertIn("which is gone", result["items"][0]["problem"])

    def test_both_small_files_lost(self):
        os.unlink(self.file(1, "manifest.json"))
        os.unlink(self.file(1, "checksums"))
        result = self.repair(status=2)
        self.assertEqual(result["items"][0]["id"], self.made.order[1])
        self.assertFalse(result["items"][0]["repaired"])

    def test_an_image_that_never_ends_can_be_stopped(self):
        """What is hashed for a lost manifest is as long as somebody has made the file."""
        os.truncate(self.file(1, "disk.qcow2"), 1 << 40)
        os.unlink(self.file(1, "manifest.json"))
        process = subprocess.Popen(
            [*tool("repair"), "--output=json", self.made.path], stdout=subprocess.PIPE
        )
        self.addCleanup(process.kill)
        wait_until(lambda: self.file(1, "disk.qcow2") in open_paths(process.pid), "its reading")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, out)
        self.assertEqual(json.loads(out)["error"]["kind"], "stopped")

    def test_damaged_image_is_not_given_new_checksums(self):
        with open(self.file(1, "disk.qcow2"), "r+b") as f:
            f.seek(5 * CLUSTER + 100)
            f.write(b"changed")
        for name in ("checksums", "manifest.json"):
            os.rename(self.file(1, name), self.path("kept"))
            result = self.repair(status=2)
            self.assertFalse(result["items"][0]["repaired"])
            os.rename(self.path("kept"), self.file(1, name))

    def test_files_of_another_backup_prove_nothing(self):
        shutil.copy(self.file(2, "checksums"), self.file(1, "checksums"))
        os.unlink(self.file(1, "manifest.json"))
        result = self.repair(status=2)
        self.assertFalse(result["items"][0]["repaired"])

    def test_hostile_images(self):
        """Backing names that lead elsewhere, impossible sizes, data in another file."""
        path = self.file(1, "disk.qcow2")
        with open(path, "rb") as f:
            image = bytearray(f.read())
        name = image.index(b"../2026")
        edits = {
            "elsewhere": (name, b"/etc/aa"),
            "long name": (16, (1 << 20).to_bytes(4, "big")),
            "name past the end": (8, (1 << 62).to_bytes(8, "big")),
            "size": (24, (1 << 63).to_bytes(8, "big")),
            "no size": (24, bytes(8)),
            "data file": (72, (4).to_bytes(8, "big")),
            "encrypted": (32, (2).to_bytes(4, "big")),
        }
        os.unlink(self.file(1, "manifest.json"))
        for what, (at, data) in edits.items():
            with self.subTest(what):
                changed = bytearray(image)
                changed[at : at + len(data)] = data
                with open(path, "wb") as f:
                    f.write(changed)
                result = self.repair(status=2)
                self.assertFalse(result["items"][0]["repaired"])


if __name__ == "__main__":
    unittest.main()
