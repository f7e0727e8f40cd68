# SPDX-License-Identifier: Apache-2.0
"""Backup jobs: what arrives in the target, what becomes of bitmaps, and guests meanwhile."""

import random
import shutil
import threading

import nbd_raw
import tidemark
from qmp import QmpError

MIB = 1 << 20
SIZE = 16 * MIB


class Guest:
    """A client of the writable export, which remembers what the disk has to be."""

    def __init__(self, path, name=b"disk"):
        self.client = nbd_raw.RawClient(path)
        self.client.go(name, structured=False)

    def close(self):
        self.client.sock.close()

    def write(self, offset, data):
        self.client.request(nbd_raw.WRITE, offset, len(data), payload=data)
        return self.client.simple_reply()[1]

    def zero(self, offset, length):
        self.client.request(nbd_raw.WRITE_ZEROES, offset, length)
        return self.client.simple_reply()[1]


class BackupTest(tidemark.TestCase):
    """A disk of 16 MiB (8 MiB of data, the rest a hole) behind a writable export."""

    in_memory = True
    fmt = "qcow2"

    def setUp(self):
        super().setUp()
        self.disk = self.create("disk.qcow2", SIZE)
        self.target = self.create("t.img", SIZE, self.fmt)
        self.random = random.Random(7)
        self.nbd = self.path("nbd.sock")
        tidemark.io(self.disk, *(f"write -P {n + 1} {n}M 1M" for n in range(8)), fmt="qcow2")
        self.server = self.start()
        self.qmp = self.server.qmp
        self.guest = Guest(self.nbd)
        self.addCleanup(self.guest.close)

    def start(self, *more):
        return self.daemon(
            "--blockdev",
            f"driver=qcow2,node-name=disk,file.driver=file,file.filename={self.disk}",
            "--blockdev",
            f"driver={self.fmt},node-name=t,file.driver=file,file.filename={self.target}",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
            "--export",
            "type=nbd,id=guest,node-name=disk,name=disk,writable=on",
            *more,
        )

    def keep(self, name="ref.raw"):
        """The contents of the disk now, in a file."""
        path = self.path(name)
        tidemark.img("convert", "-f", "raw", "-O", "raw", tidemark.nbd_uri(self.nbd, "disk"), path)
        return path

    def backup(self, job="j", sync="full", target="t", **more):
        self.qmp.command("blockdev-backup", job_id=job, device="disk", target=target, sync=sync, **more)

    def status(self, job="j"):
        return {j["id"]: j["status"] for j in self.qmp.command("query-jobs")}.get(job)

    def info(self, job="j"):
        return {j["device"]: j for j in self.qmp.command("query-block-jobs")}.get(job)

    def wait_status(self, status, job="j"):
        tidemark.wait_until(lambda: self.status(job) == status, f"job {job} to be {status}")

    def wait_end(self, job="j"):
        """The data of the event that ends the job, once it is gone."""
        self.wait_status(None, job)
        for name in "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED":
            for event in self.qmp.events:
                if event["event"] == name and event["data"]["device"] == job:
                    self.qmp.events.remove(event)
                    return name[10:], event["data"]
        self.fail(f"no event of the end of {job}: {self.qmp.events}")

    def finish(self, job="j"):
        name, data = self.wait_end(job)
        self.assertEqual(name, "COMPLETED")
        self.assertNotIn("error", data)
        self.assertEqual(data["offset"], data["len"])

    def write_around(self, count=300, length=SIZE):
        """Random writes of the guest; each is answered without an error."""
        for _ in range(count):
            size = self.random.choice((512, 4096, 70000))
            offset = self.random.randrange((length - size) // 512) * 512
            if self.random.random() < 0.2:
                self.assertEqual(self.guest.zero(offset, size), 0)
            else:
                self.assertEqual(self.guest.write(offset, self.random.randbytes(size)), 0)

    def assert_same(self, one, one_format, other, other_format):
        tidemark.qemu_img("compare", "-f", one_format, "-F", other_format, one, other)

    def assert_target(self, ref, target=None, fmt=None):
        self.server.quit()
        target, fmt = target or self.target, fmt or self.fmt
        if fmt == "qcow2":
            tidemark.qemu_img("check", "-f", fmt, target)
        self.assert_same(ref, "raw", target, fmt)

    def refused(self, wanted, **arguments):
        with self.assertRaises(QmpError) as caught:
            self.backup(**arguments)
        self.assertIn(wanted, caught.exception.desc)


class ContentsTest(BackupTest):
    def test_full_backup_has_the_moment_of_its_start(self):
        ref = self.keep()
        self.backup(speed=4 * MIB, filter_node_name="flt")
        exports = {e["id"]: e["node-name"] for e in self.qmp.command("query-block-exports")}
        self.assertEqual(exports, {"guest": "flt"})
        self.write_around()
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.write_around()
        self.finish()
        exports = {e["id"]: e["node-name"] for e in self.qmp.command("query-block-exports")}
        self.assertEqual(exports, {"guest": "disk"})
        self.assertIsNone(self.qmp.node("flt"))
        states = [e["data"]["status"] for e in self.qmp.events if e["event"] == "JOB_STATUS_CHANGE"]
        self.assertEqual(
            states, ["created", "running", "waiting", "pending", "concluded", "null"]
        )
        self.assert_target(ref)

    def test_guests_write_from_several_connections(self):
        ref = self.keep()
        guests = [Guest(self.nbd) for _ in range(4)]
        errors = []

        def write(guest, seed):
            rng = random.Random(seed)
            for _ in range(200):
                offset = rng.randrange(SIZE // 4096) * 4096
                errors.append(guest.write(offset, rng.randbytes(4096)))

        threads = [
            threading.Thread(target=write, args=(g, seed)) for seed, g in enumerate(guests)
        ]
        self.backup(speed=8 * MIB)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for guest in guests:
            guest.close()
        self.assertEqual(set(errors), {0})
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.finish()
        self.assert_target(ref)
