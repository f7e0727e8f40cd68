# SPDX-License-Identifier: Apache-2.0
"""The stand-in for QEMU's system emulator: build/compat/qemu-system-x86_64."""

import json
import os
import socket
import subprocess
import unittest

from machine import MACHINE, QUIET, Machine
from qmp import QmpError
from tidemark import TIMEOUT, TestCase, img, io, qemu_io, wait_until


def info(image):
    return json.loads(img("info", "--output=json", image).stdout)


def monitor(folder, lines, *options):
    """Output of the human monitor on standard input and output, and standard error."""
    result = subprocess.run(
        [MACHINE, *QUIET, "-monitor", "stdio", *options],
        cwd=folder,
        input="".join(line + "\n" for line in [*lines, "quit"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return result.returncode, result.stdout.replace("\r\n", "\n")


class MachineCase(TestCase):
    def setUp(self):
        super().setUp()
        self.create("disk.qcow2", "1M")

    def machine(self, *options):
        return Machine(self.dir, *options)

    def monitor(self, lines, *options):
        return monitor(self.dir, lines, *options)

    def refusal(self, machine, name, /, **arguments):
        with self.assertRaises(QmpError) as caught:
            machine.qmp.command(name, **arguments)
        return caught.exception.desc


class VersionTest(TestCase):
    def test_the_first_line_is_that_of_an_emulator(self):
        """Programs take its fourth word as the version."""
        result = subprocess.run(
            [MACHINE, "--version"], stdout=subprocess.PIPE, text=True, timeout=TIMEOUT, check=True
        )
        self.assertRegex(result.stdout, r"^QEMU emulator version \d+\.\d+\.\d+ \(.*\)$")


class MonitorTest(MachineCase):
    def test_a_line_is_echoed_carried_out_and_followed_by_the_prompt(self):
        status, output = self.monitor(
            ["info status", 'qemu-io d "write -q 0 4k"', "no such thing", "info block"],
            "-drive",
            "if=none,id=d,file=disk.qcow2,node-name=n",
        )
        self.assertEqual(status, 0)
        self.assertEqual(
            output.partition("\n")[2],
            "(qemu) info status\n"
            "VM status: running\n"
            '(qemu) qemu-io d "write -q 0 4k"\n'
            "(qemu) no such thing\n"
            "unknown command: 'no'\n"
            "(qemu) info block\n"
            "d (n): disk.qcow2 (qcow2)\n"
            "    Removable device: not locked, tray closed\n"
            "    Cache mode:       writeback\n"
            "(qemu) quit\n",
        )
        self.assertRegex(output, r"^QEMU \d+\.\d+\.\d+ monitor - type 'help' for more info")

    def test_each_of_many_monitors_gets_its_prompt(self):
        """They are connected before the machine is made."""
        path = os.path.join(self.dir, "hmp")
        options = ["-monitor", "unix:" + path] * 12
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(12)
            listener.settimeout(TIMEOUT)
            with self.machine(*options):
                for _ in range(12):
                    monitor, _ = listener.accept()
                    monitor.settimeout(TIMEOUT)
                    with monitor, monitor.makefile("rb") as lines:
                        self.assertRegex(lines.readline(), b"^QEMU ")
                        self.assertEqual(lines.read(7), b"(qemu) ")

    def test_a_wrong_drive_ends_it_before_the_greeting(self):
        status, output = self.monitor([], "-drive", "file=disk.qcow2,cache=wrong")
        self.assertEqual(status, 1)
        self.assertEqual(
            output,
            "qemu-system-x86_64: -drive file=disk.qcow2,cache=wrong: invalid cache option\n",
        )

    def test_a_device_that_cannot_be_made_ends_it_between_greeting_and_prompt(self):
        for options, says in (
            (("-drive", "if=ide"), "Device needs media, but drive is empty"),
            (("-device", "virtio-scsi", "-device", "scsi-hd"), "drive property not set"),
        ):
            with self.subTest(options=options):
                status, output = self.monitor(["info block"], *options)
                lines = output.splitlines()
                self.assertEqual(status, 1)
                self.assertRegex(lines[0], "^QEMU .* monitor - type 'help'")
                self.assertIn(says, lines[1])
                self.assertEqual(lines[2:], [])

    def test_the_prompt_comes_before_a_snapshot_is_loaded(self):
        drive = ("-drive", "if=virtio,file=disk.qcow2")
        status, output = self.monitor(["info block"], *drive, "-loadvm", "none")
        self.assertEqual(status, 1)
        greeting, rest = output.split("\n", 1)
        self.assertIn("monitor - type 'help'", greeting)
        self.assertEqual(
            rest,
            "(qemu) qemu-system-x86_64: Snapshot 'none' does not exist in one or more devices\n",
        )

    def test_options_of_drives_that_exclude_each_other(self):
        for options, complaint in (
            (
                "file=disk.qcow2,readonly=on,read-only=off",
                "'read-only' and its alias 'readonly' can't be used at the same time",
            ),
            ("foo=bar", "Must specify either driver or file"),
            ("driver=raw,file.filename=disk.qcow2,backing=x", "Driver doesn't support backing files"),
            (f"file=disk.qcow2,node-name={'x' * 32}", "Node name too long"),
            (
                "file.filename=file:disk.qcow2",
                "Could not open 'file:disk.qcow2': No such file or directory",
            ),
        ):
            status, output = self.monitor([], "-drive", options)
            self.assertEqual(status, 1)
            self.assertEqual(output, f"qemu-system-x86_64: -drive {options}: {complaint}\n")

    def test_output_of_requests_stands_between_that_of_the_monitor(self):
        lines = [f'qemu-io d "write -P {n} 0 512"' for n in range(20)]
        _, output = self.monitor(lines, "-drive", "if=none,id=d,file=disk.qcow2")
        found = [line for line in output.splitlines() if line.startswith(("(qemu) q", "wrote"))]
        for n in range(20):
            self.assertEqual(found[2 * n], "(qemu) " + lines[n])
            self.assertEqual(found[2 * n + 1], "wrote 512/512 bytes at offset 0")

    def test_cache_modes_are_inherited_but_for_writeback(self):
        _, output = self.monitor(
            ["info block d", "info block f"],
            "-drive",
            "if=none,id=d,file=disk.qcow2,file.node-name=f,cache=directsync",
        )
        self.assertIn("Cache mode:       writethrough, direct\n", output)
        self.assertIn("Cache mode:       writeback, direct\n", output)


class DiskTest(MachineCase):
    def disk(self, machine, number=0):
        return machine.qmp.command("query-block")[number]

    def test_the_name_of_a_drive_is_that_of_its_interface(self):
        with self.machine(
            *("-drive", "file=disk.qcow2,if=virtio"),
            *("-drive", "if=ide,media=cdrom"),
            *("-drive", "if=none"),
        ) as machine:
            disks = machine.qmp.command("query-block")
        self.assertEqual([d["device"] for d in disks], ["virtio0", "ide0-cd0", "none0"])
        self.assertEqual([d["removable"] for d in disks], [False, True, True])
        self.assertEqual(["inserted" in d for d in disks], [True, False, False])
        self.assertEqual([d.get("tray_open") for d in disks], [None, False, None])

    def test_devices_have_places_on_buses(self):
        """The sentences are those of QEMU 7.2."""
        for wanted, *args in (
            ("No 'SCSI' bus found for device 'scsi-cd'", "-device", "scsi-cd"),
            ("Bus 's' not found", "-device", "virtio-scsi,id=s", "-device", "scsi-cd,bus=s"),
            ("Device 'scsi-cd' can't go on IDE bus", "-device", "scsi-cd,bus=ide.0"),
            ("Can't create IDE unit 3, bus supports only 2 units", "-device", "ide-cd,unit=3"),
            ("IDE unit 1 is in use", "-drive", "if=ide,index=1,media=cdrom",
             "-device", "ide-cd,bus=ide.0,unit=1"),
            ("Floppy unit 0 is in use", "-fda", "disk.qcow2", "-device", "floppy,unit=0"),
            ("Can't create floppy unit 2, bus supports only 2 units", *["-device", "floppy"] * 3),
            ("Bus 'b.0' not found", "-device", "pci-bridge,id=b", "-device", "virtio-scsi,bus=b.0"),
            ("can't parse: \"device.d\"", "-set", "device.d"),
            ('there is no device "d" defined', "-set", "device.d.id=e"),
            ("Device 'nope' not found", "-device", "virtio-scsi,id=d", "-set", "device.d.iothread=nope"),
            ("No drive specified", "-device", "ide-hd"),
            ("drive property not set", "-device", "virtio-blk"),
            ("drive property not set", "-device", "virtio-blk,drive="),
            ("Parameter 'id' expects an identifier", "-device", "floppy,id=a/b"),
            ("Parameter 'id' expects an identifier", "-device", "floppy,id="),
            ("Parameter 'drive-type' does not accept value '5'", "-device", "floppy,drive-type=5"),
            ("Physical and logical block size must be 512 for floppy",
             "-device", "floppy,physical_block_size=4096"),
            ("machine type does not support if=scsi,bus=0,unit=1", "-drive", "if=scsi,unit=1"),
            ("machine type does not support if=ide,bus=2,unit=0", "-drive", "if=ide,bus=2"),
            ("unit 2 too big (max is 1)", "-drive", "if=ide,unit=2"),
            ("index cannot be used with bus and unit", "-drive", "index=1,unit=0"),
            ("werror is not supported by this bus type", "-drive", "if=floppy,werror=stop"),
            ("'tape' invalid media", "-drive", "if=none,media=tape"),
            ("Duplicate ID 'd' for drive", *["-drive", "if=none,id=d"] * 2),
            ("Parameter 'id' expects an identifier", "-drive", "if=none,id=1"),
            ('A block device must be specified for "file"', "-drive", "if=none,driver=qcow2"),
            ("Drive 'd' is already in use because it has been automatically connected",
             "-drive", "if=virtio,id=d,file=disk.qcow2", "-device", "ide-hd,drive=d"),
        ):  # fmt: skip
            with self.subTest(wanted):
                result = subprocess.run(
                    [MACHINE, *QUIET, *args, "-monitor", "stdio"], stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT,
                    cwd=self.dir,
                )  # fmt: skip
                self.assertIn(wanted, result.stderr)
                self.assertEqual(result.returncode, 1)

    def test_floppies_and_controllers(self):
        with self.machine(
            *("-fdb", "disk.qcow2"),
            *("-device", "floppy,id=f"),
            *("-device", "pcie-root-port,id=port,chassis=1,bus=pcie.0"),
            *("-device", "pci-bridge,id=bridge,chassis_nr=1,bus=port"),
            *("-device", "virtio-scsi,id=s,bus=bridge", "-device", "scsi-cd,id=nope,bus=s.0"),
            *("-set", "device.nope.id=c"),
        ) as machine:
            text = machine.hmp("info block").replace("\r", "")
        self.assertRegex(text, r"floppy1 \(#block\d+\): disk.qcow2 \(qcow2\)\n")
        self.assertIn("\nf: [not inserted]\n    Attached to:      f\n", text)
        self.assertIn("\nc: [not inserted]\n", text)

    def test_the_option_snapshot_protects_all_drives(self):
        with self.machine(
            "-snapshot", "-drive", "file=disk.qcow2,if=none,id=d",
            "-drive", "file=disk.qcow2,if=none,id=w,snapshot=off,read-only=on",
        ) as machine:  # fmt: skip
            inserted = self.disk(machine)["inserted"]
            self.assertEqual(inserted["backing_file_depth"], 1)
            self.assertTrue(inserted["cache"]["no-flush"])
            machine.hmp('qemu-io d "write -P 9 0 64k"')
            self.assertNotIn("failed", machine.hmp('qemu-io w "read -P 0 0 64k"'))
        io(self.path("disk.qcow2"), "read -P 0 0 64k", fmt="qcow2")

    def test_a_temporary_overlay_can_be_read_only(self):
        with self.machine("-drive", "file=disk.qcow2,if=none,id=d,snapshot=on,readonly=on") as m:
            self.assertTrue(self.disk(m)["inserted"]["ro"])
            self.assertIn("read-only", m.hmp('qemu-io d "write 0 4k"'))

    def test_filters_that_nobody_named_are_not_shown(self):
        """Neither that of copy-on-read nor that of a job; in the graph they are."""
        img("create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", self.path("over.qcow2"))
        io(self.path("disk.qcow2"), "write -P 1 0 1M", fmt="qcow2")
        with self.machine("-drive", "file=over.qcow2,if=none,id=d,copy-on-read=on") as m:
            for job in False, True:
                if job:
                    m.qmp.command("block-stream", device="d", job_id="j", auto_finalize=False)
                shown = self.disk(m)["inserted"]
                self.assertEqual((shown["drv"], shown["file"]), ("qcow2", "over.qcow2"))
                self.assertEqual(shown["backing_file_depth"], 1)
                (stats,) = m.qmp.command("query-blockstats")
                self.assertEqual(stats["node-name"], shown["node-name"])
                self.assertIn("backing", stats)
                names = [n["drv"] for n in m.qmp.command("query-named-block-nodes", flat=True)]
                self.assertEqual(names.count("copy-on-read"), 1 + job)
            self.assertIn("d (#block", m.hmp("info block"))

    def test_commands_take_the_name_of_a_drive(self):
        with self.machine("-drive", "file=disk.qcow2,if=none,id=d") as machine:
            machine.qmp.command("block-dirty-bitmap-add", node="d", name="b")
            machine.hmp('qemu-io d "write 0 64k"')
            (bitmap,) = self.disk(machine)["inserted"]["dirty-bitmaps"]
        self.assertEqual(bitmap["count"], 65536)

    def test_a_node_can_not_have_the_name_of_a_drive(self):
        with self.machine("-drive", "if=none,id=d") as machine:
            error = self.refusal(machine, "blockdev-add", driver="null-co", node_name="d")
        self.assertEqual(error, "node-name=d is conflicting with a device id")

    def test_a_medium_goes_and_comes(self):
        with self.machine(
            *("-drive", "file=disk.qcow2,if=none,id=d"),
            *("-device", "ide-cd,drive=d,id=cd"),
        ) as m:
            m.qmp.command("eject", id="cd")
            event = m.qmp.wait_event("DEVICE_TRAY_MOVED")
            self.assertEqual(event["data"], {"device": "d", "id": "cd", "tray-open": True})
            self.assertNotIn("inserted", self.disk(m))
            error = self.refusal(m, "block-dirty-bitmap-add", node="d", name="b")
            self.assertEqual(error, "Device 'd' has no medium")
            m.qmp.command("blockdev-change-medium", id="cd", filename="disk.qcow2")
            disk = self.disk(m)
            self.assertEqual(disk["inserted"]["drv"], "qcow2")
            self.assertFalse(disk["tray_open"])

    def test_an_export_of_a_drive_ends_with_its_medium(self):
        address = {"type": "unix", "data": {"path": self.path("nbd.sock")}}
        with self.machine("-drive", "file=disk.qcow2,if=none,id=d,media=cdrom") as machine:
            machine.qmp.command("nbd-server-start", addr=address)
            machine.qmp.command("nbd-server-add", device="d")
            machine.qmp.command("eject", device="d")
            event = machine.qmp.wait_event("BLOCK_EXPORT_DELETED")
            self.assertEqual(event["data"], {"id": "d"})
            self.assertEqual(machine.qmp.command("query-block-exports"), [])

    def test_a_guest_device_lets_nobody_else_write(self):
        with self.machine(
            *("-blockdev", "driver=null-co,node-name=n,size=1048576"),
            *("-device", "virtio-scsi", "-device", "scsi-hd,drive=n,id=a"),
        ) as machine:
            error = self.refusal(machine, "device_add", driver="scsi-hd", drive="n")
            self.assertIn("'write'", error)
            self.assertIn("by block device 'a' (", error)
            machine.qmp.command("device_del", id="a")
            machine.qmp.command("system_reset")
            machine.qmp.wait_event("DEVICE_DELETED")
            machine.qmp.command("device_add", driver="scsi-hd", drive="n")

    def test_a_guest_device_that_shares_its_disk_lets_others_write_below_it(self):
        overlay = {"driver": "qcow2", "node-name": "o"}
        overlay["file"] = {"driver": "file", "filename": self.create("o.qcow2")}
        conflict = "Permission conflict on node 'n': permissions 'write' are both required"
        for sharing, wanted in (False, conflict), (True, None):
            with self.machine(
                "-blockdev",
                "qcow2,node-name=n,file.driver=file,file.filename=disk.qcow2",
                *("-blockdev", json.dumps(overlay)),
                *("-device", "virtio-scsi", "-device", "scsi-hd,drive=n,share-rw=on"),
            ) as machine:
                qmp = machine.qmp
                qmp.command("device_add", driver="scsi-hd", drive="o", **{"share-rw": sharing})
                reopen = {"options": [{**overlay, "backing": "n"}]}
                if wanted:
                    self.assertIn(wanted, self.refusal(machine, "blockdev-reopen", **reopen))
                else:
                    qmp.command("blockdev-reopen", **reopen)

    def test_corruption_is_reported_with_the_name_of_the_drive(self):
        with open(self.path("disk.qcow2"), "r+b") as f:
            f.seek(65536)
            f.write(bytes(8))  # the refcount table
        with self.machine("-drive", "if=none,id=d,node-name=n,file=disk.qcow2") as machine:
            machine.hmp('qemu-io n "write 0 512"')
            data = machine.qmp.wait_event("BLOCK_IMAGE_CORRUPTED")["data"]
        self.assertEqual((data["device"], data["node-name"], data["fatal"]), ("d", "n", True))

    def test_a_guest_device_uses_its_disk_when_the_machine_starts(self):
        """Until then, others write what the disk of the other machine has."""
        with self.machine("-drive", "if=none,id=d,file=disk.qcow2,node-name=n",
                          "-device", "virtio-blk,drive=d", "-incoming", "defer") as machine:  # fmt: skip
            command = machine.qmp.command
            address = {"type": "unix", "data": {"path": self.path("nbd")}}
            command("nbd-server-start", addr=address)
            export = {"type": "nbd", "id": "e", "node-name": "n", "writable": True}
            command("block-export-add", **export)
            self.assertIn("Permission conflict", self.refusal(machine, "cont"))
            command("block-export-del", id="e", mode="hard")
            wait_until(lambda: not command("query-block-exports"), "the end of the export")
            command("cont")
            self.assertIn("Permission conflict", self.refusal(machine, "block-export-add", **export))

    def test_a_temporary_overlay_takes_the_writes(self):
        with self.machine("-drive", "file=disk.qcow2,if=none,id=d,snapshot=on") as machine:
            machine.hmp('qemu-io d "write -P 7 0 64k"')
            machine.hmp('qemu-io d "read -P 7 0 64k"')
            self.assertNotIn("verification failed", machine.end())
        result = io(self.path("disk.qcow2"), "read -P 0 0 64k", fmt="qcow2")
        self.assertNotIn("verification failed", result.stdout)


class GraphTest(MachineCase):
    def test_the_graph_has_nodes_users_and_what_they_may(self):
        with self.machine(
            *("-drive", "file=disk.qcow2,if=none,id=d,node-name=n,file.node-name=f"),
            *("-device", "virtio-blk,drive=d"),
        ) as machine:
            graph = machine.qmp.command("x-debug-query-block-graph")
        nodes = {node["id"]: node for node in graph["nodes"]}
        edges = {
            (nodes[edge["parent"]]["name"], edge["name"], nodes[edge["child"]]["name"]): edge
            for edge in graph["edges"]
        }
        self.assertEqual(set(edges), {("d", "root", "n"), ("n", "file", "f")})
        self.assertEqual(edges["d", "root", "n"]["perm"], ["write", "consistent-read"])
        self.assertEqual(
            edges["d", "root", "n"]["shared-perm"],
            ["resize", "write-unchanged", "consistent-read"],
        )
        kinds = {node["name"]: node["type"] for node in graph["nodes"]}
        self.assertEqual(
            kinds, {"d": "block-backend", "n": "block-driver", "f": "block-driver"}
        )


class NodeTest(MachineCase):
    def test_a_reopen_changes_options_of_nodes_that_stay_open(self):
        drive = "if=none,id=d,file=disk.qcow2,node-name=n,file.node-name=f"
        with self.machine("-drive", drive) as machine:
            machine.hmp('qemu-io d "write -P 7 0 64k"')
            self.assertEqual(machine.hmp('qemu-io d "reopen -o detect-zeroes=on"'), "")
            self.assertEqual(machine.qmp.node("n")["detect_zeroes"], "on")
            self.assertEqual(machine.hmp('qemu-io d "reopen -r"'), "")
            self.assertTrue(machine.qmp.node("n")["ro"])
            self.assertIn("read-only", machine.hmp('qemu-io d "write -P 8 0 64k"'))
            machine.hmp('qemu-io d "read -P 7 0 64k"')
            self.assertNotIn("verification failed", machine.end())

    def test_a_new_image_is_announced(self):
        with self.machine("-drive", "if=none,id=d,file=disk.qcow2") as machine:
            machine.qmp.command("blockdev-snapshot-sync", device="d", snapshot_file="top.qcow2")
            self.assertEqual(machine.qmp.command("query-block")[0]["device"], "d")
            text = machine.end()
        self.assertTrue(text.startswith("Formatting 'top.qcow2', fmt=qcow2 cluster_size=65536 "))
        self.assertIn(" size=1048576 backing_file=disk.qcow2 backing_fmt=qcow2 ", text)


    def test_snapshots_of_an_image_are_shown(self):
        with self.machine("-drive", "if=none,id=d,file=disk.qcow2,node-name=n") as machine:
            image = machine.qmp.command("query-block")[0]["inserted"]["image"]
            self.assertNotIn("snapshots", image)
            machine.qmp.command("blockdev-snapshot-internal-sync", device="d", name="s")
            for node in machine.qmp.command("query-named-block-nodes", flat=True):
                if node["node-name"] == "n":
                    shown = node["image"]["snapshots"]
        self.assertEqual(shown, info(self.path("disk.qcow2"))["snapshots"])

    def test_the_newest_export_is_the_first(self):
        with self.machine("-blockdev", "null-co,node-name=n,read-zeroes=on") as machine:
            command = machine.qmp.command
            address = {"type": "unix", "data": {"path": self.path("nbd")}}
            command("nbd-server-start", addr=address)
            for name in "abc":
                command("block-export-add", type="nbd", id=name, node_name="n", name=name)
            self.assertEqual([e["id"] for e in command("query-block-exports")], ["c", "b", "a"])


class RunStateTest(MachineCase):
    def test_it_stops_and_continues(self):
        with self.machine("-S") as machine:
            qmp = machine.qmp
            self.assertEqual(qmp.command("query-status"), {"status": "prelaunch", "running": False})
            qmp.command("cont")
            qmp.wait_event("RESUME")
            qmp.command("stop")
            qmp.wait_event("STOP")
            self.assertEqual(qmp.command("query-status"), {"status": "paused", "running": False})

    def test_the_schema_has_its_commands(self):
        with self.machine() as machine:
            names = {entry["name"] for entry in machine.qmp.command("query-qmp-schema")}
        self.assertLessEqual({"query-block", "blockdev-add", "STOP", "JOB_STATUS_CHANGE"}, names)


class AccountingTest(MachineCase):
    """Requests are counted by disk, on a clock that only a test moves."""

    def step(self, machine, ns):
        machine.qtest.sendall(f"clock_step {ns}\n".encode())
        return machine.qtest.recv(100).decode()

    def test_figures_are_those_of_the_requests(self):
        with self.machine(
            "-drive", "driver=null-co,read-zeroes=on,if=none,id=d,stats-intervals.0=10"
        ) as machine:
            self.assertEqual(self.step(machine, 1000), "OK 1000\n")
            for line in ("aio_read 0 4k", "aio_write 4k 8k", "aio_write -i 0 512", "aio_flush"):
                machine.hmp(f'qemu-io d "{line}"')
            self.assertEqual(self.step(machine, 500), "OK 1500\n")
            stats = machine.qmp.command("query-blockstats")[0]["stats"]
        expected = {
            "rd_operations": 1,
            "rd_bytes": 4096,
            "wr_operations": 1,
            "wr_bytes": 8192,
            "invalid_wr_operations": 1,
            "flush_operations": 1,
            "wr_highest_offset": 12288,
            "rd_total_time_ns": 1000000,
            "idle_time_ns": 500,
        }
        self.assertEqual(stats, {**stats, **expected})
        self.assertEqual(stats["timed_stats"][0]["avg_wr_latency_ns"], 1000000)


class ProgramTest(MachineCase):
    def test_it_is_not_installed(self):
        folder = os.path.dirname(os.path.abspath(MACHINE))
        self.assertFalse(os.path.islink(os.path.join(folder, "qemu-system-x86_64")))

    def test_what_the_suite_asks_first(self):
        machines = subprocess.run([MACHINE, "-machine", "help"], stdout=subprocess.PIPE, text=True)
        self.assertIn(" (default)", machines.stdout)
        formats = subprocess.run(
            [MACHINE, *QUIET, "-drive", "format=help"], stdout=subprocess.PIPE, text=True
        )
        self.assertIn(" qcow2", formats.stdout.splitlines()[0])
        devices = subprocess.run(
            [MACHINE, "-M", "none", "-device", "help"], stdout=subprocess.PIPE, text=True
        )
        self.assertIn('name "virtio-blk-pci"', devices.stdout)



class ObjectTest(MachineCase):
    def test_a_device_goes_to_another_node_and_back(self):
        self.create("fleece.qcow2", "1M")
        io(self.path("disk.qcow2"), "write -P 1 0 1M", fmt="qcow2")
        with self.machine(
            *("-name", "guest=the disks,process=p"),
            *("-blockdev", "qcow2,node-name=n,file.driver=file,file.filename=disk.qcow2"),
            *("-blockdev", "qcow2,node-name=f,file.driver=file,file.filename=fleece.qcow2"),
            *("-device", "virtio-scsi", "-device", "scsi-hd,id=d,drive=n"),
        ) as machine:
            command = machine.qmp.command
            self.assertEqual(command("query-name"), {"name": "the disks"})
            self.assertEqual(command("query-tpm"), [])
            command(
                "blockdev-add", driver="copy-before-write", node_name="c", file="n", target="f"
            )
            command("qom-set", path="d", property="drive", value="c")
            command("blockdev-add", driver="snapshot-access", node_name="s", file="c")
            self.assertEqual(command("query-block")[0]["inserted"]["node-name"], "c")
            place = {"path": "/machine/peripheral/d", "property": "drive"}
            self.assertEqual(command("qom-get", **place), "c")
            machine.hmp('qemu-io -d d "write -P 2 0 64k"')
            for node, byte in ("s", 1), ("n", 2):
                out = machine.hmp(f'qemu-io {node} "read -P {byte} 0 64k"')
                self.assertNotIn("verification failed", out)
            command("blockdev-del", node_name="s")
            command("qom-set", path="/machine/peripheral/d", property="drive", value="n")
            command("blockdev-del", node_name="c")
            self.assertEqual(command("query-block")[0]["inserted"]["node-name"], "n")

    def test_what_is_refused(self):
        with self.machine("-blockdev", "null-co,node-name=n,size=1048576", "-device", "virtio-scsi",
                          "-device", "scsi-hd,id=d,drive=n") as machine:  # fmt: skip
            self.assertEqual(machine.qmp.command("query-name"), {})
            for path, name, value, wanted in (
                ("nope", "drive", "n", "Device 'nope' not found"),
                ("d", "serial", "n", "Property 'serial' not found"),
                ("d", "drive", "nope", "Cannot find device='' nor node-name='nope'"),
                ("d", "drive", 5, "Invalid parameter type for 'drive', expected: string"),
            ):
                with self.subTest(wanted):
                    desc = self.refusal(
                        machine, "qom-set", path=path, property=name, value=value
                    )
                    self.assertEqual(desc, wanted)


class ServerTest(MachineCase):
    """Commands of the human monitor about exports, limits, snapshots, objects and drives."""

    DRIVE = ("-drive", "if=none,id=d,file=disk.qcow2,node-name=n", "-device", "virtio-blk,drive=d")

    def lines(self, *lines):
        status, text = self.monitor(list(lines), *self.DRIVE)
        self.assertEqual(status, 0)
        return [line for line in text.splitlines()[1:] if line and not line.startswith("(qemu) ")]

    def size(self):
        info = img("info", "--output=json", self.path("disk.qcow2")).stdout
        return json.loads(info)["virtual-size"]

    def test_exports(self):
        self.assertEqual(
            self.lines(
                "nbd_server_start unix:s.sock", "nbd_server_add d", "nbd_server_add -w d",
                "nbd_server_add n other", "nbd_server_remove other", "nbd_server_remove other",
                "nbd_server_start unix:t.sock", "nbd_server_stop", "nbd_server_stop",
                "nbd_server_start -w unix:t.sock", "nbd_server_start -a unix:t.sock",
                "nbd_server_add d", "nbd_server_start here", "nbd_server_add nope",
            ),
            ["Error: Block export id 'd' is already in use",
             "Error: Export 'other' is not found",
             "Error: NBD server already running",
             "Error: NBD server not running",
             "Error: -w only valid together with -a",
             "Error: Block export id 'd' is already in use",
             "Error: error parsing address 'here'",
             "Error: Cannot find device='nope' nor node-name='nope'"],
        )  # fmt: skip

    def test_limits(self):
        (line,) = (
            line for line in self.lines("block_set_io_throttle d 0x100000 0 0 0 5 7", "info block d")
            if "throttling" in line
        )  # fmt: skip
        self.assertIn(" bps=1048576 bps_rd=0 bps_wr=0 ", line)
        self.assertIn(" iops_rd=5 iops_wr=7 ", line)
        self.assertTrue(line.endswith(" group=d"))
        self.assertEqual(
            self.lines("block_job_set_speed d 5"), ["Error: Block job 'd' not found"]
        )
        self.assertEqual(
            self.lines("block_set_io_throttle d 1k 0 0 0 0 0", "block_set_io_throttle d -1 0 0 0 0 0"),
            ["invalid char 'k' in expression",
             'Try "help block_set_io_throttle" for more information',
             "Error: bps/iops/max values must be within [0, 1000000000000000]"],
        )  # fmt: skip

    def test_a_size_without_a_unit_counts_mebibytes(self):
        self.create("mirror.qcow2", "1M")
        lines = self.lines(
            "drive_mirror -n d mirror.qcow2",
            *(f"block_job_set_speed d {speed}\ninfo block-jobs" for speed in ("10", "1.5", "0x2", "100k")),
            "block_job_set_speed d x",
        )  # fmt: skip
        self.assertEqual(
            [line.split(", ")[-1] for line in lines],
            [f"speed limit {speed} bytes/s" for speed in (10 << 20, 3 << 19, 2 << 20, 100 << 10)]
            + ["invalid size", 'Try "help block_job_set_speed" for more information'],
        )

    def test_resizes(self):
        for words in ("17592186044417", "0x100000000000", "nope"):
            lines = self.lines(f"block_resize d {words}")
            self.assertEqual(
                lines, ["invalid size", 'Try "help block_resize" for more information']
            )
            self.assertEqual(self.size(), 1 << 20)
        for words, mebibytes in (("0x52", 82), ("82.5", 82.5), ("83M", 83), ("84", 84)):
            self.assertEqual(self.lines(f"block_resize d {words}"), [])
            self.assertEqual(self.size(), mebibytes * (1 << 20))

    def test_figures(self):
        lines = self.lines('qemu-io d "aio_read -q 0 64k"', 'qemu-io d "aio_flush"', "info blockstats")
        self.assertRegex(lines[-1], r"^d: rd_bytes=65536 wr_bytes=0 rd_operations=1 .*idle_time_ns")

    def test_internal_snapshots_and_objects(self):
        self.assertEqual(
            self.lines(
                "snapshot_blkdev_internal d s", "snapshot_delete_blkdev_internal d s",
                "snapshot_delete_blkdev_internal d s", "object_add iothread,id=t", "object_del t",
                "object_del t", "help nope", "info nope",
            ),
            ["Error: Snapshot with id 'null' and name 's' does not exist on device 'd'",
             "Error: object 't' not found", "unknown command: 'nope'",
             "unknown command: 'info nope'"],
        )  # fmt: skip

    def test_a_drive_that_is_deleted_leaves_its_device(self):
        self.assertEqual(
            self.lines("drive_del d", "info block", "drive_del d", "drive_add 0 if=none,id=d",
                       "drive_add 0 if=none,id=d"),
            ["/machine/peripheral-anon/device[0]/virtio-backend: [not inserted]",
             "    Attached to:      /machine/peripheral-anon/device[0]/virtio-backend",
             "Device 'd' not found", "OK", "Duplicate ID 'd' for drive"],
        )  # fmt: skip
        self.assertEqual(
            self.lines("drive_add -n 0 driver=null-co,node-name=x", "drive_del x", "info block x"),
            [],
        )


    def test_more_drives_than_a_word_has_bits(self):
        drives = [("-drive", f"if=none,id=n{i},driver=null-co") for i in range(70)]
        drives.append(("-drive", "if=virtio,index=64,driver=null-co,read-zeroes=on"))
        status, text = self.monitor(["info block"], *(word for drive in drives for word in drive))
        self.assertEqual(status, 0, text)
        self.assertIn("\nn69 (", text)
        self.assertIn("\nvirtio64 (", text)


class VmSnapshotTest(MachineCase):
    """savevm, loadvm, delvm, info snapshots, -loadvm."""

    DRIVES = ["-drive", "if=none,id=d,file=disk.qcow2", "-drive", "if=none,id=e,file=e.qcow2"]
    HEAD = "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT"

    def setUp(self):
        super().setUp()
        self.create("e.qcow2", "1M")

    def lines(self, *lines):
        _, text = self.monitor(lines, *self.DRIVES)
        return [w for w in text.splitlines()[1:] if not w.startswith("(qemu) ")]

    def test_all_images_go_back_together(self):
        got = self.lines(
            'qemu-io d "write -q -P 1 0 64k"', 'qemu-io e "write -q -P 2 0 64k"', "savevm s",
            'qemu-io d "write -q -P 3 0 64k"', 'qemu-io e "write -q -P 4 0 64k"', "loadvm s",
            'qemu-io d "read -q -P 1 0 64k"', 'qemu-io e "read -q -P 2 0 64k"',
            'qemu-io d "write -q -P 5 0 64k"', "info snapshots",
        )  # fmt: skip
        self.assertEqual(got[:2], ["List of snapshots present on all disks:", self.HEAD])
        self.assertRegex(got[2], r"^--      s +512 B \S+ \S+  0000:00:00.000         --$")
        self.assertEqual(len(got), 3)
        # Only the first image has the VM state, and the disk keeps nothing of it.
        for name, size in ("disk.qcow2", 512), ("e.qcow2", 0):
            self.assertEqual(info(self.path(name))["snapshots"][0]["vm-state-size"], size)
            img("check", "-q", self.path(name))
        status, _ = self.monitor(['qemu-io d "write -q -P 6 0 64k"'], *self.DRIVES, "-loadvm", "s")
        self.assertEqual(status, 0)
        io(self.path("e.qcow2"), "read -P 2 0 64k", fmt="qcow2")
        self.assertEqual(self.lines("savevm s", "delvm s", "info snapshots"),
                         ["There is no snapshot available."])  # fmt: skip
        for name in "disk.qcow2", "e.qcow2":
            self.assertNotIn("snapshots", info(self.path(name)))
            img("check", "-q", self.path(name))

    def test_what_is_refused(self):
        for name in "disk.qcow2", "e.qcow2":
            img("snapshot", "-f", "qcow2", "-c", "disks", self.path(name))
        img("snapshot", "-f", "qcow2", "-c", "one", self.path("e.qcow2"))
        got = self.lines("loadvm disks", "loadvm one", "delvm nope", "delvm disks", "info snapshots")
        self.assertEqual(
            got[:5],
            ["Error: This is a disk-only snapshot. Revert to it  offline using qemu-img",
             "Error: Snapshot 'one' does not exist in one or more devices",
             "List of snapshots present on all disks:", "None", ""],
        )  # fmt: skip
        self.assertEqual(got[5], "List of partial (non-loadable) snapshots on 'e':")
        self.assertRegex(got[7], "^2 +one ")
        status, text = self.monitor([], *self.DRIVES, "-loadvm", "one")
        self.assertEqual(status, 1)
        self.assertIn(": Snapshot 'one' does not exist in one or more devices\n", text)
        status, text = self.monitor([], *self.DRIVES, "-loadvm", "one", "-incoming", "defer")
        self.assertEqual(status, 1)
        self.assertIn(": 'incoming' and 'loadvm' options are mutually exclusive\n", text)

    def test_images_without_snapshots(self):
        none = "no block device can store vmstate for snapshot"
        raw = "Error: Device 'r' is writable but does not support snapshots"
        for drive, what in ([], "Error: " + none), (["-drive", "if=none,id=r,driver=null-co"], raw):
            _, text = self.monitor(["savevm s", "loadvm s", "info snapshots"], *drive)
            self.assertEqual([w for w in text.splitlines()[1:] if not w.startswith("(qemu)")],
                             [what, what, none])  # fmt: skip


class JobsOnDrivesTest(MachineCase):
    """Jobs on disks of the machine, as its queries show them."""

    def test_a_backup_compresses_where_the_format_can(self):
        io(self.path("disk.qcow2"), "write -P 1 0 1M", fmt="qcow2")
        drives = ["-drive", "if=none,id=d,file=disk.qcow2"]
        for name, fmt, options in ("z", "vmdk", ["-o", "subformat=streamOptimized"]), ("r", "raw", []):
            path = self.create(name, "1M", fmt=fmt, options=options)
            drives += ["-drive", f"if=none,id={name},format={fmt},file={path}"]
        with self.machine(*drives) as machine:
            machine.qmp.command("blockdev-backup", device="d", target="z", sync="full",
                                compress=True)  # fmt: skip
            self.assertNotIn("error", machine.qmp.wait_event("BLOCK_JOB_COMPLETED")["data"])
            self.assertEqual(
                self.refusal(machine, "blockdev-backup", device="d", target="r", sync="full",
                             compress=True),
                "Compression is not supported for this drive r",
            )  # fmt: skip
        self.assertLess(os.stat(self.path("z")).st_size, 512 << 10)
        img("compare", "-f", "qcow2", "-F", "vmdk", self.path("disk.qcow2"), self.path("z"))

    def start_commit(self, *options):
        base = self.create("base.qcow2", "2M")
        mid = self.create("mid.qcow2", "2M", options=["-b", base, "-F", "qcow2"])
        io(mid, "write -P 1 512k 512k", fmt="qcow2")
        top = self.create("top.qcow2", "2M", options=["-b", mid, "-F", "qcow2"])
        machine = self.machine(
            "-drive", f"if=none,id=d,file={top},node-name=top,backing.node-name=mid",
            "-device", "virtio-scsi", "-device", "scsi-hd,id=s,drive=d",
        )  # fmt: skip
        # All data move at once, and the rest of the disk waits until the speed is kept.
        machine.qmp.command("block-commit", device="d", top=mid, base=base, speed=1 << 17)
        return machine, mid

    def test_a_commit_is_not_shown_in_the_chain(self):
        machine, mid = self.start_commit()
        with machine:
            inserted = machine.qmp.command("query-block")[0]["inserted"]
            self.assertEqual(inserted["backing_file"], mid)
            self.assertEqual(inserted["backing_file_depth"], 2)
            self.assertEqual(inserted["image"]["backing-image"]["format"], "qcow2")
            stats = machine.qmp.command("query-blockstats")[0]
            self.assertEqual(stats["backing"]["node-name"], "mid")
            self.assertEqual(len(machine.qmp.command("query-block-jobs")), 1)

    def test_a_device_takes_the_jobs_of_its_drive_along(self):
        machine, _ = self.start_commit()
        with machine:
            machine.qmp.command("device_del", id="s")
            machine.qmp.wait_event("DEVICE_DELETED")
            machine.qmp.wait_event("BLOCK_JOB_CANCELLED")
            self.assertEqual(machine.qmp.command("query-block-jobs"), [])


class CommitTest(MachineCase):
    """commit of the human monitor."""

    def test_what_the_image_has_goes_into_its_backing_file(self):
        base = self.create("base.qcow2", "1M")
        io(base, "write -P 1 0 1M", fmt="qcow2")
        top = self.create("top.qcow2", "2M", options=["-b", base, "-F", "qcow2"])
        io(top, "write -P 2 0 64k", "write -z 128k 64k", "write -P 3 1M 64k", fmt="qcow2")
        status, output = self.monitor(
            ["commit d", 'qemu-io d "read -P 2 0 64k"', 'qemu-io d "write -P 4 64k 64k"'],
            "-drive", f"if=none,id=d,file={top}",
        )  # fmt: skip
        self.assertEqual(status, 0)
        self.assertNotIn("rror", output)
        self.assertNotIn("failed", output)
        io(base, "read -P 2 0 64k", "read -P 1 64k 64k", "read -P 0 128k 64k",
           "read -P 1 192k 832k", "read -P 3 1M 64k", fmt="qcow2")  # fmt: skip
        io(top, "read -P 4 64k 64k", "read -P 3 1M 64k", fmt="qcow2")
        img("check", "-q", top)
        self.assertLess(os.stat(top).st_size, 600 << 10)

    def test_a_qcow_that_cannot_be_emptied_keeps_what_is_written_later(self):
        """Its table had been emptied in the file, and was full in memory."""
        base = self.create("base.raw", "2M", "raw")
        top = self.create("top.qcow", "2M", "qcow", options=["-b", base, "-F", "raw"])
        io(top, "write -P 2 0 64k", fmt="qcow")
        fault = "event=none,file.inject-error.0.iotype=flush,file.inject-error.0.once=on"
        _, output = self.monitor(
            ["commit d", 'qemu-io d "write -P 3 4k 4k"', 'qemu-io d "write -P 4 1M 4k"'],
            "-drive", "if=none,id=d,driver=qcow,file.driver=blkdebug,"
            f"file.image.filename={top},file.inject-error.0.{fault}",
        )  # fmt: skip
        self.assertIn("Could not empty the L1 table", output)
        qemu_io(top, "read -P 3 4k 4k", "read -P 2 8k 56k", "read -P 4 1M 4k", fmt="qcow")

    def test_all_disks(self):
        options = []
        for n in range(2):
            base = self.create(f"b{n}", "1M", fmt="raw")
            top = self.create(f"t{n}", "1M", options=["-b", base, "-F", "raw"])
            io(top, f"write -P {n + 5} 0 64k", fmt="qcow2")
            options += ["-drive", f"if=none,id=d{n},format=qcow2,file={top}"]
        self.monitor(["commit all"], *options, "-drive", "if=none,id=empty")
        for n in range(2):
            io(self.path(f"b{n}"), f"read -P {n + 5} 0 64k", fmt="raw")

    def test_what_is_refused(self):
        _, output = self.monitor(
            ["commit nope", "commit e", "commit d"],
            "-drive", "if=none,id=e", "-drive", "if=none,id=d,file=disk.qcow2",
        )  # fmt: skip
        for sentence in ("Device 'nope' not found", "Device 'e' has no medium",
                         "'commit' error for 'd': Operation not supported"):  # fmt: skip
            self.assertIn("\n" + sentence, output)


class LimitsTest(MachineCase):
    """block_set_io_throttle, and throttling.* of -drive."""

    NONE = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}

    def drive(self, n, more=""):
        return ["-drive", f"if=none,id=d{n},driver=null-co,read-zeroes=on{more}"]

    def limit(self, machine, device, **limits):
        answer = self.answer(machine, device, **limits)
        self.assertEqual(answer, {"return": {}})

    def answer(self, machine, device, **limits):
        arguments = {**self.NONE, "device": device, **limits}
        return machine.qmp.execute("block_set_io_throttle", arguments)

    def shown(self, machine, number=0):
        return machine.qmp.command("query-block")[number]["inserted"]

    def done(self, machine, number=0):
        return machine.qmp.command("query-blockstats")[number]["stats"]["rd_operations"]

    def step(self, machine, seconds):
        machine.qtest.sendall(b"clock_step %d\n" % (seconds * 10**9))
        self.assertTrue(machine.qtest.recv(100).startswith(b"OK"))

    def test_groups_are_named_by_the_disk_or_the_user(self):
        options = self.drive(0, ",throttling.iops-total=100") + self.drive(1, ",bps_rd=5,bps_rd_max=9")
        with self.machine(*options) as machine:
            self.assertEqual(self.shown(machine)["group"], "d0")
            second = self.shown(machine, 1)
            self.assertEqual((second["bps_rd"], second["bps_rd_max"], second["bps_rd_max_length"]),
                             (5, 9, 1))  # fmt: skip
            self.limit(machine, "d0")
            self.assertNotIn("group", self.shown(machine))
            self.assertEqual(self.shown(machine)["iops"], 0)
            self.limit(machine, "d0", iops=7, group="g")
            self.limit(machine, "d1", iops=8, group="g")
            self.assertEqual((self.shown(machine)["iops"], self.shown(machine)["group"]), (8, "g"))

    def test_a_command_that_waits_for_a_limit_ends(self):
        """Whoever could step the clock waits for the answer."""
        with self.machine(*self.drive(0, ",iops_rd=4")) as machine:
            for _ in range(3):
                machine.hmp('qemu-io d0 "read 0 4k"')
            machine.qtest.sendall(b"clock_step 0\n")
            self.assertGreaterEqual(int(machine.qtest.recv(100).split()[1]), 400 * 10**6)

    def test_requests_wait_until_the_clock_lets_them(self):
        with self.machine(*self.drive(0), *self.drive(1)) as machine:
            for name in ("d0", "d1"):
                self.limit(machine, name, iops_rd=1, group="g")
            for _ in range(3):
                machine.hmp('qemu-io d0 "aio_read 0 512"')
            machine.hmp('qemu-io d1 "aio_read 0 512"')
            self.assertEqual((self.done(machine), self.done(machine, 1)), (1, 0))
            self.step(machine, 2)
            self.assertEqual(self.done(machine) + self.done(machine, 1), 3)
            self.limit(machine, "d0")
            self.assertEqual(self.done(machine), 3)
            self.step(machine, 5)
            self.assertEqual(self.done(machine, 1), 1)

    def test_wrong_limits_change_nothing(self):
        with self.machine(*self.drive(0), "-drive", "if=none,id=empty") as machine:
            self.limit(machine, "d0", iops=5)
            for wanted, limits in (
                ("must be within [0, 1000000000000000]", {"bps": -1}),
                ("cannot be used at the same time", {"iops": 1, "iops_rd": 1}),
                ("the burst length cannot be 0", {"iops": 1, "iops_max_length": 0}),
            ):
                answer = self.answer(machine, "d0", **limits)
                self.assertIn(wanted, answer["error"]["desc"])
            self.assertEqual(self.shown(machine)["iops"], 5)
            answer = self.answer(machine, "empty")
            self.assertEqual(answer["error"]["desc"], "Device 'empty' has no medium")
            answer = self.answer(machine, "nope")
            self.assertEqual(answer["error"]["desc"], "Device 'nope' not found")
        status, output = self.monitor([], *self.drive(0, ",iops=1,throttling.iops-total=2"))
        self.assertEqual(status, 1)
        self.assertIn("'throttling.iops-total' and its alias 'iops' can't be used at the same time",
                      output)  # fmt: skip

    def test_legacy_encryption_is_refused(self):
        secret = ["--object", "secret,id=s,data=x"]
        img("create", "-q", *secret, "-f", "qcow2", "-o", "encryption=on,encrypt.key-secret=s",
            self.path("aes.qcow2"), "1M")  # fmt: skip
        with self.machine("-object", "secret,id=s,data=x") as machine:
            desc = self.refusal(machine, "blockdev-add", driver="qcow2", node_name="n",
                                file={"driver": "file", "filename": "aes.qcow2"},
                                encrypt={"format": "aes", "key-secret": "s"})  # fmt: skip
        self.assertIn("no longer supported in system emulators", desc)


if __name__ == "__main__":
    unittest.main()
