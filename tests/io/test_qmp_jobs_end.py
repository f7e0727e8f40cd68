# SPDX-License-Identifier: Apache-2.0
"""The end of a daemon that has jobs, in all states and on storage that hangs."""

import json
import os
import signal
import time

import tidemark
from chain_case import Guest
from nbd_server import NbdServer
from test_qmp_jobs import JobCase

MIB = 1 << 20
SIZE = 2 * MIB
SLOW = 64 << 10
SECONDS = 5

STATES = ("running", "paused", "ready", "standby", "waiting", "pending")
DISKS = (*STATES, "other")


class EndCase(JobCase):
    """A disk for each state, with a bitmap that has to be stored, and its target "t" + name."""

    def setUp(self):
        tidemark.TestCase.setUp(self)
        options = []
        self.images = {}
        for disk in DISKS:
            for name in (disk, "t" + disk):
                path = self.images[name] = self.create(name + ".qcow2", SIZE)
                options += ["--blockdev", self.options(name, path)]
            tidemark.img("bitmap", "-f", "qcow2", "--add", self.images[disk], "x")
            tidemark.io(self.images[disk], f"write -P 7 0 {SIZE}", fmt="qcow2")
        self.server = self.daemon(*options)
        self.qmp = self.server.qmp

    @staticmethod
    def options(name, path):
        return f"driver=qcow2,node-name={name},file.driver=file,file.filename={path}"

    def assert_ended_in_time(self, expect, began):
        status = self.server.wait(2 * SECONDS)
        self.assertLess(time.monotonic() - began, SECONDS)
        self.assertEqual(status, expect, self.server.log())

    def assert_complete(self, names):
        """Nothing has to be repaired, and the bitmaps have what they had."""
        for name in names:
            path = self.images[name]
            tidemark.run(tidemark.qemu("qemu-img"), "check", "-q", "-f", "qcow2", path)
            if name in DISKS:
                out = tidemark.img("info", "-f", "qcow2", "--output=json", path).stdout
                (bitmap,) = json.loads(out)["format-specific"]["data"]["bitmaps"]
                self.assertEqual(bitmap["flags"], ["auto"], name)
                (extent,) = self.bitmap_extents(path, "x")
                self.assertFalse(extent["data"], name)


class AllStates(EndCase):
    def start_jobs(self):
        """Jobs that are named after their states."""
        self.backup("running", "running", speed=SLOW)
        self.backup("paused", "paused", speed=SLOW)
        self.qmp.command("job-pause", id="paused")
        for job in ("ready", "standby"):
            self.mirror(job, job)
            self.wait("ready", job)
        self.qmp.command("job-pause", id="standby")
        self.backup("pending", "pending", auto_finalize=False)
        self.qmp.command(
            "transaction",
            properties={"completion-mode": "grouped"},
            actions=[
                {"type": "blockdev-backup", "data": self.backup_of("waiting", "waiting")},
                {"type": "blockdev-backup", "data": self.backup_of("other", "other", speed=SLOW)},
            ],
        )
        for state in STATES:
            self.wait(state, state)

    def assert_cancelled(self):
        for job in DISKS:
            seen = []
            for event in self.qmp.events:
                data = event["data"]
                if job in (data.get("id"), data.get("device")):
                    seen.append(data.get("status", event["event"]))
            end = ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
            self.assertEqual(seen[-4:], end, job)

    def test_quit(self):
        self.start_jobs()
        began = time.monotonic()
        self.assertEqual(self.qmp.command("quit"), {})
        self.assert_cancelled()
        self.assert_ended_in_time(0, began)
        self.assert_complete(self.images)

    def test_sigterm(self):
        self.start_jobs()
        began = time.monotonic()
        os.kill(self.server.process.pid, signal.SIGTERM)
        try:
            while True:
                self.qmp.receive_answer()
        except (EOFError, ConnectionResetError):
            pass
        self.assert_cancelled()
        self.assert_ended_in_time(0, began)
        self.assert_complete(self.images)

    def test_a_job_that_is_created_when_it_ends(self):
        for n in range(20):
            options = {"driver": "file", "filename": self.path(f"c{n}"), "size": n}
            command = {"job-id": f"c{n}", "options": options}
            self.qmp.send_raw(
                json.dumps({"execute": "blockdev-create", "arguments": command}) + "\n"
            )
        began = time.monotonic()
        self.qmp.send_raw('{"execute": "quit"}\n')
        self.assert_ended_in_time(0, began)
        self.assert_complete(self.images)


class Hanging(EndCase):
    """The target of job "sick" is behind a server that does not answer any more."""

    def setUp(self):
        super().setUp()
        image = self.create("sick.raw", SIZE, "raw")
        self.remote = self.own(NbdServer(self.dir, "-f", "raw", image))
        self.qmp.command(
            "blockdev-add",
            driver="nbd",
            node_name="sick",
            server={"type": "unix", "path": self.remote.socket},
        )
        self.addCleanup(os.kill, self.remote.process.pid, signal.SIGCONT)

    def let_hang(self):
        os.kill(self.remote.process.pid, signal.SIGSTOP)

    def start(self, **more):
        self.qmp.command(
            "blockdev-backup", job_id="sick", device="running", target="sick", sync="full", **more
        )
        self.backup("good", "other", speed=SLOW)

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

    def end_by_one_signal(self):
        """The job is abandoned; what it only reads is completed like all others."""
        began = time.monotonic()
        os.kill(self.server.process.pid, signal.SIGTERM)
        self.assert_ended_in_time(1, began)
        self.assertIn("job 'sick' is abandoned", self.server.log())
        self.assertIn("node 'sick' is left incomplete", self.server.log())
        self.assertNotIn("'running' is left", self.server.log())
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
        began = time.monotonic()
        os.kill(self.server.process.pid, signal.SIGTERM)
        self.server.wait(2 * SECONDS)
        self.assertLess(time.monotonic() - began, SECONDS)
        self.assert_complete(self.images)

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
        socket = self.path("nbd")
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": socket}})
        self.qmp.command(
            "block-export-add", type="nbd", id="e", node_name="ready", name="e", writable=True
        )
        guest = Guest(tidemark.nbd_uri(socket, "e"), bytearray(b"\7" * SIZE), pause=0)
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
