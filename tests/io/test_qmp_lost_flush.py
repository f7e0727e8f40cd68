# SPDX-License-Identifier: Apache-2.0
"""Jobs whose target reports once that a flush failed, and has lost what was written before it, as
servers and disks do.
"""

import os
import unittest

import tidemark
from nbd_server import Nbdkit
from test_qmp_jobs import JobCase

SIZE = 1 << 20

# What is written goes to "cache"; a flush makes it "stable", or loses it while there is "fail".
SCRIPTS = {
    "get_size": f"echo {SIZE}",
    "thread_model": "echo serialize_all_requests",
    "can_write": "exit 0",
    "can_flush": "exit 0",
    "pread": "dd if=DIR/cache bs=64K iflag=count_bytes,skip_bytes skip=$4 count=$3 status=none",
    "pwrite": "dd of=DIR/cache bs=64K oflag=seek_bytes seek=$4 conv=notrunc status=none",
    "flush": "if [ -e DIR/fail ]; then rm DIR/fail; cp DIR/stable DIR/cache; "
    "echo EIO lost >&2; exit 1; fi; cp DIR/cache DIR/stable",
}


class LostFlush(JobCase):
    def setUp(self):
        tidemark.TestCase.setUp(self)
        for name in "cache", "stable":
            with open(self.path(name), "wb") as file:
                file.truncate(SIZE)
        scripts = [f"{name}={text.replace('DIR', self.dir)}" for name, text in SCRIPTS.items()]
        self.remote = self.own(Nbdkit(self.dir, "eval", *scripts))
        self.source = self.create("source.raw", SIZE, "raw")
        tidemark.io(self.source, f"write -P 1 0 {SIZE}", fmt="raw")
        self.nbd = self.path("nbd")
        self.server = self.daemon(
            "--blockdev", f"driver=file,node-name=source,filename={self.source}",
            "--blockdev", f"driver=nbd,node-name=target,server.type=unix,server.path={self.remote.socket}",
            "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
            "--export", "type=nbd,id=e,node-name=source,name=disk,writable=on",
        )  # fmt: skip
        self.qmp = self.server.qmp

    def start(self, command="blockdev-mirror", **more):
        self.qmp.command(
            command, job_id="j", device="source", target="target", sync="full", auto_dismiss=False,
            on_target_error="ignore", **more,
        )  # fmt: skip

    def fail_next_flush(self):
        with open(self.path("fail"), "wb"):
            pass

    def write(self, byte, offset, length):
        tidemark.io(tidemark.nbd_uri(self.nbd, "disk"), f"write -P {byte} {offset} {length}", fmt="raw")

    def end_with_a_copy(self, complete=False):
        if complete:
            self.qmp.command("job-complete", id="j")
        else:
            self.qmp.command("block-job-cancel", device="j")
        self.wait("concluded")
        self.assertNotIn("error", self.job())
        self.assertFalse(os.path.exists(self.path("fail")))
        with open(self.source, "rb") as source, open(self.path("stable"), "rb") as stable:
            self.assertEqual(source.read(), stable.read())

    def test_a_mirror_sends_again_before_it_is_ready(self):
        self.fail_next_flush()
        self.start()
        self.wait("ready")
        self.end_with_a_copy()

    def check_guests(self, mode):
        self.start(copy_mode=mode)
        self.wait("ready")
        self.write(2, SIZE // 2, 65536)
        self.fail_next_flush()
        self.end_with_a_copy(complete=True)

    def test_a_mirror_sends_again_what_guests_wrote(self):
        self.check_guests("background")

    def test_a_blocking_mirror_sends_again_what_guests_wrote(self):
        self.check_guests("write-blocking")

    def test_a_mirror_that_was_cancelled_softly_fails(self):
        self.start()
        self.wait("ready")
        self.write(2, SIZE // 2, 65536)
        self.fail_next_flush()
        self.qmp.command("block-job-cancel", device="j")
        self.wait("concluded")
        self.assertEqual(self.job()["error"], "Input/output error")

    def test_a_mirror_that_pauses_sends_again_when_it_is_resumed(self):
        self.fail_next_flush()
        self.qmp.command(
            "blockdev-mirror", job_id="j", device="source", target="target", sync="full",
            on_target_error="stop", auto_dismiss=False,
        )  # fmt: skip
        self.wait("paused")
        self.qmp.command("job-resume", id="j")
        self.wait("ready")
        self.end_with_a_copy()

    def test_a_backup_fails(self):
        self.fail_next_flush()
        self.start("blockdev-backup")
        self.wait("concluded")
        self.assertEqual(self.job()["error"], "Input/output error")


if __name__ == "__main__":
    unittest.main()
