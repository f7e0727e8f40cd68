# SPDX-License-Identifier: Apache-2.0
"""The end of a daemon that has jobs on storage that hangs."""

import json
import os
import signal
import subprocess
import time
import unittest

import tidemark
from chain_case import Guest
from nbd_server import NbdServer
from qmp import QmpError
from test_qmp_jobs_end import SECONDS, SIZE, SLOW, EndCase


class HangCase(EndCase):
    """The target of job "sick" is behind a server that does not answer any more."""

    def setUp(self):
        super().setUp()
        image = self.create("sick.raw", SIZE, "raw")
        tidemark.io(image, f"write -P 7 0 {SIZE}", fmt="raw")
        self.remote = self.own(NbdServer(self.dir, "-f", "raw", image))
        self.qmp.command(
            "blockdev-add",
            driver="nbd",
            node_name="sick",
            server={"type": "unix", "path": self.remote.socket},
        )
        self.addCleanup(os.kill, self.remote.process.pid, signal.SIGCONT)

    def let_hang(self):
        tidemark.freeze(self.remote.process.pid)

    def sick_is_used(self):
        found = self.qmp.command("x-tidemark-query-stats", target="node")
        return any(
            f["labels"]["node"] == "sick" and f["stats"].get("in-flight", 0) > 0 for f in found
        )

    def start(self, **more):
        self.qmp.command(
            "blockdev-backup", job_id="sick", device="running", target="sick", sync="full", **more
        )
        self.backup("good", "other", speed=SLOW)


class OneSignal(HangCase):
    def export(self, disk):
        """Its URI."""
        socket = self.path("nbd")
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": socket}})
        self.qmp.command(
            "block-export-add", type="nbd", id="e", node_name=disk, name="e", writable=True
        )
        return tidemark.nbd_uri(socket, "e")

    def end_by_one_signal(self):
        """The job is abandoned; what it only reads is completed like all others."""
        began = time.monotonic()
        os.kill(self.server.process.pid, signal.SIGTERM)
        self.assert_ended_in_time(1, began)
        self.assertIn("job 'sick' is abandoned", self.server.log())
        # It hangs still, or its server has been left meanwhile.
        self.assertRegex(self.server.log(), "node 'sick'(: Could not flush| is left incomplete)")
        self.assertNotIn("'running' is left", self.server.log())
        self.assert_complete(self.images)

    def end_in_time(self):
        """Whether the job was abandoned, or its target had nothing left to flush."""
        began = time.monotonic()
        os.kill(self.server.process.pid, signal.SIGTERM)
        self.server.wait(2 * SECONDS)
        self.assertLess(time.monotonic() - began, SECONDS)
        self.assert_complete(self.images)

    def test_one_signal_with_a_backup(self):
        self.let_hang()
        self.start()
        time.sleep(0.2)
        self.end_by_one_signal()

    def test_one_signal_with_a_mirror(self):
        self.qmp.command(
            "blockdev-mirror", job_id="sick", device="running", target="sick", sync="full"
        )
        self.wait("ready", "sick")
        self.let_hang()
        self.qmp.command("job-complete", id="sick")
        time.sleep(0.2)
        self.end_in_time()

    def test_a_mirror_that_is_finalized(self):
        """Its target hangs by then. Other commands are answered, and the daemon ends in time."""
        mirror = {"job_id": "sick", "device": "running", "target": "sick", "sync": "full"}
        uri = self.export("running")
        self.qmp.command("blockdev-mirror", **mirror, auto_finalize=False)
        self.wait("ready", "sick")
        self.qmp.command("job-complete", id="sick")
        self.wait("pending", "sick")
        tidemark.io(uri, "write -P 7 0 4096", fmt="raw")
        self.let_hang()
        self.qmp.send_raw('{"execute": "job-finalize", "arguments": {"id": "sick"}}\n')
        time.sleep(1)
        with self.server.connect(timeout=SECONDS) as other:
            other.command("block-dirty-bitmap-add", node="other", name="new")
            other.command("query-named-block-nodes")
        self.end_in_time()

    def finalize_while_a_guest_waits(self):
        """A mirror, when a guest's write waits for its target that hangs. Another monitor."""
        mirror = {"job_id": "sick", "device": "running", "target": "sick", "sync": "full"}
        uri = self.export("running")
        self.qmp.command("blockdev-mirror", **mirror, auto_finalize=False, auto_dismiss=False)
        self.wait("ready", "sick")
        self.qmp.command("job-complete", id="sick")
        self.wait("pending", "sick")
        self.let_hang()
        write = [*tidemark.tool("io"), "-f", "raw", "-c", "write -P 9 64k 64k", uri]
        self.guest = subprocess.Popen(write, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(self.guest.wait)
        self.addCleanup(self.guest.kill)
        tidemark.wait_until(self.sick_is_used, "the guest's write")
        self.qmp.send_raw('{"execute": "job-finalize", "arguments": {"id": "sick"}}\n')
        time.sleep(0.5)
        other = self.server.connect(timeout=SECONDS)
        self.addCleanup(other.close)
        for _ in range(3):
            other.command("block-dirty-bitmap-add", node="other", name="new")
            other.command("query-named-block-nodes")
            other.command("block-dirty-bitmap-remove", node="other", name="new")
        return other

    def test_a_mirror_that_is_finalized_while_a_guest_waits(self):
        other = self.finalize_while_a_guest_waits()
        with self.assertRaisesRegex(QmpError, "cannot accept command verb 'pause'"):
            other.command("job-pause", id="sick")
        os.kill(self.remote.process.pid, signal.SIGCONT)
        self.assertIn("return", self.qmp.receive_answer())
        (job,) = self.qmp.command("query-jobs")
        self.assertEqual((job["status"], job.get("error")), ("concluded", None))
        self.assertEqual(self.guest.wait(), 0)
        tidemark.io(self.remote.uri(), "read -P 9 64k 64k", "read -P 7 0 64k", fmt="raw")

    def test_one_signal_while_a_guest_waits(self):
        self.finalize_while_a_guest_waits()
        del self.images["running"]  # the guest's write is in flight
        self.end_in_time()

    def test_one_signal_after_a_cancel(self):
        self.let_hang()
        self.start()
        time.sleep(0.2)
        self.qmp.command("job-cancel", id="sick")
        self.end_by_one_signal()

    def test_quit(self):
        self.let_hang()
        self.start()
        time.sleep(0.2)
        began = time.monotonic()
        self.assertEqual(self.qmp.command("quit"), {})
        self.assert_ended_in_time(1, began)
        self.assert_complete(self.images)

    def test_guests_of_healthy_disks(self):
        """They write to the last, and bitmaps are stored all the same, with what they wrote."""
        guest = Guest(self.export("ready"), bytearray(b"\7" * SIZE), pause=0)
        tidemark.wait_until(lambda: guest.writes > 10 or guest.error, "a guest's writes")
        self.let_hang()
        self.start()
        time.sleep(0.2)
        self.healthy = [name for name in self.images if name != "ready"]
        began = time.monotonic()
        os.kill(self.server.process.pid, signal.SIGTERM)
        self.assert_ended_in_time(1, began)
        self.assertGreater(guest.writes, 10)
        self.assert_complete(self.healthy)
        out = tidemark.img("info", "-f", "qcow2", "--output=json", self.images["ready"]).stdout
        (bitmap,) = json.loads(out)["format-specific"]["data"]["bitmaps"]
        self.assertEqual(bitmap["flags"], ["auto"])
        tidemark.qemu_img("check", "-q", "-f", "qcow2", self.images["ready"])


class HungSource(HangCase):
    """A job reads a backing file that hangs."""

    def setUp(self):
        super().setUp()
        overlay = self.overlay = self.create("overlay.qcow2", SIZE)
        tidemark.img("bitmap", "-f", "qcow2", "--add", overlay, "x")
        for node in (
            {
                "driver": "qcow2",
                "node-name": "overlay",
                "file": {"driver": "file", "filename": overlay},
                "backing": "sick",
            },
            {"driver": "null-co", "node-name": "copy", "size": SIZE},
        ):
            self.qmp.command("blockdev-add", **node)

    def sick_has_begun(self):
        (job,) = self.qmp.command("query-jobs")
        return job["current-progress"] > 0

    def test_the_end_is_bounded(self):
        backup = {"job_id": "sick", "device": "overlay", "target": "copy", "sync": "full"}
        self.qmp.command("blockdev-backup", **backup, speed=SLOW)
        tidemark.wait_until(self.sick_has_begun, "the first piece")
        self.let_hang()
        self.qmp.command("block-job-set-speed", device="sick", speed=0)
        tidemark.wait_until(self.sick_is_used, "a read")
        began = time.monotonic()
        self.assertEqual(self.qmp.command("quit"), {})
        self.assert_ended_in_time(1, began)
        self.assert_complete(self.images)
        # What the job read was not written to: its bitmap is stored.
        self.assertNotIn("'overlay' is left", self.server.log())
        out = tidemark.img("info", "-f", "qcow2", "--output=json", self.overlay).stdout
        (bitmap,) = json.loads(out)["format-specific"]["data"]["bitmaps"]
        self.assertEqual(bitmap["flags"], ["auto"])


class TwoSignals(HangCase):
    def end(self):
        """By two signals, of which the second says that it is urgent."""
        self.healthy = [name for name in self.images if name != "running"]
        os.kill(self.server.process.pid, signal.SIGTERM)
        time.sleep(0.5)
        self.assertTrue(self.server.is_running())
        began = time.monotonic()
        os.kill(self.server.process.pid, signal.SIGTERM)
        self.assert_ended_in_time(1, began)
        self.assertIn("hangs", self.server.log())
        self.assert_complete(self.healthy)

    def test_a_running_job(self):
        self.let_hang()
        self.start()
        time.sleep(0.2)
        self.end()

    def test_a_job_that_is_to_pause(self):
        self.let_hang()
        self.start()
        self.qmp.command("job-pause", id="sick")
        self.end()

    def test_a_job_that_was_cancelled(self):
        self.let_hang()
        self.start()
        time.sleep(0.2)
        self.qmp.command("job-cancel", id="sick")
        self.assertEqual(self.status("sick"), "running")
        self.end()

    def test_a_mirror_that_is_ready(self):
        self.qmp.command(
            "blockdev-mirror", job_id="sick", device="running", target="sick", sync="full"
        )
        self.wait("ready", "sick")
        self.let_hang()
        self.qmp.command("job-complete", id="sick")
        time.sleep(0.2)
        self.end()

    def test_a_paused_job_ends_at_once(self):
        self.start(speed=SLOW)
        self.qmp.command("job-pause", id="sick")
        self.wait("paused", "sick")
        self.let_hang()
        self.qmp.command("job-cancel", id="sick")
        self.wait("null", "sick")

    def test_commands_are_answered(self):
        self.let_hang()
        self.start()
        time.sleep(0.2)
        began = time.monotonic()
        self.qmp.command("block-job-set-speed", device="good", speed=0)
        self.wait("null", "good")
        self.qmp.command("query-named-block-nodes")
        self.assertLess(time.monotonic() - began, SECONDS)


if __name__ == "__main__":
    unittest.main()
