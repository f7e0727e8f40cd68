# SPDX-License-Identifier: Apache-2.0
"""A file system that stops answering, as a frozen one does: who goes on, and how it ends."""

import os
import time

import tidemark
from nbd_raw import FLUSH, READ, WRITE, RawClient

MIB = 1 << 20
AS_ROOT = () if os.geteuid() == 0 else ("sudo", "-n")
# Well below what it stays frozen for, well above what a busy machine needs.
PATIENCE = 10


class HungFile(tidemark.TestCase):
    """Disk `good`, and disk `sick` on a file system that can be frozen."""

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

    def test_other_disks_are_served(self):
        # On each of the reactors, some that are connected before and some after.
        good = [self.client("good") for _ in range(8)]
        sick = self.let_hang(1)
        good += [self.client("good") for _ in range(8)]
        for client in good:
            self.use(client)
        self.thaw()
        self.assert_complete(sick, 1)

    def test_many_requests_that_hang_leave_room_for_others(self):
        good = self.client("good")
        sick = self.let_hang(64)
        for client in sick:
            client.request(FLUSH)
        for _ in range(20):
            self.use(good)
        self.thaw()
        for client in sick:
            for _ in range(65):
                self.assertEqual(client.simple_reply(), (1, 0))

    def test_many_direct_writes_that_hang_leave_room_for_others(self):
        qmp = self.server.qmp
        qmp.command("block-export-del", id="sick")
        qmp.command("blockdev-del", **{"node-name": "sick"})
        node = {"driver": "raw", "node-name": "sick", "cache": {"direct": True},
                "file": {"driver": "file", "filename": self.sick}}  # fmt: skip
        qmp.command("blockdev-add", **node)
        export = {"id": "sick", "node-name": "sick", "name": "sick", "writable": True}
        qmp.command("block-export-add", type="nbd", **export)
        good = self.client("good")
        sick = self.let_hang(100, clients=8)
        for _ in range(20):
            self.use(good)
        self.thaw()
        self.assert_complete(sick, 100)

    def test_reads_of_the_disk_are_answered(self):
        # Freezing stops writers only.
        other = self.client("sick")
        self.let_hang(1)
        self.assertEqual(self.read(other, 0), b"s" * 4096)

    def test_a_connection_goes_on_receiving(self):
        (sick,) = self.let_hang(1, clients=1)
        self.assertEqual(self.read(sick, 0), b"s" * 4096)
        self.thaw()
        self.assert_complete([sick], 1)

    def test_commands_are_answered(self):
        self.let_hang(4)
        qmp = self.server.qmp
        qmp.command("query-block-exports")
        qmp.command("blockdev-add", driver="null-co", **{"node-name": "null", "size": MIB})
        node = {"driver": "file", "filename": self.sick, "node-name": "again", "read-only": True}
        qmp.command("blockdev-add", **node)
        qmp.command("blockdev-del", **{"node-name": "again"})

    def test_the_time_limit_of_copy_before_write_holds(self):
        qmp = self.server.qmp
        cbw = {"driver": "copy-before-write", "node-name": "cbw", "file": "good", "target": "sick",
               "on-cbw-error": "break-snapshot", "cbw-timeout": 1}  # fmt: skip
        good = self.client("good")
        for offset in range(0, 2 * MIB, 4096):
            self.write(good, offset, b"1")
        qmp.command("block-export-del", id="sick")
        qmp.transaction(
            ("blockdev-add", cbw), ("blockdev-replace", {"export": "good", "node-name": "cbw"})
        )
        self.write(good, 0, b"2")
        self.freeze()
        begin = time.monotonic()
        self.write(good, MIB, b"2")
        self.assertGreater(time.monotonic() - begin, 0.9)
        self.use(self.client("good"))

    def test_it_ends_when_told_to(self):
        self.client("sick")
        self.freeze()
        self.server.stop(timeout=PATIENCE)

    def test_it_ends_once_requests_that_hung_can(self):
        self.let_hang(8)
        self.thaw()
        self.server.stop(timeout=PATIENCE)
