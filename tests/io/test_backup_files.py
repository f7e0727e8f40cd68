# SPDX-License-Identifier: Apache-2.0
"""Single files out of a backup: what is in its file systems, and that nothing of a guest leads
outside of the directory that it is copied to.
"""

import json
import os
import stat
import subprocess
import unittest

import disk_image
from backup_case import MIB, BackupCase
from tidemark import img, run, tool


class FilesCase(BackupCase):
    size = 64 * MIB
    parts = [(1 * MIB, 16 * MIB), (20 * MIB, 32 * MIB)]

    def setUp(self):
        super(BackupCase, self).setUp()
        self.raw = self.path("guest.raw")
        self.image = self.path("disk.qcow2")
        self.repository = self.path("backups")
        self.scratch = self.path("scratch")
        self.out = self.path("out")
        os.makedirs(self.scratch)
        os.makedirs(self.out)
        self.make_disk()
        img("convert", "-f", "raw", "-O", "qcow2", self.raw, self.image)
        self.start(server=False)
        self.backup()
        self.server.stop()

    def files(self, *words, status=0):
        result = run(*tool("files"), "--dir", self.scratch, self.repository, *words, check=False)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        self.assertEqual(os.listdir(self.scratch), [])
        return result

    def listing(self, *words):
        return {e["name"]: e for e in json.loads(self.files("--output=json", *words).stdout)}

    def refuses(self, *words, why):
        self.assertIn(why, self.files(*words, status=1).stderr)

    def content(self, *names):
        with open(os.path.join(self.out, *names), "rb") as f:
            return f.read()


class TwoFileSystems(FilesCase):
    def make_disk(self):
        folder = self.path("folder")
        os.makedirs(os.path.join(folder, "etc", "deep", "deeper"))
        self.big = os.urandom(3 * MIB + 5)
        for name, data, mode in (
            ("etc/fstab", b"/dev/vda1 /\n", 0o644),
            ("etc/deep/deeper/big", self.big, 0o600),
            ('etc/a "quoted" na\tme', b"x", 0o4755),
            ("etc/deep/empty", b"", 0o644),
        ):
            path = os.path.join(folder, name)
            with open(path, "wb") as f:
                f.write(data)
            os.chmod(path, mode)
        os.symlink("/etc/passwd", os.path.join(folder, "etc", "link"))
        os.mkfifo(os.path.join(folder, "etc", "fifo"))
        disk_image.make_gpt(self.raw, self.size, self.parts)
        disk_image.make_vfat(self.raw, *self.parts[0])
        disk_image.make_ext4(self.raw, *self.parts[1], folder)
        part = f"{self.raw}@@{self.parts[0][0]}"
        run("mmd", "-i", part, "::/EFI")
        run("mcopy", "-i", part, os.path.join(folder, "etc", "fstab"), "::/EFI/long file name.txt")
        run("mcopy", "-i", part, os.path.join(folder, "etc/deep/deeper/big"), "::/EFI")

    def test_partitions(self):
        listed = json.loads(self.files("--output=json").stdout)
        self.assertEqual(
            [(v["partition"], v["offset"], v["size"], v["type"]) for v in listed],
            [(1, *self.parts[0], "vfat"), (2, *self.parts[1], "ext4")],
        )

    def test_places_for_names_are_no_names(self):
        """lost+found has blocks of them."""
        result = self.files("--partition=2", "/lost+found", "--to", self.out)
        self.assertEqual((result.stderr, result.stdout), ("", "0 files\n"))

    def test_lists(self):
        listed = self.listing("--partition=2", "/etc")
        self.assertEqual(
            set(listed), {"fstab", "deep", 'a "quoted" na\tme', "link", "fifo"}
        )
        self.assertEqual(listed["fstab"], {"name": "fstab", "type": "file", "mode": 0o644,
                                           "size": 12})  # fmt: skip
        self.assertEqual(listed["deep"]["type"], "directory")
        self.assertEqual(listed["link"]["type"], "link")
        self.assertEqual(listed["fifo"]["type"], "other")
        self.assertEqual(set(self.listing("--partition=1", "/efi/")),
                         {"big", "long file name.txt"})  # fmt: skip
        self.assertEqual(set(self.listing("--partition=1", "EFI/BIG")), {"big"})
        text = self.files("--partition=2", "/etc").stdout
        self.assertIn("- 0644              12  fstab\n", text)
        self.assertIn('a "quoted" na?me', text)

    def test_takes_a_directory_of_ext4(self):
        result = self.files("--partition=2", "/etc", "--to", self.out)
        self.assertIn("4 files", result.stdout)
        self.assertIn("2 links, devices or names", result.stderr)
        self.assertEqual(self.content("etc", "fstab"), b"/dev/vda1 /\n")
        self.assertTrue(self.content("etc", "deep", "deeper", "big") == self.big)
        self.assertEqual(self.content("etc", "deep", "empty"), b"")
        mode = os.stat(os.path.join(self.out, "etc", 'a "quoted" na\tme')).st_mode
        self.assertEqual(stat.S_IMODE(mode), 0o755)
        names = [n for _, _, names in os.walk(self.out) for n in names]
        self.assertEqual([n for n in names if "tidemark" in n], [])
        self.assertEqual(len(names), 4)

    def test_takes_files_of_fat(self):
        self.files("--partition=1", "/efi/Long File Name.txt", "--to", self.out)
        self.assertEqual(self.content("long file name.txt"), b"/dev/vda1 /\n")
        self.files("--partition=1", "/", "--to", self.out)
        self.assertTrue(self.content("EFI", "big") == self.big)

    def test_what_is_taken_is_stable(self):
        words = [*tool("files"), self.repository, "--partition", "2", "/etc", "--to"]
        os.mkdir(self.path("lost"))
        result = run("strace", "-f", "-o", os.devnull, "-e", "trace=syncfs",
                     "-e", "inject=syncfs:error=EIO", *words, self.path("lost"),
                     check=False)  # fmt: skip
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"Could not write to '{self.path('lost')}'", result.stderr)

    def test_nothing_is_replaced(self):
        self.files("--partition=2", "/etc/fstab", "--to", self.out)
        for path in "/etc/fstab", "/etc/deep":
            os.makedirs(os.path.join(self.out, "deep"), exist_ok=True)
            self.refuses("--partition=2", path, "--to", self.out, why="exist")
        self.assertEqual(sorted(os.listdir(self.out)), ["deep", "fstab"])

    def test_what_is_refused(self):
        for words, why in (
            (("/etc",), "several file systems"),
            (("--partition=3", "/"), "no partition 3"),
            (("--partition=2", "/none"), "no '/none'"),
            (("--partition=2", "/etc/fstab/x"), "no directory"),
            (("--partition=2", "/etc/link/x"), "no directory"),
            (("--to", self.out), "needs a path"),
            (("--partition=2", "/etc", "--to", self.path("none")), "none"),
            (("--at", "x", "/"), "x"),
        ):
            self.refuses(*words, why=why)
        env = {**os.environ, "PATH": self.dir}
        words = [*tool("files"), self.repository, "--partition=1", "/"]
        result = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        if not os.path.exists("/usr/sbin/mtools"):
            self.assertIn("Install the package mtools", result.stderr)


class Hostile(FilesCase):
    size = 16 * MIB

    def make_disk(self):
        """One ext4 file system with names that a kernel would never make."""
        folder = self.path("folder")
        os.makedirs(os.path.join(folder, "d"))
        for name in "aaXaaXaaXvictim", "good", "bXX", "cXXX", "newXline":
            with open(os.path.join(folder, "d", name), "wb") as f:
                f.write(b"evil")
        disk_image.make(self.raw, self.size)
        disk_image.make_ext4(self.raw, 0, self.size, folder, "-O", "^metadata_csum,^dir_index")
        with open(self.raw, "rb") as f:
            data = f.read()
        for old, new in (
            (b"aaXaaXaaXvictim", b"../../../victim"),
            (b"bXX", b"b/x"),
            (b"newXline", b"new\nline"),
        ):
            self.assertIn(old, data)
            data = data.replace(old, new)
        with open(self.raw, "wb") as f:
            f.write(data)

    def test_names_do_not_lead_outside(self):
        result = self.files("/d", "--to", self.out)
        self.assertIn("left out", result.stderr)
        self.assertEqual(sorted(os.listdir(os.path.join(self.out, "d"))), ["cXXX", "good"])
        found = run("find", self.dir, "-name", "*victim*").stdout
        self.assertEqual(found.strip().splitlines(),
                         [os.path.join(self.path("folder"), "d", "aaXaaXaaXvictim")])  # fmt: skip


class Unknown(FilesCase):
    size = 4 * MIB

    def make_disk(self):
        disk_image.make(self.raw, self.size)
        disk_image.put(self.raw, 0, b"XFSB")

    def test_it_says_what_to_install(self):
        self.refuses("/", why="Install libguestfs-tools")


if __name__ == "__main__":
    unittest.main()
