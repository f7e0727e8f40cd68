# SPDX-License-Identifier: Apache-2.0
"""Overlays on disks in use: blockdev-snapshot and -sync, alone and in transactions."""

import json
import os

import tidemark
from guest import Guest
from qmp import QmpError

MIB = 1 << 20
ABORT = ("abort", {})


def snapshot(node, overlay):
    return "blockdev-snapshot", {"node": node, "overlay": overlay}


def snapshot_sync(node, file, name, **more):
    return "blockdev-snapshot-sync", {
        "node-name": node,
        "snapshot-file": file,
        "snapshot-node-name": name,
        **more,
    }


class SnapshotTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.nbd = self.path("nbd.sock")
        arguments = ["--nbd-server", f"addr.type=unix,addr.path={self.nbd}"]
        for disk in "a", "b":
            image = self.create(f"{disk}.qcow2")
            arguments += [
                "--blockdev",
                f"driver=qcow2,node-name={disk},file.driver=file,file.filename={image}",
                "--export",
                f"type=nbd,id={disk},node-name={disk},name={disk},writable=on",
            ]
        self.server = self.daemon(*arguments)
        self.qmp = self.server.qmp

    def overlay(self, name, below, size="64M"):
        """An overlay that records the image below, opened without a backing node."""
        path = self.create(f"{name}.qcow2", size, options=("-u", "-F", "qcow2", "-b", self.path(below)))
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name=name,
            backing=None,
            file={"driver": "file", "filename": path},
        )
        return path

    def refused(self, wanted, action):
        name, arguments = action
        before = self.state()
        with self.assertRaises(QmpError) as caught:
            self.qmp.command(name, **arguments)
        self.assertEqual(caught.exception.desc, wanted)
        self.assertEqual(self.state(), before)

    def state(self):
        nodes = self.qmp.command("query-named-block-nodes", flat=True)
        for node in nodes:
            node["image"].pop("actual-size", None)
            node["image"].pop("format-specific", None)
            if node["drv"] == "file":
                node["image"].pop("virtual-size")
            for bitmap in node.get("dirty-bitmaps", []):
                bitmap.pop("count")
        nodes.sort(key=lambda n: n["node-name"])
        return nodes, self.exports()

    def exports(self):
        return {e["id"]: e["node-name"] for e in self.qmp.command("query-block-exports")}

    def guests(self, *disks, count=4):
        return {
            disk: [Guest(self.nbd, disk, i * 4 * MIB, 4 * MIB, i) for i in range(count)]
            for disk in disks
        }

    def let_write(self, guests):
        for each in guests.values():
            for guest in each:
                written = guest.written
                tidemark.wait_until(lambda: guest.written > written + 10, "writes")

    def finish(self, guests, tops):
        """Stop guests and daemon; every byte is where it should be, and images are clean."""
        for each in guests.values():
            for guest in each:
                guest.stop()
        self.server.quit()
        for disk, chain in tops.items():
            for image in chain:
                tidemark.qemu_img("check", self.path(image))
            raw = self.path(f"{disk}.raw")
            tidemark.qemu_img("convert", "-O", "raw", self.path(chain[0]), raw)
            for guest in guests[disk]:
                guest.check(raw)
            os.unlink(raw)

    def test_overlays_pile_up_under_writing_guests(self):
        guests = self.guests("a")
        below, chain = "a", ["a.qcow2"]
        for i in range(8):
            name = f"o{i}"
            self.overlay(name, chain[0])
            self.qmp.command("blockdev-snapshot", node=below, overlay=name)
            self.assertEqual(self.exports()["a"], name)
            self.assertTrue(self.qmp.node(below)["ro"])
            self.assertFalse(self.qmp.node(name)["ro"])
            self.let_write(guests)
            below, chain = name, [name + ".qcow2", *chain]
        self.finish(guests, {"a": chain})

    def test_an_image_below_an_overlay_does_not_change(self):
        """It is complete, too: another program reads it while the guest goes on."""
        self.qmp.command("block-dirty-bitmap-add", node="a", name="kept", persistent=True)
        guests = self.guests("a")
        self.let_write(guests)
        self.overlay("o", "a.qcow2")
        self.qmp.command("blockdev-snapshot", node="a", overlay="o")
        copies = []
        for name in "one.raw", "two.raw":
            tidemark.qemu_img("convert", "-O", "raw", self.path("a.qcow2"), self.path(name))
            with open(self.path(name), "rb") as f:
                copies.append(f.read())
            self.let_write(guests)
        self.assertEqual(copies[0], copies[1])
        tidemark.qemu_img("check", self.path("a.qcow2"))
        info = json.loads(tidemark.qemu_img("info", "--output=json", self.path("a.qcow2")).stdout)
        self.assertEqual(
            [(b["name"], b["flags"]) for b in info["format-specific"]["data"]["bitmaps"]],
            [("kept", ["auto"])],
        )
        self.assertEqual(self.qmp.bitmaps("o"), {})
        count = self.qmp.bitmaps("a")["kept"]["count"]
        self.let_write(guests)
        self.assertEqual(self.qmp.bitmaps("a")["kept"]["count"], count)
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("block-dirty-bitmap-clear", node="a", name="kept")
        self.assertIn("readonly", caught.exception.desc)
        self.finish(guests, {"a": ["o.qcow2", "a.qcow2"]})

    def test_the_filter_of_a_job_has_the_filename_of_the_overlay(self):
        """Which comes in between the filter and the disk."""
        self.create("target.raw", fmt="raw")
        self.qmp.command("blockdev-add", driver="file", node_name="t", filename=self.path("target.raw"))
        self.qmp.command(
            "blockdev-backup", job_id="j", device="a", target="t", sync="none", filter_node_name="f"
        )
        self.assertEqual(self.qmp.node("f")["file"], self.path("a.qcow2"))
        path = self.overlay("o", "a.qcow2")
        self.qmp.transaction(snapshot("a", "o"))
        node = self.qmp.node("f")
        self.assertEqual((node["file"], node["image"]["filename"]), (path, path))

    def test_several_disks_at_one_instant(self):
        """What one guest writes to b only after a has it is in the images in this order."""
        guests = self.guests("a", "b")
        self.overlay("oa", "a.qcow2")
        self.overlay("ob", "b.qcow2")
        self.let_write(guests)
        self.qmp.transaction(
            snapshot("a", "oa"),
            ("block-dirty-bitmap-add", {"node": "oa", "name": "new", "persistent": True}),
            snapshot("b", "ob"),
        )
        self.assertEqual(self.exports(), {"a": "oa", "b": "ob"})
        self.let_write(guests)
        self.assertGreater(self.qmp.bitmaps("oa")["new"]["count"], 0)
        self.finish(guests, {"a": ["oa.qcow2", "a.qcow2"], "b": ["ob.qcow2", "b.qcow2"]})

    def test_undone(self):
        guests = self.guests("a", "b", count=2)
        self.overlay("oa", "a.qcow2")
        self.overlay("ob", "b.qcow2")
        self.overlay("second", "oa.qcow2")
        self.qmp.command("block-dirty-bitmap-add", node="a", name="kept", persistent=True)
        new = snapshot_sync("a", self.path("new.qcow2"), "new")
        for actions in (
            (snapshot("a", "oa"), ABORT),
            (snapshot("a", "oa"), snapshot("b", "ob"), ABORT),
            (snapshot("a", "oa"), snapshot("oa", "second"), ABORT),
            (snapshot("a", "oa"), snapshot("b", "oa")),
            (snapshot("a", "oa"), snapshot("a", "second")),
            (snapshot("a", "oa"), ("block-dirty-bitmap-add", {"node": "oa", "name": "n"}), ABORT),
            (("block-dirty-bitmap-disable", {"node": "a", "name": "kept"}), new, ABORT),
            (new, snapshot_sync("new", self.path("newer.qcow2"), "newer"), ABORT),
            (
                new,
                ("block-export-add", {"type": "nbd", "id": "n", "node-name": "new", "name": "n"}),
                ABORT,
            ),
        ):
            with self.subTest(actions=actions):
                before = self.state()
                with self.assertRaises(QmpError):
                    self.qmp.transaction(*actions)
                self.assertEqual(self.state(), before)
                self.let_write(guests)
        self.finish(guests, {"a": ["a.qcow2"], "b": ["b.qcow2"]})

    def test_two_overlays_in_one_transaction(self):
        guests = self.guests("a")
        self.overlay("one", "a.qcow2")
        self.overlay("two", "one.qcow2")
        self.qmp.transaction(snapshot("a", "one"), snapshot("one", "two"))
        self.assertEqual(self.exports()["a"], "two")
        self.let_write(guests)
        self.finish(guests, {"a": ["two.qcow2", "one.qcow2", "a.qcow2"]})

    def test_overlays_are_committed_again(self):
        """Images that became read-only below overlays are writable for the time of a commit."""
        guests = self.guests("a")
        below = "a"
        for name in "one", "two", "three":
            self.overlay(name, below + ".qcow2")
            self.qmp.command("blockdev-snapshot", node=below, overlay=name)
            self.let_write(guests)
            below = name
        self.qmp.command(
            "block-commit", job_id="j", device="three", top_node="two", base_node="a"
        )
        while self.qmp.wait_event("JOB_STATUS_CHANGE")["data"]["status"] != "null":
            pass
        self.assertTrue(self.qmp.node("a")["ro"])
        self.assertEqual(self.qmp.node("three")["backing_file"], self.path("a.qcow2"))
        self.let_write(guests)
        self.qmp.command("block-commit", job_id="j", device="three")
        self.qmp.wait_event("BLOCK_JOB_READY")
        self.qmp.command("job-complete", id="j")
        while self.qmp.wait_event("JOB_STATUS_CHANGE")["data"]["status"] != "null":
            pass
        self.assertEqual(self.exports()["a"], "a")
        self.assertFalse(self.qmp.node("a")["ro"])
        self.let_write(guests)
        self.finish(guests, {"a": ["a.qcow2"]})

    def test_an_overlay_of_another_size(self):
        self.overlay("small", "a.qcow2", "32M")
        self.qmp.command("blockdev-snapshot", node="a", overlay="small")
        tidemark.io(tidemark.nbd_uri(self.nbd, "a"), "write -P 1 31M 1M", fmt="raw")
        result = tidemark.run(
            "nbdinfo",
            "--size",
            tidemark.nbd_uri(self.nbd, "a"),
        )
        self.assertEqual(int(result.stdout), 32 * MIB)

    def test_snapshots_that_are_refused(self):
        self.overlay("o", "a.qcow2")
        unknown = "Cannot find device='{0}' nor node-name='{0}'"
        self.refused(unknown.format("x"), snapshot("x", "o"))
        self.refused(unknown.format("x"), snapshot("a", "x"))
        self.refused("The overlay is already in use", snapshot("a", "a"))
        self.refused("The overlay is already in use", snapshot("a", "b"))
        self.qmp.command("blockdev-add", driver="null-co", node_name="null", size=64 * MIB)
        self.refused("The overlay does not support backing images", snapshot("a", "null"))
        self.create("with.qcow2")
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="with",
            backing="null",
            file={"driver": "file", "filename": self.path("with.qcow2")},
        )
        self.refused("The overlay already has a backing image", snapshot("a", "with"))
        self.qmp.command("blockdev-snapshot", node="a", overlay="o")
        self.overlay("p", "a.qcow2")
        self.refused("Node 'a' is busy: node is used as backing hd of 'o'", snapshot("a", "p"))

    def test_an_overlay_below_an_image_that_grows(self):
        """An overlay records its size, so what the image above writes past that would be lost."""
        image = self.create("c.qcow2", "64M")
        self.qmp.command("blockdev-add", driver="file", node_name="f", filename=image)
        self.qmp.command("blockdev-add", driver="raw", node_name="r", file="f")
        self.qmp.command("blockdev-add", driver="qcow2", node_name="g", file="r")
        self.overlay("o", "c.qcow2", str(os.path.getsize(image)))
        wanted = (
            "Node '{}' is busy: node is used as 'file' of 'g', which extends it; "
            "node '{}' can't be extended so"
        ).format
        new = self.path("new.qcow2")
        self.refused(wanted("r", "o"), snapshot("r", "o"))
        self.refused(wanted("r", "o"), snapshot("f", "o"))
        self.refused(wanted("r", "new"), snapshot_sync("r", new, "new"))
        self.refused(wanted("r", "new"), snapshot_sync("f", new, "new"))
        # An image that is only read does not grow.
        reopened = {"driver": "qcow2", "node-name": "g", "file": "r", "read-only": True}
        self.qmp.command("blockdev-reopen", options=[reopened])
        self.qmp.command("blockdev-snapshot", node="r", overlay="o")

    # blockdev-snapshot-sync

    def test_a_file_is_made(self):
        guests = self.guests("a")
        for below, name in ("a", "s1"), ("s1", "s2"):
            self.let_write(guests)
            self.qmp.command(
                "blockdev-snapshot-sync",
                node_name=below,
                snapshot_file=self.path(name + ".qcow2"),
                snapshot_node_name=name,
            )
            self.assertEqual(self.exports()["a"], name)
            self.assertTrue(self.qmp.node(below)["ro"])
        self.let_write(guests)
        info = json.loads(
            tidemark.qemu_img("info", "-U", "--output=json", self.path("s2.qcow2")).stdout
        )
        self.assertEqual(
            (info["backing-filename"], info["backing-filename-format"]),
            (self.path("s1.qcow2"), "qcow2"),
        )
        self.finish(guests, {"a": ["s2.qcow2", "s1.qcow2", "a.qcow2"]})

    def test_an_existing_file_is_used(self):
        path = self.create("e.qcow2", options=("-u", "-F", "qcow2", "-b", self.path("a.qcow2")))
        uri = tidemark.nbd_uri(self.nbd, "a")
        tidemark.io(uri, "write -P 1 0 128k", fmt="raw")
        name, arguments = snapshot_sync("a", path, "e", mode="existing", format="qcow2")
        self.qmp.command(name, **arguments)
        tidemark.io(uri, "write -P 2 64k 64k", "read -P 1 0 64k", fmt="raw")
        self.server.quit()
        tidemark.qemu_io(path, "read -P 1 0 64k", "read -P 2 64k 64k", fmt="qcow2")

    def test_new_files_that_are_refused(self):
        new, missing = self.path("new.qcow2"), "Cannot find device='{}' nor node-name='{}'"
        sync = "blockdev-snapshot-sync"
        self.refused(missing.format("", ""), (sync, {"snapshot_file": new}))
        self.refused(missing.format("a", ""), (sync, {"device": "a", "snapshot_file": new}))
        self.refused(missing.format("", "x"), snapshot_sync("x", new, "n"))
        self.refused(
            "New overlay node-name missing", (sync, {"node_name": "a", "snapshot_file": new})
        )
        self.refused("New overlay node-name already in use", snapshot_sync("a", new, "b"))
        self.refused("Unknown file format 'x'", snapshot_sync("a", new, "n", format="x"))
        self.refused(
            "Backing file not supported for file format 'raw'",
            snapshot_sync("a", new, "n", format="raw"),
        )
        self.refused(
            f"Could not open '{new}': No such file or directory",
            snapshot_sync("a", new, "n", mode="existing"),
        )
        self.refused(
            f"Could not create '{self.path('no/x')}': No such file or directory",
            snapshot_sync("a", self.path("no/x"), "n"),
        )
        self.assertFalse(os.path.exists(new))
