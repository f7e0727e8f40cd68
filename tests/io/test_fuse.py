# SPDX-License-Identifier: Apache-2.0
"""FUSE exports: a node as a regular file."""

import concurrent.futures
import contextlib
import ctypes
import errno
import json
import mmap
import os
import random
import signal
import stat
import subprocess
import threading
import time
import unittest

import prometheus
import tidemark
from tidemark import img, run, wait_until

MIB = 1 << 20
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
FUA = 2
LIBC = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, offset, length):
    if LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_mounted(path):
    with open("/proc/self/mounts", encoding="ascii") as mounts:
        return any(line.split()[1] == path for line in mounts)


class FuseCase(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.fds = []
        self.mountpoint = self.path("mp")
        with open(self.mountpoint, "w", encoding="ascii") as file:
            file.write("what was there before\n")
        self.addCleanup(self.let_go)

    def let_go(self):
        for fd in self.fds:
            # What the end of the export has not let it say.
            with contextlib.suppress(OSError):
                os.close(fd)
        self.end_processes()
        for name in os.listdir(self.dir):
            LIBC.umount2(os.fsencode(self.path(name)), 2)

    def serve(self, *nodes, **more):
        """A daemon with nodes, each a dict."""
        options = [word for node in nodes for word in ("--blockdev", json.dumps(node))]
        self.server = self.daemon(*options, **more)
        self.qmp = self.server.qmp
        return self.server

    def serve_image(self, fmt="qcow2", size="8M", **more):
        self.image = self.create("image", size=size, fmt=fmt)
        file = {"driver": "file", "filename": self.image}
        return self.serve({"driver": fmt, "node-name": "disk", "file": file}, **more)

    def export(self, id="e", node="disk", mountpoint=None, **options):
        options.setdefault("writable", True)
        options = {name.replace("_", "-"): value for name, value in options.items()}
        self.qmp.command("block-export-add", type="fuse", id=id, **{"node-name": node},
                         mountpoint=mountpoint or self.mountpoint, **options)  # fmt: skip

    def refuse(self, sentence, **options):
        with self.assertRaises(Exception) as caught:
            self.export(**options)
        self.assertIn(sentence, str(caught.exception))

    def delete(self, id="e", mode="safe"):
        self.qmp.command("block-export-del", id=id, mode=mode)
        event = self.qmp.wait_event("BLOCK_EXPORT_DELETED")
        self.assertEqual(event["data"], {"id": id})

    def open(self, flags=os.O_RDWR, path=None):
        fd = os.open(path or self.mountpoint, flags)
        self.fds.append(fd)
        return fd

    def assert_fails(self, code, function, *arguments):
        with self.assertRaises(OSError) as caught:
            function(*arguments)
        self.assertEqual(errno.errorcode[caught.exception.errno], errno.errorcode[code])


class Contents(FuseCase):
    def use_at_random(self, fd, model, seed):
        """Change file and model in the same ways, and compare."""
        rng = random.Random(seed)
        for _ in range(300):
            offset = rng.randrange(len(model))
            length = min(rng.choice([1, 511, 4096, 65536, 300000]), len(model) - offset)
            action = rng.choice(["write", "write", "read", "punch", "zero", "fsync"])
            if action == "write":
                data = rng.randbytes(length)
                self.assertEqual(os.pwrite(fd, data, offset), length)
                model[offset : offset + length] = data
            elif action == "read":
                self.assertEqual(os.pread(fd, length, offset), model[offset : offset + length])
            elif action == "fsync":
                os.fsync(fd)
            else:
                mode = PUNCH_HOLE if action == "punch" else ZERO_RANGE
                fallocate(fd, mode | KEEP_SIZE, offset, length)
                model[offset : offset + length] = bytes(length)

    def check_image(self, fmt):
        self.serve_image(fmt)
        self.export()
        fd = self.open()
        model = bytearray(8 * MIB)
        self.use_at_random(fd, model, 1)
        self.assertEqual(os.pread(fd, 8 * MIB, 0), model)
        self.server.quit()
        with open(self.path("model"), "wb") as file:
            file.write(model)
        img("compare", "-f", fmt, "-F", "raw", self.image, self.path("model"))

    def test_qcow2_has_what_was_written(self):
        self.check_image("qcow2")

    def test_raw_has_what_was_written(self):
        self.check_image("raw")

    def test_many_processes_write_at_once(self):
        self.serve_image()
        self.export()
        fd = self.open()

        def write(number):
            for i in range(64):
                at = (i * 8 + number) * 4096
                os.pwrite(fd, bytes([number + 1]) * 4096, at)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(512):
            self.assertEqual(os.pread(fd, 4096, i * 4096), bytes([i % 8 + 1]) * 4096)

    def test_a_file_system_in_it_is_sound(self):
        self.serve_image(size="32M")
        self.export()
        run("mke2fs", "-q", "-F", self.mountpoint)
        run("e2fsck", "-fn", self.mountpoint)

    def test_holes_are_found(self):
        self.serve_image()
        self.export()
        fd = self.open()
        os.pwrite(fd, b"x" * 65536, MIB)
        self.assertEqual(os.lseek(fd, 0, os.SEEK_DATA), MIB)
        self.assertEqual(os.lseek(fd, 0, os.SEEK_HOLE), 0)
        self.assertEqual(os.lseek(fd, MIB, os.SEEK_HOLE), MIB + 65536)
        self.assertEqual(os.lseek(fd, 8 * MIB - 1, os.SEEK_HOLE), 8 * MIB - 1)
        self.assert_fails(errno.ENXIO, os.lseek, fd, 2 * MIB, os.SEEK_DATA)
        self.assert_fails(errno.ENXIO, os.lseek, fd, 8 * MIB, os.SEEK_HOLE)
        copy = self.path("copy")
        run("cp", "--sparse=auto", self.mountpoint, copy)
        self.assertLess(os.stat(copy).st_blocks * 512, MIB)

    def test_others_see_a_change_at_once(self):
        # Neither is served from the page cache.
        self.serve_image()
        self.export()
        self.export(id="other", mountpoint=self.create("other", fmt="raw"), writable=False)
        fd, other = self.open(), self.open(os.O_RDONLY, self.path("other"))
        for i in range(1, 4):
            os.pwrite(fd, bytes([i]) * 512, 0)
            self.assertEqual(os.pread(other, 512, 0), bytes([i]) * 512)

    def test_private_maps_can_be_read(self):
        self.serve_image()
        self.export()
        fd = self.open()
        os.pwrite(fd, b"mapped", 4096)
        with mmap.mmap(fd, 8192, flags=mmap.MAP_PRIVATE) as area:
            self.assertEqual(area[4096:4102], b"mapped")

    def test_an_image_is_exported_onto_its_own_file(self):
        self.serve_image()
        self.export(mountpoint=self.image)
        info = json.loads(img("info", "--output=json", "-U", self.image).stdout)
        self.assertEqual((info["format"], info["virtual-size"]), ("raw", 8 * MIB))
        with open(self.image, "r+b") as file:
            file.write(b"through the disk")
        self.server.quit()
        self.assertEqual(json.loads(img("info", "--output=json", self.image).stdout)["format"],
                         "qcow2")  # fmt: skip
        img("check", "-q", self.image)
        disk = self.path("disk")
        img("convert", "-O", "raw", self.image, disk)
        with open(disk, "rb") as file:
            self.assertEqual(file.read(16), b"through the disk")

    def test_the_daemon_opens_what_it_exports_itself(self):
        """Its main thread would wait for its own answer for ever."""
        self.serve_image()
        self.export()
        overlay = self.path("overlay")
        tidemark.img("create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", self.mountpoint,
                     overlay, "8M")  # fmt: skip
        file = {"driver": "file", "filename": overlay}
        self.qmp.command("blockdev-add", driver="qcow2", node_name="top", file=file, read_only=True)
        self.assertEqual(self.qmp.node("top")["backing_file_depth"], 1)
        self.qmp.command("blockdev-del", node_name="top")

    def test_a_synchronous_write_is_stable(self):
        log = self.create("log", size="1M", fmt="raw")
        disk = {"driver": "null-co", "size": MIB}
        self.serve({"driver": "blklogwrites", "node-name": "disk", "file": disk,
                    "log": {"driver": "file", "filename": log}})  # fmt: skip
        self.export()
        os.pwrite(self.open(os.O_RDWR), b"x" * 4096, 0)
        os.pwrite(self.open(os.O_RDWR | os.O_DSYNC), b"x" * 4096, 4096)
        self.server.quit()
        with open(log, "rb") as file:
            entries = file.read()
        # Each has a sector of its own, and its data.
        flags = [int.from_bytes(entries[at + 16 : at + 24], "little") for at in (512, 5120)]
        self.assertEqual([flag & FUA for flag in flags], [0, FUA])


class Size(FuseCase):
    def test_a_fixed_disk_ends_where_it_ends(self):
        self.serve_image("raw", size="1M")
        self.export()
        fd = self.open()
        self.assertEqual(os.pwrite(fd, b"x" * 4096, MIB - 2048), 2048)
        self.assert_fails(errno.EIO, os.pwrite, fd, b"x", MIB)
        self.assertEqual(os.pread(fd, 4096, MIB - 2048), b"x" * 2048)
        self.assertEqual(os.pread(fd, 4096, 2 * MIB), b"")
        self.assertEqual(os.fstat(fd).st_size, MIB)

    def test_a_growable_disk_grows(self):
        self.serve_image("qcow2", size="1M")
        self.export(growable=True)
        fd = self.open()
        self.assertEqual(os.pwrite(fd, b"x" * 5, 3 * MIB - 1), 5)
        # The format counts in sectors.
        self.assertEqual(os.fstat(fd).st_size, 3 * MIB + 512)
        self.assertEqual(os.pread(fd, MIB, MIB), bytes(MIB))
        self.assertEqual(os.pread(fd, MIB, 3 * MIB - 2), b"\0xxxxx" + bytes(508))
        self.assert_fails(errno.EINVAL, os.ftruncate, fd, MIB + 1)
        self.server.quit()
        info = json.loads(img("info", "--output=json", self.image).stdout)
        self.assertEqual(info["virtual-size"], 3 * MIB + 512)

    def test_many_append_at_once(self):
        self.serve_image("raw", size="1M")
        self.export(growable=True)
        fd = self.open()

        def write(number):
            for i in range(16):
                os.pwrite(fd, bytes([number + 1]) * 4096, MIB + (i * 4 + number) * 4096)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(os.fstat(fd).st_size, MIB + 64 * 4096)
        for i in range(64):
            self.assertEqual(os.pread(fd, 4096, MIB + i * 4096), bytes([i % 4 + 1]) * 4096)

    def test_two_exports_of_a_node_grow_at_once(self):
        """What one of them has enlarged the other one does not cut off."""
        self.serve_image("raw", size="1M")
        self.export(growable=True)
        other = self.path("other")
        with open(other, "w", encoding="ascii"):
            pass
        self.export(id="other", mountpoint=other, growable=True)
        fds = [self.open(), self.open(path=other)]
        places = range(MIB, 9 * MIB, 65536)

        def append(number):
            for place in places[number::3]:
                if number == 2:
                    # A write may have taken it past that place.
                    with contextlib.suppress(OSError):
                        fallocate(fds[0], 0, place, 4096)
                else:
                    os.pwrite(fds[number], bytes([number + 1]) * 4096, place)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(append, range(3)))
        for number in range(2):
            for place in places[number::3]:
                self.assertEqual(os.pread(fds[0], 4096, place), bytes([number + 1]) * 4096)

    def test_it_is_resized_on_demand(self):
        self.serve_image("raw", size="1M")
        self.export()
        fd = self.open()
        os.ftruncate(fd, 3 * MIB)
        self.assertEqual(os.fstat(fd).st_size, 3 * MIB)
        os.truncate(self.mountpoint, 2 * MIB)
        self.assertEqual(os.stat(self.image).st_size, 2 * MIB)
        fallocate(fd, 0, 2 * MIB, MIB)
        self.assertEqual(os.fstat(fd).st_size, 3 * MIB)
        self.assertGreaterEqual(os.stat(self.image).st_blocks * 512, MIB)
        fallocate(fd, ZERO_RANGE, 3 * MIB - 4096, 8192)
        self.assertEqual(os.fstat(fd).st_size, 3 * MIB + 4096)
        self.qmp.command("block_resize", **{"node-name": "disk", "size": MIB})
        self.assertEqual(os.fstat(fd).st_size, MIB)

    def test_what_no_disk_can_do_is_refused(self):
        self.serve_image("raw", size="1M")
        self.export()
        fd = self.open()
        for mode in (0, KEEP_SIZE, PUNCH_HOLE, 8, 32, 64, PUNCH_HOLE | ZERO_RANGE | KEEP_SIZE):
            self.assert_fails(errno.EOPNOTSUPP, fallocate, fd, mode, 0, 4096)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 8 * MIB, 4096)
        self.assert_fails(errno.EFBIG, fallocate, fd, 0, (1 << 63) - 4096, 4096)
        self.assertEqual(os.fstat(fd).st_size, MIB)

    def test_opening_with_truncation_keeps_the_disk(self):
        self.serve_image("raw", size="1M")
        self.export()
        self.assertEqual(os.fstat(self.open(os.O_RDWR | os.O_TRUNC)).st_size, MIB)

    def test_a_disk_with_a_job_keeps_its_size(self):
        self.serve_image("raw", size="1M")
        target = {"driver": "null-co", "node-name": "target", "size": MIB}
        self.qmp.command("blockdev-add", **target)
        self.export()
        self.qmp.command("blockdev-mirror", **{"job-id": "j", "device": "disk", "target": "target",
                         "sync": "full", "speed": 4096, "filter-node-name": "top"})  # fmt: skip
        fd = self.open()
        self.assert_fails(errno.EBUSY, os.ftruncate, fd, 2 * MIB)
        self.assertEqual(os.fstat(fd).st_size, MIB)
        self.qmp.command("job-cancel", id="j")


class Attributes(FuseCase):
    def test_those_of_a_new_disk(self):
        self.serve_image()
        self.export()
        st = os.stat(self.mountpoint)
        self.assertEqual(st.st_mode, stat.S_IFREG | 0o600)
        self.assertEqual((st.st_size, st.st_nlink, st.st_uid), (8 * MIB, 1, os.getuid()))
        self.assertLess(st.st_blocks * 512, MIB)
        self.assertEqual(os.statvfs(self.mountpoint).f_blocks * 4096, 8 * MIB)

    def test_modes(self):
        self.serve_image()
        self.export()
        for mode in (0o777, 0o400, 0):
            os.chmod(self.mountpoint, mode)
            self.assertEqual(stat.S_IMODE(os.stat(self.mountpoint).st_mode), mode)
        os.chown(self.mountpoint, 1234, 4321)
        st = os.stat(self.mountpoint)
        self.assertEqual((st.st_uid, st.st_gid), (1234, 4321))

    def test_a_read_only_disk_does_not_seem_writable(self):
        self.serve_image()
        self.export(writable=False)
        self.assertEqual(stat.S_IMODE(os.stat(self.mountpoint).st_mode), 0o400)
        self.assert_fails(errno.EROFS, os.chmod, self.mountpoint, 0o420)
        os.chmod(self.mountpoint, 0o544)
        fd = self.open()
        self.assert_fails(errno.EACCES, os.pwrite, fd, b"x", 0)
        self.assert_fails(errno.EACCES, os.ftruncate, fd, MIB)
        self.assert_fails(errno.EACCES, fallocate, fd, ZERO_RANGE, 0, 4096)

    def test_nobody_is_let_in_where_others_are_not_allowed(self):
        self.serve_image()
        self.export(**{"allow-other": "off"})
        self.assert_fails(errno.EPERM, os.chmod, self.mountpoint, 0o640)
        self.assert_fails(errno.EOPNOTSUPP, os.chown, self.mountpoint, 1, -1)
        os.chmod(self.mountpoint, 0o700)
        self.assertFalse(self.nobody_can_look())
        self.delete()
        self.export(**{"allow-other": "on"})
        os.chmod(self.dir, 0o755)
        self.assertTrue(self.nobody_can_look())

    def nobody_can_look(self):
        looks = run("stat", self.mountpoint, check=False, user=65534, group=65534, extra_groups=[])
        return looks.returncode == 0

    def test_times_are_those_of_changes(self):
        self.serve_image()
        self.export()
        os.utime(self.mountpoint, (1, 2))
        st = os.stat(self.mountpoint)
        self.assertEqual((st.st_atime, st.st_mtime), (1, 2))
        with open(self.mountpoint, "r+b") as file:
            file.write(b"new")
        changed = os.stat(self.mountpoint).st_mtime
        self.assertAlmostEqual(changed, time.time(), delta=60)
        self.assertEqual(os.stat(self.mountpoint).st_mtime, changed)


class Mountpoints(FuseCase):
    def test_a_regular_file_is_wanted(self):
        self.serve_image()
        nothing = self.path("nothing")
        self.refuse(f"Failed to stat '{nothing}': No such file or directory", mountpoint=nothing)
        self.refuse(f"'{self.dir}' is not a regular file", mountpoint=self.dir)
        answer = self.qmp.execute("block-export-add", {"type": "fuse", "id": "e",
                                                       "node-name": "disk"})  # fmt: skip
        self.assertEqual(answer["error"]["desc"], "Parameter 'mountpoint' is missing")

    def test_one_export_to_a_file(self):
        self.serve_image()
        self.export()
        sentence = f"There already is a FUSE export on '{self.mountpoint}'"
        self.refuse(sentence, id="e2", writable=False)
        link = self.path("link")
        os.symlink("mp", link)
        sentence = f"There already is a FUSE export on '{link}'"
        self.refuse(sentence, id="e2", mountpoint=link, writable=False)
        self.delete()
        self.assertFalse(is_mounted(self.mountpoint))
        self.export(id="e2", mountpoint=link)
        self.assertTrue(is_mounted(self.mountpoint))
        self.delete("e2")
        self.assertFalse(is_mounted(self.mountpoint))

    def test_a_failed_transaction_unmounts(self):
        self.serve_image()
        add = {"type": "fuse", "id": "e", "node-name": "disk", "mountpoint": self.mountpoint}
        answer = self.qmp.execute("transaction", {"actions": [
            {"type": "block-export-add", "data": add},
            {"type": "block-export-add", "data": {**add, "id": "e2"}},
        ]})  # fmt: skip
        self.assertIn("already is a FUSE export", answer["error"]["desc"])
        self.assertFalse(is_mounted(self.mountpoint))
        self.export()

    def test_the_end_of_the_daemon_unmounts(self):
        for how in ("quit", "signal"):
            with self.subTest(how):
                self.serve_image(name=how)
                self.export()
                self.open()
                if how == "quit":
                    self.server.quit()
                else:
                    self.server.stop()
                self.assertFalse(is_mounted(self.mountpoint))
                with open(self.mountpoint, encoding="ascii") as file:
                    self.assertEqual(file.read(), "what was there before\n")

    def test_who_has_it_open_gets_errors_after_a_deletion(self):
        self.serve_image()
        self.export()
        fd = self.open()
        os.pwrite(fd, b"kept", 0)
        self.delete()
        self.assert_fails(errno.ENOTCONN, os.pread, fd, 1, 0)
        self.export(id="again")
        self.assertEqual(os.pread(self.open(), 4, 0), b"kept")

    def test_somebody_else_unmounts(self):
        self.serve_image()
        self.export()
        run("umount", self.mountpoint)
        self.server.wait_for(lambda: "unmounted by somebody else" in self.server.log(), "a warning")
        self.delete()
        self.export()
        os.stat(self.mountpoint)

    def test_a_mount_of_a_killed_daemon_is_replaced(self):
        self.serve_image()
        self.export()
        fd = self.open()
        os.pwrite(fd, b"synced", 0)
        os.fsync(fd)
        self.server.kill()
        self.assert_fails(errno.ENOTCONN, os.pread, fd, 1, 0)
        self.assert_fails(errno.ENOTCONN, os.stat, self.mountpoint)
        file = {"driver": "file", "filename": self.image}
        self.serve({"driver": "qcow2", "node-name": "disk", "file": file}, name="second")
        self.export()
        self.assertEqual(os.pread(self.open(), 6, 0), b"synced")
        self.delete()
        self.assertFalse(is_mounted(self.mountpoint))

    def test_on_the_command_line(self):
        image = self.create("image", fmt="raw", size="1M")
        self.daemon(
            "--object", "iothread,id=t",
            "--blockdev", f"file,node-name=disk,filename={image}",
            "--export", f"fuse,id=e,node-name=disk,mountpoint={self.mountpoint},writable=on,"
            "growable=on,iothread=t",
        )  # fmt: skip
        with open(self.mountpoint, "ab") as file:
            file.write(b"more")
        self.assertEqual(os.stat(image).st_size, MIB + 4)


class Life(FuseCase):
    def test_graph_changes_and_jobs_meanwhile(self):
        self.serve_image()
        self.export()
        fd = self.open()
        self.going = True

        def write():
            i = 0
            while self.going:
                os.pwrite(fd, bytes([i % 255 + 1]) * 4096, i % 2048 * 4096)
                i += 1

        guest = threading.Thread(target=write)
        guest.start()
        try:
            for i in range(3):
                overlay = self.create(f"overlay{i}", size="8M")
                self.qmp.command("blockdev-add", driver="qcow2", **{"node-name": f"o{i}",
                                 "backing": None, "file": {"driver": "file",
                                                           "filename": overlay}})  # fmt: skip
                base = f"o{i - 1}" if i else "disk"
                self.qmp.command("blockdev-snapshot", node=base, overlay=f"o{i}")
            self.qmp.command("block-stream", **{"job-id": "j", "device": "o2"})
            self.qmp.wait_event("BLOCK_JOB_COMPLETED")
        finally:
            self.going = False
            guest.join()
        seen = os.pread(fd, 8 * MIB, 0)
        self.server.quit()
        with open(self.path("seen"), "wb") as file:
            file.write(seen)
        img("compare", "-F", "raw", "-f", "qcow2", self.path("overlay2"), self.path("seen"))

    def test_failures_are_reported(self):
        fault = {"event": "none", "iotype": "write", "errno": errno.EIO}
        null = {"driver": "null-co", "size": MIB}
        self.serve({"driver": "blkdebug", "node-name": "disk", "image": null,
                    "inject-error": [fault]})  # fmt: skip
        self.export()
        self.assert_fails(errno.EIO, os.pwrite, self.open(), b"x" * 4096, 8192)
        event = self.qmp.wait_event("BLOCK_IO_ERROR")["data"]
        self.assertEqual((event["qom-path"], event["x-request"], event["x-offset"]),
                         ("e", "write", 8192))  # fmt: skip
        self.assertEqual(self.qmp.command("query-blockstats")[0]["stats"]["failed_wr_operations"], 1)

    def test_each_metric_is_described_once(self):
        metrics = self.path("metrics")
        nbd = ["--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}"]
        self.server = self.daemon(*nbd, "--metrics", metrics, "--blockdev",
                                  "null-co,node-name=disk,size=1M")  # fmt: skip
        self.qmp = self.server.qmp
        self.qmp.command("block-export-add", type="nbd", id="n", **{"node-name": "disk"})
        self.export()
        text = prometheus.request(metrics)[2]
        types = [line for line in text.splitlines() if line.startswith("# TYPE")]
        self.assertIn("# TYPE tidemark_fuse_export_read_requests_total counter", types)
        self.assertEqual(len(types), len(set(types)))

    def test_requests_are_counted(self):
        self.serve_image("raw", size="1M")
        self.export()
        fd = self.open()
        os.pwrite(fd, b"x" * 4096, 0)
        os.pread(fd, 512, 0)
        os.fsync(fd)
        stats = self.qmp.command("query-blockstats")[0]["stats"]
        self.assertEqual((stats["wr_bytes"], stats["rd_bytes"]), (4096, 512))
        self.assertEqual((stats["wr_operations"], stats["rd_operations"]), (1, 1))
        self.assertGreaterEqual(stats["flush_operations"], 1)


class Hung(FuseCase):
    """A node that does not answer."""

    def setUp(self):
        super().setUp()
        slow = {"driver": "null-co", "node-name": "slow", "size": MIB, "latency-ns": 3600 * 10**9}
        good = {"driver": "null-co", "node-name": "good", "size": MIB, "read-zeroes": True}
        self.serve(slow, good)
        self.export(node="slow")
        self.readers = [self.reader() for _ in range(4)]
        wait_until(lambda: self.in_flight() == 4, "four readers that wait")

    def reader(self):
        process = subprocess.Popen(["dd", f"if={self.mountpoint}", "of=/dev/null", "bs=4k", "count=1"],
                                   stderr=subprocess.PIPE, text=True)  # fmt: skip
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.kill)
        return process

    def in_flight(self):
        stats = self.qmp.command("x-tidemark-query-stats", target="node")
        return max(s["stats"].get("in-flight", 0) for s in stats)

    def assert_readers_fail(self):
        for reader in self.readers:
            self.assertEqual(reader.wait(timeout=20), 1)

    def test_others_are_served(self):
        with open(self.path("other"), "wb"):
            pass
        self.export(id="good", node="good", mountpoint=self.path("other"))
        fd = self.open(path=self.path("other"))
        self.assertEqual(os.pread(fd, 512, 0), bytes(512))
        self.assertEqual(os.stat(self.mountpoint).st_size, MIB)

    def test_readers_are_freed_by_a_deletion(self):
        answer = self.qmp.execute("block-export-del", {"id": "e"})
        self.assertIn("still in use", answer["error"]["desc"])
        self.qmp.command("block-export-del", id="e", mode="hard")
        self.assert_readers_fail()
        self.assertFalse(is_mounted(self.mountpoint))

    def test_the_daemon_ends(self):
        began = time.monotonic()
        self.server.stop(expect=1)
        self.assertLess(time.monotonic() - began, 15)
        self.assert_readers_fail()
        self.assertFalse(is_mounted(self.mountpoint))

    def test_a_second_signal_ends_it_too(self):
        os.kill(self.server.pid, signal.SIGTERM)
        time.sleep(0.1)
        self.server.stop(expect=1)
        self.assert_readers_fail()
        self.assertFalse(is_mounted(self.mountpoint))


if __name__ == "__main__":
    unittest.main()
