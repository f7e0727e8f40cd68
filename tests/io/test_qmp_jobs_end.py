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


class SlowDiskTest(tidemark.TestCase):
    """A write takes 200 ms. A job has much in flight: parts of pieces, one after the other."""

    UNIT = 4096
    SIZE = 512 << 10
    command = None  # a daemon that was killed may hold the locks of its images for a moment

    def file(self, name):
        return f"{self.command}-{name}"

    def image(self, name, *commands, backing=None):
        below = ("-b", self.path(self.file(backing)), "-F", "qcow2") if backing else ()
        options = ("-o", f"cluster_size={self.UNIT}", *below)
        path = self.create(self.file(name), self.SIZE, options=options)
        if commands:
            tidemark.io(path, *commands, fmt="qcow2")

    def node(self, name, slow=False, driver="qcow2", **more):
        file = {"driver": "file", "filename": self.path(self.file(name))}
        if slow:
            rule = {"event": "none", "iotype": "write", "errno": 0, "delay-ns": 200 * 10**6}
            file = {"driver": "blkdebug", "image": file, "inject-error": [rule]}
        node = {"driver": driver, "node-name": name, "file": file, **more}
        return "--blockdev", json.dumps(node)

    def test_cancelled_jobs_end_after_the_part_in_flight(self):
        every_other = [
            f"write -P 1 {at} {self.UNIT}" for at in range(0, self.SIZE, 2 * self.UNIT)
        ]
        for command, slow, more in (
            ("blockdev-mirror", "target", {"target": "target", "sync": "full"}),
            ("block-stream", "top", {}),
            ("block-commit", "base", {"top_node": "mid", "base_node": "base"}),
        ):
            self.command = command
            with self.subTest(command):
                self.image("base")
                self.image("mid", *every_other, backing="base")
                self.image("top", backing="mid")
                self.create(self.file("target"), self.SIZE, fmt="raw")
                server = self.daemon(
                    *self.node("base", slow == "base"),
                    *self.node("mid", backing="base"),
                    *self.node("top", slow == "top", backing="mid"),
                    *self.node("target", slow == "target", "raw"),
                )
                server.qmp.command(
                    command, device="top", job_id="j", auto_finalize=False,
                    **({"granularity": self.UNIT} if slow == "target" else {}), **more,
                )  # fmt: skip
                time.sleep(0.1)
                began = time.monotonic()
                server.qmp.command("job-cancel", id="j")
                server.qmp.wait_event("BLOCK_JOB_CANCELLED")
                # All parts of a piece take 12 s, or more.
                self.assertLess(time.monotonic() - began, 6)
                server.kill()
