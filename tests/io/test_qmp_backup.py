# SPDX-License-Identifier: Apache-2.0
"""Backup jobs: what arrives in the target, what becomes of bitmaps, and guests meanwhile."""

import json
import os
import random
import shutil
import struct
import threading
import time

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
        self.qmp.command(
            "blockdev-backup", job_id=job, device="disk", target=target, sync=sync, **more
        )

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
            states,
            ["created", "running", "paused", "running"]  # its disk is drained as it begins
            + ["waiting", "pending", "concluded", "null"],
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
        self.backup(speed=2 * MIB)
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

    def test_old_contents_of_the_target_do_not_stay(self):
        """Areas that the disk does not have are written as zeroes."""
        old = self.create("old.qcow2", SIZE)
        tidemark.io(old, f"write -P 0xee 0 {SIZE}", fmt="qcow2")
        self.qmp.command("blockdev-add", driver="qcow2", node_name="old",
                         file={"driver": "file", "filename": old})  # fmt: skip
        self.qmp.command("blockdev-add", driver="file", node_name="raw", filename=self.raw(0xEE))
        ref = self.keep()
        for target in "old", "raw":
            self.backup(target=target)
            self.finish()
        self.assert_target(ref, old)
        self.assert_same(ref, "raw", self.path("raw.img"), "raw")

    def raw(self, fill=None, size=SIZE, name="raw.img"):
        path = self.path(name)
        with open(path, "wb") as file:
            if fill is None:
                file.truncate(size)
            else:
                file.write(bytes([fill]) * size)
        return path

    def test_a_target_that_is_zero_is_not_filled(self):
        path = self.raw()
        before = os.stat(path).st_blocks
        self.qmp.command("blockdev-add", driver="file", node_name="raw", filename=path)
        ref = self.keep()
        for target in "t", "raw":
            self.backup(target=target)
            self.finish()
        self.assert_target(ref)
        self.assert_same(ref, "raw", path, "raw")
        self.assertLessEqual(os.stat(path).st_blocks - before, 8 * MIB // 512 + 64)
        extents = json.loads(tidemark.qemu_img("map", "--output=json", self.target).stdout)
        self.assertEqual(sum(e["length"] for e in extents if e["data"]), 8 * MIB)
        self.assertTrue(all(not e.get("present", True) for e in extents if not e["data"]))

    def test_zeroes_hide_a_backing_file_that_is_not_open(self):
        """The target records the last backup as its backing file, but is opened without it."""
        full = self.path("full.qcow2")
        tidemark.img("convert", "-O", "qcow2", tidemark.nbd_uri(self.nbd, "disk"), full)
        for job in ("blockdev-backup", "blockdev-mirror"):
            with self.subTest(job):
                path = self.create(job, SIZE, options=("-b", full, "-F", "qcow2"))
                self.guest.zero(2 * MIB, MIB)
                ref = self.keep()
                file = {"driver": "file", "filename": path}
                self.qmp.execute(
                    "blockdev-add",
                    {"driver": "qcow2", "node-name": "over", "file": file, "backing": None},
                )
                self.qmp.command(
                    job, job_id="j", device="disk", target="over", sync="full", auto_dismiss=False
                )
                if job == "blockdev-mirror":
                    self.wait_status("ready")
                    self.qmp.command("block-job-cancel", device="j")
                self.wait_status("concluded")
                self.qmp.command("job-dismiss", id="j")
                self.qmp.command("blockdev-del", node_name="over")
                self.assert_same(path, "qcow2", ref, "raw")

    def test_zeroes_hide_a_backing_file_that_comes_later(self):
        """A part of the disk goes to an image that gets the backup before it as backing file."""
        full = self.keep("full.raw")
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b")
        self.guest.zero(MIB, 2 * MIB)
        self.guest.write(4 * MIB, bytes(65536))
        self.guest.zero(10 * MIB, MIB)
        ref = self.keep()
        for sync, more in (
            ("bitmap", {"bitmap": "b", "bitmap_mode": "never"}),
            ("top", {}),
            ("incremental", {"bitmap": "b"}),
        ):
            with self.subTest(sync):
                path = self.create(sync, SIZE)
                file = {"driver": "file", "filename": path}
                self.qmp.command("blockdev-add", driver="qcow2", node_name=sync, file=file)
                self.backup(sync=sync, target=sync, **more)
                self.finish()
                self.qmp.command("blockdev-del", node_name=sync)
                tidemark.img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", full, path)
                self.assert_same(path, "qcow2", ref, "raw")

    def test_ends_that_are_not_whole_clusters(self):
        size = 5 * MIB + 1536
        disk = self.create("odd.qcow2", size)
        tidemark.io(disk, "write -P 5 0 100k", f"write -P 6 {size - 1024} 1024", fmt="qcow2")
        raw = self.raw(0xEE, size)
        for node, path, fmt in ("odd", disk, "qcow2"), ("oddt", raw, "raw"):
            self.qmp.command(
                "blockdev-add",
                driver=fmt,
                node_name=node,
                file={"driver": "file", "filename": path},
            )
        self.qmp.command("block-export-add", type="nbd", id="o", node_name="odd", writable=True)
        ref = self.path("odd.ref")
        shutil.copy(disk, ref)
        guest = Guest(self.nbd, b"odd")
        self.qmp.command(
            "blockdev-backup", job_id="o", device="odd", target="oddt", sync="full", speed=65536
        )
        for offset in size - 512, size - 1536, 5 * MIB, 70000 // 512 * 512:
            self.assertEqual(guest.write(offset, b"g" * 512), 0)
        self.qmp.command("block-job-set-speed", device="o", speed=0)
        self.finish("o")
        guest.close()
        self.server.quit()
        self.assert_same(ref, "qcow2", raw, "raw")

    def test_top_goes_onto_larger_clusters_of_an_overlay(self):
        self.server.quit()
        top = self.path("top.qcow2")
        tidemark.img("create", "-q", "-f", "qcow2", "-b", self.disk, "-F", "qcow2", top)
        self.target = self.path("top.t")
        tidemark.img("create", "-q", "-f", "qcow2", "-o", "cluster_size=1M",
                     "-b", self.disk, "-F", "qcow2", self.target)  # fmt: skip
        tidemark.io(top, "write -P 9 1M 64k", "write -z 3M 4k", "write -P 7 10M 70000", fmt="qcow2")
        base, self.disk = self.disk, top
        self.server = self.start()
        self.qmp = self.server.qmp
        guest = Guest(self.nbd)
        ref = self.keep()
        self.backup(sync="top", speed=MIB)
        for offset in 0, MIB + 8192, 10 * MIB, 12 * MIB:
            self.assertEqual(guest.write(offset, b"g" * 4096), 0)
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.finish()
        guest.close()
        self.assert_target(ref)
        extents = json.loads(tidemark.qemu_img("map", "--output=json", self.target).stdout)
        own = sum(e["length"] for e in extents if e["depth"] == 0)
        self.assertEqual(own, 3 * MIB, extents)
        self.assertTrue(os.path.exists(base))

    def test_targets_may_be_remote(self):
        path = self.raw(0xEE)
        other = self.daemon(
            "--blockdev", f"driver=file,node-name=r,filename={path}",
            "--nbd-server", f"addr.type=unix,addr.path={self.path('r.sock')}",
            "--export", "type=nbd,id=r,node-name=r,writable=on",
            name="remote",
        )  # fmt: skip
        self.qmp.command(
            "blockdev-add",
            driver="nbd",
            node_name="remote",
            server={"type": "unix", "path": self.path("r.sock")},
            export="r",
        )
        ref = self.keep()
        self.backup(target="remote", speed=8 * MIB)
        self.write_around(100)
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.finish()
        self.server.quit()
        other.quit()
        self.assert_same(ref, "raw", path, "raw")

    def test_compressed(self):
        ref = self.keep()
        self.backup(compress=True, speed=MIB)
        self.write_around(100)
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.finish()
        self.assert_target(ref)
        check = json.loads(tidemark.qemu_img("check", "--output=json", self.target).stdout)
        self.assertEqual(check["compressed-clusters"], 8 * MIB // 65536)
        self.assertLess(os.stat(self.target).st_size, 2 * MIB)

    def performance(self, guest_writes, **perf):
        """A backup of a raw disk without holes; the operations on both nodes."""
        source, copy = self.raw(0x11, name="s.raw"), self.raw(name="c.raw")
        for node, path in ("s", source), ("c", copy):
            self.qmp.command("blockdev-add", driver="file", node_name=node, filename=path)
        ref = self.path("ref.raw")
        shutil.copy(source, ref)
        self.qmp.command("block-export-add", type="nbd", id="s", node_name="s", name="s",
                         writable=True)  # fmt: skip
        self.qmp.command(
            "blockdev-backup", job_id="j", device="s", target="c", sync="full", speed=MIB,
            x_perf={name.replace("_", "-"): value for name, value in perf.items()},
        )  # fmt: skip
        guest = Guest(self.nbd, b"s")
        for offset in guest_writes:
            self.assertEqual(guest.write(offset, b"g" * 512), 0)
        guest.close()
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.finish()
        stats = self.qmp.command("query-blockstats", query_nodes=True)
        self.assert_same(ref, "raw", copy, "raw")
        return {s["node-name"]: s["stats"] for s in stats if s["node-name"] in ("s", "c")}

    def test_copies_by_the_system(self):
        stats = self.performance([5 * MIB], use_copy_range=True)
        self.assertEqual(stats["s"]["rd_operations"], 0)

    def test_the_longest_piece(self):
        stats = self.performance([5 * MIB], max_workers=1, max_chunk=65536)
        # A guest's write leaves its part of a piece in memory, and the job writes the whole.
        self.assertEqual(stats["c"]["wr_operations"], SIZE // 65536)
        self.assertEqual(stats["c"]["wr_bytes"], SIZE)

    def test_the_smallest_cluster(self):
        """A guest's write copies one as a whole."""
        stats = self.performance([5 * MIB], min_cluster_size=8 * MIB)
        self.assertLess(stats["c"]["wr_operations"], SIZE // 65536)
        self.assertEqual(stats["c"]["wr_bytes"], SIZE)

    def test_the_source_is_discarded_as_it_is_copied(self):
        self.qmp.command("block-export-del", id="guest", mode="hard")
        self.guest.close()
        self.qmp.wait_event("BLOCK_EXPORT_DELETED")
        ref = self.path("ref.qcow2")
        shutil.copy(self.disk, ref)
        path = self.create("d.qcow2", SIZE)
        self.qmp.command("blockdev-add", driver="qcow2", node_name="d", discard="unmap",
                         file={"driver": "file", "filename": path})  # fmt: skip
        self.backup(target="d")
        self.finish()
        self.qmp.command("blockdev-backup", job_id="j", device="d", target="t", sync="full",
                         discard_source=True)  # fmt: skip
        self.finish()
        self.server.quit()
        self.assert_same(ref, "qcow2", self.target, "qcow2")
        extents = json.loads(tidemark.qemu_img("map", "--output=json", path).stdout)
        self.assertEqual([e for e in extents if e["data"]], [])

    def test_a_source_that_is_discarded_is_given_back_to_its_user(self):
        """An image that lets nobody else write to its file."""
        path, target = self.create("d.qcow2", MIB), self.path("target.raw")
        size = -(-os.path.getsize(path) // 512) * 512
        self.create(target, size, "raw")
        for name, filename in ("f", path), ("o", target):
            self.qmp.command("blockdev-add", driver="file", node_name=name, filename=filename,
                             discard="unmap")  # fmt: skip
        self.qmp.command("blockdev-add", driver="qcow2", node_name="d", file="f")
        self.qmp.command("blockdev-backup", job_id="j", device="f", target="o", sync="full",
                         discard_source=True)  # fmt: skip
        self.finish()
        self.assertNotIn("can't be taken back", self.server.log())

    def test_several_jobs_of_one_disk(self):
        """Each has its own moment, and ends when it likes."""
        path = self.raw()
        self.qmp.command("blockdev-add", driver="file", node_name="raw", filename=path)
        first = self.keep()
        self.backup("a", speed=2 * MIB)
        self.write_around(50)
        second = self.keep("second.raw")
        self.backup("b", target="raw", speed=2 * MIB)
        self.write_around(50)
        self.qmp.command("block-job-set-speed", device="a", speed=0)
        self.finish("a")
        self.write_around(50)
        self.qmp.command("block-job-set-speed", device="b", speed=0)
        self.finish("b")
        self.assert_target(first)
        self.assert_same(second, "raw", path, "raw")

    def test_a_pending_job_still_has_its_moment(self):
        ref = self.keep()
        self.backup(auto_finalize=False)
        self.wait_status("pending")
        self.write_around(50)
        self.qmp.command("job-finalize", id="j")
        self.finish()
        self.assert_target(ref)

    def test_guests_and_commands_do_not_wait_for_a_job(self):
        self.backup(speed=65536)
        begin = time.monotonic()
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="new")
        self.write_around(20)
        self.assertLess(time.monotonic() - begin, 2)
        self.qmp.command("job-cancel", id="j")
        self.assertEqual(self.wait_end()[0], "CANCELLED")
        self.assertLess(time.monotonic() - begin, 4)

    def test_a_pause_does_not_wait_for_what_is_in_memory(self):
        """The target takes 5 requests a second, and a guest leaves 44 MiB in memory."""
        size, step, count = 176 * MIB, 256 * 1024, 704
        disk, slow = self.create("large.raw", size, "raw"), self.create("slow.raw", size, "raw")
        self.qmp.command("blockdev-add", driver="file", node_name="large", filename=disk)
        self.qmp.command("object-add", qom_type="throttle-group", id="g", x_iops_write=5)
        self.qmp.command(
            "blockdev-add", driver="throttle", node_name="slow", throttle_group="g",
            file={"driver": "file", "filename": slow},
        )  # fmt: skip
        self.qmp.command(
            "block-export-add", type="nbd", id="large", node_name="large", writable=True
        )
        guest = Guest(self.nbd, b"large")
        self.addCleanup(guest.close)
        for content in b"o", b"n":
            for n in range(count):
                self.assertEqual(guest.write(n * step, content * 65536), 0)
            if content == b"o":
                self.qmp.command(
                    "blockdev-backup", job_id="j", device="large", target="slow", sync="full",
                    speed=65536,
                )  # fmt: skip
        # All that is more than half of 64 MiB takes longer than the wait for the status.
        time.sleep(2)
        self.qmp.command("job-pause", id="j")
        self.wait_status("paused")
        self.qmp.command("job-cancel", id="j")
        self.assertEqual(self.wait_end()[0], "CANCELLED")


class DriveBackupTest(BackupTest):
    def drive(self, name, **more):
        path = self.path(name)
        self.qmp.command("drive-backup", job_id="j", device="disk", target=path, **more)
        return path

    def info_of(self, path):
        return json.loads(tidemark.qemu_img("info", "-U", "--output=json", path).stdout)

    def test_a_new_file(self):
        ref = self.keep()
        paths = []
        for name, fmt, more in (
            ("a.qcow2", "qcow2", {}),
            ("b.raw", "raw", {"format": "raw"}),
            ("c.qcow2", "qcow2", {"sync": "top"}),
        ):  # the disk has no backing file: all of it is in the top image
            paths.append((self.drive(name, **{"sync": "full", "speed": 8 * MIB, **more}), fmt))
            self.write_around(20)
            self.qmp.command("block-job-set-speed", device="j", speed=0)
            self.finish()
            self.assert_same(ref, "raw", *paths[-1])
            self.assertEqual(self.info_of(paths[-1][0])["format"], fmt)
            ref = self.keep()
        self.assertEqual(
            [n["drv"] for n in self.qmp.command("query-named-block-nodes", flat=True)].count("qcow2"),
            2,
        )

    def test_an_existing_file(self):
        ref = self.keep()
        old = self.create("old.qcow2", SIZE)
        self.assertEqual(self.drive("old.qcow2", sync="full", mode="existing"), old)
        self.finish()
        self.assert_same(ref, "raw", old, "qcow2")
        for name, wanted in ("no.qcow2", "No such file"), ("small.qcow2", "different sizes"):
            if name == "small.qcow2":
                self.create(name, MIB)
            with self.assertRaises(QmpError) as caught:
                self.drive(name, sync="full", mode="existing")
            self.assertIn(wanted, caught.exception.desc)

    def test_none_has_the_disk_as_its_backing_file(self):
        ref = self.keep()
        path = self.drive("n.qcow2", sync="none")
        self.write_around(50)
        info = self.info_of(path)
        self.assertEqual((info["backing-filename"], info["backing-filename-format"]),
                         (self.disk, "qcow2"))  # fmt: skip
        self.qmp.command("job-cancel", id="j")
        self.wait_end()
        self.server.quit()
        # What guests have not overwritten is still in the disk.
        self.assert_same(ref, "raw", path, "qcow2")

    def test_top_has_the_backing_file_of_the_disk(self):
        top = self.path("top.qcow2")
        tidemark.img("create", "-q", "-f", "qcow2", "-b", self.create("base.qcow2", SIZE),
                     "-F", "qcow2", top)  # fmt: skip
        self.qmp.command("blockdev-add", driver="qcow2", node_name="top",
                         file={"driver": "file", "filename": top})  # fmt: skip
        path = self.path("copy.qcow2")
        self.qmp.transaction(
            ("drive-backup", {"job-id": "j", "device": "top", "target": path, "sync": "top"})
        )
        self.finish()
        self.assertEqual(self.info_of(path)["backing-filename"], self.path("base.qcow2"))


class MomentTest(BackupTest):
    def test_all_disks_of_a_transaction_at_one_instant(self):
        """A counter is written to one disk, then to the other: backups differ by one at most."""
        other = self.create("other.qcow2", SIZE)
        t2 = self.create("t2.qcow2", SIZE)
        for name, path in ("other", other), ("t2", t2):
            self.qmp.command("blockdev-add", driver="qcow2", node_name=name,
                             file={"driver": "file", "filename": path})  # fmt: skip
        self.qmp.command(
            "block-export-add", type="nbd", id="other", node_name="other", writable=True
        )
        second = Guest(self.nbd, b"other")
        stop = threading.Event()
        self.guest.write(0, struct.pack(">Q", 0) * 64)
        second.write(0, struct.pack(">Q", 0) * 64)

        numbers = [0]

        def count():
            while not stop.is_set():
                number = numbers[-1] + 1
                self.guest.write(0, struct.pack(">Q", number) * 64)
                second.write(0, struct.pack(">Q", number) * 64)
                numbers.append(number)

        def counts_on():
            """Both disks have been written since this was asked."""
            now = numbers[-1]
            tidemark.wait_until(lambda: numbers[-1] >= now + 2, "two more writes of each disk")

        thread = threading.Thread(target=count)
        thread.start()
        counts_on()
        self.qmp.transaction(
            ("block-dirty-bitmap-add", {"node": "disk", "name": "next", "persistent": True}),
            ("block-dirty-bitmap-add", {"node": "other", "name": "next", "persistent": True}),
            ("blockdev-backup", {"job-id": "a", "device": "disk", "target": "t", "sync": "full"}),
            ("blockdev-backup", {"job-id": "b", "device": "other", "target": "t2", "sync": "full"}),
        )
        self.finish("a")
        self.finish("b")
        counts_on()
        stop.set()
        thread.join()
        second.close()
        self.server.quit()
        counts = []
        for path in self.target, t2:
            tidemark.img("convert", "-O", "raw", path, self.path("x.raw"))
            with open(self.path("x.raw"), "rb") as file:
                counts.append(struct.unpack(">Q", file.read(8))[0])
        self.assertGreater(counts[1], 0)
        self.assertIn(counts[0] - counts[1], (0, 1))
        for path in self.disk, other:
            extents = self.bitmap_extents(path, "next")
            self.assertEqual([e["start"] for e in extents if not e["data"]], [0])

    def test_a_transaction_that_fails_leaves_nothing(self):
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
        self.guest.write(0, b"x" * 65536)

        def state():
            nodes = self.qmp.command("query-named-block-nodes", flat=True)
            for node in nodes:
                node["image"].pop("actual-size", None)
                if node["drv"] == "file":
                    node["image"].pop("virtual-size")  # bitmaps were stored meanwhile
            return (
                sorted(nodes, key=lambda n: n["node-name"]),
                self.qmp.command("query-block-exports"),
                self.qmp.command("query-jobs"),
            )

        before = state()
        action = (
            "blockdev-backup",
            {"job-id": "j", "device": "disk", "target": "t", "sync": "bitmap", "bitmap": "b",
             "bitmap-mode": "always"},
        )  # fmt: skip
        for last in ("abort", {}), ("block-dirty-bitmap-remove", {"node": "disk", "name": "no"}):
            with self.assertRaises(QmpError):
                self.qmp.transaction(action, last)
            self.assertEqual(state(), before)
            self.assertEqual(self.guest.write(0, b"y" * 65536), 0)
        self.qmp.transaction(action)
        self.finish()


class RefusalTest(BackupTest):
    def test_texts(self):
        raw = self.create("raw.img", SIZE, "raw")
        self.qmp.command("blockdev-add", driver="file", node_name="raw", filename=raw)
        self.qmp.command("blockdev-add", driver="null-co", node_name="small", size=MIB)
        self.qmp.command("blockdev-add", driver="null-co", node_name="ro", size=SIZE, read_only=True)
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b")
        before = self.qmp.command("query-named-block-nodes", flat=True)
        for wanted, arguments in (
            ("must provide a valid bitmap name for 'bitmap' sync mode", {"sync": "bitmap"}),
            ("must provide a valid bitmap name for 'incremental' sync mode",
             {"sync": "incremental"}),
            ("Bitmap 'x' could not be found", {"sync": "bitmap", "bitmap": "x"}),
            ("Bitmap sync mode must be given when providing a bitmap", {"bitmap": "b"}),
            ("Cannot specify bitmap sync mode without a bitmap", {"bitmap_mode": "always"}),
            ("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
             {"sync": "incremental", "bitmap": "b", "bitmap_mode": "never"}),
            ("Bitmap sync mode 'never' has no meaningful effect when combined with",
             {"bitmap": "b", "bitmap_mode": "never"}),
            ("sync mode 'none' does not produce meaningful bitmap outputs",
             {"sync": "none", "bitmap": "b", "bitmap_mode": "always"}),
            ("Source and target cannot be the same", {"target": "disk"}),
            ("Source and target image have different sizes", {"target": "small"}),
            ("Cannot find device='no' nor node-name='no'", {"target": "no"}),
            ("Compression is not supported for this drive", {"target": "raw", "compress": True}),
            ("max-workers must be between 1 and 2147483647", {"x_perf": {"max-workers": 0}}),
            ("max-chunk must be zero (which means no limit) or positive",
             {"x_perf": {"max-chunk": -1}}),
            ("Required max-chunk (1) is less than backup cluster size (65536)",
             {"x_perf": {"max-chunk": 1}}),
            ("Required max-chunk (65536) is less than backup cluster size (1048576)",
             {"x_perf": {"max-chunk": 65536, "min-cluster-size": MIB}}),
            ("Parameter 'speed' expects a non-negative value", {"speed": -1}),
            ("Invalid job ID '1'", {"job": "1"}),
            ("Could not create node: Duplicate nodes with node-name='disk'",
             {"filter_node_name": "disk"}),
            # Which of two mistakes is reported.
            ("must provide a valid bitmap name for 'bitmap' sync mode",
             {"sync": "bitmap", "target": "disk"}),
            ("Cannot specify bitmap sync mode without a bitmap",
             {"bitmap_mode": "always", "filter_node_name": "disk"}),
            ("max-workers must be between 1 and 2147483647",
             {"x_perf": {"max-workers": 0}, "target": "small"}),
            ("Could not create node: Block node is read-only", {"target": "ro", "job": "1"}),
        ):  # fmt: skip
            with self.subTest(wanted):
                self.refused(wanted, **arguments)
        self.assertEqual(self.qmp.command("query-named-block-nodes", flat=True), before)
        self.assertEqual(self.qmp.command("query-jobs"), [])

    def test_what_is_in_use(self):
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b")
        self.guest.write(0, b"x" * MIB)
        self.qmp.command("blockdev-add", driver="null-co", node_name="other", size=SIZE)
        self.backup(sync="bitmap", bitmap="b", bitmap_mode="on-success", speed=65536,
                    filter_node_name="flt")  # fmt: skip
        busy = "Node '{}' is busy: block device is in use by block job: backup"
        self.refused(busy.format("t"), job="k")
        self.refused("Job ID 'j' already in use", target="other")
        for node in "t", "flt":
            with self.assertRaises(QmpError) as caught:
                self.qmp.command("blockdev-del", node_name=node)
            self.assertEqual(caught.exception.desc, busy.format(node))
        used = "Bitmap 'b' is currently in use by another operation and cannot be used"
        for command in "remove", "clear", "disable":
            with self.assertRaises(QmpError) as caught:
                self.qmp.command("block-dirty-bitmap-" + command, node="disk", name="b")
            self.assertIn(used, caught.exception.desc)
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("block-export-add", type="nbd", id="x", node_name="disk", name="x",
                             writable=True)  # fmt: skip
        self.assertIn("unshared by node 'flt'", caught.exception.desc)
        bitmaps = self.qmp.node("disk")["dirty-bitmaps"]
        self.assertEqual(
            [(b.get("name"), b["busy"], b["recording"], b["count"]) for b in bitmaps],
            [(None, False, True, 0), ("b", True, True, MIB)],
        )
        self.guest.write(2 * MIB, b"x" * 65536)
        counts = [b["count"] for b in self.qmp.node("disk")["dirty-bitmaps"]]
        self.assertEqual(counts, [65536, MIB])
        self.qmp.command("job-cancel", id="j")
        self.wait_end()
        self.assertEqual(self.qmp.bitmaps("disk")["b"]["count"], MIB + 65536)
        self.assertEqual(len(self.qmp.node("disk")["dirty-bitmaps"]), 1)


class PullTest(BackupTest):
    """libvirt's pull mode: the target is an overlay of the disk, and clients read it."""

    def setUp(self):
        super().setUp()
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="check0", persistent=True)
        for offset in 0, 5 * MIB, 12 * MIB:
            self.assertEqual(self.guest.write(offset, b"n" * 65536), 0)
        scratch = self.path("scratch.qcow2")
        tidemark.img("create", "-q", "-f", "qcow2", "-b", self.disk, "-F", "qcow2", "-u", scratch,
                     str(SIZE))  # fmt: skip
        self.qmp.command("blockdev-add", driver="qcow2", node_name="scratch", backing="disk",
                         file={"driver": "file", "filename": scratch})  # fmt: skip
        self.uri = tidemark.nbd_uri(self.nbd, "pull")

    def begin(self):
        self.qmp.transaction(
            ("block-dirty-bitmap-add", {"node": "disk", "name": "check1", "persistent": True}),
            ("block-dirty-bitmap-disable", {"node": "disk", "name": "check0"}),
            ("blockdev-backup",
             {"job-id": "pull", "device": "disk", "target": "scratch", "sync": "none"}),
        )  # fmt: skip
        self.qmp.command("block-dirty-bitmap-add", node="scratch", name="tmp", disabled=True)
        self.qmp.command("block-dirty-bitmap-merge", node="scratch", target="tmp",
                         bitmaps=[{"node": "disk", "name": "check0"}])  # fmt: skip
        self.qmp.command("block-export-add", type="nbd", id="pull", node_name="scratch",
                         name="pull", bitmaps=["tmp"])  # fmt: skip

    def end(self):
        self.qmp.command("block-export-del", id="pull", mode="hard")
        self.qmp.command("job-cancel", id="pull")
        self.assertEqual(self.wait_end("pull")[0], "CANCELLED")
        self.qmp.command("blockdev-del", node_name="scratch")

    def pulled(self):
        path = self.path("pulled.raw")
        tidemark.qemu_img("convert", "-f", "raw", "-O", "raw", self.uri, path)
        return path

    def dirty(self):
        options = (
            f"driver=nbd,export=pull,server.type=unix,server.path={self.nbd},"
            "x-dirty-bitmap=qemu:dirty-bitmap:tmp"
        )
        out = tidemark.qemu_img("map", "--output=json", "--image-opts", options).stdout
        return [(e["start"], e["length"]) for e in json.loads(out) if not e["data"]]

    def test_the_dialogue(self):
        ref = self.keep()
        self.begin()
        self.write_around(100)
        self.assert_same(ref, "raw", self.pulled(), "raw")
        self.assertEqual(self.dirty(), [(n * MIB, 65536) for n in (0, 5, 12)])
        tidemark.wait_until(lambda: self.info("pull")["offset"] > 0, "the guest's part")
        self.write_around(100)
        self.assert_same(ref, "raw", self.pulled(), "raw")
        counts = self.qmp.bitmaps("disk")
        self.assertFalse(counts["check0"]["recording"])
        self.assertGreater(counts["check1"]["count"], 0)
        self.end()
        self.write_around(50)
        self.server.quit()
        self.assertEqual(
            [e["start"] for e in self.bitmap_extents(self.disk, "check0") if not e["data"]],
            [0, 5 * MIB, 12 * MIB],
        )

    def test_reads_and_writes_of_one_place_at_a_time(self):
        """A read that finds nothing in the scratch image must not see what a guest writes then."""
        self.guest.write(0, b"o" * SIZE)
        self.begin()
        stop = threading.Event()
        errors = []
        reader = nbd_raw.RawClient(self.nbd)
        reader.go(b"pull", structured=False)

        def write():
            for n in range(SIZE // 65536):
                errors.append(self.guest.write(n * 65536, b"n" * 65536))
                if stop.is_set():
                    return
            stop.set()

        thread = threading.Thread(target=write)
        thread.start()
        wrong = 0
        while not stop.is_set():
            offset = self.random.randrange(SIZE // 65536 - 16) * 65536
            reader.request(nbd_raw.READ, offset, 16 * 65536)
            self.assertEqual(reader.simple_reply()[1], 0)
            wrong += reader.receive(16 * 65536).count(b"n")
        thread.join()
        reader.sock.close()
        self.assertEqual((wrong, set(errors)), (0, {0}))
        self.end()

    def test_a_broken_point_in_time_ends_the_job(self):
        bad = self.path("bad.qcow2")
        shutil.copy(self.path("scratch.qcow2"), bad)
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="bad",
            backing="disk",
            file={
                "driver": "blkdebug",
                "image": {"driver": "file", "filename": bad},
                "inject-error": [{"event": "write_aio", "errno": 28, "once": False}],
            },
        )
        self.backup("n", "none", "bad")
        self.assertEqual(self.guest.write(MIB, b"g" * 512), 0)
        name, data = self.wait_end("n")
        self.assertEqual((name, data["error"]), ("COMPLETED", "No space left on device"))
