# SPDX-License-Identifier: Apache-2.0
"""How backup jobs end: bitmaps after success, cancel and error; error policies; groups."""

import os
import shutil
import signal
import time

import nbd_raw
import tidemark
from qmp import QmpError
from test_qmp_backup import MIB, SIZE, BackupTest

GRANULE = 65536
ALL = set(range(SIZE // GRANULE))
OLD = set(range(MIB // GRANULE, 9 * MIB // GRANULE))  # dirty before each job
# Guests' writes copy by themselves, and leave nothing in memory.
NO_MEMORY = {"x_perf": {"use-copy-range": True}}


class EndTest(BackupTest):
    """8 of 16 MiB are dirty, from 1 MiB on. The target has what the disk had before that."""

    def setUp(self):
        super().setUp()
        self.base = self.keep("base.raw")
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
        for n in range(8):
            self.assertEqual(self.guest.write((n + 1) * MIB, bytes([100 + n]) * MIB), 0)
        self.assertEqual(self.qmp.bitmaps("disk")["b"]["count"], 8 * MIB)
        self.ref = self.keep()
        self.written = set()

    def add_target(self, *rules):
        """Node "bad": a copy of the base, whose requests fail as the rules of blkdebug say."""
        self.raw = self.path("bad.raw")
        shutil.copy(self.base, self.raw)
        self.qmp.command(
            "blockdev-add",
            driver="raw",
            node_name="bad",
            file={
                "driver": "blkdebug",
                "image": {"driver": "file", "filename": self.raw},
                "inject-error": list(rules),
            },
        )

    def guest_writes(self, *offsets):
        for offset in offsets:
            self.assertEqual(self.guest.write(offset, b"g" * 4096), 0)
            self.written.add(offset // GRANULE)

    def dirty_after(self, expect=0):
        """The dirty granules, as the image has them once the daemon has ended."""
        self.assertEqual(len(self.qmp.node("disk")["dirty-bitmaps"]), 1)
        bitmap = self.qmp.bitmaps("disk")["b"]
        self.assertFalse(bitmap["busy"])
        self.assertTrue(bitmap["recording"])
        self.server.quit(expect)
        dirty = set()
        for extent in self.bitmap_extents(self.disk, "b"):
            if not extent["data"]:
                first = extent["start"] // GRANULE
                dirty |= set(range(first, first + extent["length"] // GRANULE))
        self.assertEqual(bitmap["count"], len(dirty) * GRANULE)
        return dirty

    def assert_copied(self, granules, path):
        with open(self.ref, "rb") as ref, open(path, "rb") as target:
            for granule in sorted(granules):
                ref.seek(granule * GRANULE)
                target.seek(granule * GRANULE)
                self.assertEqual(ref.read(GRANULE), target.read(GRANULE), f"granule {granule}")

    def backup(self, job="j", sync="bitmap", target="bad", bitmap_mode=None, **more):
        if bitmap_mode:
            more.update(bitmap_mode=bitmap_mode)
        super().backup(job, sync, target, bitmap="b", **more)


class BitmapTest(EndTest):
    # Success.

    def success(self, sync, mode, wanted):
        self.add_target()
        self.backup(sync=sync, bitmap_mode=mode, speed=4 * MIB)
        self.guest_writes(0, 5 * MIB, 8 * MIB, 15 * MIB)
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.finish()
        self.guest_writes(12 * MIB)
        self.assertEqual(self.dirty_after(), wanted | self.written)
        self.assert_same(self.ref, "raw", self.raw, "raw")

    def test_success_incremental(self):
        self.success("incremental", None, set())

    def test_success_on_success(self):
        self.success("bitmap", "on-success", set())

    def test_success_never(self):
        self.success("bitmap", "never", OLD)

    def test_success_always(self):
        self.success("bitmap", "always", set())

    def test_success_full_on_success(self):
        self.success("full", "on-success", set())

    def test_success_full_always(self):
        self.success("full", "always", set())

    def test_success_top_always(self):
        self.success("top", "always", set())

    # Cancel.

    def cancel(self, sync, mode, before, exact):
        self.add_target()
        self.backup(sync=sync, bitmap_mode=mode, speed=MIB)
        tidemark.wait_until(lambda: self.info()["offset"] >= MIB // 2, "half a MiB")
        self.guest_writes(0, 5 * MIB, 15 * MIB)
        self.qmp.command("job-cancel", id="j")
        name, data = self.wait_end()
        self.assertEqual(name, "CANCELLED")
        self.assertLess(data["offset"], data["len"])
        dirty = self.dirty_after()
        if exact:
            self.assertEqual(dirty, before | self.written)
            return
        self.assertLessEqual(self.written, dirty)
        self.assertLessEqual(dirty, before | self.written)
        copied = before - dirty
        self.assertGreaterEqual(len(copied) * GRANULE, MIB // 2 - 3 * GRANULE)
        self.assertLess(len(copied) * GRANULE, 4 * MIB)
        self.assert_copied(copied, self.raw)

    def test_cancelled_incremental(self):
        self.cancel("incremental", None, OLD, True)

    def test_cancelled_never(self):
        self.cancel("bitmap", "never", OLD, True)

    def test_cancelled_always(self):
        self.cancel("bitmap", "always", OLD, False)

    def test_cancelled_full_on_success(self):
        self.cancel("full", "on-success", OLD, True)

    def test_cancelled_full_always(self):
        """What a full copy still lacks, also where the bitmap was clean."""
        self.cancel("full", "always", ALL, False)

    # Error of the target at 7 MiB, for good.

    def error(self, sync, mode, before, exact):
        self.add_target(
            {"event": "pwritev", "errno": 5, "sector": 7 * MIB // 512, "once": False}
        )
        self.backup(sync=sync, bitmap_mode=mode, speed=16 * MIB)
        self.guest_writes(0, 2 * MIB, 15 * MIB)
        name, data = self.wait_end()
        self.assertEqual((name, data["error"]), ("COMPLETED", "Input/output error"))
        dirty = self.dirty_after()
        if exact:
            self.assertEqual(dirty, before | self.written)
            return
        self.assertIn(7 * MIB // GRANULE, dirty)
        self.assertLessEqual(dirty, before | self.written)
        copied = before - dirty
        self.assertGreaterEqual(len(copied) * GRANULE, 4 * MIB)
        self.assert_copied(copied, self.raw)

    def test_error_on_success(self):
        self.error("bitmap", "on-success", OLD, True)

    def test_error_never(self):
        self.error("bitmap", "never", OLD, True)

    def test_error_always(self):
        self.error("bitmap", "always", OLD, False)

    def test_error_full_always(self):
        self.error("full", "always", ALL, False)

    def test_what_is_not_flushed_is_not_copied(self):
        self.add_target(
            {"event": "pwritev", "errno": 5, "sector": 7 * MIB // 512, "once": False},
            {"event": "flush_to_disk", "errno": 5, "once": False},
        )
        self.backup(bitmap_mode="always")
        self.assertEqual(self.wait_end()[1]["error"], "Input/output error")
        self.assertEqual(self.dirty_after(expect=1), OLD)  # the target can't be closed well

    # Cancel in every state, and the end of the daemon.

    def test_cancelled_when_paused(self):
        self.add_target()
        self.backup(bitmap_mode="on-success", speed=MIB)
        self.qmp.command("job-pause", id="j")
        self.wait_status("paused")
        offset = self.info()["offset"]
        self.guest_writes(4 * MIB)
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("block-job-cancel", device="j")
        self.assertIn("currently paused", caught.exception.desc)
        self.assertEqual(self.info()["offset"], offset)
        self.qmp.command("job-cancel", id="j")
        self.assertEqual(self.wait_end()[0], "CANCELLED")
        self.assertEqual(self.dirty_after(), OLD)

    def test_cancelled_when_pending(self):
        for mode, wanted in ("on-success", OLD), ("always", set()):
            if mode == "always":
                self.server = self.start()
                self.qmp = self.server.qmp
            self.add_target()
            self.backup(bitmap_mode=mode, auto_finalize=False, auto_dismiss=False)
            self.wait_status("pending")
            self.qmp.command("job-cancel", id="j")
            self.wait_status("concluded")
            self.assertEqual(
                self.qmp.command("query-jobs")[0]["error"], "Operation canceled"
            )
            self.qmp.command("job-dismiss", id="j")
            self.assertEqual(self.dirty_after(), wanted)
            os.unlink(self.raw)

    def test_the_end_of_the_daemon_gives_the_bitmap_back(self):
        self.add_target()
        self.backup(bitmap_mode="on-success", speed=65536)
        self.guest_writes(0, 15 * MIB)
        self.qmp.command("job-pause", id="j")
        self.server.quit()
        extents = self.bitmap_extents(self.disk, "b")
        self.assertEqual(
            [(e["start"], e["length"]) for e in extents if not e["data"]],
            [(0, GRANULE), (MIB, 8 * MIB), (15 * MIB, GRANULE)],
        )

    def test_a_disabled_bitmap_records_nothing(self):
        self.add_target()
        self.qmp.command("block-dirty-bitmap-disable", node="disk", name="b")
        self.backup(bitmap_mode="on-success", speed=MIB)
        self.guest_writes(0, 2 * MIB, 15 * MIB)
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.finish()
        bitmap = self.qmp.bitmaps("disk")["b"]
        self.assertEqual((bitmap["count"], bitmap["recording"]), (0, False))
        self.server.quit()
        self.assert_same(self.ref, "raw", self.raw, "raw")

    # Groups.

    def two(self, mode, **bad):
        """Jobs of the disk and of another one, in one transaction; the second job gets `bad`."""
        other = self.create("other.qcow2", SIZE)
        tidemark.io(other, f"write -P 1 0 {SIZE}", fmt="qcow2")
        other_t = self.path("other.raw")
        with open(other_t, "wb") as file:
            file.truncate(SIZE)
        self.qmp.command("blockdev-add", driver="qcow2", node_name="other",
                         file={"driver": "file", "filename": other})  # fmt: skip
        self.qmp.command(
            "blockdev-add",
            driver="raw",
            node_name="other-t",
            file={
                "driver": "blkdebug",
                "image": {"driver": "file", "filename": other_t},
                "inject-error": [{"event": "pwritev", "errno": 28, "sector": 8 * MIB // 512}]
                if bad.pop("fails", False)
                else [],
            },
        )
        self.add_target()
        actions = [
            {"job-id": "j", "device": "disk", "target": "bad", "sync": "bitmap", "bitmap": "b",
             "bitmap-mode": "on-success"},
            {"job-id": "k", "device": "other", "target": "other-t", "sync": "full",
             "speed": 16 * MIB, **bad},
        ]  # fmt: skip
        self.qmp.command(
            "transaction",
            actions=[{"type": "blockdev-backup", "data": data} for data in actions],
            properties={"completion-mode": mode},
        )

    def test_grouped_one_fails(self):
        self.two("grouped", fails=True)
        self.wait_status("waiting")
        self.guest_writes(3 * MIB)
        self.assertEqual(self.wait_end("k")[1]["error"], "No space left on device")
        self.assertEqual(self.wait_end("j")[0], "CANCELLED")
        self.assertEqual(self.dirty_after(), OLD)

    def test_grouped_one_is_cancelled_while_waiting(self):
        self.two("grouped", speed=MIB)
        self.wait_status("waiting")
        self.qmp.command("job-cancel", id="j")
        self.assertEqual(self.wait_end("j")[0], "CANCELLED")
        self.assertEqual(self.wait_end("k")[0], "CANCELLED")
        self.assertEqual(self.dirty_after(), OLD)

    def test_grouped_success(self):
        self.two("grouped")
        self.wait_status("waiting")
        self.guest_writes(3 * MIB)
        self.finish("j")
        self.finish("k")
        self.assertEqual(self.dirty_after(), self.written)
        self.assert_same(self.ref, "raw", self.raw, "raw")

    def test_individual_one_fails(self):
        self.two("individual", fails=True)
        self.finish("j")
        self.assertEqual(self.wait_end("k")[1]["error"], "No space left on device")
        self.assertEqual(self.dirty_after(), set())


class PolicyTest(EndTest):
    """One error of the target or the source, and what the job does then."""

    def once(self, policy, errno=5, event="pwritev"):
        self.add_target({"event": event, "errno": errno, "sector": 7 * MIB // 512, "once": True})
        self.backup(bitmap_mode="on-success", on_target_error=policy)

    def errors(self):
        return [e["data"] for e in self.qmp.events if e["event"] == "BLOCK_JOB_ERROR"]

    def test_report(self):
        self.once("report")
        self.assertEqual(self.wait_end()[1]["error"], "Input/output error")
        self.assertEqual(
            self.errors(), [{"device": "j", "operation": "write", "action": "report"}]
        )
        self.assertEqual(self.dirty_after(), OLD)

    def test_ignore(self):
        self.once("ignore")
        self.finish()
        self.assertEqual([e["action"] for e in self.errors()], ["ignore"])
        self.assertEqual(self.dirty_after(), set())
        self.assert_same(self.ref, "raw", self.raw, "raw")

    def stopped(self, policy, errno, status):
        self.once(policy, errno)
        self.wait_status("paused")
        self.assertEqual(self.info()["io-status"], status)
        self.guest_writes(3 * MIB, 7 * MIB)
        self.qmp.command("job-resume", id="j")
        self.finish()
        self.assertEqual([e["action"] for e in self.errors()], ["stop"])
        self.assertEqual(self.dirty_after(), self.written)
        self.assert_same(self.ref, "raw", self.raw, "raw")

    def test_stop(self):
        self.stopped("stop", 5, "failed")

    def test_enospc_stops(self):
        self.stopped("enospc", 28, "nospace")

    def test_enospc_reports_others(self):
        self.once("enospc", 5)
        self.assertEqual(self.wait_end()[1]["error"], "Input/output error")

    def test_a_copy_for_a_guest_fails_the_job_not_the_guest(self):
        self.add_target({"event": "pwritev", "errno": 5, "sector": 7 * MIB // 512, "once": False})
        self.backup(bitmap_mode="on-success", on_target_error="ignore", speed=65536, **NO_MEMORY)
        self.guest_writes(7 * MIB)
        self.qmp.execute("block-job-set-speed", {"device": "j", "speed": 0})  # or it has ended
        self.assertEqual(self.wait_end()[1]["error"], "Input/output error")
        self.guest_writes(7 * MIB, 2 * MIB)
        self.assertEqual(self.dirty_after(), OLD)

    def test_old_data_in_memory_are_written_again_after_an_error(self):
        self.add_target({"event": "pwritev", "errno": 5, "sector": 7 * MIB // 512, "once": True})
        self.backup(bitmap_mode="on-success", on_target_error="ignore", speed=65536)
        self.guest_writes(7 * MIB)
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.assertNotIn("error", self.wait_end()[1])
        self.assertIn({"device": "j", "operation": "write", "action": "ignore"}, self.errors())
        self.assertEqual(self.dirty_after(), self.written)

    def test_a_source_that_fails(self):
        bad = self.path("src.raw")
        shutil.copy(self.ref, bad)
        rule = {"event": "none", "iotype": "read", "errno": 5, "sector": 3 * MIB // 512}
        self.qmp.command(
            "blockdev-add",
            driver="raw",
            node_name="src",
            file={
                "driver": "blkdebug",
                "image": {"driver": "file", "filename": bad},
                "inject-error": [{**rule, "once": True}, {**rule, "once": True}],
            },
        )
        for policy in "report", "ignore":
            self.qmp.command("blockdev-backup", job_id="s", device="src", target="t", sync="full",
                             on_source_error=policy)  # fmt: skip
            name, data = self.wait_end("s")
            self.assertEqual(name, "COMPLETED")
            wanted = "Input/output error" if policy == "report" else None
            self.assertEqual(data.get("error"), wanted)
            self.assertEqual(
                self.errors(), [{"device": "s", "operation": "read", "action": policy}]
            )
            self.qmp.events.clear()
        self.server.quit()
        self.assert_same(self.ref, "raw", self.target, "qcow2")


class HungTargetTest(EndTest):
    """The target is on a server that stops answering, or goes away."""

    def setUp(self):
        super().setUp()
        self.raw = self.path("remote.raw")
        with open(self.raw, "wb") as file:
            file.truncate(SIZE)
        self.remote = self.daemon(
            "--blockdev", f"driver=file,node-name=r,filename={self.raw}",
            "--nbd-server", f"addr.type=unix,addr.path={self.path('r.sock')}",
            "--export", "type=nbd,id=r,node-name=r,writable=on",
            name="remote",
        )  # fmt: skip
        self.qmp.command(
            "blockdev-add",
            driver="nbd",
            node_name="bad",
            server={"type": "unix", "path": self.path("r.sock")},
            export="r",
            reconnect_delay=60,
        )

    def hang(self):
        """The server stops, and a guest's write waits for it."""
        tidemark.freeze(self.remote.pid)
        self.addCleanup(os.kill, self.remote.pid, signal.SIGCONT)
        self.guest.client.request(nbd_raw.WRITE, 12 * MIB, 4096, payload=b"g" * 4096)
        self.guest.client.sock.settimeout(0.3)
        with self.assertRaises(TimeoutError):
            self.guest.client.simple_reply()
        self.guest.client.sock.settimeout(20)

    def test_a_cancel_lets_guests_go(self):
        self.backup(sync="full", bitmap_mode="on-success", speed=65536, **NO_MEMORY)
        self.hang()
        begin = time.monotonic()
        self.qmp.command("job-cancel", id="j")
        self.assertEqual(self.guest.client.simple_reply()[1], 0)
        self.guest_writes(3 * MIB, 12 * MIB)
        self.assertLess(time.monotonic() - begin, 2)
        os.kill(self.remote.pid, signal.SIGCONT)
        self.assertEqual(self.wait_end()[0], "CANCELLED")
        self.assertEqual(self.dirty_after(), OLD | self.written)

    def test_a_cancel_does_not_wait_for_a_lost_server(self):
        self.backup(sync="full", bitmap_mode="always", speed=MIB)
        tidemark.wait_until(lambda: self.info()["offset"] > 0, "a beginning")
        self.remote.kill()
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        time.sleep(0.3)
        self.assertEqual(self.status(), "running")
        begin = time.monotonic()
        self.qmp.command("job-cancel", id="j")
        self.assertEqual(self.wait_end()[0], "CANCELLED")
        self.assertLess(time.monotonic() - begin, 2)
        self.assertEqual(self.dirty_after(expect=None), ALL)  # nothing could be flushed
