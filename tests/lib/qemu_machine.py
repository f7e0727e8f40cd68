# SPDX-License-Identifier: Apache-2.0
"""QEMU's system emulator, as it is, with a monitor for the test and one for backups."""

import os

from backup_case import MIB, BackupCase
from tidemark import Daemon, Process, qemu, tool, wait_until


class QemuMachine(Daemon):
    """Emulated (TCG), without default devices. Quit and connections are those of a daemon."""

    def __init__(self, directory, *options):
        self.qmp_path = os.path.join(directory, "machine.qmp")
        self.backup_path = os.path.join(directory, "backup.qmp")
        self.qmp = None
        monitors = []
        for name, path in (("test", self.qmp_path), ("backup", self.backup_path)):
            monitors += ["-chardev", f"socket,id={name},path={path},server=on,wait=off",
                         "-mon", f"chardev={name},mode=control"]  # fmt: skip
        Process.__init__(
            self,
            [qemu("qemu-system-x86_64"), "-accel", "tcg", "-M", "q35", "-nodefaults", "-display",
             "none", *monitors, *options],
            os.path.join(directory, "machine.log"),
        )  # fmt: skip
        self.qmp = self.wait_for(self.connect_if_ready, "the monitor")
        wait_until(lambda: os.path.exists(self.backup_path), "the second monitor")

    def connect_if_ready(self):
        return super().connect_if_ready() if os.path.exists(self.qmp_path) else None


class MachineCase(BackupCase):
    """A machine that does not run; its writes are those of a monitor, by the guest's device."""

    size = 16 * MIB
    limit = ("--cbw-timeout", "20")

    def start(self, *options):
        disk = (
            f"driver=qcow2,node-name=disk,discard=unmap,"
            f"file.driver=file,file.discard=unmap,file.filename={self.image}"
        )
        self.server = self.own(
            QemuMachine(
                self.dir, "-S", "-blockdev", disk, "-object", "iothread,id=io0",
                *(options or ("-device", "virtio-blk-pci,id=vd0,drive=disk")),
            )
        )  # fmt: skip
        self.monitor = self.server.backup_path

    device = "/machine/peripheral/vd0/virtio-backend"

    def guest(self, command):
        """qemu-io, in the machine."""
        said = self.server.qmp.command(
            "human-monitor-command", **{"command-line": f'qemu-io -d {self.device} "{command}"'}
        )
        self.assertNotRegex(said, "failed|rror|nvalid")

    def fill(self, offset, length):
        pattern = self.random.randrange(1, 255)
        self.guest(f"write -P {pattern} {offset} {length}")
        self.model[offset : offset + length] = bytes([pattern]) * length

    def backup_words(self, *words):
        return [
            *tool("backup"), "--qmp", self.monitor, "--node", "vd0", "--to", self.repository,
            *self.limit, *words,
        ]  # fmt: skip

    def nodes_of_devices(self):
        return [
            b["inserted"]["node-name"]
            for b in self.server.qmp.command("query-block") if "inserted" in b
        ]  # fmt: skip

    def own_files(self):
        return [n for n in os.listdir(self.dir) if n.startswith(".tidemark")]

    def assert_settled(self):
        self.assertEqual(self.own_nodes(), [])
        self.assertEqual(self.server.qmp.command("query-block-exports"), [])
        self.assertEqual(self.server.qmp.command("query-jobs"), [])
        self.assertEqual(self.nodes_of_devices(), ["disk"])
        self.assertEqual([b["recording"] for b in self.own_bitmaps().values()], [True])
        self.assertEqual(self.own_files(), [])
