# SPDX-License-Identifier: Apache-2.0
"""Bitmaps follow the disk when it goes back to an internal snapshot: what differs is a change."""

import json
import unittest

from guest import Guest
from qmp import QmpError
from test_chain_bitmaps import CLUSTER, Chain
from tidemark import compat, img, io, nbd_uri, qemu_img, run


class Revert(Chain):
    """After the snapshot `s`: AB of AAAA is overwritten, a place is new, one is zeroed."""

    def setUp(self):
        super().setUp()
        self.image = self.disk("image.qcow2")
        self.draw(self.image, "AAAA----")
        img("snapshot", "-f", "qcow2", "-c", "s", self.image)

    def revert(self, *more, **how):
        return img("snapshot", "-f", "qcow2", "-a", "s", *more, self.image, **how)

    def test_what_differs_is_dirty(self):
        self.bitmap(self.image, "b")
        self.bitmap(self.image, "b", "--clear")
        self.draw(self.image, "-B---C--")
        io(self.image, f"write -z {2 * CLUSTER} {CLUSTER}", fmt="qcow2")
        img("bitmap", "-f", "qcow2", "--clear", self.image, "b")
        self.assertEqual(self.dirty(self.image, "b"), "--------")
        self.revert()
        self.assertEqual(self.contents(self.image), "AAAA----")
        self.assertEqual(self.dirty(self.image, "b"), "-11--1--")
        self.assertEqual(self.bitmaps(self.image), {"b": True})
        qemu_img("check", self.image)

    def test_frozen_ones_stay(self):
        self.bitmap(self.image, "old")
        self.draw(self.image, "-B------")
        self.bitmap(self.image, "old", "--disable")
        self.bitmap(self.image, "new")
        self.draw(self.image, "--B-----")
        self.revert()
        self.assertEqual(self.dirty(self.image, "old"), "-1------")
        self.assertEqual(self.dirty(self.image, "new"), "-11-----")
        self.assertEqual(self.bitmaps(self.image), {"old": False, "new": True})

    def test_and_forth(self):
        """To a later snapshot and back: each way is a change."""
        self.draw(self.image, "---D---D")
        img("snapshot", "-f", "qcow2", "-c", "t", self.image)
        self.bitmap(self.image, "b")
        self.revert()
        self.assertEqual(self.dirty(self.image, "b"), "---1---1")
        self.bitmap(self.image, "b", "--clear")
        img("snapshot", "-f", "qcow2", "-a", "t", self.image)
        self.assertEqual(self.contents(self.image), "AAAD---D")
        self.assertEqual(self.dirty(self.image, "b"), "---1---1")

    def test_nothing_differs(self):
        self.bitmap(self.image, "b")
        self.revert()
        self.assertEqual(self.dirty(self.image, "b"), "--------")

    def test_to_a_smaller_disk_and_larger_again(self):
        img("resize", "-f", "qcow2", self.image, str(10 * CLUSTER))
        self.bitmap(self.image, "b")
        self.bitmap(self.image, "frozen", "--add", "--disable", "-g", "64k")
        self.draw(self.image, "---D----ZZ")
        img("snapshot", "-f", "qcow2", "-c", "large", self.image)
        self.bitmap(self.image, "b", "--clear")
        self.revert()
        self.assertEqual(self.contents(self.image), "AAAA----")
        self.assertEqual(self.dirty(self.image, "b"), "---1----")
        img("snapshot", "-f", "qcow2", "-a", "large", self.image)
        self.assertEqual(self.contents(self.image), "AAAD----ZZ")
        self.assertEqual(self.dirty(self.image, "b"), "---1----11")
        self.assertEqual(self.dirty(self.image, "frozen"), "--------11")
        qemu_img("check", self.image)

    def test_regrown_after_a_smaller_snapshot(self):
        """What the disk had there before, and has no more, is a change."""
        img("resize", "-f", "qcow2", self.image, str(10 * CLUSTER))
        self.draw(self.image, "--------ZZ")
        self.bitmap(self.image, "b")
        self.revert()
        img("resize", "-f", "qcow2", self.image, str(10 * CLUSTER))
        self.assertEqual(self.contents(self.image), "AAAA------")
        self.assertEqual(self.dirty(self.image, "b"), "--------11")

    def test_an_inconsistent_one_is_no_hindrance(self):
        """Unless its size would have to change."""
        self.bitmap(self.image, "lost")
        self.break_bitmaps(self.image)
        self.bitmap(self.image, "b")
        self.draw(self.image, "-----E--")
        self.revert()
        self.assertEqual(self.dirty(self.image, "b"), "1----1--")
        info = json.loads(qemu_img("info", "--output=json", self.image).stdout)
        flags = {b["name"]: b["flags"] for b in info["format-specific"]["data"]["bitmaps"]}
        self.assertIn("in-use", flags["lost"])
        img("bitmap", "-f", "qcow2", "--remove", self.image, "b")
        refused = img("resize", "-f", "qcow2", self.image, str(16 * CLUSTER), check=False)
        self.assertIn("'lost'", refused.stderr)
        img("bitmap", "-f", "qcow2", "--remove", self.image, "lost")
        img("resize", "-f", "qcow2", self.image, str(16 * CLUSTER))

    def test_an_inconsistent_one_can_not_change_its_size(self):
        self.bitmap(self.image, "lost")
        self.break_bitmaps(self.image)
        img("bitmap", "-f", "qcow2", "--remove", self.image, "lost")
        img("resize", "-f", "qcow2", self.image, str(16 * CLUSTER))
        self.bitmap(self.image, "lost")
        self.break_bitmaps(self.image)
        with open(self.image, "rb") as file:
            before = file.read()
        result = self.revert(check=False)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("'lost'", result.stderr)
        with open(self.image, "rb") as file:
            self.assertEqual(file.read(), before)
        img("bitmap", "-f", "qcow2", "--remove", self.image, "lost")
        self.revert()
        self.assertEqual(self.contents(self.image), "AAAA----")


class RevertOthers(Chain):
    """Subclusters; and refcounts that can't be raised: the references of the disk go first."""

    def test_what_differs_is_dirty(self):
        for option in ("extended_l2=on", "refcount_bits=2", "cluster_size=4k"):
            with self.subTest(option=option):
                self.image = self.disk(option + ".qcow2", options=("-o", option))
                self.draw(self.image, "AAAA----")
                for name in ("s", "more"):
                    img("snapshot", "-f", "qcow2", "-c", name, self.image)
                self.draw(self.image, "-B---C--")
                self.bitmap(self.image, "b")
                img("snapshot", "-f", "qcow2", "-a", "s", self.image)
                self.assertEqual(self.contents(self.image), "AAAA----")
                self.assertEqual(self.dirty(self.image, "b"), "-1---1--")
                qemu_img("check", self.image)


class RevertLive(Chain):
    """x-tidemark-snapshot-apply, with clients connected."""

    def setUp(self):
        super().setUp()
        self.image = self.disk("image.qcow2")
        self.draw(self.image, "AAAA----")
        self.socket = self.path("nbd")
        self.server = self.daemon("--nbd-server", f"addr.type=unix,addr.path={self.socket}")
        self.qmp = self.server.qmp
        file = {"driver": "file", "filename": self.image}
        self.qmp.command("blockdev-add", driver="qcow2", node_name="disk", file=file)
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="disk", writable=True)
        self.uri = nbd_uri(self.socket, "disk")
        self.qmp.command("blockdev-snapshot-internal-sync", device="disk", name="s")

    def add(self, name, **more):
        self.qmp.command("block-dirty-bitmap-add", node="disk", name=name, granularity=CLUSTER,
                         **more)

    def counts(self):
        return {n: b["count"] // CLUSTER for n, b in self.qmp.bitmaps("disk").items()}

    def test_what_differs_is_dirty(self):
        self.add("kept", persistent=True)
        self.add("passing")
        self.add("frozen", disabled=True)
        io(self.uri, f"write -P 66 {CLUSTER} {CLUSTER}", fmt="raw")
        for name in ("kept", "passing"):
            self.qmp.command("block-dirty-bitmap-clear", node="disk", name=name)
        self.qmp.command("x-tidemark-snapshot-apply", device="disk", name="s")
        io(self.uri, f"read -P 65 0 {4 * CLUSTER}", fmt="raw")
        self.assertEqual(self.counts(), {"kept": 1, "passing": 1, "frozen": 0})
        io(self.uri, f"write -P 67 {6 * CLUSTER} {CLUSTER}", fmt="raw")
        self.server.quit()
        self.assertEqual(self.contents(self.image), "AAAA--C-")
        self.assertEqual(self.dirty(self.image, "kept"), "-1----1-")
        qemu_img("check", self.image)

    def test_another_size(self):
        """Clients see it; persistent bitmaps are stored for it."""
        self.add("kept", persistent=True)
        self.qmp.command("block_resize", node_name="disk", size=10 * CLUSTER)
        io(self.uri, f"write -P 90 {8 * CLUSTER} {2 * CLUSTER}", fmt="raw")
        self.qmp.command("blockdev-snapshot-internal-sync", device="disk", name="large")
        self.qmp.command("x-tidemark-snapshot-apply", device="disk", name="s")
        self.assertEqual(self.qmp.node("disk")["image"]["virtual-size"], 8 * CLUSTER)
        self.assertEqual(self.counts(), {"kept": 0})
        self.qmp.command("x-tidemark-snapshot-apply", device="disk", id="2")
        io(self.uri, f"read -P 90 {8 * CLUSTER} {2 * CLUSTER}", fmt="raw")
        self.assertEqual(self.counts(), {"kept": 2})
        self.server.kill()
        self.assertEqual(self.dirty(self.image, "kept"), "--------11")

    def test_killed_afterwards(self):
        """What differs is in the image before the disk changes."""
        self.add("kept", persistent=True)
        io(self.uri, f"write -P 66 {CLUSTER} {CLUSTER}", "flush", fmt="raw")
        self.qmp.command("block-dirty-bitmap-clear", node="disk", name="kept")
        self.qmp.command("x-tidemark-snapshot-apply", device="disk", name="s")
        self.server.kill()
        self.assertEqual(self.dirty(self.image, "kept"), "-1------")
        self.assertEqual(self.contents(self.image), "AAAA----")

    def test_while_guests_write(self):
        """Each block is that of the snapshot or dirty."""
        self.add("since", persistent=True)
        guests = [Guest(self.socket, "disk", i * CLUSTER, CLUSTER, i) for i in range(4)]
        for _ in range(5):
            self.qmp.command("x-tidemark-snapshot-apply", device="disk", name="s")
        for guest in guests:
            guest.stop()
        self.server.quit()
        dirty = self.dirty(self.image, "since")
        now = self.contents(self.image)
        for at, letter in enumerate("AAAA----"):
            self.assertTrue(dirty[at] == "1" or now[at] == letter, (dirty, now))
        qemu_img("check", self.image)

    def test_refused(self):
        apply = "x-tidemark-snapshot-apply"
        for wanted, arguments in (
            ("Cannot find device='x' nor node-name='x'", {"device": "x", "name": "s"}),
            ("Name or id must be provided", {"device": "disk"}),
            ("Snapshot with id 'null' and name 't' does not exist on device 'disk'",
             {"device": "disk", "name": "t"}),
        ):
            with self.assertRaises(QmpError) as refused:
                self.qmp.command(apply, **arguments)
            self.assertEqual(refused.exception.desc, wanted)
        over = self.disk("over.qcow2")
        self.qmp.command("blockdev-add", driver="qcow2", node_name="over", backing="disk",
                         file={"driver": "file", "filename": over})
        with self.assertRaises(QmpError):
            self.qmp.command(apply, device="disk", name="s")
        io(self.uri, f"read -P 65 0 {4 * CLUSTER}", fmt="raw")


class Regrown(Chain):
    """What a disk gains where it had something once is a change, also if another image of the
    chain had it, or had it and left.
    """

    def resize(self, image, clusters):
        img("resize", "-q", "-f", "qcow2", "--shrink", image, str(clusters * CLUSTER))

    def test_of_an_overlay(self):
        base = self.disk("base.qcow2")
        self.draw(base, "AAAAAAAA")
        self.bitmap(base, "b1")
        self.resize(base, 6)
        over = self.disk("over.qcow2", 6, backing=base)
        self.bitmap(over, "b2")
        self.resize(over, 10)
        self.assertEqual(self.contents(over), "AAAAAA----")
        self.assertEqual(self.dirty(over, "b2"), "------11--")

    def test_after_a_commit(self):
        base = self.disk("base.qcow2", 4)
        over = self.disk("over.qcow2", 8, backing=base)
        self.bitmap(over, "b")
        self.draw(over, "AAAAAAAA")
        self.bitmap(over, "b", "--clear")
        self.resize(over, 6)
        img("commit", "-q", "-f", "qcow2", "-d", over)
        self.assertEqual(self.dirty(base, "b"), "------")
        self.resize(base, 10)
        self.assertEqual(self.contents(base), "AAAAAA----")
        self.assertEqual(self.dirty(base, "b"), "------11--")

    def test_after_a_rebase(self):
        base = self.disk("base.qcow2", 8)
        self.draw(base, "AAAAAAAA")
        over = self.disk("over.qcow2", 6, backing=base)
        self.bitmap(over, "b")
        img("rebase", "-q", "-f", "qcow2", "-b", "", over)
        self.resize(over, 10)
        self.assertEqual(self.dirty(over, "b"), "------11--")


class State(Chain):
    """x-tidemark-state: how far a bitmap is to be trusted."""

    def shown(self, tool=img):
        info = json.loads(tool("info", "--output=json", self.image).stdout)
        listed = info["format-specific"]["data"]["bitmaps"]
        return {b["name"]: b.get("x-tidemark-state") for b in listed}

    def test_exact_and_lost(self):
        self.image = self.disk("image.qcow2")
        self.bitmap(self.image, "lost")
        self.break_bitmaps(self.image)
        self.bitmap(self.image, "b")
        why = "a program that had the image open did not store it"
        by_info = self.shown()
        server = self.daemon("--blockdev",
                             f"qcow2,node-name=disk,file.driver=file,file.filename={self.image}")
        by_qmp = {n: b["x-tidemark-state"] for n, b in server.qmp.bitmaps("disk").items()}
        for shown in (by_info, by_qmp):
            self.assertEqual(shown["b"], {"kind": "exact"})
            self.assertEqual(shown["lost"]["kind"], "lost")
            self.assertIn(why, shown["lost"]["reason"])
            self.assertNotIn("since", shown["lost"])
        server.stop()
        self.assertIn("kind: lost", img("info", self.image).stdout)

    def test_not_under_the_names_of_qemu(self):
        self.image = self.disk("image.qcow2")
        self.bitmap(self.image, "b")
        self.assertEqual(self.shown(lambda *words: run(compat("qemu-img"), *words)), {"b": None})
        server = self.daemon("--blockdev",
                             f"qcow2,node-name=disk,file.driver=file,file.filename={self.image}",
                             program=[compat("qemu-storage-daemon")])
        self.assertNotIn("x-tidemark-state", server.qmp.bitmaps("disk")["b"])
        server.stop()


if __name__ == "__main__":
    unittest.main()
