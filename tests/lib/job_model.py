#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A model of disks in use: guests write stamped blocks over NBD, while random jobs run on random
backing chains, are paused, slowed down, cancelled, completed, and the daemon is ended or killed.
After each of them every disk, copy and incremental backup has to be what the model says.

    tests/lib/job_model.py [--seconds N] [--seed N] [--size MIB] [--program qemu-storage-daemon]

A failure prints the seed and the steps, which give the same run again, as far as time allows.
"""

import argparse
import os
import random
import re
import shutil
import struct
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import nbd_raw  # noqa: E402
from qmp import QmpError  # noqa: E402
from tidemark import Daemon, img, qemu, tool  # noqa: E402

BLOCK = 4096
CHUNK = 256 * 1024
REACTORS = 4  # the exports are spread over them
REFUSED = "cannot accept command verb|not paused|does not support change"


class Wrong(Exception):
    """What a disk, a copy or a job is, and should not be."""


def stamped(block, stamp):
    """The contents of a block; stamp 0: zeroes."""
    return struct.pack("<QQ", block, stamp) * (BLOCK // 16) if stamp else bytes(BLOCK)


def stamp_of(block, data):
    """The stamp that a block has; -1: none of this block."""
    if data == bytes(BLOCK):
        return 0
    there, stamp = struct.unpack_from("<QQ", data)
    return stamp if there == block and data == stamped(block, stamp) else -1


def is_marked_dirty(path):
    """Whether a qcow2 image says that its refcounts have to be repaired (lazy-refcounts)."""
    with open(path, "rb") as file:
        return bool(file.read(80)[79] & 1)


class Connection:
    """One client of an export: one request at a time."""

    def __init__(self, path, export):
        self.raw = nbd_raw.RawClient(path, timeout=60)
        self.raw.go(export.encode(), structured=False)

    def close(self):
        self.raw.sock.close()

    def request(self, kind, offset=0, length=0, payload=b""):
        self.raw.request(kind, offset, length, payload=payload)
        _, error = self.raw.simple_reply()
        if error:
            raise OSError(error, f"request {kind} at {offset}")
        return self.raw.receive(length) if kind == nbd_raw.READ else b""


class Guest(threading.Thread):
    """Writes, zeroes, flushes; its blocks are nobody else's."""

    def __init__(self, disk, number, count, seed):
        super().__init__(daemon=True)
        self.disk, self.number, self.count = disk, number, count
        self.random = random.Random(seed)
        self.connection = None
        self.turn = threading.Lock()  # held during an operation; a pause takes it
        self.ending = False
        self.error = None
        self.unflushed = set()

    def run(self):
        try:
            self.connection = Connection(*self.disk.place)
            while not self.ending:
                with self.turn:
                    self.step()
                time.sleep(self.random.choice((0, 0, 0.001, 0.005)))
        except (OSError, EOFError, AssertionError) as error:
            self.error = error
        finally:
            if self.connection:
                self.connection.close()

    def step(self):
        what = self.random.random()
        if what < 0.05:
            done = set(self.unflushed)
            self.connection.request(nbd_raw.FLUSH)
            for block in done:
                self.disk.history[block] = self.disk.history[block][-1:]
            self.unflushed -= done
            return
        stripe = 16 * self.count
        first = self.random.randrange(self.disk.blocks // stripe) * stripe + 16 * self.number
        first += self.random.randrange(16)
        length = min(self.random.choice((1, 1, 2, 4, 16)), 16 - first % 16)
        blocks = range(first, first + length)
        stamp = 0 if what < 0.15 else self.disk.next_stamp()
        for block in blocks:
            self.disk.history[block] = [*self.disk.history[block], stamp]
            self.unflushed.add(block)
        if stamp == 0:
            kind = nbd_raw.WRITE_ZEROES
            self.connection.request(kind, first * BLOCK, length * BLOCK)
        else:
            data = b"".join(stamped(block, stamp) for block in blocks)
            self.connection.request(nbd_raw.WRITE, first * BLOCK, length * BLOCK, data)
        for bitmap in self.disk.changed.values():
            bitmap.update(blocks)


class Disk:
    """A backing chain, its guests, and what they have written."""

    def __init__(self, model, name):
        self.model, self.name = model, name
        self.blocks = model.size // BLOCK
        self.history = [[0] for _ in range(self.blocks)]  # stamps that a block may have; the last
        self.stamp = 0  # was acknowledged, or is in flight
        self.lock = threading.Lock()
        self.guests = []
        self.chain = []  # (node, file), the active one last
        self.filter = None  # a node on top of that
        self.plural = False  # which is a quorum
        self.changed = {}  # bitmap -> blocks written since it was made
        self.backups = {}  # bitmap -> the file of the last backup
        self.place = (model.socket, name)

    def next_stamp(self):
        with self.lock:
            self.stamp += 1
            return self.stamp

    @property
    def top(self):
        return self.chain[-1][0]

    @property
    def device(self):
        """What users have."""
        return self.filter or self.top

    def start_guests(self):
        count = self.model.guests
        self.guests = [
            Guest(self, n, count, self.model.random.random()) for n in range(count)
        ]
        for guest in self.guests:
            guest.start()

    def stop_guests(self, check=True):
        for guest in self.guests:
            guest.ending = True
        for guest in self.guests:
            guest.join(60)
            if check and guest.error:
                raise Wrong(f"{self.name}: a guest's request failed: {guest.error!r}")
        self.guests = []

    def pause(self):
        for guest in self.guests:
            guest.turn.acquire()
            if guest.error:
                raise Wrong(f"{self.name}: a guest's request failed: {guest.error!r}")

    def resume(self):
        for guest in self.guests:
            guest.turn.release()

    def contents(self):
        return [stamps[-1] for stamps in self.history]

    def verify(self):
        """With the guests stopped: what the export reads is what was written last."""
        connection = Connection(*self.place)
        wanted = self.contents()
        for offset in range(0, self.model.size, CHUNK):
            length = min(CHUNK, self.model.size - offset)
            data = connection.request(nbd_raw.READ, offset, length)
            compare(self.name, offset, data, lambda block: [wanted[block]])
        connection.close()


def compare(what, offset, data, allowed):
    for i in range(0, len(data), BLOCK):
        block = (offset + i) // BLOCK
        found = stamp_of(block, data[i : i + BLOCK])
        if found not in allowed(block):
            raise Wrong(f"{what}: block {block} has {found}, expected {allowed(block)}")


class Model:
    def __init__(self, directory, seed, size, program=None, log=None, guests=2):
        self.dir, self.size, self.program, self.guests = directory, size, program, guests
        self.random = random.Random(seed)
        self.log_file = log
        self.socket = os.path.join(directory, "nbd")
        self.count = 0
        self.daemon = None
        self.disks = [Disk(self, f"disk{n}") for n in range(2)]
        for disk in self.disks:
            disk.chain = [(self.unique(disk.name), self.create())]
        self.start()

    def log(self, text):
        print(text, file=self.log_file or sys.stderr, flush=True)

    # --- images and the daemon

    def unique(self, prefix):
        self.count += 1
        return f"{prefix}-{self.count}"

    def create(self, fmt="qcow2", backing=None, clusters=None):
        path = os.path.join(self.dir, self.unique("image"))
        options = []
        if fmt == "qcow2":
            size = clusters or self.random.choice(("4k", "64k", "64k", "256k"))
            options += ["-o", f"cluster_size={size}"]
        if backing:
            options += ["-u", "-b", backing, "-F", "qcow2"]
        img("create", "-q", "-f", fmt, *options, path, self.size)
        return path

    def add(self, node, path, fmt="qcow2", backing=None):
        options = {
            "driver": fmt,
            "node-name": node,
            "file": {"driver": "file", "filename": path},
        }
        if fmt == "qcow2":
            options["backing"] = backing
        self.qmp.execute("blockdev-add", options)

    def start(self):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.daemon = Daemon(
            self.dir,
            *["--nbd-server", f"addr.type=unix,addr.path={self.socket},max-connections=0"],
            *[f"--object=iothread,id=reactor{n}" for n in range(REACTORS)],
            "--object=throttle-group,id=limits",
            program=self.program,
        )
        self.qmp = self.daemon.qmp
        self.qmp.sock.settimeout(60)
        for disk in self.disks:
            below = None
            for node, path in disk.chain:
                self.add(node, path, backing=below)
                below = node
            self.put_filter(disk)
            self.export(disk)
            disk.start_guests()

    def put_filter(self, disk):
        """Some disks have one on top, until users move to another image."""
        what = self.random.choice((None, "throttle", "throttle", "quorum"))
        disk.filter, disk.plural = None, what == "quorum"
        if what is None:
            return
        disk.filter = self.unique("filter")
        options = {"driver": what, "node-name": disk.filter}
        if what == "quorum":
            options.update({"vote-threshold": 1, "children": [disk.top]})
        else:
            options.update({"throttle-group": "limits", "file": disk.top})
        self.log(f"  {what} on {disk.name}")
        self.qmp.execute("blockdev-add", options)

    def export(self, disk):
        self.qmp.command(
            "block-export-add",
            **{"type": "nbd", "id": disk.name, "name": disk.name, "writable": True},
            node_name=disk.device,
            iothread=f"reactor{self.random.randrange(REACTORS)}",
        )

    def end(self):
        for disk in self.disks:
            disk.stop_guests(check=False)
        if self.daemon and self.daemon.is_running():
            self.daemon.kill()

    # --- jobs

    def job_status(self, job):
        for info in self.qmp.command("query-jobs"):
            if info["id"] == job:
                return info
        return None

    def start_job(self, command, **arguments):
        job = self.unique("job")
        self.log(f"  {command} {job} {arguments}")
        self.qmp.command(command, job_id=job, auto_dismiss=False, **arguments)
        return job

    def meddle(self, job):
        """Verbs at random moments; whether the job was cancelled by force."""
        for _ in range(self.random.randrange(4)):
            time.sleep(self.random.random() * 0.05)
            what = self.random.choice(("pause", "speed", "speed", "change", "cancel"))
            try:
                if what == "pause":
                    self.qmp.command("job-pause", id=job)
                    time.sleep(self.random.random() * 0.05)
                    self.qmp.command("job-resume", id=job)
                elif what == "speed":
                    speed = self.random.choice((0, 1 << 20, 64 << 20))
                    self.qmp.command("block-job-set-speed", device=job, speed=speed)
                elif what == "change" and not self.program_is_qemu():
                    mode = self.random.choice(("background", "write-blocking"))
                    self.qmp.command("block-job-change", id=job, type="mirror", copy_mode=mode)
                elif what == "cancel" and self.random.random() < 0.3:
                    self.log(f"  cancel {job}")
                    self.qmp.command("job-cancel", id=job)
                    return True
            except QmpError as error:
                if not re.search(REFUSED, error.desc):
                    raise
        return False

    def program_is_qemu(self):
        return bool(self.program) and "qemu" in self.program[0] and "compat" not in self.program[0]

    def wait_job(self, job, status="concluded", timeout=60, resume=False):
        """Wait for a status, with no limit of speed; the job's last information. `resume` it after
        an error.
        """
        try:
            self.qmp.command("block-job-set-speed", device=job, speed=0)
        except QmpError:
            pass
        deadline = time.monotonic() + timeout
        while True:
            info = self.job_status(job)
            if info is None:
                raise Wrong(f"job {job} is gone")
            if info["status"] in (status, "concluded"):
                return info
            if time.monotonic() > deadline:
                raise Wrong(f"job {job} is still {info}")
            if resume and info["status"] in ("paused", "standby"):
                self.log(f"  resume {job}")
                self.qmp.command("job-resume", id=job)
            time.sleep(0.01)

    def finish_job(self, job, cancelled):
        """Wait for the end; whether it succeeded."""
        info = self.wait_job(job)
        self.qmp.command("job-dismiss", id=job)
        if "error" in info and not cancelled:
            raise Wrong(f"job {job} failed: {info}")
        return "error" not in info

    # --- what may happen

    def snapshot(self, disk):
        node, path = self.unique(disk.name), self.create(backing=disk.chain[-1][1])
        self.add(node, path, backing=None)
        self.qmp.command("blockdev-snapshot", node=disk.top, overlay=node)
        disk.chain.append((node, path))
        disk.changed.clear()

    def drop(self, disk, nodes):
        for node, _ in nodes:
            self.qmp.command("blockdev-del", node_name=node)

    def drop_filter(self, disk):
        """Users have left it for another image."""
        if disk.filter:
            self.drop(disk, [(disk.filter, None)])
            disk.filter, disk.plural = None, False

    def stream(self, disk):
        if len(disk.chain) < 2:
            return self.snapshot(disk)
        base = self.random.randrange(-1, len(disk.chain) - 2)
        more = {} if base < 0 else {"base_node": disk.chain[base][0]}
        job = self.start_job("block-stream", device=disk.top, **more)
        if self.finish_job(job, self.meddle(job)):
            self.drop(disk, reversed(disk.chain[base + 1 : -1]))
            disk.chain = disk.chain[: base + 1] + disk.chain[-1:]
        return None

    def commit_middle(self, disk):
        if len(disk.chain) < 3 or disk.plural:
            return self.snapshot(disk)
        top = self.random.randrange(1, len(disk.chain) - 1)
        base = self.random.randrange(top)
        job = self.start_job(
            "block-commit",
            device=disk.device,
            top_node=disk.chain[top][0],
            base_node=disk.chain[base][0],
        )
        if self.finish_job(job, self.meddle(job)):
            self.drop(disk, reversed(disk.chain[base + 1 : top + 1]))
            disk.chain = disk.chain[: base + 1] + disk.chain[top + 1 :]
        return None

    def wait_ready(self, disk, job, resume=False):
        """As wait_job(). Guests who change the disk faster than the job copies it get a rest."""
        try:
            return self.wait_job(job, "ready", timeout=20, resume=resume)
        except Wrong:
            self.log(f"  guests of {disk.name} wait for {job}")
        disk.pause()
        try:
            return self.wait_job(job, "ready", resume=resume)
        finally:
            disk.resume()

    def complete(self, disk, job, cancelled):
        """Complete a job that becomes ready; whether it did."""
        info = self.wait_ready(disk, job)
        if info["status"] == "ready":
            try:
                self.qmp.command("job-complete", id=job)
            except QmpError as error:
                if not cancelled:
                    raise Wrong(f"job-complete: {error}") from error
        return self.finish_job(job, cancelled)

    def commit_active(self, disk):
        if len(disk.chain) < 2 or disk.plural:
            return self.snapshot(disk)
        base = self.random.randrange(len(disk.chain) - 1)
        job = self.start_job("block-commit", device=disk.device, base_node=disk.chain[base][0])
        if self.complete(disk, job, self.meddle(job)):
            self.drop_filter(disk)
            self.drop(disk, reversed(disk.chain[base + 1 :]))
            disk.chain = disk.chain[: base + 1]
            disk.changed.clear()
        return None

    def mirror(self, disk):
        node, path = self.unique(disk.name), self.create()
        self.add(node, path)
        job = self.start_job(
            "blockdev-mirror",
            device=disk.device,
            target=node,
            sync="full",
            copy_mode=self.random.choice(("background", "write-blocking")),
        )
        cancelled = self.meddle(job)
        if not cancelled and self.random.random() < 0.4:
            return self.mirror_copy(disk, job, node, path)
        if self.complete(disk, job, cancelled):
            self.drop_filter(disk)
            self.drop(disk, reversed(disk.chain))
            disk.chain = [(node, path)]
            disk.changed.clear()
        else:
            self.drop(disk, [(node, path)])
        return None

    def mirror_copy(self, disk, job, node, path):
        """A soft cancel leaves a copy of that moment."""
        self.wait_ready(disk, job)
        disk.pause()
        wanted = disk.contents()
        self.qmp.command("block-job-cancel", device=job)
        info = self.wait_job(job)
        disk.resume()
        if "error" in info:
            raise Wrong(f"a soft cancel failed: {info}")
        self.qmp.command("job-dismiss", id=job)
        self.drop(disk, [(node, path)])
        self.verify_image(path, wanted)

    def backup(self, disk):
        fmt = self.random.choice(("qcow2", "raw"))
        bitmap = self.random.choice(sorted(disk.changed)) if disk.changed else None
        incremental = bitmap in disk.backups and self.random.random() < 0.7
        node = self.unique("target")
        if incremental:
            path, fmt = self.create(backing=disk.backups[bitmap], clusters="64k"), "qcow2"
        else:
            path = self.create(fmt)
        self.add(node, path, fmt)
        job, new_bitmap = self.unique("job"), None
        data = {"job-id": job, "device": disk.top, "target": node, "auto-dismiss": False}
        actions = [("blockdev-backup", data)]
        if incremental:
            data.update({"sync": "incremental", "bitmap": bitmap})
        else:
            data["sync"] = "full"
            new_bitmap = self.unique("bitmap")
            bitmap_data = {"node": disk.top, "name": new_bitmap, "persistent": True}
            actions.append(("block-dirty-bitmap-add", bitmap_data))
        self.log(f"  backup {data}")
        disk.pause()
        wanted = disk.contents()
        try:
            self.qmp.transaction(*actions)
            if new_bitmap:
                disk.changed[new_bitmap] = set()
        finally:
            disk.resume()
        if self.finish_job(job, self.meddle(job)):
            self.drop(disk, [(node, path)])
            self.verify_image(path, wanted, fmt)
            if fmt == "qcow2":
                disk.backups[new_bitmap or bitmap] = path
        else:
            self.drop(disk, [(node, path)])

    def pull(self, disk):
        """A view of one moment, read while the guests go on."""
        scratch, flt, view = (self.unique(n) for n in ("scratch", "filter", "view"))
        self.add(scratch, self.create())
        disk.pause()
        wanted = disk.contents()
        job = None
        try:
            job = self.start_job("blockdev-backup", device=disk.top, target=scratch, sync="none",
                                 filter_node_name=flt)
        finally:
            disk.resume()
        self.qmp.command("blockdev-add", driver="snapshot-access", node_name=view, file=flt)
        self.qmp.command("block-export-add", type="nbd", id=view, name=view, node_name=view)
        connection = Connection(self.socket, view)
        for offset in range(0, self.size, CHUNK):
            data = connection.request(nbd_raw.READ, offset, min(CHUNK, self.size - offset))
            compare(f"view of {disk.name}", offset, data, lambda block: [wanted[block]])
        connection.close()
        self.qmp.command("block-export-del", id=view, mode="hard")
        deadline = time.monotonic() + 20
        while any(e["id"] == view for e in self.qmp.command("query-block-exports")):
            if time.monotonic() > deadline:
                raise Wrong(f"export {view} does not end")
            time.sleep(0.01)
        self.qmp.command("blockdev-del", node_name=view)
        self.qmp.command("job-cancel", id=job)
        self.finish_job(job, True)
        self.qmp.command("blockdev-del", node_name=scratch)

    def check_all(self):
        """At rest: contents, graph."""
        for disk in self.disks:
            disk.stop_guests()
            disk.verify()
            disk.start_guests()
        names = {n["node-name"] for n in self.qmp.command("query-named-block-nodes", flat=True)}
        ours = {node for disk in self.disks for node, _ in disk.chain}
        ours |= {disk.filter for disk in self.disks}
        left = {n for n in names - ours if not n.startswith("#block")}
        if left:
            raise Wrong(f"nodes are left over: {sorted(left)}")

    def check_files(self, exact):
        """With the daemon gone: images are consistent, with what was written or not yet flushed."""
        for disk in self.disks:
            for _, path in disk.chain:
                repair = [] if exact else ["-r", "all" if is_marked_dirty(path) else "leaks"]
                img("check", "-q", "-f", "qcow2", *repair, path)
            self.verify_image(disk.chain[-1][1], disk.contents() if exact else disk.history)
            if not exact:
                self.settle(disk)

    def settle(self, disk):
        """After a kill, what the blocks have now is what they have to keep."""
        raw = os.path.join(self.dir, "settled")
        img("convert", "-O", "raw", disk.chain[-1][1], raw)
        with open(raw, "rb") as file:
            disk.history = [[stamp_of(b, file.read(BLOCK))] for b in range(disk.blocks)]
        os.unlink(raw)

    def verify_image(self, path, wanted, fmt="qcow2"):
        """`wanted`: a stamp for each block, or a list of those that it may have."""
        raw = path + ".raw"
        img("convert", "-f", fmt, "-O", "raw", path, raw)
        with open(raw, "rb") as file:
            for block in range(self.size // BLOCK):
                allowed = wanted[block] if isinstance(wanted[block], list) else [wanted[block]]
                compare(path, block * BLOCK, file.read(BLOCK), lambda _, a=allowed: a)
        os.unlink(raw)

    def restart(self, _):
        for disk in self.disks:
            disk.stop_guests()
        self.daemon.quit()
        self.check_files(True)
        self.start()

    def start_any(self, disk):
        """A job that is not going to be completed: the headers may lead to a shorter chain."""
        names = [node for node, _ in disk.chain]
        what = self.random.choice(("commit_active", "commit_middle", "stream", "mirror"))
        if what == "commit_active" and len(names) > 1 and not disk.plural:
            base = self.random.choice(names[:-1])
            self.start_job("block-commit", device=disk.device, base_node=base)
        elif what == "commit_middle" and len(names) > 2 and not disk.plural:
            top = self.random.randrange(1, len(names) - 1)
            self.start_job("block-commit", device=disk.device, top_node=names[top],
                           base_node=names[self.random.randrange(top)])
        elif what == "stream" and len(names) > 1:
            self.start_job("block-stream", device=disk.top)
        elif what == "mirror":
            node = self.unique(disk.name)
            self.add(node, self.create())
            self.start_job("blockdev-mirror", device=disk.device, target=node, sync="full")

    def kill(self, disk):
        """In the midst of a job, or not."""
        if self.random.random() < 0.7:
            self.start_any(disk)
            time.sleep(self.random.random() * 0.1)
        self.daemon.kill()
        for each in self.disks:
            each.stop_guests(check=False)
            each.changed.clear()
        self.check_files(False)
        self.start()

    # The disk itself.

    def resize(self, disk):
        """While guests write to what stays. What a larger disk has gained is zeroes."""
        if disk.plural:
            return
        self.remove_inconsistent(disk.top)
        for _ in range(2):
            size = self.size + BLOCK * self.random.randrange(1, 1024)
            self.log(f"  {disk.name} gets {size} bytes")
            self.qmp.command("block_resize", node_name=disk.top, size=size)
            connection = Connection(*disk.place)
            data = connection.request(nbd_raw.READ, self.size, size - self.size)
            if any(data):
                raise Wrong(f"{disk.name} has data in what it has gained")
            for _ in range(20):
                block = self.random.randrange(self.size // BLOCK, size // BLOCK)
                data = stamped(block, 1)
                connection.request(nbd_raw.WRITE, block * BLOCK, BLOCK, data)
                if connection.request(nbd_raw.READ, block * BLOCK, BLOCK) != data:
                    raise Wrong(f"{disk.name} has lost block {block}")
            connection.close()
            self.qmp.command("block_resize", node_name=disk.top, size=self.size)

    def remove_inconsistent(self, node):
        """Bitmaps that a kill has left, with which an image can't be resized."""
        for info in self.qmp.command("query-named-block-nodes", flat=True):
            for bitmap in info.get("dirty-bitmaps", []) if info["node-name"] == node else []:
                if bitmap.get("inconsistent"):
                    self.qmp.command("block-dirty-bitmap-remove", node=node, name=bitmap["name"])

    def reopen(self, disk):
        """Other options, also for images below, while guests write."""
        for _ in range(3):
            number = self.random.randrange(len(disk.chain))
            node, path = disk.chain[number]
            options = {
                "driver": "qcow2",
                "node-name": node,
                "file": {"driver": "file", "filename": path},
                "backing": disk.chain[number - 1][0] if number else None,
                "discard": self.random.choice(("ignore", "unmap")),
                "lazy-refcounts": self.random.random() < 0.3,
                "l2-cache-size": self.random.choice((1 << 16, 1 << 20)),
            }
            if options["discard"] == "unmap" and self.random.random() < 0.5:
                options["detect-zeroes"] = self.random.choice(("on", "unmap"))
            if node != disk.top:
                options["read-only"] = self.random.random() < 0.5
            self.log(f"  reopen {options}")
            self.qmp.command("blockdev-reopen", options=[options])

    def faulty_target(self, path):
        """The first few writes to it fail."""
        rules = [
            {"event": "none", "iotype": "write", "errno": self.random.choice((5, 28)), "once": True}
            for _ in range(self.random.randrange(1, 4))
        ]
        image = {"driver": "file", "filename": path}
        node = self.unique("faulty")
        file = {"driver": "blkdebug", "image": image, "inject-error": rules}
        self.qmp.command("blockdev-add", driver="raw", node_name=node, file=file)
        return node

    def errors(self, disk):
        """A job whose target fails: its policy decides, guests notice nothing. A backup fails in
        any case if the error was one of a copy that a guest's write needed.
        """
        path = self.create("raw")
        node = self.faulty_target(path)
        policy = self.random.choice(("report", "ignore", "enospc", "stop"))
        mirror = self.random.random() < 0.5
        more = {"copy_mode": self.random.choice(("background", "write-blocking"))} if mirror else {}
        disk.pause()
        wanted = disk.contents()
        try:
            job = self.start_job("blockdev-mirror" if mirror else "blockdev-backup", sync="full",
                                 device=disk.device, target=node, on_target_error=policy, **more)
        finally:
            disk.resume()
        if mirror:
            info = self.wait_ready(disk, job, resume=True)
        else:
            info = self.wait_job(job, resume=True)
        if info["status"] == "ready":
            disk.pause()
            wanted = disk.contents()
            self.qmp.command("block-job-cancel", device=job)
            info = self.wait_job(job, resume=True)
            disk.resume()
        self.qmp.command("job-dismiss", id=job)
        self.drop(disk, [(node, path)])
        if "error" not in info:
            self.verify_image(path, wanted, "raw")
        elif policy in ("ignore", "stop") and mirror:
            raise Wrong(f"a job that goes on after errors failed: {info}")

    STEPS = (
        ("snapshot", 2), ("stream", 3), ("commit_middle", 3), ("commit_active", 3), ("mirror", 3),
        ("backup", 5), ("pull", 2), ("restart", 1), ("kill", 1), ("resize", 2), ("reopen", 2),
        ("errors", 2),
    )  # fmt: skip

    def step(self, only=None):
        names = [n for n, weight in self.STEPS for _ in range(weight) if not only or n in only]
        name, disk = self.random.choice(names), self.random.choice(self.disks)
        if len(disk.chain) > 4 and name == "snapshot":
            name = "commit_active" if not only or "commit_active" in only else "snapshot"
        self.log(f"{name} {disk.name}, chain of {len(disk.chain)}")
        getattr(self, name)(disk)
        if self.random.random() < 0.3:
            self.check_all()


def run_model(seed, seconds, size=16 << 20, program=None, only=None, log=None, **more):
    """Run for `seconds`; the number of steps."""
    directory = tempfile.mkdtemp(prefix="tm-model-", dir="/dev/shm")
    model = None
    done = 0
    try:
        model = Model(directory, seed, size, program, log, **more)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            model.step(only)
            done += 1
        model.check_all()
        model.restart(None)
        return done
    except BaseException:
        log_path = os.path.join(directory, "daemon.log")
        if os.path.exists(log_path):
            with open(log_path, encoding="utf-8", errors="replace") as file:
                print(file.read()[-4000:], file=log or sys.stderr)
        print(f"seed {seed}, after {done} steps", file=log or sys.stderr)
        raise
    finally:
        if model:
            model.end()
        shutil.rmtree(directory, ignore_errors=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--seconds", type=float, default=60, help="in total (default 60)")
    ap.add_argument("--seed", type=int, default=None, help="of the first run (default: random)")
    ap.add_argument("--size", type=int, default=16, help="of a disk, in MiB (default 16)")
    ap.add_argument("--guests", type=int, default=2, help="of a disk (default 2)")
    ap.add_argument("--only", help="steps by name, separated by commas")
    ap.add_argument("--program", help="another storage daemon, such as qemu-storage-daemon")
    args = ap.parse_args()
    seed = args.seed if args.seed is not None else random.randrange(1 << 30)
    end = time.monotonic() + args.seconds
    program = [qemu(args.program)] if args.program else tool("daemon")
    runs = steps = 0
    while time.monotonic() < end:
        print(f"seed {seed}", file=sys.stderr)
        steps += run_model(seed, min(30, end - time.monotonic()), args.size << 20, program,
                           args.only.split(",") if args.only else None, guests=args.guests)
        runs += 1
        seed += 1
    print(f"{runs} runs, {steps} steps, nothing wrong")


if __name__ == "__main__":
    main()
