# SPDX-License-Identifier: Apache-2.0
"""A backup is proved by using it: partition tables, file systems, start in an emulator."""

import json
import os
import unittest

import disk_image
from backup_case import MIB, BackupCase
from tidemark import img, run, tool

SECTOR = disk_image.SECTOR


class ProofCase(BackupCase):
    size = 64 * MIB

    def setUp(self):
        super(BackupCase, self).setUp()
        self.raw = self.path("guest.raw")
        self.image = self.path("disk.qcow2")
        self.repository = self.path("backups")
        self.make_disk()

    def make_disk(self):
        """A FAT and an ext4 partition, with a GPT."""
        self.parts = [(1 * MIB, 16 * MIB), (20 * MIB, 32 * MIB)]
        disk_image.make_gpt(self.raw, self.size, self.parts)
        disk_image.make_vfat(self.raw, *self.parts[0])
        disk_image.make_ext4(self.raw, *self.parts[1])

    def take(self, name="backups"):
        """Back up what the raw file holds now."""
        self.repository = self.path(name)
        img("convert", "-f", "raw", "-O", "qcow2", self.raw, self.image)
        self.start(server=False)
        self.backup()
        self.server.stop()

    def prove(self, *words, status=0):
        scratch = self.path("scratch")
        os.makedirs(scratch, exist_ok=True)
        result = run(*tool("test-restore"), "--output=json", "--dir", scratch, *words,
                     self.repository, check=False)  # fmt: skip
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        self.assertEqual(os.listdir(scratch), [])
        return json.loads(result.stdout)

    def results(self, proof):
        return [(v["partition"], v["type"], v["result"]) for v in proof["volumes"]]


class FileSystems(ProofCase):
    def test_a_sound_disk(self):
        self.take()
        proof = self.prove()
        self.assertTrue(proof["passed"])
        self.assertEqual(proof["table"], "gpt")
        self.assertEqual(self.results(proof), [(1, "vfat", "sound"), (2, "ext4", "sound")])
        self.assertEqual([(v["offset"], v["size"]) for v in proof["volumes"]], self.parts)
        text = run(*tool("test-restore"), "--dir", self.dir, self.repository).stdout
        self.assertIn("The test succeeded.", text)

    def test_a_file_system_in_use_is_sound(self):
        """Its journal has to be replayed, as after a power failure."""
        commands = self.path("commands")
        with open(commands, "w", encoding="utf-8") as f:
            f.write("jo\njw -b 3000,3001\njc\nfeature needs_recovery\n")
        part = f"{self.raw}?offset={self.parts[1][0]}"
        run("debugfs", "-w", "-f", commands, part)
        self.take()
        self.assertEqual(self.results(self.prove())[1], (2, "ext4", "sound"))

    def test_a_damaged_file_system_fails(self):
        disk_image.put(self.raw, self.parts[1][0] + 300 * 1024, os.urandom(2 * MIB))
        self.take()
        proof = self.prove(status=2)
        self.assertFalse(proof["passed"])
        self.assertEqual(self.results(proof)[1], (2, "ext4", "damaged"))

    def test_damaged_tables(self):
        second = self.size - SECTOR
        for name, damage, why, count in (
            ("a", [(SECTOR + 20, b"x")], "first partition table", 2),
            ("b", [(second, b"x")], "second partition table", 2),
            ("c", [(2 * SECTOR + 40, b"x"), (second, b"x")], "first partition table", 0),
        ):
            self.make_disk()
            for offset, data in damage:
                disk_image.put(self.raw, offset, data)
            self.take(name)
            proof = self.prove(status=2)
            self.assertIn(why, proof["table-problem"])
            self.assertEqual(len(proof["volumes"]), count)

    def test_a_damaged_backup_fails(self):
        self.take()
        path = self.image_of(self.list_backups()[0])
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            f.write(b"damage")
        self.assertEqual(self.prove(status=2)["error"]["kind"], "damaged")


class Tables(ProofCase):
    size = 16 * MIB

    def make_disk(self):
        disk_image.make(self.raw, self.size)

    def test_logical_partitions(self):
        ext = 8192
        disk_image.put(
            self.raw, 0, disk_image.mbr([(0x83, 2048, 2048), (5, ext, 16384), (7, 1 << 30, 9)])
        )
        disk_image.put(self.raw, ext * SECTOR, disk_image.mbr([(0x83, 64, 1000), (5, 2048, 2048)]))
        disk_image.put(self.raw, (ext + 2048) * SECTOR, disk_image.mbr([(0x82, 64, 500)]))
        disk_image.put(self.raw, (ext + 2048 + 64) * SECTOR + 4086, b"SWAPSPACE2")
        self.take()
        proof = self.prove(status=2)
        self.assertEqual(proof["table"], "mbr")
        self.assertEqual(proof["table-problem"], "Partition 3 is not within the disk")
        self.assertEqual(
            [(v["partition"], v["offset"] // SECTOR, v["type"]) for v in proof["volumes"]],
            [(1, 2048, ""), (5, ext + 64, ""), (6, ext + 2048 + 64, "swap")],
        )

    def test_a_chain_of_tables_that_never_ends(self):
        disk_image.put(self.raw, 0, disk_image.mbr([(5, 64, 9999)]))
        disk_image.put(self.raw, 64 * SECTOR, disk_image.mbr([(0x83, 1, 9), (5, 0, 9)]))
        self.take()
        proof = self.prove(status=2)
        self.assertEqual(len(proof["volumes"]), 128)
        self.assertIn("more than 128", proof["table-problem"])

    def test_a_disk_without_a_table(self):
        disk_image.make_ext4(self.raw, 0, self.size)
        self.take()
        proof = self.prove()
        self.assertEqual((proof["table"], self.results(proof)), ("", [(0, "ext4", "sound")]))

    def test_an_empty_disk(self):
        self.take()
        self.assertEqual(self.results(self.prove()), [(0, "", "not checked")])


class Boot(ProofCase):
    size = 4 * MIB

    def make_disk(self):
        with open(self.raw, "wb") as f:
            f.write(os.urandom(self.size))

    def emulator(self, script):
        path = self.path("emulator")
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"#!/bin/sh\n{script}\n")
        os.chmod(path, 0o755)
        return "--boot", "--qemu", path

    def test_it_waits_for_the_marker(self):
        self.take()
        words = self.emulator(
            f'echo "$@" > {self.dir}/words; echo $$ > {self.dir}/pid\n'
            f'for w; do case $w in *file=*) cp "${{w##*file=}}" {self.dir}/seen;; esac; done\n'
            "printf 'starting\\0\\nsome lo'; sleep 0.2; echo gin:; exec sleep 100"
        )
        proof = self.prove(*words, "--qemu-arg=-cpu", "--qemu-arg=max")
        self.assertTrue(proof["boot"]["booted"])
        self.assertLess(proof["boot"]["seconds"], 20)
        with open(self.raw, "rb") as f, open(self.path("seen"), "rb") as seen:
            self.assertTrue(f.read() == seen.read())
        with open(self.path("words"), encoding="utf-8") as f:
            self.assertTrue(f.read().strip().endswith("-cpu max"))
        with open(self.path("pid"), encoding="utf-8") as f:
            self.assertFalse(os.path.exists(f"/proc/{f.read().strip()}"))

    def test_what_does_not_start_fails(self):
        self.take()
        words = self.emulator("echo Kernel panic; exit 3")
        proof = self.prove(*words, status=2)
        self.assertEqual(
            (proof["boot"]["booted"], proof["boot"]["console"]), (False, "Kernel panic")
        )
        words = self.emulator("while :; do echo working; sleep 0.1; done")
        proof = self.prove(*words, "--boot-limit=1", "--marker=never", status=2)
        self.assertFalse(proof["boot"]["booted"])

    def test_a_silent_guest_is_started_again_without_kvm(self):
        """KVM may be there and not work."""
        self.take()
        words = self.emulator(
            'case "$*" in *accel=kvm*) exec sleep 100;; *) echo login:; exec sleep 100;; esac'
        )
        proof = self.prove(*words, "--boot-limit=6",
                           status=0 if os.access("/dev/kvm", os.R_OK | os.W_OK) else 2)  # fmt: skip
        self.assertEqual(proof["boot"]["booted"], os.access("/dev/kvm", os.R_OK | os.W_OK))
        # Not where the machine was chosen.
        proof = self.prove(*words, "--boot-limit=3", "--qemu-arg=-machine", "--qemu-arg=pc",
                           status=2)  # fmt: skip
        self.assertFalse(proof["boot"]["booted"])

    def test_what_cannot_be_tried(self):
        self.take()
        for words, why in (
            (("--boot", "--qemu", "/none"), "'/none' is not installed"),
            (("--marker", "x"), "needs --boot"),
            (("--boot", "--marker", ""), "marker"),
            (("--dir", self.path("none")), "none"),
        ):
            result = run(*tool("test-restore"), self.repository, *words, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(why, result.stderr)


if __name__ == "__main__":
    unittest.main()
