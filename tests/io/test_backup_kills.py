# SPDX-License-Identifier: Apache-2.0
"""Programs that are killed at random moments, for every kind of source. No backup may be wrong.

TIDEMARK_KILL_ROUNDS=200 in the environment makes it a long test.
"""

import json
import os
import subprocess
import time

import test_backup_libvirt
from backup_case import MIB, BackupCase
from qemu_machine import MachineCase
from tidemark import can_connect, nbd_uri, qemu, qemu_img, run, tool, wait_until

CLUSTER = 65536
ROUNDS = int(os.environ.get("TIDEMARK_KILL_ROUNDS", "20"))


class KillCase(BackupCase):
    """Each round changes the disk, and kills the backup, the daemon or nobody."""

    size = 8 * MIB
    daemon_may_die = True

    def change(self):
        for _ in range(self.random.randrange(1, 4)):
            length = self.random.randrange(512, MIB)
            self.write_random(self.random.randrange(0, self.size - length), length)

    def kill_daemon(self):
        self.server.kill()
        wait_until(lambda: not can_connect(self.server.qmp_path), "the end of the daemon")
        wait_until(
            lambda: qemu_img("check", "-q", "-r", "leaks", self.image, check=False).returncode == 0,
            "an image that is sound",
        )
        self.start()

    def play_round(self):
        guard = [] if self.random.random() < 0.5 else ["--no-guard"]
        process = subprocess.Popen(
            self.backup_words(*guard), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(self.random.random() * 0.12)
        if self.daemon_may_die and self.random.random() < 0.2:
            self.kill_daemon()
        else:
            process.kill()
        process.wait(60)

    def assert_points(self):
        for entry in self.list_backups()["backups"]:
            run(*tool("verify"), self.repository, "--at", entry["id"])

    def run_rounds(self):
        self.write_random(0, 3 * MIB)
        proved = [(self.backup(), bytes(self.model))]
        for i in range(ROUNDS):
            self.change()
            self.play_round()
            if i % 10 == 4:
                proved.append((self.backup(), bytes(self.model)))
                self.assert_restores(*proved[-1])
        proved.append((self.backup(), bytes(self.model)))
        for manifest, model in proved:
            self.assert_restores(manifest, model)
        self.assert_sound()
        self.assert_clean_directory()
        self.assert_left_nothing()

    def assert_left_nothing(self):
        wait_until(
            lambda: not [n for n in os.listdir(self.dir) if n.startswith(".tidemark")],
            "the end of all guards",
        )
        self.assert_settled()


class TestDaemon(KillCase):
    def test_random_moments(self):
        self.run_rounds()


class TestQemu(KillCase):
    def start(self, *_, **__):
        self.monitor = self.path("backup.qmp")
        if os.path.exists(self.monitor):
            os.unlink(self.monitor)
        super().start(
            program=[
                qemu("qemu-storage-daemon"),
                "--chardev", f"socket,id=backup,path={self.monitor},server=on,wait=off",
                "--monitor", "chardev=backup",
            ]
        )  # fmt: skip
        wait_until(lambda: os.path.exists(self.monitor), "the second monitor")

    def backup_words(self, *words):
        return [
            *tool("backup"), "--qmp", self.monitor, "--node", "disk", "--to", self.repository,
            "--nbd", nbd_uri(self.socket), *words,
        ]  # fmt: skip

    def test_random_moments(self):
        self.run_rounds()


class TestImage(KillCase):
    daemon_may_die = False

    def start(self, *_, **__):
        pass

    def write(self, offset, data):
        content = self.path("content")
        with open(content, "wb") as f:
            f.write(data)

        def done():
            words = [*tool("io"), "-f", "qcow2", "-c", f"write -s {content} {offset} {len(data)}"]
            return run(*words, self.image, check=False).returncode == 0

        wait_until(done, "the lock of a program that was killed")
        self.model[offset : offset + len(data)] = data

    def backup_words(self, *words):
        return [
            *tool("backup"), "--image", self.image, "--format", "qcow2", "--to", self.repository,
            *words,
        ]  # fmt: skip

    def assert_left_nothing(self):
        info = json.loads(qemu_img("info", "--output=json", self.image).stdout)
        self.assertEqual(len(info["format-specific"]["data"]["bitmaps"]), 1)
        qemu_img("check", "-q", "-r", "leaks", self.image)

    def test_random_moments(self):
        self.run_rounds()


class TestNbd(KillCase):
    """An export of a server that knows nothing of backups: compared by checksums."""

    def backup_words(self, *words):
        return [
            *tool("backup"), "--image", nbd_uri(self.socket, "disk"), "--to", self.repository,
            *words,
        ]  # fmt: skip

    def play_round(self):
        process = subprocess.Popen(
            self.backup_words(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(self.random.random() * 0.12)
        if self.random.random() < 0.2:
            self.kill_daemon()
        else:
            process.kill()
        process.wait(60)

    def assert_left_nothing(self):
        self.assertEqual(self.own_exports(), [])
        self.assertEqual(self.own_bitmaps(), {})

    def test_random_moments(self):
        self.run_rounds()


class TestMachine(MachineCase, KillCase):
    """QEMU's system emulator, whose guest must not wait: filters in front of its disk."""

    size = 8 * MIB

    def change(self):
        for _ in range(self.random.randrange(1, 4)):
            length = self.random.randrange(1, MIB // 512) * 512
            self.fill(self.random.randrange(0, (self.size - length) // 512) * 512, length)

        self.guest("flush")

    def write_random(self, offset, length):
        self.fill(offset, length)
        self.guest("flush")

    def kill_daemon(self):
        self.server.kill()
        wait_until(
            lambda: qemu_img("check", "-q", "-r", "leaks", self.image, check=False).returncode == 0,
            "an image that is sound",
        )
        for path in (self.server.qmp_path, self.server.backup_path):
            os.unlink(path)
        self.start()

    def test_random_moments(self):
        self.run_rounds()


class TestLibvirt(test_backup_libvirt.LibvirtCase):
    def change(self):
        for disk in self.disks:
            length = self.random.randrange(512, MIB)
            self.write_to(disk, self.random.randrange(0, self.size - length), length)

    def play_round(self):
        guard = [] if self.random.random() < 0.5 else ["--no-guard"]
        process = subprocess.Popen(
            self.backup_words(*guard), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(self.random.random() * 0.3)
        process.kill()
        process.wait(60)
        # The server that writes go through is the one of a backup that is under way.
        wait_until(
            lambda: run(*self.backup_words("--abort"), check=False).returncode == 0
            and not self.libvirt.job,
            "the end of the job",
        )

    def test_random_moments(self):
        self.change()
        proved = [(self.backup(), {d: bytes(m) for d, m in self.models.items()})]
        for i in range(ROUNDS):
            self.change()
            self.play_round()
            if i % 10 == 4:
                proved.append((self.backup(), {d: bytes(m) for d, m in self.models.items()}))
                self.assert_set_restores(*proved[-1])
        proved.append((self.backup(), {d: bytes(m) for d, m in self.models.items()}))
        for one, models in proved:
            self.assert_set_restores(one, models)
        wait_until(
            lambda: not [n for n in os.listdir(self.dir) if n.startswith(".tidemark")],
            "the end of all guards",
        )
        self.assert_settled()
