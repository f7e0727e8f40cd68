# SPDX-License-Identifier: Apache-2.0
"""block-stream: copies what backing files have into an image in use, and drops them."""

import unittest

import tidemark
from chain_case import MIB, ChainCase, Guest

IMAGES = ((24, 65536), (16, 4096), (32, 2 * MIB), (32, 65536))
STARTED = ["created", "running"]
ENDED = ["waiting", "pending", "COMPLETED", "concluded", "null"]


class StreamTest(ChainCase):
    def stream(self, device="d", job="job", **more):
        self.qmp.command("block-stream", device=device, job_id=job, **more)

    def test_a_guest_writes_meanwhile(self):
        self.make_chain(*IMAGES)
        self.start()
        guest = Guest(self.uri, self.disk)
        self.stream(base_node="a", speed=16 * MIB)
        self.assertEqual(self.events("job"), STARTED + ENDED)
        self.assertEqual((self.last["len"], self.last["offset"]), (32 * MIB, 32 * MIB))
        self.assertGreater(guest.stop(), 20)
        self.assertEqual(self.backing("d"), (self.path("a.qcow2"), "qcow2"))
        self.qmp.command("blockdev-del", node_name="c")
        self.qmp.command("blockdev-del", node_name="b")
        self.server.stop()
        for name in "bc":
            tidemark.run("truncate", "-s0", self.path(name + ".qcow2"))
        self.names = "ad"
        self.assert_disk()

    def test_the_whole_chain(self):
        self.make_chain(*IMAGES)
        self.start()
        guest = Guest(self.uri, self.disk)
        self.stream()
        self.assertEqual(self.events("job"), STARTED + ENDED)
        guest.stop()
        self.assertEqual(self.backing("d"), (None, None))
        self.server.stop()
        self.assert_disk()
        for name in "abc":
            tidemark.run("truncate", "-s0", self.path(name + ".qcow2"))
        self.names = "d"
        self.assert_disk()


if __name__ == "__main__":
    unittest.main()
