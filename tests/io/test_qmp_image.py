# SPDX-License-Identifier: Apache-2.0
"""Commands that change an image in use: block_resize, change-backing-file, internal snapshots."""

import json
import struct

import nbd_raw
import tidemark
from guest import Guest
from qmp import QmpError

MIB = 1 << 20


class ImageTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.create("base.qcow2")
        self.image = self.create(
            "disk.qcow2", "64M", options=("-F", "qcow2", "-b", self.path("base.qcow2"))
        )
        self.create("raw.img", "1M", "raw")
        self.nbd = self.path("nbd.sock")
        self.server = self.daemon(
            "--blockdev",
            f"driver=file,node-name=file,filename={self.image}",
            "--blockdev",
            "driver=qcow2,node-name=disk,file=file",
            "--blockdev",
            f"driver=raw,node-name=raw,file.driver=file,file.filename={self.path('raw.img')}",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
            "--export",
            "type=nbd,id=export,node-name=disk,name=disk,writable=on",
        )
        self.qmp = self.server.qmp

    def refused(self, wanted, name, /, **arguments):
        with self.assertRaises(QmpError) as caught:
            self.qmp.command(name, **arguments)
        self.assertEqual(caught.exception.desc, wanted)

    def size(self, node):
        return self.qmp.node(node)["image"]["virtual-size"]

    def check(self, image):
        tidemark.qemu_img("check", image)

    # block_resize

    def test_a_disk_grows_and_shrinks_while_guests_write(self):
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="kept", persistent=True)
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="passing")
        guests = [Guest(self.nbd, "disk", i * 4 * MIB, 4 * MIB, i) for i in range(4)]
        for size in 128, 96, 80, 640, 64:
            self.qmp.command("block_resize", node_name="disk", size=size * MIB)
            self.assertEqual(self.size("disk"), size * MIB)
            written = guests[0].written
            tidemark.wait_until(lambda: guests[0].written > written + 20, "writes")
        for guest in guests:
            guest.stop()
        marked = {name: b["count"] for name, b in self.qmp.bitmaps("disk").items()}
        self.server.quit()
        self.check(self.image)
        raw = self.path("out.raw")
        tidemark.qemu_img("convert", "-O", "raw", self.image, raw)
        for guest in guests:
            guest.check(raw)
        self.assertGreaterEqual(marked["kept"], 65536)
        info = json.loads(tidemark.qemu_img("info", "--output=json", self.image).stdout)
        self.assertEqual(
            [(b["name"], b["flags"]) for b in info["format-specific"]["data"]["bitmaps"]],
            [("kept", ["auto"])],
        )

    def test_a_size_that_no_disk_has(self):
        for size in (1 << 63) - 1, (1 << 63) - 512, (1 << 63) - (1 << 30) + 1:
            wanted = rf"^GenericError: offset\({size}\) exceeds maximum\(9223372035781033984\)$"
            with self.assertRaisesRegex(QmpError, wanted):
                self.qmp.command("block_resize", node_name="disk", size=size)

    def test_clients_of_an_export(self):
        """A new one sees the new size; one that is connected can use what is added."""
        with nbd_raw.RawClient(self.nbd) as old:
            old.go(b"disk", structured=False)
            self.qmp.command("block_resize", node_name="disk", size=80 * MIB)
            with nbd_raw.RawClient(self.nbd) as new:
                new.send(struct.pack(">8sII", b"IHAVEOPT", nbd_raw.EXPORT_NAME, 4) + b"disk")
                self.assertEqual(struct.unpack(">QH", new.receive(10))[0], 80 * MIB)
            old.request(nbd_raw.WRITE, 72 * MIB, 4, payload=b"abcd")
            self.assertEqual(old.simple_reply(), (1, 0))
            self.qmp.command("block_resize", node_name="disk", size=64 * MIB)
            old.request(nbd_raw.WRITE, 72 * MIB, 4, payload=b"abcd")
            self.assertEqual(old.simple_reply()[1], nbd_raw.ENOSPC)
            old.request(nbd_raw.READ, 72 * MIB, 4)
            self.assertEqual(old.simple_reply()[1], nbd_raw.EINVAL)

    def test_the_size_passes_filters_above(self):
        self.qmp.command("blockdev-add", driver="blkdebug", node_name="above", image="raw")
        self.qmp.command("block_resize", node_name="raw", size=2 * MIB)
        self.assertEqual(self.size("above"), 2 * MIB)
        self.qmp.command("block_resize", node_name="above", size=3 * MIB)
        self.assertEqual(self.size("raw"), 3 * MIB)

    def test_what_is_above_a_node_follows_its_size(self):
        """With its bitmaps, which would lack what is written to the added part: filters, and a raw
        node that is all of a file.
        """
        self.qmp.command("blockdev-add", driver="file", node_name="f", filename=self.path("raw.img"),
                         locking="off")  # fmt: skip
        self.qmp.command("object-add", qom_type="throttle-group", id="g")
        self.qmp.command("blockdev-add", driver="raw", node_name="r", file="f")
        self.qmp.command("blockdev-add", driver="throttle", node_name="t", throttle_group="g", file="r")
        for node in ("r", "t"):
            self.qmp.command("block-dirty-bitmap-add", node=node, name="b")
        for number, node in enumerate(("f", "r", "t")):
            size = (2 + number) * MIB
            self.qmp.command("block_resize", node_name=node, size=size)
            self.assertEqual([self.size(n) for n in ("f", "r", "t")], [size] * 3)
        self.qmp.command("block-export-add", type="nbd", id="t", node_name="t", name="t", writable=True)
        tidemark.io(f"nbd+unix:///t?socket={self.nbd}", "write -P 1 3M 64k", "write -P 1 0 64k", fmt="raw")
        self.qmp.command("block-export-del", id="t")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED")
        for node in ("r", "t"):
            self.assertEqual(self.qmp.bitmaps(node)["b"]["count"], 2 * 65536)
        self.qmp.command("block-dirty-bitmap-disable", node="t", name="b")
        self.qmp.command("block-export-add", type="nbd", id="x", node_name="t", name="x", bitmaps=["b"])
        with self.assertRaises(QmpError):
            self.qmp.command("block_resize", node_name="f", size=MIB)
        self.assertEqual(self.size("t"), 4 * MIB)

    def test_a_part_of_a_file_keeps_its_size(self):
        for more in ({"size": MIB // 2}, {"offset": MIB // 2}):
            file = {"driver": "file", "filename": self.path("raw.img"), "node-name": "f", "locking": "off"}
            self.qmp.command("blockdev-add", driver="raw", node_name="r", file=file, **more)
            self.refused("Node 'f' is busy: node is used as 'file' of 'r'", "block_resize",
                         node_name="f", size=2 * MIB)  # fmt: skip
            self.assertEqual(self.size("r"), MIB // 2)
            self.qmp.command("blockdev-del", node_name="r")

    def test_resizes_that_are_refused(self):
        missing = "Cannot find device='{}' nor node-name='{}'"
        self.refused(missing.format("", ""), "block_resize", size=1)
        self.refused(missing.format("disk", ""), "block_resize", device="disk", size=1)
        self.refused(missing.format("", "x"), "block_resize", node_name="x", size=1)
        self.refused(
            "Parameter 'size' expects a >0 size", "block_resize", node_name="disk", size=-1
        )
        self.refused(
            "The new size must be a multiple of 512", "block_resize", node_name="disk", size=1
        )
        self.refused(
            "Node 'file' is busy: node is used as 'file' of 'disk'",
            "block_resize",
            node_name="file",
            size=MIB,
        )
        self.qmp.command("block-dirty-bitmap-add", node="raw", name="b", disabled=True)
        self.qmp.command(
            "block-export-add", type="nbd", id="r", node_name="raw", name="r", bitmaps=["b"]
        )
        with self.assertRaises(QmpError):
            self.qmp.command("block_resize", node_name="raw", size=2 * MIB)
        self.assertEqual(self.size("raw"), MIB)
        self.qmp.command(
            "blockdev-add",
            driver="raw",
            node_name="ro",
            read_only=True,
            file={"driver": "file", "filename": self.path("raw.img"), "locking": "off"},
        )
        self.refused("Image is read-only", "block_resize", node_name="ro", size=MIB)

    # change-backing-file

    def recorded(self):
        info = json.loads(
            tidemark.qemu_img("info", "-U", "--output=json", self.image).stdout
        )
        return info.get("backing-filename"), info.get("backing-filename-format")

    def test_the_recorded_backing_file_changes(self):
        tidemark.io(tidemark.nbd_uri(self.nbd, "disk"), "write -P 7 0 64k", fmt="raw")
        change = {"device": "disk", "image_node_name": "disk"}
        self.qmp.command("change-backing-file", **change, backing_file="other.qcow2")
        self.assertEqual(self.recorded(), ("other.qcow2", "qcow2"))
        self.qmp.command("change-backing-file", **change, backing_file="")
        self.assertEqual(self.recorded(), (None, None))
        tidemark.io(
            tidemark.nbd_uri(self.nbd, "disk"), "read -P 7 0 64k", "read -P 0 1M 64k", fmt="raw"
        )
        self.refused(
            "Cannot find device='x' nor node-name='x'",
            "change-backing-file",
            device="x",
            image_node_name="disk",
            backing_file="b",
        )
        self.refused(
            "Cannot find device='' nor node-name='x'",
            "change-backing-file",
            device="disk",
            image_node_name="x",
            backing_file="b",
        )
        self.refused(
            "Need a root block node",
            "change-backing-file",
            device="file",
            image_node_name="disk",
            backing_file="b",
        )
        self.refused(
            "not allowing backing file change on an image without a backing file",
            "change-backing-file",
            device="raw",
            image_node_name="raw",
            backing_file="b",
        )

    # block-set-write-threshold

    def test_a_write_beyond_a_threshold_is_reported_once(self):
        uri = tidemark.nbd_uri(self.nbd, "disk")
        self.qmp.command("block-set-write-threshold", node_name="disk", write_threshold=100000)
        tidemark.io(uri, "write 0 64k", "discard 1M 1M", "read 2M 64k", fmt="raw")
        self.assertEqual(self.qmp.node("disk")["write_threshold"], 100000)
        tidemark.io(uri, "write 64k 64k", "write 1M 64k", "write -z 2M 64k", fmt="raw")
        self.assertEqual(
            self.qmp.wait_event("BLOCK_WRITE_THRESHOLD")["data"],
            {"node-name": "disk", "write-threshold": 100000, "amount-exceeded": 31072},
        )
        self.assertEqual(self.qmp.node("disk")["write_threshold"], 0)
        # Of the file below, whose end grows.
        self.qmp.command("block-set-write-threshold", node_name="file", write_threshold=4 * MIB)
        tidemark.io(uri, "write 4M 8M", fmt="raw")
        data = self.qmp.wait_event("BLOCK_WRITE_THRESHOLD")["data"]
        self.assertEqual((data["node-name"], data["write-threshold"]), ("file", 4 * MIB))
        self.assertGreater(data["amount-exceeded"], 0)
        self.refused(
            "Device 'x' not found", "block-set-write-threshold", node_name="x", write_threshold=1
        )

    def test_the_header_of_a_read_only_image_changes(self):
        self.qmp.command("block-export-del", id="export")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED")
        self.qmp.command("blockdev-del", node_name="disk")
        self.qmp.command(
            "blockdev-add", driver="qcow2", node_name="disk", read_only=True, file="file"
        )
        self.qmp.command(
            "change-backing-file", device="disk", image_node_name="disk", backing_file="b"
        )
        self.assertEqual(self.recorded(), ("b", "qcow2"))
        self.assertTrue(self.qmp.node("disk")["ro"])

    # Internal snapshots.

    def snapshots(self):
        info = json.loads(
            tidemark.qemu_img("info", "-U", "--output=json", self.image).stdout
        )
        return [(s["id"], s["name"]) for s in info.get("snapshots", [])]

    def test_internal_snapshots_while_guests_write(self):
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="kept", persistent=True)
        guests = [Guest(self.nbd, "disk", i * 4 * MIB, 4 * MIB, i) for i in range(4)]
        for i in range(6):
            self.qmp.command("blockdev-snapshot-internal-sync", device="disk", name=f"s{i}")
            with self.assertRaises(QmpError):
                self.qmp.transaction(
                    ("blockdev-snapshot-internal-sync", {"device": "disk", "name": "undone"}),
                    ("abort", {}),
                )
            if i % 2:
                deleted = self.qmp.command(
                    "blockdev-snapshot-delete-internal-sync", device="disk", name=f"s{i}"
                )
                self.assertEqual((deleted["name"], deleted["vm-state-size"]), (f"s{i}", 0))
        for guest in guests:
            guest.stop()
        self.assertEqual([name for id, name in self.snapshots()], ["s0", "s2", "s4"])
        self.server.quit()
        self.check(self.image)
        raw = self.path("out.raw")
        tidemark.qemu_img("convert", "-O", "raw", self.image, raw)
        for guest in guests:
            guest.check(raw)

    def test_a_snapshot_has_what_was_written_before(self):
        uri = tidemark.nbd_uri(self.nbd, "disk")
        tidemark.io(uri, "write -P 1 0 1M", fmt="raw")
        self.qmp.transaction(
            ("blockdev-snapshot-internal-sync", {"device": "disk", "name": "a"}),
            ("block-dirty-bitmap-add", {"node": "disk", "name": "since"}),
        )
        tidemark.io(uri, "write -P 2 0 64k", fmt="raw")
        self.assertEqual(self.qmp.bitmaps("disk")["since"]["count"], 65536)
        self.server.quit()
        tidemark.qemu_img("snapshot", "-a", "a", self.image)
        tidemark.qemu_io(self.image, "read -P 1 0 1M", fmt="qcow2")

    def test_a_disk_takes_writes_after_its_snapshots_were_not_to_be_changed(self):
        file = {"driver": "file", "filename": self.create("other.qcow2", "1M")}
        node = {"driver": "qcow2", "node-name": "other", "file": "other-file"}
        self.qmp.command("blockdev-add", **file, node_name="other-file")
        self.qmp.command("blockdev-add", **node)
        self.qmp.command("blockdev-snapshot-internal-sync", device="other", name="s")
        for command, begin, end in (
            ("blockdev-reopen",
             {"options": [{**node, "read-only": True}]}, {"options": [{**node, "read-only": False}]}),
            ("blockdev-set-active",
             {"node-name": "other", "active": False}, {"node-name": "other", "active": True}),
        ):  # fmt: skip
            with self.subTest(command):
                self.qmp.command(command, **begin)
                for change in (
                    "blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync",
                ):  # fmt: skip
                    name = "t" if change == "blockdev-snapshot-internal-sync" else "s"
                    with self.assertRaisesRegex(QmpError, "is read only|on inactive node"):
                        self.qmp.command(change, device="other", name=name)
                self.qmp.command(command, **end)
        self.assertNotIn("takes no more writes", self.server.log())
        self.qmp.command("blockdev-snapshot-delete-internal-sync", device="other", name="s")

    def test_internal_snapshots_that_are_refused(self):
        take, drop = "blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync"
        self.qmp.command(take, device="disk", name="s")
        for wanted, name, arguments in (
            ("Cannot find device='x' nor node-name='x'", take, {"device": "x", "name": "s"}),
            ("Need a root block node", take, {"device": "file", "name": "s"}),
            (
                "Block format 'raw' used by device 'raw' does not support internal snapshots",
                take,
                {"device": "raw", "name": "s"},
            ),
            ("Name is empty", take, {"device": "disk", "name": ""}),
            (
                "Snapshot with name 's' already exists on device 'disk'",
                take,
                {"device": "disk", "name": "s"},
            ),
            ("Name or id must be provided", drop, {"device": "disk"}),
            (
                "Snapshot with id 'null' and name 'z' does not exist on device 'disk'",
                drop,
                {"device": "disk", "name": "z"},
            ),
            (
                "Snapshot with id '7' and name 's' does not exist on device 'disk'",
                drop,
                {"device": "disk", "name": "s", "id": "7"},
            ),
            (
                "Failed to get a snapshot list: Operation not supported",
                drop,
                {"device": "raw", "name": "s"},
            ),
        ):
            self.refused(wanted, name, **arguments)
        two = (take, {"device": "disk", "name": "t"})
        with self.assertRaises(QmpError):
            self.qmp.transaction(two, two)
        self.assertEqual(self.snapshots(), [("1", "s")])
