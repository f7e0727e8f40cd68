# SPDX-License-Identifier: Apache-2.0
"""Migration between stand-ins for QEMU's system emulator: build/compat/qemu-system-x86_64."""

import os
import unittest

from machine import Machine
from qmp import QmpError
from tidemark import TIMEOUT, TestCase, io, wait_until


class MigrationTest(TestCase):
    """What one machine has goes on in another one: disks and bitmaps, without a guest."""

    DISK = ["-drive", "if=none,id=d,file=disk.qcow2,node-name=n", "-device", "virtio-blk,drive=d"]

    def setUp(self):
        super().setUp()
        self.create("disk.qcow2", "1M")

    def machine(self, *options):
        return Machine(self.dir, *options)

    def refusal(self, machine, name, /, **arguments):
        with self.assertRaises(QmpError) as caught:
            machine.qmp.command(name, **arguments)
        return caught.exception.desc

    def migrate(self, machine, uri, *capabilities):
        names = ("events", *capabilities)
        machine.qmp.command("migrate-set-capabilities",
                            capabilities=[{"capability": name, "state": True} for name in names])  # fmt: skip
        machine.qmp.command("migrate", uri=uri)

    def wait(self, machine, *expected):
        seen = []
        while seen[-1:] not in (["completed"], ["failed"]):
            seen.append(machine.qmp.wait_event("MIGRATION")["data"]["status"])
        self.assertEqual(seen, list(expected))

    def digest(self, machine, name):
        return machine.qmp.command("x-debug-block-dirty-bitmap-sha256", node="n", name=name)["sha256"]

    def test_a_disk_and_its_bitmaps_go_over(self):
        uri = f"unix:{self.path('s')}"
        with self.machine(*self.DISK) as source, self.machine(*self.DISK, "-incoming", uri) as target:
            on = [{"capability": name, "state": True} for name in ("events", "dirty-bitmaps")]
            target.qmp.command("migrate-set-capabilities", capabilities=on)
            for name, persistent in (("kept", True), ("other", False)):
                source.qmp.command("block-dirty-bitmap-add", node="n", name=name,
                                   persistent=persistent, granularity=4096)  # fmt: skip
            source.hmp('qemu-io d "write -P 7 64k 12k"')
            digest = self.digest(source, "kept")
            self.assertEqual(target.qmp.command("query-status")["status"], "inmigrate")
            self.migrate(source, uri, "dirty-bitmaps")
            self.wait(source, "setup", "active", "device", "completed")
            self.wait(target, "active", "completed")
            wait_until(lambda: source.qmp.command("query-status")["status"] == "postmigrate", "the end")
            self.assertEqual(target.qmp.command("query-status")["status"], "running")
            self.assertEqual([self.digest(target, name) for name in ("kept", "other")], [digest] * 2)
            source.hmp('qemu-io d "write 0 4k"')
            target.hmp('qemu-io d "write -P 8 0 4k"')
            target.hmp('qemu-io d "read -P 7 64k 12k"')
            self.assertNotIn("verification failed", target.end())
            self.assertIn("write failed: Operation not permitted", source.end())
        io(self.path("disk.qcow2"), "read -P 8 0 4k", "read -P 7 64k 12k", fmt="qcow2")

    def test_a_machine_that_cannot_leave_goes_on(self):
        self.create("target.qcow2", "1M")
        with self.machine(*self.DISK) as machine:
            machine.hmp('qemu-io d "write 0 1M"')
            machine.qmp.command("drive-backup", job_id="j", device="d", sync="full", speed=1,
                                target=self.path("target.qcow2"), mode="existing")  # fmt: skip
            self.migrate(machine, "exec:cat >state")
            self.wait(machine, "setup", "active", "device", "failed")
            self.assertIn("error-desc", machine.qmp.command("query-migrate"))
            wait_until(lambda: machine.qmp.command("query-status")["running"], "the machine")
            machine.hmp('qemu-io d "write -P 9 0 4k"')
            machine.hmp('qemu-io d "read -P 9 0 4k"')
            self.assertNotIn("rror", machine.end())

    def test_it_goes_through_a_file_and_waits_to_be_let_go(self):
        with self.machine(*self.DISK) as source:
            source.hmp('qemu-io d "write -P 7 0 4k"')
            self.assertIn("unknown migration protocol", self.refusal(source, "migrate", uri="x:y"))
            self.assertIn("not in expected state", self.refusal(source, "migrate-continue", state="active"))
            self.migrate(source, "exec:cat >state", "pause-before-switchover")
            while source.qmp.wait_event("MIGRATION")["data"]["status"] != "pre-switchover":
                pass
            source.qmp.command("migrate-continue", state="pre-switchover")
            self.wait(source, "device", "completed")
        with self.machine(*self.DISK, "-incoming", "defer") as target:
            self.assertIn("Guest is waiting", self.refusal(target, "migrate", uri="exec:cat"))
            target.qmp.command("migrate-incoming", uri="exec:cat state")
            wait_until(lambda: target.qmp.command("query-status")["running"], "the machine")
            target.hmp('qemu-io d "read -P 7 0 4k"')
            self.assertNotIn("verification failed", target.end())

    def logging(self, *options):
        with open(self.path("log"), "w", encoding="utf-8") as log:
            return Machine(self.dir, *options, log=log)

    def logged(self):
        with open(self.path("log"), encoding="utf-8") as log:
            return log.read()

    def bitmaps_after(self, source_mapping, target_mapping, names=("a", "b")):
        """Names and persistence on the target's node of another name, and what it has logged."""
        uri = f"unix:{self.path('s')}"
        options = ["-drive", "if=none,id=e,file=disk.qcow2,node-name=m", "-incoming", uri]
        with self.machine(*self.DISK) as source, self.logging(*options) as target:
            for machine, mapping in ((source, source_mapping), (target, target_mapping)):
                on = [{"capability": name, "state": True} for name in ("events", "dirty-bitmaps")]
                machine.qmp.command("migrate-set-capabilities", capabilities=on)
                if mapping is not None:
                    machine.qmp.command("migrate-set-parameters", block_bitmap_mapping=mapping)
            for name in names:
                source.qmp.command("block-dirty-bitmap-add", node="n", name=name)
            source.qmp.command("migrate", uri=uri)
            wait_until(lambda: target.qmp.command("query-status")["running"], "the machine")
            nodes = target.qmp.command("query-named-block-nodes")
            [found] = (node.get("dirty-bitmaps", []) for node in nodes if node["node-name"] == "m")
            target.end()
        return {b["name"]: b["persistent"] for b in found}, self.logged()

    def node_alias(self, node, alias, *bitmaps):
        keys = ("name", "alias", "transform")
        bitmaps = [dict(zip(keys, bitmap)) for bitmap in bitmaps]
        return {"node-name": node, "alias": alias, "bitmaps": bitmaps}

    def test_bitmaps_go_over_under_other_names(self):
        out = [self.node_alias("n", "way", ("a", "1"), ("b", "2", {"persistent": True}))]
        into = [self.node_alias("m", "way", ("x", "1", {"persistent": True}), ("y", "2"))]
        self.assertEqual(self.bitmaps_after(out, into)[0], {"x": True, "y": True})
        for mapping, expected, says in (
            ((None, None), {}, "Cannot find device='d' nor node-name='d'"),
            ((out, []), {}, "Unknown node alias 'way'"),
            ((out, [self.node_alias("m", "way")]), {}, "Unknown bitmap alias '2' on node 'm' (alias 'way')"),
            (([], into), {}, ""),
            (([self.node_alias("n", "way", ("b", "1"))], into), {"x": True}, ""),
        ):
            self.create("disk.qcow2", "1M")
            found, log = self.bitmaps_after(*mapping)
            self.assertEqual(found, expected)
            self.assertIn(says, log)

    def test_a_bitmap_of_a_larger_disk_is_lost(self):
        """One without all of its bits would make incomplete backups."""
        self.create("small.qcow2", "64k")
        uri = f"unix:{self.path('s')}"
        small = ["-drive", "if=none,id=d,file=small.qcow2,node-name=n", "-incoming", uri]
        with self.machine(*self.DISK) as source, self.logging(*small) as target:
            on = [{"capability": "dirty-bitmaps", "state": True}]
            target.qmp.command("migrate-set-capabilities", capabilities=on)
            source.qmp.command("block-dirty-bitmap-add", node="n", name="a")
            source.hmp('qemu-io d "write 512k 64k"')
            self.migrate(source, uri, "dirty-bitmaps")
            wait_until(lambda: target.qmp.command("query-status")["running"], "the machine")
            [node] = (n for n in target.qmp.command("query-named-block-nodes") if n["node-name"] == "n")
            self.assertEqual(node.get("dirty-bitmaps", []), [])
            target.end()
        self.assertIn("Bitmap 'a' is of a disk of another size", self.logged())

    def test_mappings_that_are_refused(self):
        one, long = self.node_alias("n", "one"), "a" * 256
        for mapping, says in (
            ([one, self.node_alias("n", "two")], "The node name 'n' is mapped twice"),
            ([one, self.node_alias("m", "one")], "The node alias 'one' is used twice"),
            ([self.node_alias("n", "1-n")], "The node alias '1-n' is not well-formed"),
            ([self.node_alias("n", long)], f"The node alias '{long}' is longer than 255 bytes"),
            ([self.node_alias(long, "n")], f"The node name '{long}' is longer than 31 bytes"),
            ([self.node_alias("n", "one", ("a", "b"), ("a", "c"))], "The bitmap 'n'/'a' is mapped twice"),
            ([self.node_alias("n", "one", ("a", "c"), ("b", "c"))], "The bitmap alias 'one'/'c' is used twice"),
            ([self.node_alias("n", "one", ("a", long))], f"The bitmap alias '{long}' is longer than 255 bytes"),
            ([self.node_alias("n", "one", (4 * long, "a"))],
             f"The bitmap name '{4 * long}' is longer than 1023 bytes"),
        ):  # fmt: skip
            with self.machine(*self.DISK) as machine:
                machine.qmp.command("migrate-set-parameters", block_bitmap_mapping=[one])
                self.assertEqual(
                    self.refusal(machine, "migrate-set-parameters", block_bitmap_mapping=mapping),
                    "Invalid mapping given for block-bitmap-mapping: " + says,
                )
                shown = machine.hmp("info migrate_parameters")
                self.assertEqual(shown, "block-bitmap-mapping:\r\n  'n' -> 'one'\r\n")

    def test_a_name_that_is_too_long_to_go_over(self):
        """The machine that waits for it ends."""
        uri, name = f"unix:{self.path('s')}", "a" * 256
        with self.logging(*self.DISK) as source, self.machine(*self.DISK, "-incoming", uri) as target:
            source.qmp.command("block-dirty-bitmap-add", node="n", name=name)
            self.migrate(source, uri, "dirty-bitmaps")
            self.assertEqual(target.process.wait(TIMEOUT), 1)
            wait_until(lambda: source.qmp.command("query-status")["running"], "the machine")
        self.assertIn(f"Cannot migrate bitmap '{name}' on node 'd': Name is longer than 255", self.logged())

    def test_what_is_on_a_disk_waits_for_it(self):
        self.create("base.qcow2", "1M")
        io(self.path("base.qcow2"), "write -P 5 0 64k", fmt="qcow2")
        self.create("top.qcow2", "1M", options=("-b", self.path("base.qcow2"), "-F", "qcow2"))
        for name, option, kept in (("disk.qcow2", "snapshot=on", 0), ("top.qcow2", "copy-on-read=on", 9)):
            drive = f"if=none,id=d,file={name},{option}"
            with self.machine("-drive", drive, "-incoming", f"unix:{self.path('s')}") as target:
                with self.machine() as source:
                    self.migrate(source, f"unix:{self.path('s')}")
                    wait_until(lambda: target.qmp.command("query-status")["running"], "the machine")
                target.hmp('qemu-io d "write -P 9 64k 64k"')
                target.hmp('qemu-io d "read -P 9 64k 64k"')
                self.assertNotIn("rror", target.end())
            io(self.path(name), f"read -P {kept} 64k 64k", fmt="qcow2")

    def test_a_machine_that_waits_in_vain_ends(self):
        os.mkfifo(self.path("fifo"))
        for uri in (f"unix:{self.path('s')}", "exec:cat fifo"):
            with self.machine(*self.DISK, "-incoming", uri) as machine:
                machine.end()
                self.assertEqual(machine.process.returncode, 0)
        self.assertFalse(os.path.exists(self.path("s")))


if __name__ == "__main__":
    unittest.main()
