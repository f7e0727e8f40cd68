# SPDX-License-Identifier: Apache-2.0
"""The stand-in for QEMU's system emulator: build/compat/qemu-system-x86_64."""

import os
import subprocess
import unittest

from machine import MACHINE, QUIET, Machine
from qmp import QmpError
from tidemark import TIMEOUT, TestCase, io


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

    def test_a_wrong_drive_ends_it_before_the_greeting(self):
        status, output = self.monitor([], "-drive", "file=disk.qcow2,cache=wrong")
        self.assertEqual(status, 1)
        self.assertEqual(
            output,
            "qemu-system-x86_64: -drive file=disk.qcow2,cache=wrong: invalid cache option\n",
        )

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
            *("-blockdev", "driver=null-co,node-name=n,size=1M"),
            *("-device", "virtio-blk,drive=n,id=a"),
        ) as machine:
            error = self.refusal(machine, "device_add", driver="virtio-blk", drive="n")
            self.assertIn("'write'", error)
            machine.qmp.command("device_del", id="a")
            machine.qmp.command("system_reset")
            machine.qmp.wait_event("DEVICE_DELETED")
            machine.qmp.command("device_add", driver="virtio-blk", drive="n")

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
            *("-device", "scsi-hd,id=d,drive=n"),
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
            machine.hmp('qemu-io -d d "write -P 2 0 64k"')
            for node, byte in ("s", 1), ("n", 2):
                out = machine.hmp(f'qemu-io {node} "read -P {byte} 0 64k"')
                self.assertNotIn("verification failed", out)
            command("blockdev-del", node_name="s")
            command("qom-set", path="/machine/peripheral/d", property="drive", value="n")
            command("blockdev-del", node_name="c")
            self.assertEqual(command("query-block")[0]["inserted"]["node-name"], "n")

    def test_what_is_refused(self):
        with self.machine("-blockdev", "null-co,node-name=n,size=1M", "-device",
                          "scsi-hd,id=d,drive=n") as machine:  # fmt: skip
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


if __name__ == "__main__":
    unittest.main()
