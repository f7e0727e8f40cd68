# SPDX-License-Identifier: Apache-2.0
"""Merges of prunes: into a copy of a large image, and while others read."""

import collections
import hashlib
import json
import os
import shutil
import signal
import subprocess
import unittest

from made_repository import CLUSTER, MadeRepository, change_manifest
from test_prune import HOUR, START, PruneCase
from tidemark import qemu_img, run, tool, wait_until


class Patches(PruneCase):
    """A merge into a large backup writes over a copy of its image, until much of it is patched."""

    def setUp(self):
        super().setUp()
        self.made = MadeRepository(self.path("large"), size=80 * CLUSTER)
        self.hour = 0

    def add(self, count, at=range(80), zero=False):
        self.hour += 1
        changes = {n: self.random.randbytes(CLUSTER) for n in self.random.sample(list(at), count)}
        if zero:
            changes[self.random.choice(list(at))] = None
        return self.made.add(START + self.hour * HOUR, changes)

    def patched(self):
        listed = json.loads(run(*tool("backups"), "--output=json", self.made.path).stdout)
        return [b.get("patched-bytes", 0) // CLUSTER for b in listed]

    def test_patches_add_up_until_the_image_is_written_again(self):
        self.add(80)
        seen = []
        for _ in range(9):
            self.made.order = self.ids()
            self.add(4, zero=True)
            self.prune("--keep-last=1")
            seen += self.patched()
            self.assert_all_restore()
            self.assert_sound()
        self.assertGreater(max(seen), 10)
        self.assertIn(0, seen[3:])

    def test_part_in_the_middle_of_a_chain(self):
        self.add(60)
        self.add(40, zero=True)
        for _ in range(3):
            self.add(2, zero=True)
        self.prune("--remove", self.made.order[1], "--remove", self.made.order[2])
        self.assertEqual(self.patched()[1:2], [4])
        self.assert_all_restore()
        self.assert_sound()
        for ident in self.ids():
            disk = os.path.join(self.made.path, ident, "disk.qcow2")
            qemu_img("convert", "-O", "raw", disk, self.path("q.raw"))
            with open(self.path("q.raw"), "rb") as f:
                self.assertEqual(f.read(), self.made.models[ident])

    def test_damage_that_is_not_needed_does_not_matter(self):
        first = self.add(80)
        self.add(1, at=[0])
        with open(os.path.join(self.made.path, first, "disk.qcow2"), "r+b") as f:
            f.seek(5 * CLUSTER + 5)  # the first cluster of data is that of the disk
            f.write(b"damage")
        self.prune("--keep-last=1")
        self.assertEqual(self.patched(), [0])
        self.assert_all_restore()
        self.assert_sound()

    def test_images_with_data_elsewhere_are_not_written_to(self):
        first = self.add(80)
        self.add(1)
        victim = self.path("victim")
        with open(victim, "wb") as f:
            f.write(bytes(80 * CLUSTER))
        path = os.path.join(self.made.path, first, "disk.qcow2")
        with open(path, "rb") as f:
            image = bytearray(f.read())
        image[72:80] = (4).to_bytes(8, "big")
        name = victim.encode()
        image[104:112] = b"DATA" + len(name).to_bytes(4, "big")
        image[112 : 112 + len(name)] = name
        with open(path, "wb") as f:
            f.write(image)
        manifest = os.path.join(self.made.path, first, "manifest.json")
        digest = hashlib.sha256(image).hexdigest()
        change_manifest(manifest, image={"size": len(image), "sha256": digest})
        self.prune("--keep-last=1", status=1)
        with open(victim, "rb") as f:
            self.assertEqual(f.read(), bytes(80 * CLUSTER))


class Readers(PruneCase):
    """Programs that read while a prune replaces and removes what they are about to open."""

    def stop_at(self, step, *command):
        """A program that is stopped when it opens something for the given time."""
        process = subprocess.Popen(
            ["strace", "-f", "-o", "/dev/null",
             "-e", f"inject=openat:signal=SIGSTOP:when={step}", *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        seen = collections.Counter()

        def is_stopped():
            try:
                with open(children, encoding="utf-8") as f:
                    pid = int(f.read().split()[0])
                with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
                    state = f.read().rsplit(")", 1)[1].split()[0]
            except (OSError, IndexError):
                return process.poll() is not None
            # Every call stops it for a moment; this one lasts.
            seen[pid] = seen[pid] + 1 if state in "Tt" else 0
            return pid if seen[pid] > 15 else None

        return process, wait_until(is_stopped, "the stop")

    def go_on(self, process, pid):
        """Its output. On a busy machine the stop may have come later."""
        for _ in range(100):
            if pid is not True and process.poll() is None:
                os.kill(pid, signal.SIGCONT)
            try:
                return process.communicate(timeout=0.3)[0]
            except subprocess.TimeoutExpired:
                pass
        self.fail("it does not end")

    def opens(self, *command):
        log = self.path("opens.log")
        run("strace", "-f", "-o", log, "-e", "trace=openat", *command)
        with open(log, encoding="utf-8") as f:
            lines = [line for line in f if "openat(" in line]
        first = next(i for i, line in enumerate(lines) if "manifest.json" in line)
        return first, len(lines)

    def test_restore_finds_again_what_a_prune_has_replaced(self):
        self.fill(8)
        newest = self.made.order[-1]
        target = self.path("raced.raw")
        command = [*tool("restore"), "--force", self.path("copy"), "--at", newest, target]
        shutil.copytree(self.made.path, self.path("copy"))
        first, total = self.opens(*command)
        for step in self.random.sample(range(first, total), 4):
            shutil.rmtree(self.path("copy"))
            shutil.copytree(self.made.path, self.path("copy"))
            process, pid = self.stop_at(step, *command)
            self.prune("--keep-last=2", path=self.path("copy"))
            out = self.go_on(process, pid)
            with self.subTest(step=step):
                self.assertEqual(process.returncode, 0, out)
                with open(target, "rb") as f:
                    self.assertEqual(f.read(), self.made.models[newest])

    def test_verify_takes_no_pruned_backup_for_a_damaged_one(self):
        self.fill(8)
        path = self.path("copy")
        shutil.copytree(self.made.path, path)
        command = [*tool("verify"), path]
        first, total = self.opens(*command)
        for part in (0.3, 0.6):
            shutil.rmtree(path)
            shutil.copytree(self.made.path, path)
            process, pid = self.stop_at(int(first + part * (total - first)), *command)
            self.prune("--keep-last=2", path=path)
            out = self.go_on(process, pid)
            with self.subTest(part=part):
                self.assertEqual(process.returncode, 0, out)
                self.assertNotIn("DAMAGED", out)
                for ident in self.made.order[-2:]:
                    self.assertEqual(out.count(f"{ident}  "), 1, out)


if __name__ == "__main__":
    unittest.main()
