# SPDX-License-Identifier: Apache-2.0
"""Requests that take long are reported once, with what they wait for."""

import os
import time

import tidemark
from hung_file import HungFileCase
from nbd_raw import READ, WRITE, RawClient

LIMIT = ("--slow-request", "0.3")
# Several times the limit: what is reported once is not reported again.
AFTER_A_REPORT = 1.0


def reports(process):
    return [line for line in process.log().splitlines() if "so far; it waits for" in line]


def wait_for_report(process, count=1):
    process.wait_for(lambda: len(reports(process)) >= count, f"{count} reports of slow requests")


class HungWrites(HungFileCase):
    options = LIMIT

    def test_one_line_names_client_request_and_file(self):
        client = self.client("sick")
        self.write(client, 0, b"s")
        self.freeze()
        client.request(WRITE, 4096, 8192, payload=b"h" * 8192)
        wait_for_report(self.server)
        time.sleep(AFTER_A_REPORT)
        lines = reports(self.server)
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("warning", lines[0])
        self.assertIn(
            f"NBD export 'sick', client unix:{os.getpid()}: write of 8192 bytes at offset 4096",
            lines[0],
        )
        self.assertTrue(lines[0].endswith(f"it waits for a write to '{self.sick}'"), lines[0])
        self.thaw()
        self.assertEqual(client.simple_reply(), (1, 0))

    def test_names_of_files_stay_within_the_line(self):
        client = self.client("sick")
        self.write(client, 0, b"s")
        os.rename(self.sick, self.sick + "\nforged\x1b[2J")
        self.freeze()
        client.request(WRITE, 4096, 4096, payload=b"h" * 4096)
        wait_for_report(self.server)
        line = reports(self.server)[0]
        self.assertRegex(line, r" has taken (0\.\d{3}|\d+\.\d) s so far; .*sick\.raw\?forged\?\[2J'$")
        self.thaw()
        self.assertEqual(client.simple_reply(), (1, 0))

    def test_what_waits_for_the_write_is_reported_too(self):
        sick = self.let_hang(24, clients=2)
        wait_for_report(self.server, 8)
        self.server.wait_for(
            lambda: "more requests have taken longer than 0.3 s" in self.server.log(),
            "a line for the others",
        )
        self.thaw()
        self.assert_complete(sick, 24)

    def test_a_copy_before_write_names_its_target(self):
        good = self.client("good")
        self.write(good, 0, b"g")
        qmp = self.server.qmp
        qmp.command("block-export-del", id="sick")
        qmp.command("blockdev-add", **{"driver": "copy-before-write", "node-name": "cbw",
                                       "file": "good", "target": "sick"})  # fmt: skip
        qmp.command("blockdev-replace", export="good", **{"node-name": "cbw"})
        self.freeze()
        good.request(WRITE, 1 << 20, 4096, payload=b"n" * 4096)
        wait_for_report(self.server)
        line = reports(self.server)[0]
        self.assertIn("it waits for a copy before write to node 'sick'", line)
        self.thaw()
        self.assertEqual(good.simple_reply(), (1, 0))


class NotReported(tidemark.TestCase):
    def test_a_client_that_does_not_take_its_reply_is_not_reported(self):
        disk = self.create("disk.raw", "64M", "raw")
        nbd = self.path("nbd.sock")
        server = self.own(
            tidemark.Process(
                tidemark.tool("nbd") + ["-t", "-k", nbd, "-f", "raw", "--slow-request", "2", disk],
                self.path("log"),
            )
        )
        server.wait_for(lambda: tidemark.can_connect(nbd), "the server")
        client = RawClient(nbd)
        self.addCleanup(client.sock.close)
        client.go(b"", structured=False)
        for n in range(8):
            client.request(READ, n << 20, 8 << 20)
        time.sleep(3)
        self.assertEqual(reports(server), [])

    def test_wrong_limits_are_refused(self):
        for value in ("-1", "x", "", "inf", "nan", "1e300", "5s"):
            result = tidemark.run(
                *tidemark.tool("nbd"), "--slow-request", value, "disk", check=False
            )
            self.assertEqual(result.returncode, 1)
            self.assertIn(f"Invalid value '{value}' of --slow-request", result.stderr)
