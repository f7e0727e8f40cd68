#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A model of bitmaps: one disk, on a chain of images, is written, and goes through checkpoints,
snapshots, commits, streams, changes of size, other programs and kills. Every time it is closed, the
differential from every checkpoint that survives is read from the files: it must have everything
that was changed, and nothing but that and what the operations may add.

    tests/lib/bitmap_model.py [--seconds N] [--seed N] [--only STEPS]

A failure prints the seed and the steps, which give the same run again.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import nbd_raw  # noqa: E402
from job_model import Connection, Wrong  # noqa: E402
from qcow2_edit import Image  # noqa: E402
from tidemark import Daemon, img, qemu, qemu_io, tool  # noqa: E402

CLUSTER = 65536
AUTO, IN_USE = 2, 1
GRANULARITIES = (4096, 65536, 65536, 65536, 262144)
BITMAP = "b{:04}"


class Point:
    """A checkpoint: what has been changed since it was made, in clusters."""

    def __init__(self, number, clusters):
        self.number = number
        self.greatest = clusters  # size of the disk since then
        self.changed = set()
        self.may = set()  # dirty, perhaps


class Model:
    def __init__(self, directory, seed, log=None):
        self.dir, self.log_file = directory, log
        self.random = random.Random(seed)
        self.socket = os.path.join(directory, "nbd")
        self.count = 0
        self.clusters = 64
        self.content = [0] * self.clusters  # the byte a cluster is full of; None: not known
        self.points = []
        self.coarse = 1  # clusters of the greatest granule so far: a merge leaves them in others
        self.number = 0  # of the last bitmap
        self.expected = set()  # numbers of the bitmaps that must be somewhere in the chain
        self.chain = [self.create(self.clusters)]  # files, the active one last
        self.written = {self.chain[0]: set()}  # clusters, by file
        self.saved = {}  # internal snapshots of the only image: name -> (contents, written since)
        self.daemon = self.qmp = self.guest = None
        self.start()
        self.checkpoint()

    # --- images, daemon

    def log(self, text):
        if self.log_file:
            print(text, file=self.log_file, flush=True)

    def create(self, clusters, backing=None):
        self.count += 1
        path = os.path.join(self.dir, f"image-{self.count}")
        below = ("-u", "-b", backing, "-F", "qcow2") if backing else ()
        img("create", "-q", "-f", "qcow2", *below, path, clusters * CLUSTER)
        return path

    def node(self, path):
        return os.path.basename(path)

    @property
    def top(self):
        return self.chain[-1]

    def add_node(self, path, backing=None):
        self.qmp.command(
            "blockdev-add", driver="qcow2", node_name=self.node(path), backing=backing,
            discard="unmap", file={"driver": "file", "filename": path, "discard": "unmap"},
        )  # fmt: skip

    def start(self):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.daemon = Daemon(self.dir, "--nbd-server", f"addr.type=unix,addr.path={self.socket}")
        self.qmp = self.daemon.qmp
        self.qmp.sock.settimeout(60)
        below = None
        for path in self.chain:
            self.add_node(path, below)
            below = self.node(path)
        self.qmp.command("block-export-add", type="nbd", id="disk", name="disk", writable=True,
                         node_name=self.node(self.top))
        self.guest = Connection(self.socket, "disk")

    def stop(self):
        self.guest.close()
        self.daemon.quit()
        self.daemon = None
        self.check()

    def end(self):
        if self.daemon and self.daemon.is_running():
            self.daemon.kill()

    # --- what is known

    def change(self, clusters, byte):
        clusters = set(clusters)
        for cluster in clusters:
            self.content[cluster] = byte
        for point in self.points:
            point.changed |= clusters
        self.written[self.top] |= clusters
        for _, since in self.saved.values():
            since |= clusters

    def change_size(self, clusters):
        """What is gained is zero; where the disk had something before, that is a change."""
        gained = set(range(self.clusters, clusters))
        self.content = (self.content + [0] * len(gained))[:clusters]
        for point in self.points:
            point.changed = {c for c in point.changed if c < clusters}
            point.changed |= {c for c in gained if c < point.greatest}
            # The rest of the last granule, which may have been dirty for what is gone.
            near = max(GRANULARITIES) // CLUSTER
            point.may |= gained | set(range(clusters // near * near, clusters))
            point.greatest = max(point.greatest, clusters)
        self.clusters = clusters

    def add_expected(self):
        self.number += 1
        self.expected.add(self.number)
        self.points.append(Point(self.number, self.clusters))
        return BITMAP.format(self.number)

    def lose(self, number):
        """A bitmap is of no use any more, and with it no differential that needs it."""
        self.points = [p for p in self.points if p.number > number]
        self.expected = {n for n in self.expected if n > number}

    def read_bitmaps(self):
        """(file, number, flags, dirty clusters)"""
        for path in self.chain:
            image = Image(path)
            for name, (place, flags, granules) in image.bitmaps().items():
                size = 1 << image.read(place + 17, 1)[0]
                dirty = set()
                for g in granules:
                    end = -(-(g + 1) * size // CLUSTER)
                    dirty.update(range(g * size // CLUSTER, end))
                yield path, int(name[1:]), flags, {c for c in dirty if c < self.clusters}, size

    def check(self):
        """The images are closed."""
        found = list(self.read_bitmaps())
        for path, number, flags, _, _ in found:
            if flags & IN_USE:
                raise Wrong(f"bitmap {number} of {path} is in use")
        numbers = {number for _, number, _, _, _ in found}
        if not self.expected <= numbers:
            raise Wrong(f"bitmaps {self.expected - numbers} are gone")
        coarse = self.coarse
        for point in self.points:
            dirty = set()
            for _, number, _, clusters, _ in found:
                dirty |= clusters if number >= point.number else set()
            if not point.changed <= dirty:
                raise Wrong(f"since {point.number}: missing {sorted(point.changed - dirty)}")
            allowed = {
                near
                for c in point.changed | point.may
                for near in range(c // coarse * coarse, (c // coarse + 1) * coarse)
            }
            if not dirty <= allowed:
                raise Wrong(f"since {point.number}: too much {sorted(dirty - allowed)}")
        result = img("check", "-q", "-f", "qcow2", self.top, check=False)
        if result.returncode not in (0, 3):  # a kill leaves leaks
            raise Wrong(result.stdout + result.stderr)

    def check_contents(self):
        data = self.guest.request(nbd_raw.READ, 0, self.clusters * CLUSTER)
        for cluster, byte in enumerate(self.content):
            part = data[cluster * CLUSTER : (cluster + 1) * CLUSTER]
            if byte is not None and part != bytes([byte]) * CLUSTER:
                raise Wrong(f"cluster {cluster} has {part[:1]!r}, not {byte}")

    # --- steps, with the daemon

    def run_of_clusters(self):
        first = self.random.randrange(self.clusters)
        return range(first, min(first + self.random.choice((1, 1, 1, 2, 5)), self.clusters))

    def write(self):
        run, byte = self.run_of_clusters(), self.random.randrange(1, 256)
        data = bytes([byte]) * (len(run) * CLUSTER)
        self.guest.request(nbd_raw.WRITE, run[0] * CLUSTER, len(data), data)
        self.change(run, byte)

    def zero(self):
        run = self.run_of_clusters()
        self.guest.request(nbd_raw.WRITE_ZEROES, run[0] * CLUSTER, len(run) * CLUSTER)
        self.change(run, 0)

    def discard(self):
        run = self.run_of_clusters()
        self.guest.request(nbd_raw.TRIM, run[0] * CLUSTER, len(run) * CLUSTER)
        self.change(run, None)

    def recording(self, path):
        """Bitmaps of an image that record, of any checkpoint."""
        bitmaps = self.qmp.bitmaps(self.node(path))
        return [name for name, info in bitmaps.items() if info["recording"]]

    def new_bitmap(self, path):
        granularity = self.random.choice(GRANULARITIES)
        self.coarse = max(self.coarse, granularity // CLUSTER)
        return ("block-dirty-bitmap-add", {
            "node": self.node(path), "name": BITMAP.format(self.number), "persistent": True,
            "granularity": granularity,
        })  # fmt: skip

    def freeze(self, path):
        return [
            ("block-dirty-bitmap-disable", {"node": self.node(path), "name": name})
            for name in self.recording(path)
        ]

    def checkpoint(self):
        freeze = self.freeze(self.top)
        self.add_expected()
        self.qmp.transaction(*freeze, self.new_bitmap(self.top))

    def forget(self):
        """The oldest checkpoint, or two become one."""
        if len(self.points) < 3:
            return
        which = self.random.randrange(len(self.points) - 1)
        number = self.points[which].number
        for path in self.chain:
            node, name = self.node(path), BITMAP.format(number)
            if name not in self.qmp.bitmaps(node):
                continue
            if path != self.top:
                return
            if which > 0:
                earlier = BITMAP.format(self.points[which - 1].number)
                if earlier not in self.qmp.bitmaps(node):
                    return
                self.qmp.command("block-dirty-bitmap-merge", node=node, target=earlier,
                                 bitmaps=[name])
            self.qmp.command("block-dirty-bitmap-remove", node=node, name=name)
        self.expected.remove(number)
        del self.points[which]

    def snapshot(self):
        """An external one, with a checkpoint. The bitmap below may stay as it is: stranded."""
        if len(self.chain) > 3:
            return
        path = self.create(self.clusters, self.top)
        self.add_node(path)
        freeze = self.freeze(self.top) if self.random.random() < 0.5 else []
        self.add_expected()
        self.qmp.transaction(
            *freeze,
            ("blockdev-snapshot", {"node": self.node(self.top), "overlay": self.node(path)}),
            self.new_bitmap(path),
        )
        self.chain.append(path)
        self.written[path] = set()

    def left(self, paths):
        """These images left the chain; what they had may have been recorded on the way."""
        for path in paths:
            for point in self.points:
                point.may |= self.written[path]
            self.written[self.top] |= self.written.pop(path)
            os.unlink(path)

    def wait_job(self):
        while True:
            jobs = [job for job in self.qmp.command("query-jobs") if job["id"] == "job"]
            if not jobs:
                return
            if jobs[0]["status"] == "ready":
                self.qmp.command("job-complete", id="job")
            elif jobs[0]["status"] == "concluded":
                if "error" in jobs[0]:
                    raise Wrong(jobs[0]["error"])
                self.qmp.command("job-dismiss", id="job")
                return
            time.sleep(0.005)

    def commit(self):
        if len(self.chain) < 2:
            return
        keep = self.random.randrange(len(self.chain) - 1)
        base = self.qmp.node(self.node(self.chain[keep]))
        if base["image"]["virtual-size"] > self.clusters * CLUSTER:
            return  # refused: what guests are on would change its size
        self.qmp.command("block-commit", job_id="job", device=self.node(self.top),
                         base_node=self.node(self.chain[keep]), auto_dismiss=False)
        self.wait_job()
        gone = self.chain[keep + 1 :]
        for path in reversed(gone):
            self.qmp.command("blockdev-del", node_name=self.node(path))
        del self.chain[keep + 1 :]
        self.left(gone)

    def stream(self):
        if len(self.chain) < 2:
            return
        self.qmp.command("block-stream", job_id="job", device=self.node(self.top),
                         auto_dismiss=False)
        self.wait_job()
        gone = self.chain[:-1]
        for path in reversed(gone):
            self.qmp.command("blockdev-del", node_name=self.node(path))
        for point in self.points:
            point.may |= self.written[self.top]
        del self.chain[:-1]
        self.left(gone)
        self.saved.clear()

    def resize(self):
        clusters = self.random.randrange(48, 80)
        self.qmp.command("block_resize", node_name=self.node(self.top), size=clusters * CLUSTER)
        self.change_size(clusters)

    def save(self):
        """An internal snapshot."""
        if len(self.chain) > 1 or len(self.saved) > 2:
            return
        self.count += 1
        name = f"s{self.count}"
        self.qmp.command("blockdev-snapshot-internal-sync", device=self.node(self.top), name=name)
        self.saved[name] = (list(self.content), set())

    def gone_back(self, name):
        content, since = self.saved[name]
        before = list(self.content)
        self.change_size(len(content))
        self.content = list(content)
        differs = {
            c
            for c, byte in enumerate(content)
            if c >= len(before) or before[c] is None or byte is None or before[c] != byte
        }
        certain = {c for c in differs if c < len(before) and None not in (before[c], content[c])}
        for point in self.points:
            point.changed |= certain | {c for c in differs if c >= len(before)}
            point.may |= differs | since
        for _, others in self.saved.values():
            others |= differs | since
        self.written[self.top] |= differs | since

    def go_back(self):
        if len(self.chain) > 1 or not self.saved:
            return
        name = self.random.choice(list(self.saved))
        self.qmp.command("x-tidemark-snapshot-apply", device=self.node(self.top), name=name)
        self.gone_back(name)

    # --- steps, without it

    def restart(self):
        self.stop()
        self.start()

    def by_qemu(self):
        """QEMU's program writes, and keeps bitmaps as we do."""
        self.stop()
        run, byte = self.run_of_clusters(), self.random.randrange(1, 256)
        qemu_io(self.top, f"write -P {byte} {run[0] * CLUSTER} {len(run) * CLUSTER}", fmt="qcow2")
        self.change(run, byte)
        self.check()
        self.start()

    def remove_lost(self):
        """After a crash: bitmaps that nobody can trust, or that were never stored; those that can
        be trusted may have more.
        """
        lost, there = 0, set()
        for path in self.chain:
            for name, info in self.qmp.bitmaps(self.node(path)).items():
                there.add(int(name[1:]))
                if info.get("inconsistent"):
                    self.qmp.command("block-dirty-bitmap-remove", node=self.node(path), name=name)
                    lost = max(lost, int(name[1:]))
        self.lose(max({lost} | (self.expected - there)))
        for point in self.points:
            point.may |= set(range(self.clusters))
        self.log(f"  lost up to {lost}")
        self.checkpoint()

    def crash_of_qemu(self):
        self.stop()
        run, byte = self.run_of_clusters(), self.random.randrange(1, 256)
        subprocess.run(
            [qemu("qemu-io"), "-f", "qcow2", "-c",
             f"write -P {byte} {run[0] * CLUSTER} {len(run) * CLUSTER}", "-c", "abort", self.top],
            check=False, capture_output=True,
        )  # fmt: skip
        self.change(run, byte)
        self.start()
        self.remove_lost()

    def kill(self):
        self.guest.request(nbd_raw.FLUSH)
        self.guest.close()
        self.daemon.kill()
        self.start()
        self.remove_lost()

    def offline(self):
        """img commit, resize, snapshot -a."""
        self.stop()
        what = self.random.choice(("commit", "resize", "go_back"))
        if what == "commit" and len(self.chain) > 1:
            if Image(self.chain[-2]).u64(24) > self.clusters * CLUSTER:
                return self.start()  # the disk would become larger
            img("commit", "-q", "-f", "qcow2", "-d", self.top)
            gone = [self.chain.pop()]
            self.left(gone)
        elif what == "resize":
            clusters = self.random.randrange(48, 80)
            img("resize", "-q", "-f", "qcow2", "--shrink", self.top, clusters * CLUSTER)
            self.change_size(clusters)
        elif what == "go_back" and len(self.chain) == 1 and self.saved:
            name = self.random.choice(list(self.saved))
            img("snapshot", "-q", "-f", "qcow2", "-a", name, self.top)
            self.gone_back(name)
        self.log(f"  {what}")
        self.check()
        self.start()

    STEPS = (
        ("write", 40), ("zero", 8), ("discard", 8), ("checkpoint", 8), ("forget", 4),
        ("snapshot", 4), ("commit", 3), ("stream", 1), ("resize", 4), ("save", 3), ("go_back", 4),
        ("restart", 3), ("by_qemu", 2), ("crash_of_qemu", 1), ("kill", 1), ("offline", 3),
    )  # fmt: skip

    def step(self, only=None):
        names = [n for n, weight in self.STEPS for _ in range(weight) if not only or n in only]
        name = self.random.choice(names)
        self.log(f"{name}, chain of {len(self.chain)}, {self.clusters} clusters")
        getattr(self, name)()
        if name not in ("write", "zero", "discard"):
            self.check_contents()


def run_model(seed, seconds, log=None, only=None):
    """Run for `seconds`; the number of steps."""
    directory = tempfile.mkdtemp(prefix="tm-bitmaps-", dir="/dev/shm")
    model, done = None, 0
    try:
        model = Model(directory, seed, log)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            model.step(only)
            done += 1
        model.restart()
        return done
    except BaseException:
        print(f"seed {seed}, after {done} steps", file=log or sys.stderr)
        raise
    finally:
        if model:
            model.end()
        if not os.environ.get("TIDEMARK_KEEP"):
            shutil.rmtree(directory, ignore_errors=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--seconds", type=float, default=60, help="in total (default 60)")
    ap.add_argument("--seed", type=int, default=None, help="of the first run (default: random)")
    ap.add_argument("--only", help="steps by name, separated by commas")
    args = ap.parse_args()
    seed = args.seed if args.seed is not None else random.randrange(1 << 30)
    end = time.monotonic() + args.seconds
    runs = steps = 0
    while time.monotonic() < end:
        print(f"seed {seed}", file=sys.stderr)
        steps += run_model(seed, min(15, end - time.monotonic()), sys.stderr,
                           args.only.split(",") if args.only else None)
        runs += 1
        seed += 1
    print(f"{runs} runs, {steps} steps, nothing wrong")


if __name__ == "__main__":
    main()
