# SPDX-License-Identifier: Apache-2.0
"""Limits of bytes and requests a second: the filter throttle and the object throttle-group."""

import os
import time
import unittest

from machine import Machine
from nbd_raw import READ, RawClient
from qmp import QmpError
from tidemark import TestCase


def disk(name, group="g", size=64 << 20):
    """Options of a throttled node without data."""
    return (
        "-blockdev",
        f"driver=throttle,node-name={name},throttle-group={group},file.driver=null-co,"
        f"file.size={size},file.read-zeroes=on",
    )


class ThrottleTest(TestCase):
    def machine(self, limits, *options):
        return Machine(self.dir, "-object", f"throttle-group,id=g,{limits}", *options)

    def seconds(self, machine, *lines):
        """How long the lines of qemu-io take."""
        before = time.monotonic()
        for node, line in lines:
            machine.hmp(f'qemu-io {node} "{line}"')
        return time.monotonic() - before

    def test_bytes_are_limited_after_the_first_ones(self):
        with self.machine("x-bps-total=10485760", *disk("d")) as machine:
            lines = [("d", "read 0 4M"), ("d", "read 0 512")]
            self.assertGreater(self.seconds(machine, *lines), 0.25)

    def test_requests_are_limited(self):
        with self.machine("x-iops-total=100", *disk("d")) as machine:
            lines = [("d", "write -q 0 512")] * 40
            self.assertGreater(self.seconds(machine, *lines), 0.2)

    def test_reads_and_writes_have_limits_of_their_own(self):
        with self.machine("x-bps-read=1024", *disk("d")) as machine:
            self.assertLess(self.seconds(machine, *[("d", "write -q 0 1M")] * 5), 9)
            self.assertLess(self.seconds(machine, *[("d", "discard 0 1M")] * 5), 9)

    def test_a_burst_passes(self):
        limits = "x-bps-total=1048576,x-bps-total-max=8388608"
        with self.machine(limits, *disk("d")) as machine:
            early = self.seconds(machine, *[("d", "read -q 0 1M")] * 8)
            late = self.seconds(machine, ("d", "read -q 0 1M"), ("d", "read 0 512"))
            self.assertLess(early, 4)  # without the burst, 7 seconds
            self.assertGreater(early + late, 0.4)

    def test_nodes_of_a_group_share_its_limits(self):
        with self.machine("x-bps-total=10485760", *disk("a"), *disk("b")) as machine:
            lines = [("a", "read -q 0 4M"), ("b", "read -q 0 512")]
            self.assertGreater(self.seconds(machine, *lines), 0.25)

    def test_a_drain_does_not_wait_for_the_limit(self):
        with self.machine("x-bps-total=1", *disk("d")) as machine:
            self.seconds(machine, ("d", "aio_read 0 64k"), ("d", "aio_read 0 64k"))
            before = time.monotonic()
            machine.qmp.command("block-dirty-bitmap-add", node="d", name="b")
            self.assertLess(time.monotonic() - before, 1)

    def test_a_reopen_changes_the_group(self):
        other = ("-object", "throttle-group,id=h")
        with self.machine("x-bps-total=1", *other, *disk("d,file.node-name=f")) as machine:
            options = {"driver": "throttle", "node-name": "d", "throttle-group": "h", "file": "f"}
            machine.hmp('qemu-io d "aio_read 0 64k"')
            machine.hmp('qemu-io d "aio_read 0 64k"')
            with self.assertRaisesRegex(QmpError, "Property values cannot be negative"):
                old = {"x-bps-read": -1}
                machine.qmp.command("object-add", qom_type="throttle-group", id="x", **old)
            with self.assertRaisesRegex(QmpError, "Throttle group 'x' does not exist"):
                machine.qmp.command("blockdev-reopen", options=[{**options, "throttle-group": "x"}])
            machine.qmp.command("blockdev-reopen", options=[options])
            self.assertLess(self.seconds(machine, *[("d", "read -q 0 4M")] * 5), 1)
            machine.qmp.command("object-del", id="g")
            with self.assertRaisesRegex(QmpError, "in use"):
                machine.qmp.command("object-del", id="h")

    def test_the_end_of_an_export_does_not_wait_for_the_limit(self):
        limits = '{"qom-type":"throttle-group","id":"g","limits":{"iops-total":1}}'
        daemon = self.daemon(
            "--object",
            limits,
            "--blockdev",
            "driver=throttle,node-name=d,throttle-group=g,file.driver=null-co,file.size=1048576",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.path('nbd')}",
            "--export",
            "type=nbd,id=e,node-name=d,name=d,writable=on",
        )
        client = RawClient(self.path("nbd"))
        client.go(b"d", structured=False)
        for _ in range(20):
            client.request(READ, 0, 512)
        client.receive(16 + 512)
        before = time.monotonic()
        daemon.qmp.command("block-export-del", id="e", mode="hard")
        daemon.wait_for(lambda: not daemon.qmp.command("query-block-exports"), "the export's end")
        daemon.stop()
        self.assertLess(time.monotonic() - before, 5)
        client.sock.close()

    def passing_machine(self, *options):
        return Machine(
            self.dir,
            "-object",
            "throttle-group,id=g",
            "-blockdev",
            "driver=raw,node-name=top,file.driver=throttle,file.node-name=d,file.throttle-group=g,"
            "file.file.driver=null-co,file.file.node-name=f,file.file.size=67108864",
            *options,
        )

    def stats(self, machine):
        """Of each node: reads, writes, bytes written, flushes, end of the furthest write."""
        nodes = machine.qmp.command("query-blockstats", query_nodes=True)
        names = ("rd_operations", "wr_operations", "wr_bytes", "flush_operations")
        return {
            node["node-name"]: [
                *(node["stats"][name] for name in names),
                node["stats"]["wr_highest_offset"],
            ]
            for node in nodes
            if "node-name" in node
        }

    def test_requests_without_a_limit_count_at_both_nodes_and_are_flushed(self):
        with self.passing_machine() as machine:
            self.seconds(machine, ("d", "read -q 0 4k"), ("d", "read -q 8k 4k"))
            self.seconds(machine, ("top", "write -q 1M 8k"), ("top", "flush"))
            figures = [2, 1, 8192, 1, (1 << 20) + 8192]
            self.assertEqual(self.stats(machine)["d"], figures)
            self.assertEqual(self.stats(machine)["f"], figures)

    def test_nodes_that_part_keep_what_they_counted(self):
        other = ("-blockdev", "driver=null-co,node-name=g,size=67108864")
        with self.passing_machine(*other) as machine:
            options = {"driver": "throttle", "node-name": "d", "throttle-group": "g", "file": "g"}
            self.seconds(machine, ("d", "read -q 0 4k"), ("d", "write -q 4M 4k"))
            machine.qmp.command("blockdev-reopen", options=[options])
            self.seconds(machine, ("d", "read -q 0 4k"), ("d", "write -q 1M 4k"))
            stats = self.stats(machine)
            self.assertEqual(stats["d"], [2, 2, 8192, 0, (4 << 20) + 4096])
            self.assertEqual(stats["g"], [1, 1, 4096, 0, (1 << 20) + 4096])

    def test_limits_set_in_use_hold_from_the_next_request_on(self):
        with self.passing_machine() as machine:
            self.seconds(machine, *[("d", "read -q 0 4M")] * 5)
            limits = {"bps-total": 10 << 20}
            machine.qmp.command("qom-set", path="g", property="limits", value=limits)
            for kind in ("read", "write"):
                lines = [("d", f"{kind} -q 0 4M"), ("d", f"{kind} -q 0 512")]
                self.assertGreater(self.seconds(machine, *lines), 0.25)
            machine.qmp.command("qom-set", path="g", property="limits", value={"bps-total": 0})
            self.assertLess(self.seconds(machine, *[("d", "write -q 0 4M")] * 9), 3)
            self.assertEqual(self.stats(machine)["d"], self.stats(machine)["f"])

    def test_a_filter_that_lets_pass_still_marks_and_watches(self):
        with self.passing_machine() as machine:
            self.seconds(machine, ("d", "write -q 0 64k"))
            machine.qmp.command("block-dirty-bitmap-add", node="d", name="b", granularity=65536)
            self.seconds(machine, ("d", "write -q 1M 64k"), ("top", "write -q 2M 64k"))
            nodes = {n["node-name"]: n for n in machine.qmp.command("query-named-block-nodes")}
            self.assertEqual(nodes["d"]["dirty-bitmaps"][0]["count"], 131072)
            machine.qmp.command("block-dirty-bitmap-remove", node="d", name="b")
            machine.qmp.command(
                "block-set-write-threshold", node_name="d", write_threshold=3 << 20
            )
            self.seconds(machine, ("d", "write -q 3M 64k"))
            event = machine.qmp.wait_event("BLOCK_WRITE_THRESHOLD")["data"]
            self.assertEqual((event["node-name"], event["amount-exceeded"]), ("d", 65536))

    def test_zeroes_are_detected_by_a_filter_that_lets_pass(self):
        with open(self.path("disk"), "wb") as file:
            file.write(b"x" * (1 << 20))
        options = "driver=throttle,node-name=z,throttle-group=g,detect-zeroes=unmap,discard=unmap"
        other = ("-blockdev", f"{options},file.driver=file,file.filename={self.path('disk')}")
        with self.passing_machine(*other) as machine:
            self.seconds(machine, ("z", "write -q -P 0 0 1M"), ("z", "flush"))
            self.assertEqual(os.stat(self.path("disk")).st_blocks, 0)

    def test_a_group_in_use_stays(self):
        with self.machine("x-bps-total=1", *disk("d")) as machine:
            with self.assertRaisesRegex(QmpError, "in use"):
                machine.qmp.command("object-del", id="g")
            machine.qmp.command("blockdev-del", node_name="d")
            machine.qmp.command("object-del", id="g")

    def test_what_makes_no_sense_is_refused(self):
        cases = [
            ({"bps-total": 1, "bps-read": 1}, "total values and read/write values cannot be used"),
            ({"bps-total": 10**16}, "values must be within"),
            ({"iops-total": -1}, r"^GenericError: bps/iops/max values must be within \[0, 10{15}\]$"),
            ({"bps-read": 6, "bps-read-max": -1}, "max values must be within"),
            ({"iops-total-max-length": -1}, "cannot be negative"),
            ({"iops-size": 4096}, "iops size requires an iops value to be set"),
            ({"bps-read-max": 5}, "require corresponding bps/iops values"),
            ({"bps-read": 6, "bps-read-max": 5}, "cannot be lower than bps/iops"),
            ({"bps-read": 6, "bps-read-max-length": 5}, "burst length set without burst rate"),
            ({"bps-read": 6, "bps-read-max": 7, "bps-read-max-length": 0}, "length cannot be 0"),
            ({"bps-all": 6}, "'limits.bps-all' is unexpected"),
        ]
        with self.machine("x-bps-total=1") as machine:
            for limits, sentence in cases:
                with self.assertRaisesRegex(QmpError, sentence):
                    machine.qmp.command(
                        "object-add", qom_type="throttle-group", id="x", limits=limits
                    )
            with self.assertRaisesRegex(QmpError, "Throttle group 'x' does not exist"):
                machine.qmp.command(
                    "blockdev-add",
                    driver="throttle",
                    node_name="t",
                    throttle_group="x",
                    file={"driver": "null-co"},
                )


if __name__ == "__main__":
    unittest.main()
