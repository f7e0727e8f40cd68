# SPDX-License-Identifier: Apache-2.0
"""Backups of images that are not in use: files, chains, block devices, exports of NBD servers."""

import json
import os
import time

from backup_case import MIB, BackupCase
from tidemark import Process, can_connect, img, nbd_uri, qemu, qemu_img, qemu_io, run, tool, wait_until

CLUSTER = 65536


class ImageCase(BackupCase):
    """The daemon runs only where a test starts it."""

    size = 8 * MIB + 512

    def start(self, *_, **__):
        pass

    def create_raw(self):
        self.image = self.path("disk.raw")
        with open(self.image, "wb") as f:
            f.truncate(self.size)

    def backup_words(self, *words):
        fmt = "raw" if self.image.endswith(".raw") else "qcow2"
        return [
            *tool("backup"), "--image", self.image, "--format", fmt, "--to", self.repository,
            *words,
        ]  # fmt: skip

    def write(self, offset, data):
        content = self.path("content")
        with open(content, "wb") as f:
            f.write(data)
        if self.image.endswith(".raw"):
            with open(self.image, "r+b") as f:
                os.pwrite(f.fileno(), data, offset)
        else:
            qemu_io(self.image, f"write -s {content} {offset} {len(data)}", fmt="qcow2")
        self.model[offset : offset + len(data)] = data

    def zero(self, offset, length, discard=False):
        qemu_io(self.image, f"{'discard' if discard else 'write -z'} {offset} {length}")
        self.model[offset : offset + length] = bytes(length)

    def bitmaps(self):
        info = json.loads(qemu_img("info", "--output=json", self.image).stdout)
        return info["format-specific"]["data"].get("bitmaps", [])

    def assert_in_order(self, manifest):
        """One bitmap, which belongs to the newest backup, and is consistent."""
        self.assertEqual(
            [(b["name"], b["flags"]) for b in self.bitmaps()], [(manifest["bitmap"], ["auto"])]
        )
        qemu_img("check", "-q", self.image)


class TestQcow2(ImageCase):
    def test_the_bitmap_in_the_image_records_for_the_next_backup(self):
        taken = []
        self.write_random(0, 3 * MIB)
        taken.append((self.backup(), bytes(self.model)))
        self.write_random(MIB + 512, 70000)
        self.write_random(self.size - 512, 512)
        taken.append((self.backup(), bytes(self.model)))
        self.zero(0, MIB, discard=True)
        taken.append((self.backup(), bytes(self.model)))
        self.assertEqual(
            [(m["kind"], m["changed-bytes"]) for m, _ in taken],
            [("full", 3 * MIB), ("incremental", 2 * CLUSTER + 512 + CLUSTER - 512),
             ("incremental", MIB)],
        )  # fmt: skip
        for manifest, model in taken:
            self.assert_restores(manifest, model)
        self.assert_in_order(taken[-1][0])
        self.assert_sound()

    def test_in_a_daemon_and_offline_by_turns(self):
        self.write_random(0, MIB)
        self.backup()
        for turn in range(2):
            BackupCase.start(self)
            BackupCase.write(self, (2 + turn) * MIB, self.random.randbytes(CLUSTER))
            online = BackupCase.backup_words(self, "--output=json")
            manifest = json.loads(run(*online).stdout)
            self.assertEqual((manifest["reason"], manifest["changed-bytes"]), (None, CLUSTER))
            self.assert_restores(manifest, self.model)
            BackupCase.write(self, 0, self.random.randbytes(2 * CLUSTER))
            self.server.quit()
            manifest = self.backup()
            self.assertEqual((manifest["reason"], manifest["changed-bytes"]), (None, 2 * CLUSTER))
            self.assert_restores(manifest, self.model)
        self.assert_in_order(manifest)

    def test_after_a_run_in_a_daemon_was_killed(self):
        """It has frozen the bitmap of the last backup, and another one has recorded since."""
        self.write_random(0, MIB)
        self.backup()
        BackupCase.start(self)
        BackupCase.write(self, 2 * MIB, self.random.randbytes(CLUSTER))
        self.backup_words = lambda *words: BackupCase.backup_words(self, *words)
        self.hold_backup().kill()
        del self.backup_words
        BackupCase.write(self, 4 * MIB, self.random.randbytes(CLUSTER))
        self.server.quit()
        self.assertEqual(len(self.bitmaps()), 2)
        manifest = self.backup()
        self.assertEqual((manifest["reason"], manifest["changed-bytes"]), (None, 2 * CLUSTER))
        self.assert_restores(manifest, self.model)
        self.assert_in_order(manifest)

    def test_a_chain_of_images(self):
        self.write_random(0, 4 * MIB)
        base, self.image = self.image, self.path("overlay.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", self.image)
        self.write_random(MIB, MIB)
        self.zero(3 * MIB, MIB)
        self.assert_restores(self.backup(), self.model)
        self.write_random(2 * MIB, CLUSTER)
        manifest = self.backup()
        self.assertEqual((manifest["reason"], manifest["changed-bytes"]), (None, CLUSTER))
        self.assert_restores(manifest, self.model)
        # The bitmap stays in the image below a new overlay: then checksums are compared.
        below, self.image = self.image, self.path("top.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", self.image)
        self.write_random(0, CLUSTER)
        manifest = self.backup("--same-disk")
        self.assertIn("is not on", manifest["reason"])
        self.assertEqual(manifest["changed-bytes"], CLUSTER)
        self.assert_restores(manifest, self.model)
        self.assert_sound()

    def test_an_image_that_can_not_be_written(self):
        self.write_random(0, MIB)
        self.backup()
        words = " ".join(self.backup_words("--output=json"))
        self.write_random(MIB, CLUSTER)
        how = "-m" if os.geteuid() == 0 else "-rm"
        out = run(
            "unshare", how, "sh", "-ec",
            f"mount --bind {self.image} {self.image}; mount -o remount,ro,bind {self.image}; {words}",
        ).stdout  # fmt: skip
        manifest = json.loads(out)
        self.assertEqual((manifest["bitmap"], manifest["changed-bytes"]), ("", CLUSTER))
        self.assert_restores(manifest, self.model)
        manifest = self.backup()
        self.assertIn("no bitmap has recorded", manifest["reason"])
        self.assertEqual(manifest["changed-bytes"], 0)

    def test_killed_at_any_time(self):
        self.write_random(0, 4 * MIB)
        manifest = self.backup()
        for milliseconds in (5, 10, 15, 20, 25, 30, 40, 60, 80):
            self.write_random(self.random.randrange(4 * MIB), 2 * MIB)
            process = self.start_backup()
            time.sleep(milliseconds / 1000)
            process.kill()
            # The kernel may hold the lock for a moment. Clusters may be lost, nothing else.
            wait_until(
                lambda: qemu_img("check", "-q", self.image, check=False).returncode in (0, 3),
                "a sound image",
            )
        qemu_img("check", "-q", "-r", "leaks", self.image)
        self.write_random(0, 1000)
        manifest = self.backup()
        self.assertIsNone(manifest["reason"])
        self.assert_restores(manifest, self.model)
        self.assert_in_order(manifest)
        self.assert_sound()
        self.assert_clean_directory()

    def test_a_failed_backup_leaves_the_bitmap_as_it_was(self):
        self.write_random(0, MIB)
        first = self.backup()
        self.write_random(MIB, CLUSTER)
        words = " ".join(self.backup_words())
        how = "-m" if os.geteuid() == 0 else "-rm"
        result = run(
            "unshare", how, "sh", "-ec",
            f"mount -t tmpfs -o size=64k tmpfs {self.repository}; {words}", check=False,
        )  # fmt: skip
        self.assertEqual(result.returncode, 1)
        self.assertIn("No space left", result.stderr)
        self.backup_fails_at_once("--at", why="unrecognized option")
        self.assertEqual([b["name"] for b in self.bitmaps()], [first["bitmap"]])

    def backup_fails_at_once(self, *words, why):
        result = run(*self.backup_words(*words), check=False)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(why, result.stderr)


class TestInUse(ImageCase):
    def refused(self, why):
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(why, result.stderr)
        self.assertIn("back it up there, by --qmp", result.stderr)

    def test_by_a_daemon(self):
        BackupCase.start(self)
        self.refused(f"Could not open '{self.image}': ")

    def test_by_qemu(self):
        self.create_raw()
        log = self.path("qsd.log")
        qsd = self.own(
            Process(
                [
                    qemu("qemu-storage-daemon"), "--blockdev",
                    f"driver=file,node-name=f,filename={self.image}",
                    "--nbd-server", f"addr.type=unix,addr.path={self.path('qsd.sock')}",
                    "--export", "type=nbd,id=e,node-name=f,writable=on",
                ],
                log,
            )
        )  # fmt: skip
        qsd.wait_for(lambda: can_connect(self.path("qsd.sock")), "the NBD server")
        self.refused("lock")


class TestUntracked(ImageCase):
    """Where nothing records, contents are compared with checksums."""

    def test_a_raw_file(self):
        self.create_raw()
        self.write_random(0, 4 * MIB)
        self.assert_restores(self.backup(), self.model)
        self.write_random(MIB, 3 * CLUSTER)
        self.write_random(self.size - 512, 512)
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assertEqual(manifest["changed-bytes"], 4 * CLUSTER)
        self.assert_restores(manifest, self.model)
        self.assert_sound()

    def test_a_raw_file_whose_guest_makes_it_look_like_an_image(self):
        """Its format is never guessed."""
        secret = self.path("secret")
        with open(secret, "wb") as f:
            f.write(b"secret" * 100000)
        qemu_img("create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", self.path("evil"))
        self.create_raw()
        with open(self.path("evil"), "rb") as f:
            self.write(0, f.read())
        without = [*tool("backup"), "--image", self.image, "--to", self.repository]
        result = run(*without, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Name it with --format", result.stderr)
        self.assert_restores(self.backup(), self.model)

    def test_an_export_of_an_nbd_server(self):
        self.create_raw()
        self.write_random(0, 4 * MIB)
        socket = self.path("other.sock")
        server = [qemu("qemu-nbd"), "-t", "-r", "-f", "raw", "-k", socket, self.image]
        uri = nbd_uri(socket)
        manifests = []
        for _ in range(2):
            process = self.own(Process(server, self.path("qemu-nbd.log")))
            process.wait_for(lambda: can_connect(socket), "the server")
            words = [*tool("backup"), "--image", uri, "--to", self.repository, "--output=json"]
            manifests.append((json.loads(run(*words).stdout), bytes(self.model)))
            process.stop()
            self.write_random(MIB, CLUSTER)
        self.assertEqual(manifests[0][0]["changed-bytes"], 4 * MIB)
        self.assertEqual(manifests[1][0]["changed-bytes"], CLUSTER)
        for manifest, model in manifests:
            self.assert_restores(manifest, model)

    def test_a_block_device(self):
        self.create_raw()
        self.size = self.size // 4096 * 4096
        self.model = self.model[: self.size]
        os.truncate(self.image, self.size)
        self.write_random(0, 2 * MIB)
        as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        device = run(*as_root, "losetup", "-f", "--show", self.image).stdout.strip()
        self.addCleanup(run, *as_root, "losetup", "-d", device)
        run(*as_root, "chmod", "o+r", device)
        words = [*tool("backup"), "--image", device, "--to", self.repository, "--output=json"]
        self.assert_restores(json.loads(run(*words).stdout), self.model)
        self.write_random(MIB, CLUSTER)
        run(*as_root, "blockdev", "--flushbufs", device)
        manifest = json.loads(run(*words).stdout)
        self.assertEqual(manifest["changed-bytes"], CLUSTER)
        self.assert_restores(manifest, self.model)


class TestWords(ImageCase):
    def test_a_domain_of_libvirt_needs_both_names(self):
        for words, why in (
            (["--libvirt", "qemu:///system"], "go together"),
            (["--domain", "a"], "go together"),
            (["--freeze", "--qmp", "x", "--node", "a"], "go together"),
            (["--libvirt", "qemu:///system", "--domain", "a", "--qmp", "x"], "--libvirt excludes"),
        ):
            result = run(*tool("backup"), "--to", self.repository, *words, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(why, result.stderr)

    def test_options_that_do_not_go_together(self):
        for words, why in (
            (["--node", "disk"], "--image excludes"),
            (["--leftovers"], "--image excludes"),
            (["--fleece-dir", "/tmp"], "--image excludes"),
        ):
            result = run(*self.backup_words(*words), check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(why, result.stderr)

    def test_an_image_that_is_not_there(self):
        self.image = self.path("none.qcow2")
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("No such file", result.stderr)
