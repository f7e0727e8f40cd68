# SPDX-License-Identifier: Apache-2.0
"""A disk on a file system that can be frozen, for tests of what hangs."""

import os
import time

import tidemark
from nbd_raw import FLUSH, READ, WRITE, RawClient

MIB = 1 << 20
AS_ROOT = () if os.geteuid() == 0 else ("sudo", "-n")
# Well below what it stays frozen for, well above what a busy machine needs.
PATIENCE = 10


class HungFileCase(tidemark.TestCase):
    """Disk `good`, and disk `sick` on a file system that can be frozen."""

    # For the daemon.
    options = ()

    def setUp(self):
        super().setUp()
        self.mount = self.path("mnt")
        os.mkdir(self.mount)
        disk = self.path("fs.img")
        with open(disk, "wb") as f:
            f.truncate(96 * MIB)
        tidemark.run("/sbin/mkfs.ext4", "-q", disk)
        self.as_root("mount", "-o", "loop", disk, self.mount)
        self.addCleanup(self.unmount)
        self.as_root("chmod", "777", self.mount)
        self.sick = os.path.join(self.mount, "sick.raw")
        self.good = self.create("good.raw", "16M", "raw")
        tidemark.img("create", "-q", "-f", "raw", self.sick, "16M")
        self.is_frozen = False
        self.nbd = self.path("nbd.sock")
        self.server = self.daemon(
            *self.options,
            *self.disk("good", self.good),
            *self.disk("sick", self.sick),
            "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
            *self.export("good"), *self.export("sick"),
        )  # fmt: skip

    def as_root(self, *command):
        tidemark.run(*AS_ROOT, *command)

    def freeze(self):
        os.sync()
        self.as_root("fsfreeze", "-f", self.mount)
        self.is_frozen = True

    def thaw(self):
        if self.is_frozen:
            self.as_root("fsfreeze", "-u", self.mount)
            self.is_frozen = False

    def unmount(self):
        self.thaw()
        self.end_processes()
        tidemark.wait_until(
            lambda: tidemark.run(*AS_ROOT, "umount", self.mount, check=False).returncode == 0,
            "the file system to be unused",
        )

    @staticmethod
    def disk(name, path):
        return "--blockdev", f"driver=raw,node-name={name},file.driver=file,file.filename={path}"

    @staticmethod
    def export(name):
        return "--export", f"type=nbd,id={name},node-name={name},name={name},writable=on"

    def client(self, name):
        client = RawClient(self.nbd, timeout=PATIENCE)
        self.addCleanup(client.sock.close)
        client.go(name.encode(), structured=False)
        return client

    def write(self, client, offset, byte):
        client.request(WRITE, offset, 4096, payload=byte * 4096)
        self.assertEqual(client.simple_reply(), (1, 0))

    def read(self, client, offset):
        client.request(READ, offset, 4096)
        self.assertEqual(client.simple_reply(), (1, 0))
        return client.receive(4096)

    def use(self, client):
        self.write(client, 0, b"g")
        self.assertEqual(self.read(client, 0), b"g" * 4096)
        client.request(FLUSH)
        self.assertEqual(client.simple_reply(), (1, 0))

    def let_hang(self, count, clients=4):
        """Connections to the sick disk, each with `count` writes that hang."""
        sick = [self.client("sick") for _ in range(clients)]
        for client in sick:
            self.write(client, 0, b"s")
        self.freeze()
        for client in sick:
            for n in range(count):
                client.request(WRITE, (1 + n) * 4096, 4096, payload=b"h" * 4096)
        time.sleep(0.2)
        return sick

    def assert_complete(self, sick, count):
        """Now that it answers again, all that hung is done."""
        for client in sick:
            for _ in range(count):
                self.assertEqual(client.simple_reply(), (1, 0))
        for n in range(count):
            self.assertEqual(self.read(sick[0], (1 + n) * 4096), b"h" * 4096)
