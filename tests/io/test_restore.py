# SPDX-License-Identifier: Apache-2.0
"""What a restore may write to, what it keeps of what was there, and what programs get as answers.
"""

import json
import os
import stat
import subprocess
import threading

import nbd

from backup_case import MIB, BackupCase, HeldUp, is_restoring_to
from nbd_server import QemuNbd
from tidemark import Process, nbd_uri, run, tool, wait_until

ROOT = os.geteuid() == 0


class RestoreCase(BackupCase):
    size = 4 * MIB

    def setUp(self):
        super().setUp()
        self.write_random(0, MIB)
        self.write_random(3 * MIB, 4096)
        self.manifest = self.backup()
        self.target = self.path("out.raw")

    def restore(self, *words, target=None, **more):
        return run(*tool("restore"), self.repository, *words, target or self.target,
                   check=False, **more)  # fmt: skip

    def refuses(self, *words, why, target=None):
        result = self.restore(*words, target=target)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn(why, result.stderr)
        self.assertEqual([n for n in os.listdir(self.dir) if "tidemark-restore" in n], [])

    def content(self, path=None):
        with open(path or self.target, "rb") as f:
            return f.read()

    def clear(self):
        if os.path.exists(self.target):
            os.unlink(self.target)

    def put(self, text="old", path=None):
        with open(path or self.target, "w", encoding="utf-8") as f:
            f.write(text)


class TestFiles(RestoreCase):
    def test_a_new_file_is_its_owners_alone(self):
        self.assertEqual(self.restore().returncode, 0)
        self.assertEqual(stat.S_IMODE(os.stat(self.target).st_mode), 0o600)
        self.assertTrue(self.content() == self.model)

    def test_force_keeps_owner_mode_and_attributes(self):
        self.put()
        if ROOT:
            os.chown(self.target, 1234, 2345)
        os.chmod(self.target, 0o640)
        os.setxattr(self.target, "user.label", b"db")
        before = os.stat(self.target)
        self.assertEqual(self.restore("--force").returncode, 0)
        after = os.stat(self.target)
        self.assertEqual((after.st_uid, after.st_gid), (before.st_uid, before.st_gid))
        self.assertEqual(stat.S_IMODE(after.st_mode), 0o640)
        self.assertEqual(os.getxattr(self.target, "user.label"), b"db")
        self.assertTrue(self.content() == self.model)

    def test_a_link_beside_the_target_is_not_followed(self):
        secret = self.path("secret")
        self.put("secret", secret)
        os.symlink(secret, self.target + ".tidemark-tmp")
        self.assertEqual(self.restore().returncode, 0)
        self.assertEqual(self.content(secret), b"secret")
        self.assertFalse(os.path.islink(self.target))

    def test_a_link_as_target_is_refused_with_the_name_of_the_file(self):
        real = self.path("real.raw")
        self.put("old", real)
        os.symlink(real, self.target)
        self.refuses("--force", why=f"Name the file itself: '{real}'")
        self.assertEqual(self.content(real), b"old")
        self.assertTrue(os.path.islink(self.target))

    def test_an_image_that_a_daemon_serves_is_not_replaced(self):
        before = os.stat(self.image).st_ino
        self.refuses("--force", "-f", "qcow2", why="is in use by another program",
                     target=self.image)  # fmt: skip
        self.assertEqual(os.stat(self.image).st_ino, before)

    def test_a_file_that_is_open_for_writing_without_locks_is_not_replaced(self):
        self.put()
        with open(self.target, "r+b"):
            self.refuses("--force", why="is in use by another program")
        self.assertEqual(self.restore("--force").returncode, 0)

    def test_what_is_no_file_is_refused(self):
        os.mkfifo(self.path("fifo"))
        for target, why in (("fifo", "neither a file nor"), ("", "does not name a file"),
                            ("none/x.raw", "Could not open directory")):  # fmt: skip
            self.refuses("--force", why=why, target=self.path(target))

    def test_a_file_of_the_repository_is_not_replaced(self):
        (backup,) = (b["id"] for b in self.list_backups())
        os.symlink(self.repository, self.path("link"))
        for name in "repository.json", f"{backup}/checksums", f"{backup}/new.raw":
            for way in self.repository, self.path("link"):
                self.refuses("--force", why="in the directory of the backups",
                             target=os.path.join(way, name))  # fmt: skip
        self.assert_sound()

    def test_a_backup_that_somebody_writes_to_is_named(self):
        image = self.image_of(self.manifest)
        self.own(Process([*tool("io"), "-f", "qcow2", "-c", "sleep 60000", image], self.path("log")))
        lock = "Is another process using the image"
        wait_until(lambda: lock in self.restore().stderr or self.clear(), "the writer")
        self.refuses(why=f"[{image}]")

    def test_a_changed_backup_leaves_the_old_file(self):
        self.put()
        with open(self.image_of(self.manifest), "r+b") as f:
            f.seek(5 * 262144 + 100)  # the first cluster of data
            f.write(b"damage")
        self.refuses("--force", why="do not match their checksum")
        self.assertEqual(self.content(), b"old")

    def test_a_file_that_comes_meanwhile_is_not_replaced(self):
        held = self.own(HeldUp([*tool("restore"), self.repository, self.target]))
        wait_until(lambda: is_restoring_to(self.dir), "its file")
        self.put("mine")
        status, said = held.release()
        self.assertEqual(status, 1)
        self.assertIn("was made by another program meanwhile", said)
        self.assertEqual(self.content(), b"mine")

    def test_two_restores_to_one_new_file(self):
        results = []
        threads = [threading.Thread(target=lambda: results.append(self.restore())) for _ in "12"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertTrue(self.content() == self.model)
        for result in results:
            self.assertTrue(result.returncode == 0 or "Another restore to" in result.stderr
                            or "exists already" in result.stderr)  # fmt: skip
        self.assertIn(0, [result.returncode for result in results])
        self.assertEqual([n for n in os.listdir(self.dir) if "tidemark-restore" in n], [])

    def test_a_second_restore_to_one_target_is_refused_at_once(self):
        held = self.own(HeldUp([*tool("restore"), self.repository, self.target]))
        wait_until(lambda: is_restoring_to(self.dir), "its file")
        os.symlink(self.dir, self.path("here"))
        for target in self.target, self.path("here/out.raw"):
            self.refuses(why="Another restore to", target=target)
        self.assertEqual(self.restore(target=self.path("other.raw")).returncode, 0)
        self.assertEqual(held.release()[0], 0)
        self.assertTrue(self.content() == self.model)

    def test_two_restores_that_replace_one_file(self):
        self.put()
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(self.restore("--force"))) for _ in "12"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertTrue(self.content() == self.model)
        self.assertIn(0, [result.returncode for result in results])
        self.assertEqual([n for n in os.listdir(self.dir) if "tidemark-restore" in n], [])

    def test_nothing_is_left_of_one_that_is_killed(self):
        for words in (), ("--force",):
            before = os.listdir(self.dir)
            held = HeldUp([*tool("restore"), self.repository, *words, self.target])
            wait_until(lambda: is_restoring_to(self.dir), "its file")
            held.kill()
            self.assertEqual(os.listdir(self.dir), before)
            self.put()

    def test_killed_and_done_again(self):
        process = Process([*tool("restore"), self.repository, self.target], self.path("log"))
        process.kill()
        if os.path.exists(self.target):
            os.unlink(self.target)
        self.assertEqual(self.restore().returncode, 0)
        self.assertTrue(self.content() == self.model)


class TestStandardOutput(RestoreCase):
    def stream(self, stdout, *words):
        return subprocess.run([*tool("restore"), self.repository, *words, "-"], stdout=stdout,
                              stderr=subprocess.PIPE, text=False, check=False)  # fmt: skip

    def test_a_pipe_gets_the_disk_from_begin_to_end(self):
        self.write_random(MIB, 64 << 10)
        self.zero(MIB // 2, 128 << 10)
        self.backup()
        result = self.stream(subprocess.PIPE)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(result.stdout == self.model)
        self.assertIn(b"restored to standard output", result.stderr)

    def test_holes_in_an_empty_file_only(self):
        for mode, before in (("wb", b""), ("ab", b"x" * 100), ("r+b", b"x" * self.size)):
            self.put(before.decode())
            with open(self.target, mode) as f:
                self.assertEqual(self.stream(f).returncode, 0)
            expected = (before if mode == "ab" else b"") + self.model
            self.assertTrue(self.content() == expected, mode)
            if mode == "wb":
                self.assertLess(os.stat(self.target).st_blocks * 512, 2 * MIB)

    def test_failures_reach_the_status(self):
        with open("/dev/full", "wb") as full:
            result = self.stream(full)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"Could not write to standard output", result.stderr)
        with open(self.image_of(self.manifest), "r+b") as f:
            f.seek(5 * 262144 + 100)  # the first cluster of data
            f.write(b"damage")
        result = self.stream(subprocess.PIPE)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"do not match their checksum", result.stderr)
        self.assertTrue(self.model.startswith(result.stdout))
        self.assertEqual(self.stream(subprocess.PIPE, "-f", "qcow2").returncode, 1)
        self.assertEqual(self.stream(subprocess.PIPE, "--output=json").returncode, 1)

    def test_what_a_file_can_not_store_reaches_the_status(self):
        with open(self.target, "wb") as f:
            result = subprocess.run(
                ["strace", "-f", "-o", "/dev/null", "-P", os.path.realpath(self.target),
                 "-e", "trace=fsync", "-e", "inject=fsync:error=EIO",
                 *tool("restore"), self.repository, "-"],
                stdout=f, stderr=subprocess.PIPE, check=False,
            )  # fmt: skip
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn(b"Could not write to standard output", result.stderr)


class TestNewNode(RestoreCase):
    def test_a_daemon_gets_the_disk(self):
        for fmt in "raw", "qcow2":
            target = self.path("new." + fmt)
            result = self.restore("-f", fmt, "--qmp", self.server.qmp_path, "--node", fmt,
                                  target=target)  # fmt: skip
            self.assertEqual(result.returncode, 0, result.stderr)
            self.server.qmp.command(
                "block-export-add",
                **{"type": "nbd", "id": fmt, "node-name": fmt, "name": fmt, "writable": True},
            )
            client = nbd.NBD()
            client.connect_uri(nbd_uri(self.socket, fmt))
            self.assertTrue(client.pread(self.size, 0) == self.model)
            client.pwrite(b"x", 0)
            self.assertEqual(client.pread(1, 0), b"x")

    def test_what_is_refused_before_anything_is_written(self):
        qmp = ("--qmp", self.server.qmp_path)
        self.refuses(*qmp, why="need each other")
        self.refuses("--node", "new", why="need each other")
        self.refuses(*qmp, "--node", "disk", why="has a node 'disk' already")
        self.refuses("--qmp", self.path("none"), "--node", "new", why="none")
        self.assertFalse(os.path.exists(self.target))


class TestExports(RestoreCase):
    def serve(self, size):
        self.put("", self.path("nbd.raw"))
        os.truncate(self.path("nbd.raw"), size)
        server = QemuNbd(self.dir, "-f", "raw", self.path("nbd.raw"))
        return self.own(server).uri()

    def test_an_export_is_written_when_told(self):
        uri = self.serve(self.size)
        with open(self.path("nbd.raw"), "r+b") as f:  # qemu-nbd looks at the size at any time
            f.write(b"x" * self.size)
        self.refuses(why="would be lost", target=uri)
        result = self.restore("--force", target=uri)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(self.content(self.path("nbd.raw")) == self.model)

    def test_an_export_behind_tls(self):
        self.put("", self.path("nbd.raw"))
        os.truncate(self.path("nbd.raw"), self.size)
        os.mkdir(self.path("keys"))
        keys = self.path("keys/keys.psk")
        self.put("alice:" + "a5" * 32 + "\n", keys)
        socket = self.path("tls.sock")
        self.own(Process(
            [*tool("nbd"), "-t", "-f", "raw", "-k", socket, "--tls-creds", "tls",
             "--object", f"tls-creds-psk,id=tls,endpoint=server,dir={self.path('keys')}",
             self.path("nbd.raw")], self.path("nbd.log"),
        ))  # fmt: skip
        wait_until(lambda: os.path.exists(socket), "the server")
        uri = f"nbds+unix://alice@/?socket={socket}&tls-psk-file={keys}"
        self.refuses(why="would be lost", target=uri)
        result = self.restore("--force", target=uri)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(self.content(self.path("nbd.raw")) == self.model)
        self.refuses("--force", why="", target="nbds://[::1")

    def test_an_export_that_is_too_small(self):
        self.refuses("--force", why="the disk needs", target=self.serve(MIB))


class TestDevices(RestoreCase):
    """A loop device, full of other things."""

    def setUp(self):
        super().setUp()
        self.back = self.path("device.img")
        with open(self.back, "wb") as f:
            f.write(b"x" * self.size)
        as_root = () if ROOT else ("sudo", "-n")
        self.device = run(*as_root, "losetup", "-f", "--show", self.back).stdout.strip()
        self.addCleanup(run, *as_root, "losetup", "-d", self.device)
        if as_root:
            run(*as_root, "chown", str(os.geteuid()), self.device)

    def test_a_device_is_written_and_zeroes_give_space_back(self):
        os.symlink(self.device, self.path("by-id"))
        self.refuses(why="exists already", target=self.device)
        result = self.restore("--force", target=self.path("by-id"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(self.content(self.device) == self.model)
        self.assertLess(os.stat(self.back).st_blocks * 512, 2 * MIB)

    def test_a_device_that_is_held_by_another_is_not_written(self):
        """A mounted file system holds its device as this does."""
        holder = os.open(self.device, os.O_RDWR | os.O_EXCL)
        try:
            self.refuses("--force", why="is in use (mounted", target=self.device)
        finally:
            os.close(holder)
        self.assertEqual(self.content(self.device), b"x" * self.size)


    def test_a_device_that_a_daemon_serves_is_not_written(self):
        daemon = self.daemon(
            "--blockdev", f"driver=host_device,node-name=device,filename={self.device}",
            "--nbd-server", f"addr.type=unix,addr.path={self.path('device.sock')}",
            "--export", "type=nbd,id=device,node-name=device,name=device,writable=on",
            name="other",
        )  # fmt: skip
        self.refuses("--force", why="lock", target=self.device)
        daemon.stop()
        self.assertEqual(self.content(self.device), b"x" * self.size)


class TestWordsForPrograms(RestoreCase):
    def test_results_as_json(self):
        done = json.loads(self.restore("--output=json").stdout)
        self.assertEqual(done["id"], self.manifest["id"])
        self.assertEqual(done["virtual-size"], self.size)
        verified = json.loads(run(*tool("verify"), "--output=json", self.repository).stdout)
        self.assertEqual([(v["id"], v["sound"]) for v in verified], [(self.manifest["id"], True)])

    def test_failures_as_json(self):
        self.put()
        error = json.loads(self.restore("--output=json").stdout)["error"]
        self.assertEqual(error["kind"], "failed")
        self.assertIn("exists already", error["message"])
        self.assertIn("--force", error["hint"])
        os.truncate(os.path.join(self.repository, self.manifest["id"], "checksums"), 10)
        error = json.loads(self.restore("--force", "--output=json").stdout)["error"]
        self.assertEqual(error["kind"], "damaged")
        result = run(*self.backup_words("--output=json", "--nbd", "nbd:unix:/nowhere"), check=False)
        self.assertIn("Failed to connect", json.loads(result.stdout)["error"]["message"])

    def test_progress_as_json(self):
        lines = self.restore("--progress=json").stderr.splitlines()
        last = json.loads(lines[-1])["progress"]
        self.assertEqual(last["what"], "restore")
        self.assertEqual(last["done-bytes"], last["total-bytes"])
