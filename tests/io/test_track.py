# SPDX-License-Identifier: Apache-2.0
"""tidemark track: raw disks with bitmaps next to them, and changes that nobody tracked."""

import json
import os
import re
import shutil
import unittest

from qmp import Qmp
from tidemark import Process, TestCase, can_connect, img, io, nbd_uri, qemu_img, run, tool

CLUSTER = 65536
MIB = 1 << 20


class TrackCase(TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        self.disk = self.path("disk.raw")
        self.image, self.state = self.disk + ".track", self.disk + ".track.state"
        self.socket, self.qmp_path = self.path("nbd"), self.path("qmp")
        with open(self.disk, "wb") as file:
            for i in range(8):
                file.write(bytes([65 + i]) * MIB)

    def start(self, *options, bitmaps=("b",)):
        for path in (self.socket, self.qmp_path):
            if os.path.exists(path):
                os.unlink(path)
        words = [word for name in bitmaps for word in ("--bitmap", name)]
        command = [*tool("track"), "-k", self.socket, "--qmp", self.qmp_path, *words, *options]
        server = self.own(Process([*command, self.disk], self.path("log")))
        server.wait_for(lambda: can_connect(self.qmp_path), "the monitor")
        server.qmp = Qmp(self.qmp_path)
        server.wait_for(lambda: can_connect(self.socket), "the server")
        server.wait_for(lambda: server.qmp.command("query-block-exports"), "the export")
        return server

    def end(self, server):
        server.qmp.close()
        server.stop()

    def kill(self, server):
        server.qmp.close()
        server.kill()

    def write(self, cluster, count=1):
        uri = nbd_uri(self.socket, "disk")
        io(uri, f"write -P 7 {cluster * CLUSTER} {count * CLUSTER}", fmt="raw")

    def look(self, *options):
        return run(*tool("track"), "--no-serve", *options, self.disk).stdout

    def counts(self, server):
        """Dirty clusters by name."""
        return {n: b["count"] // CLUSTER for n, b in server.qmp.bitmaps("disk").items()}

    def refused(self, wanted, *words):
        result = run(*tool("track"), *words, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(wanted, result.stderr)

    def clusters(self):
        return os.path.getsize(self.disk) // CLUSTER


class Track(TrackCase):
    # What is tracked.

    def test_the_disk_stays_raw(self):
        self.assertIn("not tracked yet", self.look())
        with open(self.disk, "rb") as file:
            wanted = bytearray(file.read())
        server = self.start()
        self.write(3, 2)
        self.end(server)
        wanted[3 * CLUSTER : 5 * CLUSTER] = b"\7" * (2 * CLUSTER)
        with open(self.disk, "rb") as file:
            self.assertEqual(file.read(), wanted)
        qemu_img("check", self.image)
        qemu_img("compare", "-f", "qcow2", "-F", "raw", self.image, self.disk)
        info = json.loads(qemu_img("info", "--output=json", self.image).stdout)
        self.assertEqual(info["cluster-size"], 2 * MIB)
        self.assertTrue(info["format-specific"]["data"]["data-file-raw"])

    def test_bitmaps_persist(self):
        server = self.start()
        self.write(3, 2)
        self.end(server)
        self.assertIn("as it was", self.look())
        server = self.start()
        self.write(0)
        self.assertEqual(self.counts(server), {"b": 3})
        self.end(server)

    def test_backups(self):
        """The second is incremental; also across a restart of what tracks."""
        backup = (*tool("backup"), "--qmp", self.qmp_path, "--node", "disk", "--to", self.path("to"))
        server = self.start(bitmaps=())
        self.assertIn("full", run(*backup).stdout)
        self.write(3, 2)
        self.end(server)
        server = self.start(bitmaps=())
        self.write(9)
        self.assertRegex(run(*backup).stdout, r"incremental.*\n.*changed 192 KiB")
        self.end(server)
        run(*tool("restore"), self.path("to"), self.path("back.raw"))
        qemu_img("compare", "-f", "raw", "-F", "raw", self.path("back.raw"), self.disk)
        os.truncate(self.disk, 9 * MIB)
        server = self.start(bitmaps=())
        self.assertIn("had 8388608 bytes, and has 9437184", server.log())
        run(*backup)
        self.end(server)
        run(*tool("restore"), self.path("to"), self.path("again.raw"))
        qemu_img("compare", "-f", "raw", "-F", "raw", self.path("again.raw"), self.disk)

    def test_a_large_disk_has_a_small_image(self):
        with open(self.disk, "wb") as file:
            file.truncate(1 << 40)
        server = self.start("-g", "1M")
        self.write((1 << 40) // CLUSTER - 1)
        self.assertEqual(self.counts(server), {"b": MIB // CLUSTER})
        self.end(server)
        self.assertLess(os.stat(self.image).st_blocks * 512, 24 * MIB)

    def test_a_disk_that_ends_within_a_cluster(self):
        """It never gets longer, as a device could not."""
        os.truncate(self.disk, 7 * MIB - 512)
        server = self.start()
        uri = nbd_uri(self.socket, "disk")
        io(uri, f"write -P 9 {7 * MIB - 1024} 512", "flush", fmt="raw")
        io(uri, f"write -z {6 * MIB} {MIB - 512}", f"discard {6 * MIB} {MIB - 512}", fmt="raw")
        io(uri, f"write -z -u {6 * MIB} {MIB - 512}", f"read -P 0 {6 * MIB} {MIB - 512}", fmt="raw")
        self.assertEqual(self.counts(server), {"b": 16 - 1})
        self.end(server)
        self.assertEqual(os.path.getsize(self.disk), 7 * MIB - 512)
        qemu_img("check", self.image)

    def test_resize_while_it_is_served(self):
        server = self.start()
        server.qmp.command("block_resize", node_name="disk", size=9 * MIB)
        self.write(8 * 16)
        self.end(server)
        self.assertEqual(os.path.getsize(self.disk), 9 * MIB)
        self.assertIn("as it was", self.look())
        server = self.start()
        self.assertEqual(self.counts(server), {"b": 1})
        self.end(server)

    # What is not.

    def tracked(self):
        """A disk that was tracked, with a bitmap that records and one that is frozen."""
        server = self.start(bitmaps=("b", "frozen"))
        self.write(3, 2)
        server.qmp.command("block-dirty-bitmap-disable", node="disk", name="frozen")
        self.end(server)

    def assert_doubted(self, why, *options):
        self.assertRegex(self.look(*options), why)
        self.assertIn("the next backup is full", self.look(*options))
        server = self.start(*options)
        self.assertRegex(server.log(), why)
        all_of_it = self.clusters()
        self.assertEqual(self.counts(server), {"b": all_of_it, "frozen": all_of_it})
        self.write(0)
        self.end(server)
        self.assertIn("as it was", self.look())
        qemu_img("check", self.image)

    def test_a_write(self):
        self.tracked()
        with open(self.disk, "r+b") as file:
            file.write(b"x")
        self.assert_doubted("time of its last change")

    def test_a_write_whose_time_was_set_back(self):
        self.tracked()
        was = os.stat(self.disk)
        with open(self.disk, "r+b") as file:
            file.write(b"x")
        os.utime(self.disk, ns=(was.st_atime_ns, was.st_mtime_ns))
        self.assert_doubted("last change of its inode")

    def test_another_file(self):
        self.tracked()
        was = os.stat(self.disk)
        shutil.copy(self.disk, self.path("copy"))
        os.utime(self.path("copy"), ns=(was.st_atime_ns, was.st_mtime_ns))
        os.rename(self.path("copy"), self.disk)
        self.assert_doubted("it is another one: it was 'inode")

    def test_another_size(self):
        for size in (9 * MIB, 7 * MIB):
            with self.subTest(size):
                shutil.rmtree(self.dir)
                self.setUp()
                self.tracked()
                os.truncate(self.disk, size)
                self.assert_doubted(f"it had 8388608 bytes, and has {size}")
                qemu_img("compare", "-f", "qcow2", "-F", "raw", self.image, self.disk)

    def test_a_change_that_only_samples_show(self):
        """As of a device after a boot: the record has no times, and no count."""
        self.tracked()
        with open(self.state, encoding="utf-8") as file:
            state = json.load(file)
        with open(self.disk, "r+b") as file:
            file.write(b"x")
        now = os.stat(self.disk)
        state["mtime-ns"], state["ctime-ns"] = now.st_mtime_ns, now.st_ctime_ns
        with open(self.state, "w", encoding="utf-8") as file:
            json.dump(state, file)
        self.assert_doubted("samples of its contents")

    def test_no_state_or_a_damaged_one(self):
        self.tracked()
        os.unlink(self.state)
        self.assert_doubted("not known what it was .*No such file")
        for text in ("", "{", "[]", '{"tidemark-track": 2}', "{}" * 40000):
            with open(self.state, "w", encoding="utf-8") as file:
                file.write(text)
            self.assertIn("not known", self.look())
        self.assert_doubted("not known")

    def test_a_crash(self):
        """Only size and identity are compared, unless that is not enough."""
        self.tracked()
        server = self.start()
        self.write(9)
        self.kill(server)
        self.assertIn("not ended cleanly; size and identity are the same\n", self.look())
        self.assertNotIn("full", self.look())
        strict = self.look("--strict")
        self.assertIn("not enough with --strict", strict)
        self.assertIn("the next backup is full", strict)
        server = self.start(bitmaps=())
        self.assertEqual(self.counts(server)["frozen"], 2)
        self.kill(server)
        server = self.start("--strict", bitmaps=())
        self.assertEqual(self.counts(server)["frozen"], self.clusters())
        self.end(server)
        self.assertIn("as it was", self.look("--strict"))

    def test_a_crash_and_another_file(self):
        self.tracked()
        self.kill(self.start())
        shutil.copy(self.disk, self.path("copy"))
        os.rename(self.path("copy"), self.disk)
        self.assertIn("it is another one", self.look())

    def put_back(self, path):
        """Another file gets that name, with what was there."""
        shutil.copy2(path, self.path("copy"))
        os.rename(self.path("copy"), path)

    def test_a_crash_and_a_file_with_the_number_of_the_old_one(self):
        """File systems give numbers of inodes again. The record is that of a file made before."""
        self.tracked()
        self.kill(self.start())
        self.edit_state(identity=lambda text: re.sub("made .*", "made 1.000000000", text))
        self.assert_doubted("it is another one: it was 'inode .*, made 1.0")

    def test_a_file_system_that_begins_to_say_when_files_were_made(self):
        self.tracked()
        self.edit_state(identity=lambda text: re.sub(", made .*", "", text))
        self.assertIn("as it was", self.look())

    def edit_state(self, **changes):
        with open(self.state, encoding="utf-8") as file:
            state = json.load(file)
        for key, change in changes.items():
            state[key] = change(state[key])
        with open(self.state, "w", encoding="utf-8") as file:
            json.dump(state, file)

    def test_a_file_that_was_replaced_while_it_was_served(self):
        for which in ("disk", "image"):
            with self.subTest(which):
                shutil.rmtree(self.dir)
                self.setUp()
                path = getattr(self, which)
                self.tracked()
                server = self.start()
                self.put_back(path)
                server.qmp.close()
                server.stop(expect=1)
                self.assertIn(f"'{path}' is not the file that was served", server.log())
                self.assert_doubted("it is another one|its bitmaps are in another file")

    def test_older_bitmaps(self):
        """The image was restored from a copy: its bitmaps lack what was written since."""
        self.tracked()
        shutil.copy2(self.image, self.path("old"))
        server = self.start()
        self.write(9)
        self.end(server)
        now = self.path("now")
        shutil.copy2(self.image, now)
        os.rename(self.path("old"), self.image)
        self.assert_doubted("its bitmaps are in another file")
        # Over the file that is there.
        was = os.stat(now)
        shutil.copy(now, self.image)
        os.utime(self.image, ns=(was.st_atime_ns, was.st_mtime_ns))
        self.assert_doubted("its bitmaps are older")

    def test_bitmaps_may_change_while_nothing_is_served(self):
        self.tracked()
        img("bitmap", "-f", "qcow2", "--add", self.image, "more")
        self.assertIn("as it was", self.look())
        server = self.start()
        self.assertEqual(self.counts(server), {"b": 2, "frozen": 2, "more": 0})
        self.end(server)

    # What is refused.

    def test_refused(self):
        self.refused("name the file or device")
        self.refused("--socket or --qmp is needed", self.disk)
        self.refused("No such file", "-k", self.socket, self.path("nothing"))
        self.refused("neither a file nor a block device", "-k", self.socket, self.dir)
        self.refused("only looks", "--no-serve", "-k", self.socket, self.disk)
        self.refused("is for --bitmap", "-g", "64k", "-k", self.socket, self.disk)
        self.refused("power of 2", "-g", "65000", "--bitmap", "b", "-k", self.socket, self.disk)
        os.truncate(self.disk, 1000)
        self.refused("no multiple of 512", "-k", self.socket, self.disk)
        self.assertEqual(sorted(os.listdir(self.dir)), ["disk.raw"])

    def test_an_image_of_another_kind_is_left_alone(self):
        self.create("disk.raw.track", "8M")
        with open(self.image, "rb") as file:
            before = file.read()
        self.refused("only be set for images with an external data file", "-k", self.socket, self.disk)
        with open(self.image, "rb") as file:
            self.assertEqual(file.read(), before)

    def test_two_at_once(self):
        server = self.start()
        self.refused("lock", "-k", self.path("other"), self.disk)
        self.write(1)
        self.assertEqual(self.counts(server), {"b": 1})
        self.end(server)

    def test_words_for_the_daemon(self):
        server = self.own(
            Process(
                [*tool("track"), "--qmp", self.qmp_path, "--pidfile", self.path("pid"), "--name", "d",
                 self.disk, "--", "--export",
                 f"type=vhost-user-blk,id=x,node-name=d,addr.type=unix,addr.path={self.socket}"],
                self.path("log"),
            )
        )  # fmt: skip
        self.assertEqual(server.wait(), 1)
        self.assertIn("vhost-user-blk", server.log())
        self.assertIn("not ended cleanly", self.look())
        img("check", self.image)


class Device(TrackCase):
    """A loop device."""

    def setUp(self):
        super().setUp()
        as_root = () if os.geteuid() == 0 else ("sudo", "-n")
        self.below = self.disk
        self.disk = run(*as_root, "losetup", "-f", "--show", self.below).stdout.strip()
        self.addCleanup(run, *as_root, "losetup", "-d", self.disk)
        if as_root:
            run(*as_root, "chown", str(os.geteuid()), self.disk)

    def start(self, *options, **more):
        return super().start("--image", self.image, *options, **more)

    def look(self, *options):
        return super().look("--image", self.image, *options)

    def test_what_is_in_the_page_cache_only_counts(self):
        self.end(self.start())
        self.assertIn("as it was", self.look())
        # The system does not write it back when one of two users closes.
        with open(self.disk, "rb"):
            with open(self.disk, "r+b") as file:
                file.seek(5 * MIB)
                file.write(b"x" * 4096)
            self.assertIn("8 sectors of it were written", self.look())

    def test_a_mounted_device_is_refused(self):
        as_root = () if os.geteuid() == 0 else ("sudo", "-n")
        folder = self.path("mounted")
        os.mkdir(folder)
        run("/sbin/mkfs.ext4", "-q", "-F", self.disk)
        run(*as_root, "mount", self.disk, folder)
        self.addCleanup(run, *as_root, "umount", folder, check=False)
        self.refused("is in use by the system", "--image", self.image, "-k", self.socket, self.disk)
        self.assertFalse(os.path.exists(self.image))
        run(*as_root, "umount", folder)
        server = self.start()
        mount = run(*as_root, "mount", self.disk, folder, check=False)
        self.assertNotEqual(mount.returncode, 0)
        self.write(3)
        self.end(server)
        self.assertIn("as it was", self.look())

    def test_a_change_of_the_file_below(self):
        self.end(self.start())
        with open(self.below, "r+b") as file:
            file.write(b"x")
        self.assertIn("samples of its contents", self.look())


if __name__ == "__main__":
    unittest.main()
