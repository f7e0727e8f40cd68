# SPDX-License-Identifier: Apache-2.0
"""Limits of bytes and requests a second: the filter throttle and the object throttle-group."""

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
            self.assertLess(self.seconds(machine, ("d", "read 0 4M")), 0.3)
            self.assertGreater(self.seconds(machine, ("d", "read 0 512")), 0.25)

    def test_requests_are_limited(self):
        with self.machine("x-iops-total=100", *disk("d")) as machine:
            lines = [("d", "write -q 0 512")] * 40
            self.assertGreater(self.seconds(machine, *lines), 0.2)

    def test_reads_and_writes_have_limits_of_their_own(self):
        with self.machine("x-bps-read=1024", *disk("d")) as machine:
            self.assertLess(self.seconds(machine, *[("d", "write -q 0 1M")] * 5), 0.5)
            self.assertLess(self.seconds(machine, *[("d", "discard 0 1M")] * 5), 0.5)

    def test_a_burst_passes(self):
        limits = "x-bps-total=1048576,x-bps-total-max=8388608"
        with self.machine(limits, *disk("d")) as machine:
            self.assertLess(self.seconds(machine, *[("d", "read -q 0 1M")] * 8), 0.3)
            late = self.seconds(machine, ("d", "read -q 0 1M"), ("d", "read 0 512"))
            self.assertGreater(late, 0.4)

    def test_nodes_of_a_group_share_its_limits(self):
        with self.machine("x-bps-total=10485760", *disk("a"), *disk("b")) as machine:
            self.seconds(machine, ("a", "read -q 0 4M"))
            self.assertGreater(self.seconds(machine, ("b", "read -q 0 512")), 0.25)

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
