# SPDX-License-Identifier: Apache-2.0
"""Backups of a disk of QEMU's system emulator, as it is, whose guest must not wait long."""

import json
import os
import subprocess

from backup_case import MIB
from qemu_machine import MachineCase
from tidemark import run, tool, wait_until

CLUSTER = 65536


class TestFilters(MachineCase):
    def test_each_backup_restores_to_its_own_point_in_time(self):
        taken = []
        self.fill(0, 4 * MIB)
        self.fill(self.size - 5120, 5120)
        taken.append((self.backup(), bytes(self.model)))
        self.fill(MIB, CLUSTER)
        taken.append((self.backup(), bytes(self.model)))
        self.fill(2 * MIB, MIB)
        held = self.hold_backup()
        model = bytes(self.model)
        self.assertNotEqual(self.nodes_of_devices(), ["disk"])
        self.fill(2 * MIB, MIB)
        self.fill(8 * MIB, MIB)
        status, said = held.release()
        self.assertEqual(status, 0, said)
        taken.append((self.list_backups()[-1], model))
        taken.append((self.backup(), bytes(self.model)))
        self.assertEqual(
            [(m["kind"], m["moved-bytes"]) for m, _ in taken],
            [("full", 4 * MIB + CLUSTER), ("incremental", CLUSTER), ("incremental", MIB),
             ("incremental", 2 * MIB)],
        )  # fmt: skip
        for manifest, model in taken:
            self.assert_restores(manifest, model)
        self.assert_sound()
        self.assert_settled()

    def test_both_methods_by_turns(self):
        self.fill(0, MIB)
        self.backup()
        for limit in ((), ("--cbw-timeout", "0"), (), ("--cbw-timeout", "5")):
            self.limit = limit
            self.fill(0, CLUSTER)
            manifest = self.backup()
            self.assertEqual((manifest["reason"], manifest["moved-bytes"]), (None, CLUSTER))
            self.assert_restores(manifest, self.model)
            self.assert_settled()

    def test_what_a_killed_run_has_left(self):
        """By the next run of the same method, of the other one, and by --forget."""
        self.fill(0, MIB)
        self.backup()
        for limit in ((), self.limit):
            self.fill(0, CLUSTER)
            self.limit = MachineCase.limit
            self.hold_backup().kill()
            self.assertNotEqual(self.nodes_of_devices(), ["disk"])
            self.fill(4 * MIB, CLUSTER)
            self.limit = limit
            manifest = self.backup()
            self.assertEqual((manifest["reason"], manifest["moved-bytes"]), (None, 2 * CLUSTER))
            self.assert_restores(manifest, self.model)
            self.assert_settled()
        self.limit = MachineCase.limit
        self.hold_backup().kill()
        self.fill(0, CLUSTER)
        (left,) = json.loads(
            run(*tool("backup"), "--qmp", self.monitor, "--leftovers", "--output=json").stdout
        )
        self.assertEqual((left["state"], left["bitmaps"]), ("cut-off", 2))
        run(*tool("backup"), "--qmp", self.monitor, "--forget", left["repository"])
        self.assertEqual((self.own_nodes(), self.own_bitmaps()), ([], {}))
        self.assertEqual(self.nodes_of_devices(), ["disk"])

    def test_a_guard_cleans_up_after_a_kill(self):
        self.fill(0, MIB)
        self.backup()
        self.fill(0, CLUSTER)
        self.hold_backup(guard=True).kill()
        wait_until(lambda: not self.own_nodes(), "the guard")
        wait_until(lambda: len(self.own_bitmaps()) == 1, "the bitmaps in order")
        wait_until(lambda: not self.own_files(), "the temporary image to go")
        self.assert_settled()
        self.assertEqual(self.backup()["moved-bytes"], CLUSTER)

    def test_it_is_killed_at_any_time(self):
        self.fill(0, 8 * MIB)
        first = self.backup()
        model = bytes(self.model)
        for milliseconds in (5, 15, 30, 50, 80):
            self.fill(self.random.randrange(16) * 512 * 1024, MIB // 2)
            process = subprocess.Popen(
                [*self.backup_words("--no-guard")], stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                process.wait(milliseconds / 1000)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.fill(self.random.randrange(16) * 512 * 1024, MIB // 2)
        manifest = self.backup()
        self.assertIsNone(manifest["reason"])
        self.assert_restores(manifest, self.model)
        self.assert_restores(first, model)
        self.assert_sound()
        self.assert_settled()

    def test_a_guests_write_goes_on_when_old_data_cannot_be_kept(self):
        as_root = () if os.geteuid() == 0 else ("sudo", "-n")
        small = self.path("small")
        os.mkdir(small)
        run(*as_root, "mount", "-t", "tmpfs", "-o", f"size=2m,uid={os.geteuid()}", "tmpfs", small)
        self.addCleanup(run, *as_root, "umount", "-l", small)
        self.fill(0, 8 * MIB)
        self.backup()
        self.fill(0, 8 * MIB)
        # At that rate most of it is not read yet when it is overwritten.
        held = self.hold_backup("--fleece-dir", small, "--rate", "512K")
        self.fill(0, 8 * MIB)
        status, _ = held.release()
        self.assertEqual(status, 1)
        self.assert_settled()
        manifest = self.backup()
        self.assertIsNone(manifest["reason"])
        self.assert_restores(manifest, self.model)

    def test_a_disk_that_two_devices_use_is_refused(self):
        self.server.quit()
        self.start(
            "-device", "virtio-blk-pci,id=vd0,drive=disk,share-rw=on",
            "-device", "virtio-blk-pci,id=vd1,drive=disk,share-rw=on",
        )  # fmt: skip
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("needs a disk that is used by one device", result.stderr)
        self.assertEqual((self.own_nodes(), self.own_bitmaps()), ([], {}))

    def test_devices_of_other_kinds(self):
        for device, options in (
            ("/machine/peripheral/vd0/virtio-backend",
             ("-device", "virtio-blk-pci,id=vd0,drive=disk,iothread=io0")),
            ("vd0", ("-device", "virtio-scsi-pci", "-device", "scsi-hd,id=vd0,drive=disk")),
        ):  # fmt: skip
            self.server.quit()
            self.device = device
            self.start(*options)
            self.fill(0, MIB)
            manifest = self.backup()
            self.assert_restores(manifest, self.model)
            self.assert_settled()

    def test_a_set_is_refused(self):
        result = run(*self.backup_words("--node", "disk"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertEqual((self.own_nodes(), self.own_bitmaps()), ([], {}))
