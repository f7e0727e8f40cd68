# SPDX-License-Identifier: Apache-2.0
"""Backups of a libvirt domain. libvirt is one for tests (tests/lib/fake_libvirt.py), whose disks
are those of QEMU's storage daemon.
"""

import json
import os
import time

from backup_case import MIB
from fake_libvirt import FakeLibvirt
from qmp import Qmp
from test_backup_set import SetCase
from tidemark import BUILD, qemu, run, tool, wait_until

CLUSTER = 65536


class LibvirtCase(SetCase):
    disks = ("vda", "vdb")

    def program(self):
        path = self.path("libvirt.qmp")
        if os.path.exists(path):
            os.unlink(path)
        return {
            "program": [
                qemu("qemu-storage-daemon"),
                "--chardev", f"socket,id=libvirt,path={path},server=on,wait=off",
                "--monitor", "chardev=libvirt",
            ]
        }  # fmt: skip

    def setUp(self):
        super().setUp()
        self.libvirt = FakeLibvirt(
            self.path("libvirt.sock"), Qmp(self.path("libvirt.qmp")), self.domain_xml(),
            {d: self.size for d in self.disks},
        )  # fmt: skip
        self.addCleanup(self.libvirt.close)
        # For backups and their guards.
        for name, value in (
            ("LD_LIBRARY_PATH", os.path.join(BUILD, "tests/tools/fake_libvirt")),
            ("FAKE_LIBVIRT", self.path("libvirt.sock")),
        ):
            os.environ[name] = value
            self.addCleanup(os.environ.pop, name)

    def start(self, *_, **__):
        """The daemon has one NBD server, which libvirt starts and stops."""
        super().start()
        self.server.qmp.command("nbd-server-stop")

    def domain_xml(self):
        disks = "".join(
            f"<disk type='file' device='disk'>\n<driver name='qemu' type='qcow2'/>\n"
            f"<source file='{self.images[d]}' index='1'/>\n<target dev='{d}' bus='virtio'/>\n</disk>\n"
            for d in self.disks
        )
        return (
            "<domain type='qemu'><name>guest1</name><devices>\n" + disks +
            "<disk type='file' device='cdrom'>\n<target dev='sda' bus='sata'/>\n<readonly/>\n</disk>\n"
            "</devices></domain>"
        )  # fmt: skip

    def write_to(self, disk, offset, length):
        """By an NBD server for the moment, since the daemon has only one."""
        self.server.qmp.command(
            "nbd-server-start", addr={"type": "unix", "data": {"path": self.socket}}
        )
        self.server.qmp.command(
            "block-export-add",
            **{"type": "nbd", "id": "w", "node-name": disk, "name": disk, "writable": True},
        )
        super().write_to(disk, offset, length)
        self.server.qmp.command("nbd-server-stop")
        wait_until(lambda: not self.server.qmp.command("query-block-exports"), "the export's end")

    def backup_words(self, *words):
        return [
            *tool("backup"), "--libvirt", "qemu:///system", "--domain", "guest1",
            "--to", self.repository, *self.more_words, *words,
        ]  # fmt: skip

    def assert_settled(self):
        self.assertIsNone(self.libvirt.job)
        self.assertEqual(len(self.libvirt.checkpoints), 1)
        self.assertEqual([n for n in os.listdir(self.dir) if n.startswith(".tidemark")], [])
        for d in self.disks:
            self.assertEqual(list(self.server.qmp.bitmaps(d)), self.libvirt.checkpoints)


class TestDomain(LibvirtCase):
    def test_all_disks_incrementally_and_back(self):
        taken = []
        for turn in range(3):
            self.write_to("vda", turn * MIB, 100000)
            self.write_to("vdb", 2 * MIB, 4096 * (turn + 1))
            taken.append((self.backup(), {d: bytes(m) for d, m in self.models.items()}))
        for one, models in taken:
            self.assert_set_restores(one, models)
        last = taken[-1][0]
        self.assertEqual([m["changed-bytes"] for m in last["backups"]], [2 * CLUSTER, CLUSTER])
        self.assertEqual({m["bitmap"] for m in last["backups"]}, set(self.libvirt.checkpoints))
        with open(os.path.join(self.repository, "sets", last["set"]["id"], "definition"),
                  encoding="utf-8") as f:  # fmt: skip
            self.assertIn("<name>guest1</name>", f.read())
        self.assert_settled()

    def test_one_disk(self):
        self.repository = self.path("one")
        words = [*self.backup_words("--node", "vdb", "--output=json")]
        self.write_to("vdb", 0, MIB)
        self.assertEqual(json.loads(run(*words).stdout)["changed-bytes"], MIB)
        self.write_to("vdb", 0, 100)
        manifest = json.loads(run(*words).stdout)
        self.assertEqual((manifest["reason"], manifest["changed-bytes"]), (None, CLUSTER))
        self.assert_restores(manifest, self.models["vdb"])
        result = run(*self.backup_words("--node", "vdx"), check=False)
        self.assertIn("Domain 'guest1' has no disk 'vdx'", result.stderr)
        result = run(*self.backup_words("--node", "vdb", "--node", "vdb"), check=False)
        self.assertIn("Disk 'vdb' is named twice", result.stderr)

    def test_checkpoints_that_libvirt_has_lost_are_defined_again(self):
        self.write_to("vda", 0, MIB)
        self.backup()
        self.libvirt.checkpoints.clear()
        self.write_to("vda", 0, 100)
        one = self.backup()
        self.assertEqual([m["reason"] for m in one["backups"]], [None, None])
        self.assertEqual([m["changed-bytes"] for m in one["backups"]], [CLUSTER, 0])
        self.assert_set_restores(one, self.models)

    def test_without_bitmaps_contents_are_compared(self):
        self.write_to("vda", 0, MIB)
        self.backup()
        name = self.libvirt.checkpoints[0]
        for d in self.disks:
            self.server.qmp.command("block-dirty-bitmap-remove", node=d, name=name)
        self.libvirt.checkpoints.clear()
        self.write_to("vda", 0, 100)
        one = self.backup()
        self.assertIn("is not on", one["backups"][0]["reason"])
        self.assertEqual([m["changed-bytes"] for m in one["backups"]], [CLUSTER, 0])
        self.assert_set_restores(one, self.models)
        self.assert_settled()

    def test_killed_at_any_time(self):
        for d in self.disks:
            self.write_to(d, 0, MIB)
        self.backup()
        for milliseconds in (10, 25, 40, 60, 80):
            self.write_to("vda", self.random.randrange(MIB), 5000)
            process = self.start_backup()
            time.sleep(milliseconds / 1000)
            process.kill()
            run(*self.backup_words("--abort"))
        one = self.backup()
        self.assert_set_restores(one, self.models)
        self.assert_settled()

    def test_the_guest_is_frozen_for_the_moment(self):
        self.backup("--freeze")
        self.assertEqual(self.libvirt.log, ["freeze", "begin", "thaw"])

    def test_another_host(self):
        words = [w.replace("qemu:///", "qemu+ssh://host/") for w in self.backup_words()]
        result = run(*words, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("is on another host", result.stderr)
