# SPDX-License-Identifier: Apache-2.0
"""A point in time that is used without being restored first: served, written above, moved to its
place while it is in use. And that damage anywhere in a repository never becomes data.
"""

import os
import random
import shutil
import signal
import subprocess
import time
import unittest

import nbd

from backup_case import MIB, BackupCase
from tidemark import Process, can_connect, nbd_uri, run, tool, wait_until

# A long test: TIDEMARK_FLIPS=2000.
FLIPS = int(os.environ.get("TIDEMARK_FLIPS", "24"))


class ServeCase(BackupCase):
    size = 8 * MIB

    def setUp(self):
        super().setUp()
        self.write_random(0, 3 * MIB)
        self.first = self.backup()
        self.before = bytes(self.model)
        self.write_random(MIB + 5, 100000)
        self.zero(2 * MIB, 65536 * 3)
        self.second = self.backup()
        self.point = self.path("point.sock")

    def serve(self, *words):
        server = self.own(Process([*tool("serve"), self.repository, "-k", self.point, *words],
                                  self.path("serve.log")))  # fmt: skip
        wait_until(lambda: can_connect(self.point), "the server")
        return server

    def connect(self, path=None, name=""):
        handle = nbd.NBD()
        handle.connect_uri(nbd_uri(path or self.point, name))
        return handle

    def content(self, handle):
        return b"".join(handle.pread(MIB, i) for i in range(0, self.size, MIB))

    def add_point(self, name="point", **more):
        self.server.qmp.command(
            "blockdev-add",
            **{"driver": "tidemark-backup", "node-name": name, "repository": self.repository},
            **more,
        )


class Serve(ServeCase):
    def test_each_point_in_time_within_a_second(self):
        for manifest, model in ((self.first, self.before), (self.second, bytes(self.model))):
            began = time.monotonic()
            server = self.serve("--at", manifest["id"])
            client = self.connect()
            client.pread(512, 0)
            self.assertLess(time.monotonic() - began, 1)
            self.assertTrue(self.content(client) == model)
            for offset, size in ((1, 1), (65535, 2), (MIB + 3, 200001), (self.size - 7, 7)):
                self.assertEqual(client.pread(size, offset), model[offset : offset + size])
            self.assertTrue(client.is_read_only())
            client.shutdown()
            server.stop()

    def test_status_is_that_of_the_checksums(self):
        self.serve()
        self.assertEqual(
            [(e["start"], e["length"], e["zero"], e["data"]) for e in self.map()],
            [
                (0, 2 * MIB, False, True),
                (2 * MIB, 3 << 16, True, False),
                (2 * MIB + (3 << 16), MIB - (3 << 16), False, True),
                (3 * MIB, 5 * MIB, True, False),
            ],
        )

    def map(self):
        import json

        text = run(*tool("img"), "map", "--output=json", "-f", "raw", nbd_uri(self.point)).stdout
        return json.loads(text)

    def test_writes_to_it_are_lost_at_the_end(self):
        for _ in range(2):
            server = self.serve("--writable")
            client = self.connect()
            self.assertTrue(self.content(client) == self.model)
            client.pwrite(b"x" * 70000, 100)
            self.assertEqual(client.pread(70000, 100), b"x" * 70000)
            client.shutdown()
            server.stop()
        self.assert_sound()

    def test_an_overlay_is_continued(self):
        overlay = self.path("over,lay.qcow2")
        for n in range(2):
            server = self.serve("--overlay", overlay)
            client = self.connect()
            expected = bytearray(self.model)
            expected[:n] = b"x" * n
            self.assertTrue(self.content(client) == expected)
            client.pwrite(b"x", n)
            client.shutdown()
            server.stop()
        for words, why in (
            (("--at", self.first["id"], "--overlay", overlay), "is no overlay on this backup"),
            (("--overlay", self.create("a.qcow2", "8M")), "is no overlay on this backup"),
            (("--overlay", overlay, "--writable"), "exclude each other"),
        ):
            result = run(*tool("serve"), self.repository, "-k", self.point, *words, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(why, result.stderr)
        self.assert_sound()

    def test_damage_is_an_error_that_names_the_file(self):
        path = self.image_of(self.first)
        client = None
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            byte = f.read(1)
            f.seek(-1, 1)
            f.write(bytes([byte[0] ^ 1]))
        self.serve()
        client = self.connect()
        errors = 0
        for offset in range(0, self.size, 65536):
            try:
                self.assertTrue(
                    client.pread(65536, offset) == self.model[offset : offset + 65536]
                )
            except nbd.Error:
                errors += 1
        self.assertEqual(errors, 1)
        with open(self.path("serve.log"), encoding="utf-8") as log:
            self.assertIn(f"'{path}'", log.read())

    def test_what_cannot_be_served(self):
        for words, why in (
            ((self.path("none"),), "none"),
            ((self.repository, "--at", "x"), "x"),
            ((self.repository, "-k", "s", "-p", "1"), "no port"),
            ((self.repository, "--tls-authz", "a"), "--tls-creds"),
            ((), "one directory"),
        ):
            result = run(*tool("serve"), *words, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(why, result.stderr)


class InTheDaemon(ServeCase):
    """A guest runs from the backup while the disk is moved to its place."""

    def start_guest(self):
        """An overlay on the point in time, exported as `new`."""
        qmp = self.server.qmp
        self.add_point(at=self.first["id"])
        run(*tool("img"), "create", "-f", "qcow2", self.path("ov.qcow2"), str(self.size))
        qmp.command(
            "blockdev-add",
            **{
                "driver": "qcow2", "node-name": "overlay", "backing": "point",
                "file": {"driver": "file", "filename": self.path("ov.qcow2")},
            },
        )  # fmt: skip
        qmp.command(
            "block-export-add",
            **{"type": "nbd", "id": "new", "node-name": "overlay", "name": "new", "writable": True},
        )
        self.expected = bytearray(self.before)
        self.guest = self.connect(self.socket, "new")
        self.guest_writes(b"a")

    def guest_writes(self, byte):
        for offset in range(7000, self.size - 5000, MIB + 4096):
            self.guest.pwrite(byte * 5000, offset)
            self.expected[offset : offset + 5000] = byte * 5000

    def job_ends(self, name):
        return not any(j["id"] == name for j in self.server.qmp.command("query-jobs"))

    def test_stream_into_the_overlay(self):
        self.start_guest()
        self.server.qmp.command("block-stream", **{"device": "overlay", "job-id": "move"})
        self.guest_writes(b"b")
        wait_until(lambda: self.job_ends("move"), "the job")
        self.server.qmp.command("blockdev-del", **{"node-name": "point"})
        shutil.rmtree(self.repository)
        self.guest_writes(b"c")
        self.assertTrue(self.content(self.guest) == self.expected)

    def test_mirror_to_another_image(self):
        self.start_guest()
        qmp = self.server.qmp
        place = self.create("place.raw", str(self.size), "raw")
        qmp.command("blockdev-add", **{"driver": "file", "node-name": "place", "filename": place})
        qmp.command(
            "blockdev-mirror",
            **{"device": "overlay", "target": "place", "sync": "full", "job-id": "move"},
        )
        self.guest_writes(b"b")
        wait_until(
            lambda: [j["status"] for j in qmp.command("query-jobs")] == ["ready"], "the copy"
        )
        self.guest_writes(b"c")
        qmp.command("job-complete", id="move")
        wait_until(lambda: self.job_ends("move"), "the job")
        qmp.command("blockdev-del", **{"node-name": "overlay"})
        qmp.command("blockdev-del", **{"node-name": "point"})
        self.guest_writes(b"d")
        self.guest.flush()
        self.assertTrue(self.content(self.guest) == self.expected)
        with open(place, "rb") as f:
            self.assertTrue(f.read() == self.expected)

    def test_many_users_and_the_end_of_the_daemon(self):
        for n in range(3):
            self.add_point(f"point{n}")
            self.server.qmp.command(
                "block-export-add",
                **{"type": "nbd", "id": f"p{n}", "node-name": f"point{n}", "name": f"p{n}"},
            )
        clients = [self.connect(self.socket, f"p{n}") for n in range(3)]
        for client in clients:
            self.assertTrue(self.content(client) == self.model)
        self.server.qmp.command("block-export-del", id="p0", mode="hard")
        self.server.qmp.command("blockdev-del", **{"node-name": "point0"})
        self.server.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.server.process.wait(20), 0)

    def test_it_is_never_written(self):
        with self.assertRaisesRegex(Exception, "never changed"):
            self.add_point(**{"read-only": False})
        self.add_point()
        with self.assertRaisesRegex(Exception, "read-only"):
            self.server.qmp.command(
                "block-export-add",
                **{"type": "nbd", "id": "p", "node-name": "point", "writable": True},
            )


class Flips(ServeCase):
    """One bit, anywhere in a repository: the right data, or an error, whoever reads."""

    def setUp(self):
        super().setUp()
        self.target = self.path("out.raw")
        self.mountpoint = self.path("mnt")
        os.makedirs(self.mountpoint)

    def flip(self, path, bit):
        with open(path, "r+b") as f:
            f.seek(bit // 8)
            byte = f.read(1)[0]
            f.seek(bit // 8)
            f.write(bytes([byte ^ 1 << bit % 8]))

    def files(self):
        for manifest in (self.first, self.second):
            for name in ("disk.qcow2", "checksums", "manifest.json"):
                yield os.path.join(self.repository, manifest["id"], name)
        yield os.path.join(self.repository, "repository.json")

    def read_by(self, *command):
        """What a command writes to self.target; None: it fails, and names the repository."""
        result = run(*command, check=False)
        self.assertIn(result.returncode, (0, 1), (command, result.stderr))
        if result.returncode:
            self.assertIn(self.repository, result.stderr, command)
            return None
        with open(self.target, "rb") as f:
            return f.read()

    def read_restored(self):
        return self.read_by(*tool("restore"), self.repository, "--force", self.target)

    def read_driver(self):
        point = f"driver=tidemark-backup,repository={self.repository}"
        return self.read_by(*tool("img"), "convert", "-O", "raw", "--image-opts", point, self.target)

    def read_verified(self):
        """The verification has to notice every bit."""
        result = run(*tool("verify"), self.repository, check=False)
        self.assertIn(result.returncode, (1, 2), result.stdout + result.stderr)

    def is_mounted(self):
        with open("/proc/self/mounts", encoding="ascii") as mounts:
            return any(line.split()[1] == self.mountpoint for line in mounts)

    def read_mounted(self):
        words = [*tool("mount"), self.repository, self.mountpoint]
        server = self.own(Process(words, self.path("mount.log")))
        wait_until(lambda: self.is_mounted() or server.process.poll() is not None, "the mount")
        try:
            path = os.path.join(self.mountpoint, self.second["id"], "disk.raw")
            with open(path, "rb") as f:
                return f.read()
        except OSError:
            return None
        finally:
            server.stop()

    def flip_some(self, rng, count):
        files = list(self.files())
        readers = [self.read_restored, self.read_driver, self.read_verified] * 5
        readers.append(self.read_mounted)
        refused = 0
        for n in range(count):
            path, read = files[n % len(files)], readers[n % len(readers)]
            bit = rng.randrange(os.path.getsize(path) * 8)
            self.flip(path, bit)
            try:
                with self.subTest(path=path, bit=bit, reader=read.__name__):
                    content = read()
                    refused += content is None
                    self.assertTrue(content is None or content == self.model)
            finally:
                self.flip(path, bit)
        self.assertGreater(refused, count // 4)
        self.assert_sound()

    def test_the_name_of_a_checksum(self):
        """Without it the description would be one of an earlier version, without a checksum."""
        path = os.path.join(self.repository, "repository.json")
        with open(path, "rb") as f:
            first = f.read().index(b"sha256")
        for bit in range(first * 8, (first + 6) * 8, 5):
            with self.subTest(bit=bit):
                self.flip(path, bit)
                self.read_verified()
                self.flip(path, bit)

    def test_random_bits(self):
        self.flip_some(random.Random(os.environ.get("TIDEMARK_SEED", "1")), FLIPS)

    def test_random_bits_of_encrypted_backups(self):
        key = self.path("key")
        with open(key, "wb") as f:
            f.write(b"k" * 40)
        plain, self.repository = self.repository, self.path("encrypted")
        os.environ["TIDEMARK_KEY_FILE"] = key
        self.addCleanup(os.environ.pop, "TIDEMARK_KEY_FILE")
        run(*tool("repair"), "--sign", plain)
        run(*tool("copy"), "--encrypt", plain, self.repository)
        self.flip_some(random.Random(os.environ.get("TIDEMARK_SEED", "2")), FLIPS)


if __name__ == "__main__":
    unittest.main()
