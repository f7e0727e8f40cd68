# SPDX-License-Identifier: Apache-2.0
"""The end of a daemon that has jobs in all states."""

import json
import os
import signal
import time

import tidemark
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
