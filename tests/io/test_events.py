# SPDX-License-Identifier: Apache-2.0
"""Events that are limited to one a second for each thing that they are about."""

import time

import tidemark


class LimitTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        images = [self.create(f"{i}.raw", "1M", "raw") for i in range(3)]
        children = [
            {
                "driver": "blkdebug",
                "node-name": f"child{i}",
                "image": {"driver": "file", "filename": image},
                "inject-error": [
                    {"event": "none", "iotype": "read", "sector": sector, "errno": 5}
                    for sector in (10, 20, 30)
                ]
                if i == 0
                else [],
            }
            for i, image in enumerate(images)
        ]
        self.qmp = self.daemon().qmp
        self.qmp.command(
            "blockdev-add", driver="quorum", node_name="q", vote_threshold=2, children=children
        )
        path = self.path("nbd.sock")
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="q", name="q")
        self.uri = tidemark.nbd_uri(path, "q")

    def read(self, *sectors):
        reads = (f"read {sector * 512} 512" for sector in sectors)
        tidemark.io(self.uri, *reads, fmt="raw", options=("-r",))

    def bad(self):
        """What the next event reports: sector, and when it came."""
        event = self.qmp.wait_event("QUORUM_REPORT_BAD")
        self.assertEqual(event["data"]["node-name"], "child0")
        return event["data"]["sector-num"], time.monotonic()

    def nothing_more(self):
        self.qmp.command("query-version")
        self.assertEqual([e for e in self.qmp.events if e["event"].startswith("QUORUM")], [])

    def test_the_last_of_a_second_is_sent_at_its_end(self):
        self.read(10)
        sector, first = self.bad()
        self.assertEqual(sector, 10)
        self.read(20, 30)
        self.nothing_more()
        sector, second = self.bad()
        self.assertEqual(sector, 30)
        self.assertGreater(second - first, 0.5)  # the first may have been read late
        self.assertLess(second - first, 5)
        # An event that was late begins a second of its own.
        self.read(20)
        self.nothing_more()
        self.assertEqual(self.bad()[0], 20)
        time.sleep(1.1)
        self.nothing_more()

    def test_what_waits_is_sent_when_the_daemon_ends(self):
        self.read(10)
        self.bad()
        self.read(20)
        self.qmp.execute("quit")
        self.assertEqual(self.bad()[0], 20)
