# SPDX-License-Identifier: Apache-2.0
"""Backups as files, by FUSE: every point in time right, nothing else, and damage is an error."""

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import threading
import time

import test_backup_files
import test_backup_set
from backup_case import MIB, BackupCase
from tidemark import Process, open_paths, run, tool, wait_until

LIBC = ctypes.CDLL(None, use_errno=True)


class MountCase(BackupCase):
    size = 8 * MIB

    def setUp(self):
        super().setUp()
        self.mountpoint = self.path("mnt")
        os.makedirs(self.mountpoint)
        self.addCleanup(self.let_go)

    def let_go(self):
        self.end_processes()
        LIBC.umount2(os.fsencode(self.mountpoint), 2)

    def is_mounted(self):
        """By a process that lives."""
        try:
            os.listdir(self.mountpoint)
        except OSError:
            return False
        with open("/proc/self/mounts", encoding="ascii") as mounts:
            return any(line.split()[1] == self.mountpoint for line in mounts)

    def mount(self, *words, source=None):
        self.log = self.path("mount.log")
        self.mounted = self.own(
            Process([*tool("mount"), *words, source or self.repository, self.mountpoint], self.log)
        )
        wait_until(
            lambda: self.is_mounted() or self.mounted.process.poll() is not None, "the mount"
        )
        self.assertTrue(self.is_mounted(), self.said())

    def said(self):
        with open(self.log, encoding="utf-8") as f:
            return f.read()

    def refuses(self, *words, why):
        result = run(*tool("mount"), *words, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(why, result.stderr)
        self.assertFalse(self.is_mounted())

    def at(self, *names):
        return os.path.join(self.mountpoint, *names)

    def content(self, *names):
        with open(self.at(*names), "rb") as f:
            return f.read()

    def assert_errno(self, code, function, *arguments):
        with self.assertRaises(OSError) as caught:
            function(*arguments)
        self.assertEqual(errno.errorcode[caught.exception.errno], errno.errorcode[code])


class Points(MountCase):
    def setUp(self):
        super().setUp()
        self.points = []
        for length in (3 * MIB, 70000, 5):
            self.write_random(self.random.randrange(self.size - length), length)
            manifest = self.backup()
            self.points.append((manifest["id"], bytes(self.model)))

    def test_each_point_in_time(self):
        self.mount()
        self.assertEqual(sorted(os.listdir(self.mountpoint)), [p for p, _ in self.points])
        for point, model in self.points:
            self.assertEqual(os.listdir(self.at(point)), ["disk.raw"])
            self.assertTrue(self.content(point, "disk.raw") == model)
            with open(self.at(point, "disk.raw"), "rb") as f:
                for offset, size in ((1, 1), (65535, 2), (MIB + 3, 200001), (self.size - 7, 9)):
                    self.assertEqual(
                        os.pread(f.fileno(), size, offset), model[offset : offset + size]
                    )
            when = os.stat(self.at(point)).st_mtime
            self.assertEqual(
                time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(when))[:13], point[:13]
            )
        self.mounted.stop()
        self.assertFalse(self.is_mounted())
        self.assert_sound()

    def test_points_that_are_opened_at_a_time_leave_one_repository_in_memory(self):
        """Each of them may have read it, with all manifests."""
        self.mount()

        def open_all():
            paths = [self.at(point, "disk.raw") for point, _ in self.points]
            threads = [threading.Thread(target=lambda p=p: open(p, "rb").close()) for p in paths]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        def count():
            return open_paths(self.mounted.pid).count(os.path.realpath(self.repository))

        open_all()
        before = count()
        for _ in range(8):
            self.write_random(0, 100)
            self.backup()
            open_all()
        self.assertLessEqual(count(), before + 3)

    def test_new_backups_appear_and_removed_ones_stay_readable_while_they_are_open(self):
        self.mount()
        first, model = self.points[0]
        with open(self.at(first, "disk.raw"), "rb") as f:
            self.write_random(0, 100)
            new = self.backup("--full")["id"]
            self.assertTrue(self.content(new, "disk.raw") == self.model)
            self.assertIn(new, os.listdir(self.mountpoint))
            run(*tool("prune"), self.repository, "--keep-last", "1")
            self.assertEqual(os.listdir(self.mountpoint), [new])
            self.assertTrue(f.read() == model)
        self.assert_errno(errno.ENOENT, os.stat, self.at("20010101T000000Z"))

    def test_nothing_can_be_changed(self):
        self.mount()
        image = self.at(self.points[0][0], "disk.raw")
        self.assert_errno(errno.EROFS, os.open, image, os.O_RDWR)
        self.assert_errno(errno.EROFS, os.unlink, image)
        self.assert_errno(errno.EROFS, os.mkdir, self.at("x"))
        self.assertEqual(os.stat(image).st_mode & 0o777, 0o400)
        self.assertEqual(os.stat(self.mountpoint).st_mode & 0o777, 0o500)

    def test_holes_are_those_of_the_backup(self):
        self.zero(0, self.size)
        self.write_random(2 * MIB, 65536)
        point = self.backup()["id"]
        self.mount()
        with open(self.at(point, "disk.raw"), "rb") as f:
            self.assertEqual(os.lseek(f.fileno(), 0, os.SEEK_DATA), 2 * MIB)
            self.assertEqual(os.lseek(f.fileno(), 2 * MIB, os.SEEK_HOLE), 2 * MIB + 65536)
            self.assert_errno(errno.ENXIO, os.lseek, f.fileno(), 3 * MIB, os.SEEK_DATA)

    def test_damage_is_an_error_of_what_is_damaged(self):
        first, model = self.points[0]
        path = os.path.join(self.repository, first, "disk.qcow2")
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            byte = f.read(1)
            f.seek(-1, 1)
            f.write(bytes([byte[0] ^ 1]))
        self.mount()
        errors = 0
        fd = os.open(self.at(first, "disk.raw"), os.O_RDONLY)
        for offset in range(0, self.size, 65536):
            try:
                self.assertTrue(os.pread(fd, 65536, offset) == model[offset : offset + 65536])
            except OSError as e:
                self.assertEqual(e.errno, errno.EIO)
                errors += 1
        os.close(fd)
        self.assertEqual(errors, 1)
        self.assertIn(path, self.said())

    def test_a_damaged_backup_says_so(self):
        last = self.points[-1][0]
        with open(os.path.join(self.repository, last, "manifest.json"), "a", encoding="ascii") as f:
            f.write("x")
        self.mount()
        self.assertEqual(os.listdir(self.at(last)), ["problem.txt"])
        self.assertIn("manifest.json", self.content(last, "problem.txt").decode())
        self.assertIn(last, self.said())
        first, model = self.points[0]
        self.assertTrue(self.content(first, "disk.raw") == model)

    def test_many_readers(self):
        self.mount()
        readers = [
            subprocess.Popen(["cmp", self.at(point, "disk.raw"), "-"], stdin=subprocess.PIPE)
            for point, _ in self.points * 4
        ]
        for reader, (_, model) in zip(readers, self.points * 4):
            reader.communicate(model)
            self.assertEqual(reader.returncode, 0)

    def test_it_ends_when_somebody_unmounts_it(self):
        self.mount()
        self.content(self.points[0][0], "disk.raw")
        run("umount", self.mountpoint)
        self.assertEqual(self.mounted.process.wait(30), 0)

    def test_it_ends_with_files_open(self):
        self.mount()
        fd = os.open(self.at(self.points[0][0], "disk.raw"), os.O_RDONLY)
        listing = os.scandir(self.mountpoint)
        self.mounted.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.mounted.process.wait(30), 0)
        self.assertFalse(self.is_mounted())
        with self.assertRaises(OSError):
            os.pread(fd, 4096, 4 * MIB)
        listing.close()
        with contextlib.suppress(OSError):
            os.close(fd)

    def test_what_a_killed_one_left_is_replaced(self):
        self.mount()
        self.mounted.process.kill()
        self.mounted.process.wait()
        self.assert_errno(errno.ENOTCONN, os.listdir, self.mountpoint)
        self.mount()
        self.assertTrue(self.content(self.points[0][0], "disk.raw") == self.points[0][1])
        self.mounted.stop()
        with open("/proc/self/mounts", encoding="ascii") as mounts:
            self.assertNotIn(self.mountpoint, mounts.read())

    def test_in_the_background(self):
        pid = self.path("pid")
        run(*tool("mount"), "--fork", "--pid-file", pid, self.repository, self.mountpoint)
        self.assertTrue(self.is_mounted())
        self.assertTrue(self.content(self.points[0][0], "disk.raw") == self.points[0][1])
        with open(pid, encoding="ascii") as f:
            os.kill(int(f.read()), signal.SIGTERM)
        wait_until(lambda: not self.is_mounted(), "the end")

    def test_what_cannot_be_mounted(self):
        inside = os.path.join(self.repository, "mnt")
        os.makedirs(inside)
        os.makedirs(self.path("empty"))
        for words, why in (
            ((self.path("none"), self.mountpoint), "none"),
            ((self.path("empty"), self.mountpoint), "no backups"),
            ((self.repository, self.path("none")), "none"),
            ((self.repository, self.image), "Not a directory"),
            ((self.repository, inside), "neither may be in the other"),
            ((self.repository, self.dir), "neither may be in the other"),
            ((self.repository,), "a mountpoint"),
        ):
            self.refuses(*words, why=why)

    def test_a_damaged_directory_of_backups_says_so(self):
        root = self.path("root")
        for disk in ("a", "b"):
            shutil.copytree(self.repository, os.path.join(root, "100", disk))
        description = os.path.join(root, "100", "b", "repository.json")
        os.rename(description, self.path("away"))
        os.mkfifo(description)
        for point, _ in self.points:
            os.rename(os.path.join(root, "100", "b", point), self.path(point))
        self.mount(source=root)
        for _ in range(2):
            self.assertEqual(os.listdir(self.mountpoint), ["100"])
            self.assertEqual(sorted(os.listdir(self.at("100"))), ["a", "b"])
            self.assertEqual(os.listdir(self.at("100", "b")), ["problem.txt"])
            self.assertIn("not a regular file", self.content("100", "b", "problem.txt").decode())
        self.assertEqual(self.said().count("not a regular file"), 1, self.said())
        os.rename(self.path("away"), description)
        for point, _ in self.points:
            os.rename(self.path(point), os.path.join(root, "100", "b", point))
        self.assertEqual(sorted(os.listdir(self.at("100", "b"))), [p for p, _ in self.points])
        for point, model in self.points:
            self.assertTrue(self.content("100", "b", point, "disk.raw") == model)

    def test_several_disks_below_one_directory(self):
        root = self.path("root")
        os.makedirs(os.path.join(root, "site"))
        shutil.copytree(self.repository, os.path.join(root, "site", "a"))
        run(*tool("copy"), self.repository, os.path.join(root, "b"))
        self.mount(source=root)
        self.assertEqual(sorted(os.listdir(self.mountpoint)), ["b", "site"])
        self.assertEqual(os.listdir(self.at("site")), ["a"])
        for point, model in self.points:
            self.assertTrue(self.content("site", "a", point, "disk.raw") == model)
            self.assertTrue(self.content("b", point, "disk.raw") == model)
        run(*tool("copy"), self.repository, os.path.join(root, "c"))
        self.assertEqual(sorted(os.listdir(self.mountpoint)), ["b", "c", "site"])


class Encrypted(MountCase):
    def test_only_with_the_key(self):
        key = self.path("key")
        with open(key, "wb") as f:
            f.write(os.urandom(31) + b"k")  # a newline at the end would be left out
        os.chmod(key, 0o600)
        self.write_random(0, 2 * MIB)
        point = self.backup("--encrypt", "--key-file", key)["id"]
        self.refuses(self.repository, self.mountpoint, why="encrypted")
        self.mount("--key-file", key)
        self.assertTrue(self.content(point, "disk.raw") == self.model)


class Sets(MountCase, test_backup_set.SetCase):
    size = 4 * MIB

    def test_links_to_the_disks_of_a_set(self):
        taken = []
        for turn in range(2):
            self.write_to("a", turn * MIB, 100000)
            self.write_to("b", 2 * MIB, 4096 * (turn + 1))
            taken.append((self.backup()["set"]["id"], {d: bytes(m) for d, m in self.models.items()}))
        self.mount()
        self.assertEqual(sorted(os.listdir(self.mountpoint)), ["a", "b", "sets"])
        for one, models in taken:
            self.assertEqual(sorted(os.listdir(self.at("sets", one))), ["a", "b"])
            for disk, model in models.items():
                self.assertTrue(self.content("sets", one, disk, "disk.raw") == model)


    def test_a_set_stays_when_the_root_is_read_again(self):
        one = self.backup()["set"]["id"]
        self.mount()
        folder = os.open(self.at("sets", one), os.O_RDONLY)
        self.addCleanup(os.close, folder)
        os.listdir(self.mountpoint)
        inside = os.open(".", os.O_RDONLY, dir_fd=folder)
        self.addCleanup(os.close, inside)
        self.assertEqual(sorted(os.listdir(inside)), ["a", "b"])


class Partitions(test_backup_files.FilesCase):
    """Images of partitions, which programs read that know their file systems."""

    make_disk = test_backup_files.TwoFileSystems.make_disk

    names = ["disk.raw", "partition-1.vfat", "partition-2.ext4"]

    def setUp(self):
        super().setUp()
        self.mountpoint = self.path("mnt")
        os.makedirs(self.mountpoint)

    def mount(self, source):
        self.addCleanup(lambda: LIBC.umount2(os.fsencode(self.mountpoint), 2))
        self.own(Process([*tool("mount"), source, self.mountpoint], self.path("log")))
        wait_until(lambda: os.listdir(self.mountpoint), "the mount")

    def test_each_partition_is_an_image(self):
        self.mount(self.repository)
        point = os.path.join(self.mountpoint, os.listdir(self.mountpoint)[0])
        with open(self.raw, "rb") as f:
            disk = f.read()
        names = sorted(os.listdir(point))
        self.assertEqual(names, self.names)
        for name, (offset, size) in zip(names, [(0, len(disk)), *self.parts]):
            with open(os.path.join(point, name), "rb") as f:
                self.assertTrue(f.read() == disk[offset : offset + size], name)
        said = run("debugfs", "-R", "cat /etc/fstab", os.path.join(point, names[2])).stdout
        self.assertEqual(said, "/dev/vda1 /\n")

    def change(self, *words):
        """Another backup, of what a guest has written meanwhile."""
        run(*tool("io"), "-f", "qcow2", "-c", " ".join(words), self.image)
        run(*tool("backup"), "--image", self.image, "--format", "qcow2", "--to", self.repository)

    def list_points(self):
        for point in sorted(os.listdir(self.mountpoint)):
            yield point, sorted(os.listdir(os.path.join(self.mountpoint, point)))

    def test_partitions_that_have_changed_since(self):
        self.change("write", "-P", "1", "18M", "64k")
        self.change("write", "-P", "0", str(self.parts[1][0]), "64k")
        self.change("write", "-P", "2", "18M", "64k")
        changed = [*self.names[:2], "partition-2.raw"]
        wanted = [self.names, self.names, changed, changed]
        self.mount(self.repository)
        self.assertEqual([names for _, names in self.list_points()], wanted)

    def test_a_list_reads_what_has_changed_since_the_backup_before(self):
        self.change("write", "-P", "1", "18M", "64k")
        self.mount(self.repository)
        points = self.list_points()
        first, names = next(points)
        self.assertEqual(names, self.names)
        with open(os.path.join(self.repository, first, "disk.qcow2"), "r+b") as f:
            f.write(bytes(os.fstat(f.fileno()).st_size))
        self.assertEqual(next(points)[1], self.names)

    def test_partitions_stay_when_what_is_above_is_read_again(self):
        root = self.path("root")
        os.makedirs(root)
        for disk in ("a", "b"):
            run(*tool("copy"), self.repository, os.path.join(root, disk))
        self.mount(root)
        disk = os.path.join(self.mountpoint, "a")
        (point,) = os.listdir(disk)
        folder = os.open(os.path.join(disk, point), os.O_RDONLY)
        self.addCleanup(os.close, folder)
        self.assertEqual(sorted(os.listdir(folder)), self.names)
        for above in (self.mountpoint, disk, self.mountpoint):
            os.listdir(above)
            self.assertEqual(sorted(os.listdir(os.path.join(disk, point))), self.names)

    def test_partitions_are_found_again_after_damage(self):
        self.mount(self.repository)
        (point,) = os.listdir(self.mountpoint)
        manifest = os.path.join(self.repository, point, "manifest.json")
        folder = os.path.join(self.mountpoint, point)
        self.assertEqual(sorted(os.listdir(folder)), self.names)
        away = self.path("away")
        for old, new, names in (
            (manifest, away, ["problem.txt"]),
            (away, manifest, self.names),
        ):
            os.rename(old, new)
            os.listdir(self.mountpoint)
            self.assertEqual(sorted(os.listdir(folder)), names)
