# SPDX-License-Identifier: Apache-2.0
"""The dialogues of libvirt's driver for QEMU, while guests write: what becomes of disks and
bitmaps. The same dialogues with QEMU's daemon: answers and events have to be the same.
"""

import json
import os
import unittest

import nbd
import tidemark
from libvirt_dialogue import Dialogue, Guest, Moment

MIB = 1 << 20
SIZE = 8 * MIB
BLOCK = 65536


class Case(tidemark.TestCase):
    """A daemon with disks, each of them exported to a guest."""

    program = None  # another than ours
    in_memory = True

    def setUp(self):
        super().setUp()
        self.nbd = self.path("nbd.sock")
        self.guests = []
        self.contents = {}
        self.server = self.daemon(program=self.program)
        self.say = Dialogue(self.server.qmp, self.dir)

    def serve(self):
        self.say.say("nbd-server-start", addr={"type": "unix", "data": {"path": self.nbd}})

    def make(self, name, depth=1, fmt="qcow2", bitmap=None, served=True):
        """A disk of `depth` images, each with some blocks, and with `bitmap`; the top one."""
        disk = bytearray(SIZE)
        below = None
        for level in range(depth):
            image = self.say.image(f"{name}{level}", backing=below, fmt=fmt, read_only=True)
            more = ("-b", below.path, "-F", below.fmt) if below else ()
            tidemark.qemu_img("create", "-q", "-f", fmt, *more, image.path, str(SIZE))
            if bitmap:
                tidemark.qemu_img("bitmap", "-f", fmt, "--add", image.path, bitmap)
            commands = []
            for i in range(4):
                offset, stamp = (i * 13 + level * 5) * 2 * BLOCK % SIZE, 16 * level + i + 1
                commands.append(f"write -P {stamp} {offset} {2 * BLOCK}")
                disk[offset : offset + 2 * BLOCK] = bytes([stamp]) * (2 * BLOCK)
            tidemark.qemu_io(image.path, *commands, fmt=fmt)
            below = image
        image.read_only = False
        self.say.add_chain(image)
        if served:
            self.say.say("block-export-add", type="nbd", id=name, node_name=image.node, name=name,
                         writable=True)  # fmt: skip
        self.contents[name] = disk
        return image

    def guest(self, name, seed=1):
        """A guest that writes for the rest of the test."""
        guest = Guest(tidemark.nbd_uri(self.nbd, name), self.contents[name], seed)
        self.guests.append(guest)
        tidemark.wait_until(lambda: guest.writes > 5 or guest.error, "writes of a guest")
        return guest

    def let_write(self, *guests):
        for guest in guests or self.guests:
            wanted = guest.writes + 30
            tidemark.wait_until(lambda g=guest, w=wanted: g.writes > w or g.error, "writes")

    def end(self, *tops):
        """Stop guests and daemon, which has the nodes of these chains and no others."""
        for guest in self.guests:
            self.assertGreater(guest.stop(), 0)
        nodes = {n for n in self.say.nodes() if n.startswith("libvirt-")}
        self.assertEqual(nodes, {n for t in tops for i in t.chain() for n in (i.node, i.storage)})
        self.assertEqual(self.say.say("query-jobs"), [])
        self.server.quit()

    def read(self, path, fmt="qcow2"):
        raw = self.path("contents.raw")
        tidemark.qemu_img("convert", "-f", fmt, "-O", "raw", path, raw)
        with open(raw, "rb") as file:
            contents = file.read()
        os.unlink(raw)
        return contents

    def assert_contents(self, path, wanted, fmt="qcow2"):
        found = self.read(path, fmt)
        self.assertEqual(len(found), len(wanted))
        for at in range(0, len(found), 512):
            if found[at : at + 512] != wanted[at : at + 512]:
                self.fail(f"{path} differs at {at}")

    def assert_disk(self, top, name):
        """After the end: what the guest has written, and images that QEMU finds in order."""
        self.assert_contents(top.path, self.contents[name], top.fmt)
        for image in top.chain():
            if image.fmt == "qcow2":
                tidemark.qemu_img("check", "-q", "-f", "qcow2", image.path)
        info = self.info(top)
        below = top.backing.path if top.backing else None
        self.assertEqual(info.get("backing-filename"), below)

    def info(self, image):
        return json.loads(tidemark.qemu_img("info", "--output=json", image.path).stdout)

    def bitmaps(self, image):
        """The stored bitmaps by name: flags."""
        data = self.info(image)["format-specific"]["data"]
        return {b["name"]: b["flags"] for b in data.get("bitmaps", ())}

    def assert_backups(self, backups):
        """Images that belong on each other have what there was at their moments."""
        below = None
        for image, contents in backups:
            if below:
                tidemark.qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below.path,
                                  image.path)  # fmt: skip
            self.assert_contents(image.path, contents)
            tidemark.qemu_img("check", "-q", "-f", "qcow2", image.path)
            below = image

    def assert_bitmaps(self, image, names):
        self.assertEqual(set(self.bitmaps(image)), names)

    def dirty(self, path, bitmap):
        """The blocks that a stored bitmap has."""
        return {
            block
            for e in self.bitmap_extents(path, bitmap)
            if not e["data"]
            for block in range(e["start"] // BLOCK, (e["start"] + e["length"] - 1) // BLOCK + 1)
        }

    @staticmethod
    def changed(before, after):
        return {
            i for i in range(SIZE // BLOCK)
            if before[i * BLOCK : (i + 1) * BLOCK] != after[i * BLOCK : (i + 1) * BLOCK]
        }  # fmt: skip

    def pulled(self, name, bitmap=None):
        """What a client of an export reads; and the blocks that are dirty in its bitmap."""
        client = nbd.NBD()
        context = f"qemu:dirty-bitmap:{bitmap}"
        if bitmap:
            client.add_meta_context(context)
        client.connect_uri(tidemark.nbd_uri(self.nbd, name))
        dirty = set()

        def extents(name, offset, entries, _):
            if name == context:
                for length, flags in zip(entries[::2], entries[1::2]):
                    if flags & 1:
                        dirty.update(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))
                    offset += length

        if bitmap:
            client.block_status(SIZE, 0, extents)
        data = b"".join(client.pread(MIB, at) for at in range(0, SIZE, MIB))
        client.shutdown()
        return data, dirty


class Backups(Case):
    def two_disks(self, **more):
        self.serve()
        disks = {name: self.make(name, 2, **more) for name in ("vda", "vdb")}
        return disks, [self.guest(name, seed) for seed, name in enumerate(disks)]

    def test_push_full_then_incremental(self):
        """Two disks, each backup with a checkpoint, the first of which is deleted at the end."""
        disks, guests = self.two_disks()
        backups = []
        for since, checkpoint in (None, "check1"), ("check1", "check2"), ("check2", "check3"):
            moment = Moment(*guests)
            begun = self.say.backup(disks, since, checkpoint, moment=moment)
            self.assertEqual(self.say.end_backup(disks, begun), {"vda": None, "vdb": None})
            images = [image for _, image, _ in begun.values()]
            backups.append(dict(zip(disks, zip(images, moment.contents))))
            self.let_write()
        self.say.delete_checkpoint("check1", *disks.values())
        self.end(*disks.values())
        for name, disk in disks.items():
            self.assert_disk(disk, name)
            self.assert_bitmaps(disk, {"check2", "check3"})
            self.assert_backups([b[name] for b in backups])

    def test_pull_full_then_incremental(self):
        disks, guests = self.two_disks()
        before = None
        for since, checkpoint in (None, "check1"), ("check1", "check2"):
            moment = Moment(*guests)
            begun = self.say.backup(disks, since, checkpoint, pull=True, moment=moment)
            for name, (_, image, bitmap) in begun.items():
                self.say.export(image, "pull-" + name, bitmap)
            for number, (name, (_, _, bitmap)) in enumerate(begun.items()):
                for _ in range(2):  # the guests write in between
                    data, dirty = self.pulled("pull-" + name, bitmap)
                    self.assertEqual(data, moment.contents[number])
                    if bitmap:
                        self.assertLessEqual(self.changed(before[number], data), dirty)
                        self.assertLess(len(dirty), SIZE // BLOCK)
                    self.let_write(guests[number])
            for _, image, _ in begun.values():
                self.say.say("block-export-del", id=f"libvirt-nbd-{image.node}")
                self.say.until("BLOCK_EXPORT_DELETED")
            errors = self.say.end_backup(disks, begun, pull=True)
            self.assertEqual(set(errors.values()), {"Operation canceled"})
            before = moment.contents
        self.end(*disks.values())
        for name, disk in disks.items():
            self.assert_disk(disk, name)
            self.assert_bitmaps(disk, {"check1", "check2"})

    def test_pull_ends_with_the_server(self):
        """Clients are in the middle of reading when the server is stopped and nodes are deleted."""
        disk = self.make("vda", 1, served=False)
        disks = {"vda": disk}
        self.serve()
        begun = self.say.backup(disks, None, "check1", pull=True)
        self.say.export(begun["vda"][1], "vda")
        client = nbd.NBD()
        client.connect_uri(tidemark.nbd_uri(self.nbd, "vda"))
        for at in range(0, SIZE, MIB):
            client.aio_pread(nbd.Buffer(MIB), at)
        errors = self.say.end_backup(disks, begun, pull=True, server=True)
        self.assertEqual(errors, {"vda": "Operation canceled"})
        self.end(disk)
        self.assert_disk(disk, "vda")

    def test_cancelled(self):
        """All jobs of a backup are cancelled if one is; checkpoints stay as they are."""
        disks, guests = self.two_disks()
        begun = self.say.backup(disks, None, "check1", moment=Moment(*guests))
        self.say.end_backup(disks, begun)
        self.let_write()
        begun = self.say.backup(disks, "check1", speed=1)
        for job, *_ in begun.values():
            self.say.say("block-job-cancel", device=job, force=True)
        errors = self.say.end_backup(disks, begun)
        self.assertEqual(set(errors.values()), {"Operation canceled"})
        self.end(*disks.values())
        for name, disk in disks.items():
            self.assert_disk(disk, name)
            self.assert_bitmaps(disk, {"check1"})


class Snapshots(Case):
    def two_snapshots(self, bitmap="check1"):
        """Two disks with bitmaps, and two overlays on each, made at moments of both."""
        self.serve()
        self.names = ("vda", "vdb")
        self.tops = [self.make(name, bitmap=bitmap) for name in self.names]
        guests = [self.guest(name, seed) for seed, name in enumerate(self.names)]
        self.kept = []
        for number in 1, 2:
            moment = Moment(*guests)
            with moment:
                self.tops = self.say.snapshot(self.tops, [f"{n}.snap{number}" for n in self.names])
            self.kept.append(moment.contents)
            self.let_write()
        self.since = self.kept[0]

    def assert_snapshots(self):
        """After the end. What was written since the first checkpoint is in the bitmaps."""
        self.end(*self.tops)
        for top, name, contents in zip(self.tops, self.names, self.since):
            self.assert_disk(top, name)
            dirty = set()
            for image in top.chain():
                if "check1" in self.bitmaps(image):
                    dirty |= self.dirty(image.path, "check1")
            self.assertLessEqual(self.changed(contents, self.contents[name]), dirty)

    def test_snapshots(self):
        self.two_snapshots()
        for top, name, first, second in zip(self.tops, self.names, *self.kept):
            for image, contents in (top.backing, second), (top.backing.backing, first):
                self.assertEqual(self.read_live(image), contents)
        # a backup of what was written since before the snapshots
        disks = dict(zip(self.names, self.tops))
        moment = Moment(*self.guests)
        begun = self.say.backup(disks, "check1", "check2", moment=moment)
        self.assertEqual(self.say.end_backup(disks, begun), {"vda": None, "vdb": None})
        self.assert_snapshots()
        for top, (_, image, _), contents in zip(self.tops, begun.values(), moment.contents):
            first = list(top.chain())[-1]  # as it was at the first snapshot
            self.assert_backups([(first, self.read(first.path)), (image, contents)])
    def read_live(self, image):
        """The contents of a read-only image, from another process."""
        raw = self.path("live.raw")
        tidemark.qemu_img("convert", "-U", "-f", image.fmt, "-O", "raw", image.path, raw)
        with open(raw, "rb") as file:
            return file.read()

    def test_delete_the_first_snapshot(self):
        """Commits of images in the middle; they wait for each other before they are finalized."""
        self.two_snapshots()
        tops = [(disk, disk.backing, disk.backing.backing) for disk in self.tops]
        jobs = [self.say.commit(*images, auto_finalize=False) for images in tops]
        for job in jobs:
            self.say.wait(job, "pending")
        self.let_write()
        for job in jobs:
            self.say.say("job-finalize", id=job)
        for job, images in zip(jobs, tops):
            self.say.end_commit(job, *images)
        self.assert_snapshots()

    def test_delete_the_current_snapshot(self):
        """Active commits, into the image below."""
        self.two_snapshots()
        tops = [(disk, disk, disk.backing) for disk in self.tops]
        jobs = [self.say.commit(*images) for images in tops]
        for job in jobs:
            self.say.wait(job, "ready")
        for job, images in zip(jobs, tops):
            self.say.pivot_commit(job, *images)
        self.tops = [disk.backing for disk in self.tops]
        self.let_write()
        self.assert_snapshots()


class CopyCase(Case):
    def begin(self, depth=3, bitmap="check1"):
        self.serve()
        self.disk = self.make("vda", depth, bitmap=bitmap)
        self.before = bytes(self.contents["vda"])
        self.guest("vda")

    def assert_copied(self, disk):
        self.let_write()
        self.end(disk)
        self.assert_disk(disk, "vda")
        if "check1" in self.bitmaps(disk):
            dirty = set().union(*(self.dirty(i.path, "check1") for i in disk.chain()))
            self.assertLessEqual(self.changed(self.before, self.contents["vda"]), dirty)
            return True
        return False



class Copies(CopyCase):
    """Copies of a disk to another image."""

    def pivot(self, depth=3, shallow=False, **more):
        self.begin(depth)
        image = self.say.image("copy")
        job = self.say.copy(self.disk, image, shallow, **more)
        self.let_write()
        self.say.pivot_copy(job, self.disk, image, shallow)
        self.assertTrue(self.assert_copied(image))

    def test_deep(self):
        self.pivot()

    def test_shallow(self):
        self.pivot(shallow=True)

    def test_synchronous_writes(self):
        self.pivot(copy_mode="write-blocking", granularity=65536, buf_size=1 << 20)

    def test_shallow_of_a_disk_without_backing(self):
        self.pivot(depth=1, shallow=True)

    def test_to_raw(self):
        self.begin(2, bitmap=None)
        image = self.say.image("copy.raw", fmt="raw")
        job = self.say.copy(self.disk, image)
        self.say.wait(job, "ready")
        self.say.say("job-complete", id=job)
        self.say.succeed(job)
        self.say.remove(*self.disk.chain())
        self.let_write()
        self.end(image)
        self.assert_contents(image.path, self.contents["vda"], "raw")

    def test_shallow_onto_a_chain_that_is_copied_meanwhile(self):
        """The user copies the backing image himself; it is opened just before the pivot."""
        self.begin(2)
        below = self.say.image("below", read_only=True)
        image = self.say.image("copy")
        tidemark.qemu_img("convert", "-U", "-f", "qcow2", "-O", "qcow2", self.disk.backing.path,
                          below.path)  # fmt: skip
        tidemark.qemu_img("create", "-q", "-f", "qcow2", "-b", below.path, "-F", "qcow2",
                          image.path)  # fmt: skip
        job = self.say.copy(self.disk, image, shallow=True, reuse=True)
        self.let_write()
        self.say.pivot_copy(job, self.disk, image, shallow=True, below=below)
        self.let_write()
        self.end(image)
        self.assert_disk(image, "vda")

    def test_abort(self):
        """Before it is ready, and after; then the same copy again."""
        self.begin(2)
        image = self.say.image("copy")
        job = self.say.copy(self.disk, image, speed=1)
        self.assertEqual(self.say.abort(job, image), "Operation canceled")
        image = self.say.image("copy2")
        job = self.say.copy(self.disk, image)
        self.say.wait(job, "ready")
        self.let_write()
        with self.guests[0].frozen() as contents:
            self.assertIsNone(self.say.abort(job, image))
        self.assert_contents(image.path, contents)
        image = self.say.image("copy3")
        job = self.say.copy(self.disk, image)
        self.say.pivot_copy(job, self.disk, image)
        self.assert_copied(image)


class Chains(CopyCase):
    """Commit and pull of chains of four images, all with a bitmap."""

    def begin(self, depth=4, bitmap="check1"):
        super().begin(depth, bitmap)
        self.images = list(self.disk.chain())  # the top one first

    def commit(self, top, base):
        self.begin()
        disk, top, base = self.disk, self.images[top], self.images[base]
        job = self.say.commit(disk, top, base)
        self.let_write()
        if top is disk:
            self.say.pivot_commit(job, disk, top, base)
        else:
            self.say.end_commit(job, disk, top, base)
        self.assertTrue(self.assert_copied(base if top is disk else disk))

    def test_commit_one(self):
        self.commit(1, 2)

    def test_commit_two(self):
        self.commit(1, 3)

    def test_active_commit(self):
        self.commit(0, 1)

    def test_active_commit_of_all(self):
        self.commit(0, 3)

    def test_abort_of_an_active_commit(self):
        self.begin()
        job = self.say.commit(self.disk, self.disk, self.images[2], speed=1)
        self.assertEqual(self.say.abort(job), "Operation canceled")
        job = self.say.commit(self.disk, self.disk, self.images[2])
        self.say.wait(job, "ready")
        self.let_write()
        self.assertIsNone(self.say.abort(job))
        self.assertTrue(self.assert_copied(self.disk))

    def pull(self, base=None):
        self.begin()
        base = self.images[base] if base else None
        job = self.say.pull(self.disk, base)
        self.let_write()
        self.say.end_pull(job, self.disk, base)
        self.assertTrue(self.assert_copied(self.disk))

    def test_pull_all(self):
        self.pull()

    def test_pull_down_to_the_last(self):
        self.pull(3)

    def test_pull_one(self):
        self.pull(2)

    def test_delete_a_checkpoint_in_the_whole_chain(self):
        self.begin()
        self.let_write()
        self.say.delete_checkpoint("check1", self.disk)
        self.end(self.disk)
        self.assert_disk(self.disk, "vda")
        for image in self.images:
            self.assert_bitmaps(image, set())


if __name__ == "__main__":
    unittest.main()
