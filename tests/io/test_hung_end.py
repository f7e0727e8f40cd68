# SPDX-License-Identifier: Apache-2.0
"""The end of the daemon while a disk hangs: seconds, unless there are writes without a flush."""

import json
import os
import signal
import socket
import time

from hung_file import PATIENCE
from hung_image import HungImageCase
from nbd_hostile import HeldFlush, Hostile, export_info
from nbd_raw import WRITE, RawClient
from tidemark import TestCase, img, io, wait_until

SECONDS = 3 * PATIENCE
# What nothing is waited for any longer that loses no writes.
SOON = 5


class HungEnd(HungImageCase):
    def setUp(self):
        self.inherited, other_end = socket.socketpair()
        for end in self.inherited, other_end:
            self.addCleanup(end.close)
        self.other_end = other_end
        self.process_options = {"pass_fds": [self.inherited.fileno()]}
        super().setUp()
        for name in "sick", "good":
            self.server.qmp.command("block-dirty-bitmap-add", node=name, name="b", persistent=True)

    def end(self):
        os.kill(self.server.process.pid, signal.SIGTERM)

    def bitmaps(self, image):
        info = json.loads(img("info", "--output=json", image).stdout)
        return [(b["name"], b["flags"]) for b in info["format-specific"]["data"]["bitmaps"]]

    def wait_for_image(self, image):
        """The daemon has closed it."""
        wait_until(lambda: img("info", image, check=False).returncode == 0, "the image's lock")

    def add_many(self):
        """Files that hang, and one with a higher descriptor that does not."""
        for i in range(30):
            self.server.qmp.command(
                "blockdev-add", driver="file", node_name=f"f{i}", filename=self.sick, read_only=True
            )
        late = self.create("late.qcow2", "8M")
        self.server.qmp.command(
            "blockdev-add", driver="qcow2", node_name="late",
            file={"driver": "file", "filename": late},
        )  # fmt: skip
        return late

    def test_bitmaps_of_a_disk_that_hangs_are_given_up(self):
        late = self.add_many()
        self.write("good")
        self.write("sick", flush=True)
        self.freeze()
        monitor = self.server.connect(timeout=2 * PATIENCE)
        self.addCleanup(monitor.close)
        self.end()
        # The process itself is gone as soon as the system lets go of its files.
        self.assertRaises(EOFError, monitor.receive_answer)
        log = self.server.log()
        self.assertIn("node 'sick' is left incomplete: its storage hangs", log)
        self.assertNotIn("'good'", log)
        self.wait_for_image(self.good)
        self.wait_for_image(late)
        self.assertEqual(self.bitmaps(self.good), [("b", ["auto"])])
        self.thaw()
        self.assertEqual(self.server.wait(SECONDS), 1)
        self.inherited.sendall(b"?")
        self.assertEqual(self.other_end.recv(1), b"?")
        self.assertEqual(self.bitmaps(self.sick), [("b", ["in-use", "auto"])])
        io(self.sick, "read -P 0x73 4k 4k", fmt="qcow2")

    def test_writes_that_would_be_lost_are_waited_for(self):
        self.write("sick")
        self.freeze()
        self.end()
        time.sleep(SOON + 2)
        self.assertTrue(self.server.is_running(), self.server.log())
        self.thaw()
        self.assertEqual(self.server.wait(SECONDS), 0, self.server.log())
        self.assertEqual(self.bitmaps(self.sick), [("b", ["auto"])])
        io(self.sick, "read -P 0x73 4k 4k", fmt="qcow2")


class SlowFlush(TestCase):
    """One operation, of which nothing tells that the disk does not hang."""

    def start(self):
        flush = HeldFlush(every=True)
        self.addCleanup(flush.end.set)
        path, nbd = self.path("remote"), self.path("nbd.sock")
        remote = Hostile(
            path, info=[export_info(flags=1 | 4)], on_request=flush.answer, structured=False
        )
        self.addCleanup(remote.close)
        server = self.daemon(
            "--blockdev", f"raw,node-name=d,file.driver=nbd,file.server.type=unix,"
                          f"file.server.path={path}",
            "--blockdev", f"null-co,node-name=spare,size={1 << 20}",
            "--nbd-server", f"addr.type=unix,addr.path={nbd}",
            "--export", "nbd,id=d,node-name=d,name=d,writable=on",
        )  # fmt: skip
        with RawClient(nbd, timeout=PATIENCE) as client:
            client.go(b"d", structured=False)
            client.request(WRITE, 4096, 4096, payload=b"s" * 4096)
            self.assertEqual(client.simple_reply(), (1, 0))
        return server, flush

    def end(self, server, flush):
        os.kill(server.pid, signal.SIGTERM)
        self.assertTrue(flush.begun.wait(PATIENCE))
        time.sleep(SOON + 1)
        self.assertTrue(server.is_running(), server.log())
        flush.end.set()
        status = server.wait(SECONDS)
        self.assertNotIn("incomplete", server.log())
        return status

    def test_a_disk_that_takes_long_to_write_what_the_kernel_has(self):
        self.assertEqual(self.end(*self.start()), 0)

    def test_a_command_that_writes_that(self):
        server, flush = self.start()
        with server.connect(timeout=PATIENCE) as monitor:
            arguments = {"export": "d", "node-name": "spare"}
            monitor.send_raw(json.dumps({"execute": "blockdev-replace", "arguments": arguments}))
            self.assertTrue(flush.begun.wait(PATIENCE))
            self.assertEqual(self.end(server, flush), 1)
