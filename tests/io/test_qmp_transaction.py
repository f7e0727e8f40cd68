# SPDX-License-Identifier: Apache-2.0
"""Transactions: every action, and that a failure leaves everything as it was."""

import json
import os
import subprocess
import threading
import time

import tidemark
from nbd_raw import RawClient
from nbd_server import Nbdkit
from qmp import QmpError

WRITE = 1
ABORT = ("abort", {})


def add(name, **more):
    return "block-dirty-bitmap-add", {"node": "disk", "name": name, **more}


def on(action, name):
    return "block-dirty-bitmap-" + action, {"node": "disk", "name": name}


class TransactionTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.image = self.create("disk.qcow2")
        self.nbd = self.path("nbd.sock")
        self.server = self.start()
        self.qmp = self.server.qmp
        for name, more in ("old", {}), ("off", {"disabled": True}), ("kept", {"persistent": True}):
            self.qmp.transaction(add(name, **more))
        self.uri = tidemark.nbd_uri(self.nbd, "disk")
        tidemark.io(self.uri, "write -P 1 0 128k", fmt="raw")
        self.qmp.transaction(on("enable", "off"))
        tidemark.io(self.uri, "write -P 2 1M 64k", fmt="raw")
        self.qmp.transaction(on("disable", "off"))
        self.written = 1  # MiB that was written last

    def start(self):
        return self.daemon(
            "--blockdev",
            f"driver=file,node-name=file,filename={self.image}",
            "--blockdev",
            "driver=qcow2,node-name=disk,file=file",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
            "--export",
            "type=nbd,id=export,node-name=disk,name=disk,writable=on",
        )

    def state(self):
        """All that can be asked, in an order that doesn't depend on history."""
        nodes = self.qmp.command("query-named-block-nodes", flat=True)
        for node in nodes:
            node.get("dirty-bitmaps", []).sort(key=lambda b: b["name"])
            node["image"].pop("actual-size", None)
            node["image"].pop("format-specific", None)
            if node["drv"] == "file":
                node["image"].pop("virtual-size")
        nodes.sort(key=lambda n: n["node-name"])
        exports = self.qmp.command("query-block-exports")
        return nodes, sorted(exports, key=lambda e: e["id"])

    def assert_undone(self, *actions, wanted="Transaction aborted using Abort action"):
        """With a failing action at the end nothing has happened; the disk works as before."""
        before = self.state()
        with self.assertRaises(QmpError) as caught:
            self.qmp.transaction(*actions)
        self.assertEqual(caught.exception.desc, wanted)
        self.assertEqual(self.state(), before)
        counts = {n: b["count"] for n, b in self.qmp.bitmaps("disk").items() if b["recording"]}
        self.written += 1
        tidemark.io(
            self.uri, f"write -P 3 {self.written}M 64k", "read -P 1 0 128k", fmt="raw"
        )
        for name, bitmap in self.qmp.bitmaps("disk").items():
            if name in counts:
                self.assertEqual(bitmap["count"], counts[name] + 65536, name)

    def counts(self):
        return {name: b["count"] for name, b in self.qmp.bitmaps("disk").items()}

    # What each action does.

    def test_grouped_completion_needs_something_to_complete(self):
        before = self.state()
        for mode, wanted in ("individual", None), ("grouped", "does not support"):
            name, arguments = add("g-" + mode)
            answer = self.qmp.execute(
                "transaction",
                {
                    "actions": [{"type": name, "data": arguments}],
                    "properties": {"completion-mode": mode},
                },
            )
            if wanted:
                self.assertEqual(
                    answer["error"]["desc"],
                    "Action 'block-dirty-bitmap-add' does not support transaction property "
                    "completion-mode = grouped",
                )
            else:
                self.assertEqual(answer, {"return": {}})
        self.qmp.transaction(on("remove", "g-individual"))
        self.assertEqual(self.state(), before)

    def test_bitmap_actions(self):
        self.qmp.transaction(
            add("new", granularity=4096),
            on("disable", "old"),
            on("enable", "off"),
            on("clear", "kept"),
            (
                "block-dirty-bitmap-merge",
                {"node": "disk", "target": "kept", "bitmaps": ["off"]},
            ),
        )
        bitmaps = self.qmp.bitmaps("disk")
        self.assertEqual(bitmaps["new"]["granularity"], 4096)
        self.assertFalse(bitmaps["old"]["recording"])
        self.assertTrue(bitmaps["off"]["recording"])
        self.assertEqual(
            self.counts(), {"old": 196608, "off": 65536, "kept": 65536, "new": 0}
        )
        self.qmp.transaction(on("remove", "new"), on("remove", "kept"))
        self.assertEqual(sorted(self.counts()), ["off", "old"])

    def test_actions_see_those_before_them(self):
        self.qmp.transaction(
            add("a"),
            on("disable", "a"),
            (
                "block-dirty-bitmap-merge",
                {"node": "disk", "target": "a", "bitmaps": [{"node": "disk", "name": "old"}]},
            ),
            on("remove", "old"),
            add("old"),
        )
        self.assertEqual(self.counts()["a"], 196608)
        self.assertEqual(self.counts()["old"], 0)

    def test_a_stored_bitmap_is_replaced_by_one_of_its_name(self):
        """However often it was stored before; and not at all when the transaction fails."""
        for written in 0, 1:
            self.assert_undone(on("remove", "kept"), add("kept", persistent=True), ABORT)
            self.qmp.transaction(on("remove", "kept"), add("kept", persistent=True))
            self.assertEqual(self.counts()["kept"], 0)
            tidemark.io(self.uri, "write -P 4 2M 64k", fmt="raw")
            self.assertEqual(self.counts()["kept"], 65536)
            self.server.quit()
            info = json.loads(tidemark.qemu_img("info", "--output=json", self.image).stdout)
            self.assertEqual(
                [(b["name"], b["flags"]) for b in info["format-specific"]["data"]["bitmaps"]],
                [("kept", ["auto"])],
            )
            self.server = self.start()
            self.qmp = self.server.qmp
            self.assertEqual(self.counts()["kept"], 65536)

    def test_node_and_export_actions(self):
        self.qmp.transaction(
            ("blockdev-add", {"driver": "raw", "node-name": "over", "file": "disk"}),
            ("blockdev-replace", {"export": "export", "node-name": "over"}),
            (
                "block-export-add",
                {"type": "nbd", "id": "second", "node-name": "disk", "name": "second"},
            ),
        )
        exports = {e["id"]: e["node-name"] for e in self.qmp.command("query-block-exports")}
        self.assertEqual(exports, {"export": "over", "second": "disk"})
        tidemark.io(tidemark.nbd_uri(self.nbd, "second"), "read -P 1 0 128k", fmt="raw", options=["-r"])
        self.qmp.transaction(
            ("block-export-del", {"id": "second"}),
            ("blockdev-replace", {"export": "export", "node-name": "disk"}),
            ("blockdev-del", {"node-name": "over"}),
        )
        self.assertEqual(self.qmp.wait_event("BLOCK_EXPORT_DELETED")["data"], {"id": "second"})
        self.assertIsNone(self.qmp.node("over"))
        tidemark.io(self.uri, "read -P 1 0 128k", fmt="raw")

    def test_parents_and_children_are_deleted_together(self):
        self.qmp.command("blockdev-add", driver="null-co", node_name="low", size=65536)
        self.qmp.command("blockdev-add", driver="raw", node_name="high", file="low")
        low, high = ("blockdev-del", {"node-name": "low"}), ("blockdev-del", {"node-name": "high"})
        self.assert_undone(low, high, wanted="Block device low is in use")
        self.assert_undone(high, low, ABORT)
        self.assert_undone(high, high, wanted="Failed to find node with node-name='high'")
        self.qmp.transaction(high, low)
        self.assertIsNone(self.qmp.node("low"))

    # All or nothing.

    def test_undone_bitmap_add(self):
        self.assert_undone(add("new", persistent=True), add("other"), ABORT)

    def test_undone_bitmap_remove(self):
        self.assert_undone(on("remove", "old"), on("remove", "kept"), ABORT)

    def test_undone_bitmap_clear(self):
        self.assert_undone(on("clear", "old"), on("clear", "kept"), on("clear", "old"), ABORT)

    def test_undone_bitmap_enable(self):
        self.assert_undone(on("enable", "off"), on("enable", "old"), ABORT)

    def test_undone_bitmap_disable(self):
        self.assert_undone(on("disable", "old"), on("disable", "kept"), ABORT)

    def test_undone_bitmap_merge(self):
        self.qmp.transaction(on("clear", "kept"))
        merge = {"node": "disk", "target": "kept", "bitmaps": ["old", "off"]}
        self.assert_undone(("block-dirty-bitmap-merge", merge), ABORT)

    def test_undone_blockdev_add(self):
        self.assert_undone(
            ("blockdev-add", {"driver": "null-co", "node-name": "a"}),
            ("blockdev-add", {"driver": "raw", "node-name": "b", "file": "a"}),
            ABORT,
        )

    def test_undone_blockdev_del(self):
        self.qmp.command("blockdev-add", driver="null-co", node_name="a")
        self.assert_undone(("blockdev-del", {"node-name": "a"}), ABORT)
        self.qmp.command("blockdev-del", node_name="a")

    def test_undone_blockdev_replace(self):
        self.assert_undone(
            ("blockdev-add", {"driver": "raw", "node-name": "over", "file": "disk"}),
            ("blockdev-replace", {"export": "export", "node-name": "over"}),
            ABORT,
        )

    def test_undone_export_add(self):
        self.assert_undone(
            ("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "name": "e"}),
            ABORT,
        )

    def test_undone_export_del(self):
        self.assert_undone(("block-export-del", {"id": "export"}), ABORT)

    def test_undone_with_all_at_once(self):
        self.assert_undone(
            add("new"),
            on("clear", "old"),
            on("remove", "old"),
            add("old"),
            on("disable", "kept"),
            ("blockdev-add", {"driver": "raw", "node-name": "over", "file": "disk"}),
            ("block-dirty-bitmap-add", {"node": "over", "name": "x"}),
            ("blockdev-replace", {"export": "export", "node-name": "over"}),
            ("block-dirty-bitmap-clear", {"node": "over", "name": "missing"}),
            wanted="Dirty bitmap 'missing' not found",
        )

    def test_a_failure_of_each_kind_undoes_what_was_before(self):
        for action, wanted in (
            (add("old"), "Bitmap already exists: old"),
            (on("remove", "x"), "Dirty bitmap 'x' not found"),
            (on("clear", "x"), "Dirty bitmap 'x' not found"),
            (on("enable", "x"), "Dirty bitmap 'x' not found"),
            (on("disable", "x"), "Dirty bitmap 'x' not found"),
            (
                (
                    "block-dirty-bitmap-merge",
                    {"node": "disk", "target": "old", "bitmaps": ["kept", "x"]},
                ),
                "Dirty bitmap 'x' not found",
            ),
            (
                ("blockdev-add", {"driver": "bogus", "node-name": "n"}),
                "Parameter 'driver' does not accept value 'bogus'",
            ),
            (("blockdev-del", {"node-name": "disk"}), "Node disk is in use"),
            (
                ("blockdev-replace", {"export": "x", "node-name": "disk"}),
                "Export 'x' is not found",
            ),
            (
                ("block-export-add", {"type": "nbd", "id": "export", "node-name": "disk"}),
                "Block export id 'export' is already in use",
            ),
            (("block-export-del", {"id": "x"}), "Export 'x' is not found"),
        ):
            with self.subTest(action):
                self.assert_undone(add("new"), on("clear", "old"), action, wanted=wanted)

    def actions_that_use_each_other(self):
        """What makes things, and what uses, changes or deletes what others of these make."""
        cbw = {"driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "temp"}
        export = {"type": "nbd", "id": "more", "node-name": "disk", "name": "more"}
        merge = {"node": "disk", "target": "new", "bitmaps": ["old"]}
        return [
            add("new", disabled=True),
            add("new", persistent=True),
            add("old"),
            *(on(verb, "new") for verb in ("remove", "clear", "enable", "disable")),
            *(on(verb, "old") for verb in ("remove", "clear", "disable")),
            *(on(verb, "kept") for verb in ("remove", "clear", "disable")),
            ("block-dirty-bitmap-merge", merge),
            ("block-dirty-bitmap-merge", {**merge, "target": "kept", "bitmaps": ["new", "old"]}),
            ("blockdev-add", {"driver": "raw", "node-name": "over", "file": "disk"}),
            ("blockdev-add", {**cbw, "on-cbw-error": "break-snapshot"}),
            ("blockdev-add", {**cbw, "bitmap": {"node": "disk", "name": "new"}}),
            ("blockdev-add", {"driver": "snapshot-access", "node-name": "view", "file": "cbw"}),
            ("block-dirty-bitmap-add", {"node": "over", "name": "above"}),
            ("blockdev-replace", {"export": "export", "node-name": "over"}),
            ("blockdev-replace", {"export": "export", "node-name": "cbw"}),
            ("blockdev-replace", {"export": "more", "node-name": "over"}),
            *(("blockdev-del", {"node-name": n}) for n in ("over", "cbw", "temp", "disk", "idle")),
            ("block-export-add", export),
            ("block-export-add", {**export, "writable": True, "bitmaps": ["old"]}),
            ("block-export-add", {**export, "bitmaps": ["new", "off"]}),
            ("block-export-add", {**export, "node-name": "over"}),
            ("block-export-add", {**export, "node-name": "view"}),
            *(("block-export-del", {"id": i, "mode": "hard"}) for i in ("more", "export")),
        ]

    def test_every_pair_of_actions_is_undone(self):
        """For each ordered pair: whatever the second finds of the first, before is after."""
        self.qmp.command("blockdev-add", driver="null-co", node_name="temp", size=64 << 20)
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="idle",
            file={"driver": "file", "filename": self.create("idle.qcow2")},
        )
        self.qmp.transaction(("block-dirty-bitmap-add", {"node": "idle", "name": "b", "persistent": True}))
        before = self.state()
        both = 0
        made = self.actions_that_use_each_other()
        made = [made[0], *(a for a in made if a[0] == "blockdev-add" and a[1]["node-name"] == "over")]
        for first in self.actions_that_use_each_other():
            for second in self.actions_that_use_each_other():
                for others in [], made:
                    with self.assertRaises(QmpError) as caught:
                        self.qmp.transaction(*others, first, second, ABORT)
                    both += "Abort" in caught.exception.desc
                    self.assertEqual(self.state(), before, (others, first, second))
            recording = {n: b["count"] for n, b in self.qmp.bitmaps("disk").items() if b["recording"]}
            self.written += 1
            tidemark.io(self.uri, f"write -P 3 {self.written}M 64k", "read -P 1 0 128k", fmt="raw")
            for name, count in recording.items():
                self.assertEqual(self.counts()[name], count + 65536, (first, name))
            before = self.state()
        self.assertGreater(both, 600)  # pairs that would have been carried out
        counts = self.counts()
        self.server.quit()
        self.assertEqual(tidemark.qemu_img("check", self.image).returncode, 0)
        bitmaps = json.loads(tidemark.qemu_img("info", "--output=json", self.image).stdout)
        bitmaps = bitmaps["format-specific"]["data"]["bitmaps"]
        self.assertEqual([(b["name"], b["flags"]) for b in bitmaps], [("kept", ["auto"])])
        again = self.daemon(
            "--blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={self.image}"
        )
        self.assertEqual(again.qmp.bitmaps("disk")["kept"]["count"], counts["kept"])

    def test_what_the_schema_refuses_starts_nothing(self):
        self.assert_undone(
            add("new"),
            ("block-dirty-bitmap-add", {"node": "disk", "name": 5}),
            wanted="Invalid parameter type for 'actions[1].data.name', expected: string",
        )

    def test_bitmaps_are_stored_after_an_abort(self):
        self.assert_undone(on("remove", "kept"), on("clear", "kept"), wanted="Dirty bitmap 'kept' not found")
        self.assert_undone(on("clear", "kept"), on("remove", "kept"), ABORT)
        self.server.quit()
        info = json.loads(tidemark.qemu_img("info", "--output=json", self.image).stdout)
        self.assertEqual(
            [(b["name"], b["flags"]) for b in info["format-specific"]["data"]["bitmaps"]],
            [("kept", ["auto"])],
        )

    def add_failing_image(self, **options):
        """Node `failing`, whose bitmap `stuck` can't be removed."""
        image = self.create("failing.qcow2")
        tidemark.qemu_img("bitmap", "--add", image, "stuck")
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="failing",
            file={
                "driver": "blkdebug",
                "image": {"driver": "file", "filename": image},
                "inject-error": [{"event": "none", "iotype": "write", "errno": 5}],
            },
            **options,
        )

    def test_an_image_that_fails_late_undoes_other_images(self):
        """The images are written at the end, when each action has succeeded."""
        self.add_failing_image()
        self.expect_the_failing_image_to_undo_others()

    def test_an_image_without_a_log_that_fails_late_undoes_other_images(self):
        """Removal from the first image is done already when the second refuses."""
        self.add_failing_image(durable_bitmaps="off")
        self.expect_the_failing_image_to_undo_others()

    def expect_the_failing_image_to_undo_others(self):
        before = self.state()
        with self.assertRaises(QmpError) as caught:
            self.qmp.transaction(
                on("clear", "kept"),
                on("remove", "kept"),
                ("block-dirty-bitmap-remove", {"node": "failing", "name": "stuck"}),
            )
        self.assertIn("Input/output error", caught.exception.desc)
        self.assertEqual(self.state(), before)
        self.server.quit(expect=None)
        info = json.loads(tidemark.qemu_img("info", "--output=json", self.image).stdout)
        self.assertEqual(
            [(b["name"], b["flags"]) for b in info["format-specific"]["data"]["bitmaps"]],
            [("kept", ["auto"])],
        )

    def start_again(self):
        self.server.quit(expect=None)
        self.server = self.start()
        self.qmp = self.server.qmp

    def test_bits_that_were_in_the_image_only_are_put_back(self):
        self.start_again()
        self.add_failing_image()
        with self.assertRaises(QmpError):
            self.qmp.transaction(
                on("remove", "kept"),
                ("block-dirty-bitmap-remove", {"node": "failing", "name": "stuck"}),
            )
        self.start_again()
        self.assertEqual(self.qmp.bitmaps("disk")["kept"]["count"], 192 * 1024)

    def test_bitmaps_that_are_being_stored_are_removed_before_or_after_that(self):
        """blockdev-del stores bitmaps for as long as the disk takes, and holds nobody up meanwhile.
        """
        image = self.create("slow.qcow2", "1M")
        os.truncate(image, 8 << 20)
        slow = self.own(Nbdkit(self.dir, "--filter=delay", "file", image, "wdelay=20ms"))
        server = {"type": "unix", "path": slow.socket}
        file = {"driver": "nbd", "server": server}
        self.qmp.command("blockdev-add", driver="qcow2", node_name="slow", file=file)
        bitmaps = [{"node": "slow", "name": f"b{i}"} for i in range(20)]
        self.qmp.transaction(
            *(("block-dirty-bitmap-add", b | {"persistent": True}) for b in bitmaps)
        )
        delete = {"execute": "blockdev-del", "arguments": {"node-name": "slow"}}
        self.qmp.send_raw(json.dumps(delete))
        time.sleep(0.3)
        remove = [{"type": "block-dirty-bitmap-remove", "data": b} for b in bitmaps]
        with self.server.connect() as other:
            removed = "return" in other.execute("transaction", {"actions": remove})
        self.assertEqual(self.qmp.receive_answer(), {"return": {}})
        slow.stop()
        info = json.loads(tidemark.qemu_img("info", "--output=json", image).stdout)
        stored = info["format-specific"]["data"].get("bitmaps", [])
        self.assertEqual(len(stored), 0 if removed else len(bitmaps))

    # One instant for the guest.

    def in_flight(self, node):
        for o in self.qmp.command("query-stats", target="node"):
            if o["labels"]["node"] == node:
                return next(s["value"] for s in o["stats"] if s["name"] == "in-flight")
        return 0

    def add_slow_disk(self):
        """A node that takes a second for a write, with an export and the bitmap `run0`."""
        slow = {"event": "none", "iotype": "write", "errno": 0, "delay-ns": 10**9}
        image = {"driver": "file", "filename": self.create("slow.raw", "1M", "raw")}
        self.qmp.command(
            "blockdev-add", driver="raw", node_name="slow",
            file={"driver": "blkdebug", "image": image, "inject-error": [slow]},
        )  # fmt: skip
        self.qmp.command("block-export-add", type="nbd", id="slow", node_name="slow", writable=True)
        self.qmp.command("block-dirty-bitmap-add", node="slow", name="run0")

    def test_disks_of_a_transaction_stop_at_one_instant(self):
        """A disk whose turn has been gets no write while another one is waited for."""
        self.add_slow_disk()
        self.qmp.transaction(add("run0"))
        halt, written, slowly = threading.Event(), [], []

        def write(name, step, errors):
            client = RawClient(self.nbd)
            client.go(name)
            while not halt.is_set() and len(errors) < 500:
                client.request(WRITE, len(errors) * step, 4096, payload=bytes(4096))
                errors.append(client.error())
            client.sock.close()

        writers = [
            threading.Thread(target=write, args=(b"disk", 65536, written)),
            threading.Thread(target=write, args=(b"slow", 0, slowly)),
        ]
        for writer in writers:
            writer.start()
        try:
            tidemark.wait_until(lambda: written and self.in_flight("slow") > 0, "writes")
            for turn in range(4):
                change = "block-dirty-bitmap-" + ("enable" if turn % 2 else "disable")
                self.qmp.transaction(
                    on("disable", f"run{turn}"),
                    (change, {"node": "slow", "name": "run0"}),
                    add(f"run{turn + 1}"),
                )
        finally:
            halt.set()
            for writer in writers:
                writer.join()
        self.assertEqual(set(written), {0})
        runs = [f"run{turn}" for turn in range(4)]
        self.qmp.command("block-dirty-bitmap-merge", node="disk", target="run4", bitmaps=runs)
        self.assertEqual(self.counts()["run4"], len(written) << 16)

    def test_a_checkpoint_is_one_instant(self):
        """Freeze the running bitmap, start the next, fleece: no write falls between them."""
        target = self.create("fleece.qcow2")
        self.qmp.transaction(add("run0"))
        writer = self.own(
            tidemark.Process(
                [
                    tidemark.qemu("qemu-io"),
                    "-f",
                    "raw",
                    *[w for i in range(1500) for w in ("-c", f"write -q -P {i % 250 + 1} {i * 4096} 4k")],
                    self.uri,
                ],
                self.path("writer.log"),
                stdin=subprocess.DEVNULL,
            )
        )
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="fleece",
            file={"driver": "file", "filename": target},
        )
        recording = "run0"
        for turn in range(1, 6):
            name = f"run{turn}"
            cbw = {"driver": "copy-before-write", "file": "disk", "target": "fleece"}
            self.qmp.transaction(
                on("disable", recording),
                add(name),
                ("blockdev-add", {**cbw, "node-name": "cbw"}),
                ("blockdev-replace", {"export": "export", "node-name": "cbw"}),
                (
                    "blockdev-add",
                    {"driver": "snapshot-access", "node-name": "snapshot", "file": "cbw"},
                ),
                (
                    "block-export-add",
                    {"type": "nbd", "id": "view", "node-name": "snapshot", "name": "view"},
                ),
            )
            self.qmp.command("block-export-del", id="view", mode="hard")
            self.qmp.wait_event("BLOCK_EXPORT_DELETED")
            self.qmp.command("blockdev-del", node_name="snapshot")
            self.qmp.transaction(
                ("blockdev-replace", {"export": "export", "node-name": "disk"}),
                ("blockdev-del", {"node-name": "cbw"}),
            )
            recording = name
        self.assertEqual(writer.wait(), 0, writer.log())
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="all", disabled=True)
        self.qmp.command(
            "block-dirty-bitmap-merge",
            node="disk",
            target="all",
            bitmaps=[f"run{i}" for i in range(6)],
        )
        self.assertEqual(self.counts()["all"], 1500 * 4096 // 65536 * 65536 + 65536)
        tidemark.io(self.uri, "read -P 1 0 4k", f"read -P 250 {1499 * 4096} 4k", fmt="raw")
