# SPDX-License-Identifier: Apache-2.0
"""What tests of jobs on backing chains share: a chain in a daemon, a guest that writes, a model."""

import json
import os
import random
import threading

import nbd
import tidemark
from qmp import QmpError

MIB = 1 << 20
BLOCK = 65536
NAMES = "abcdefgh"


class Guest(threading.Thread):
    """Writes stamped blocks through NBD until stop(); `disk` is what has to be read then."""

    def __init__(self, uri, disk, seed=1, pause=0.001):
        super().__init__(daemon=True)
        self.uri, self.disk, self.pause = uri, disk, pause
        self.random = random.Random(seed)
        self.ending = threading.Event()
        self.error = None
        self.writes = 0
        self.touched = set()
        self.start()

    def run(self):
        try:
            client = nbd.NBD()
            # A filter such as compress names its clusters as the smallest request; it takes others.
            client.set_strict_mode(client.get_strict_mode() & ~nbd.STRICT_ALIGN)
            client.connect_uri(self.uri)
            while not self.ending.is_set():
                self.step(client)
                self.ending.wait(self.pause)
            client.shutdown()
        except BaseException as error:  # pylint: disable=broad-except
            self.error = error

    def step(self, client):
        size = 512 * self.random.randint(1, 64)
        offset = self.random.randrange(0, len(self.disk) - size, 512)
        self.writes += 1
        self.touched.update(range(offset // BLOCK, (offset + size - 1) // BLOCK + 1))
        if self.random.random() < 0.15:
            client.zero(size, offset)
            data = bytes(size)
        else:
            data = self.random.randbytes(8) * (size // 8)
            client.pwrite(data, offset)
        self.disk[offset : offset + size] = data
        at = self.random.randrange(0, len(self.disk) - 4096, 512)
        if client.pread(4096, at) != self.disk[at : at + 4096]:
            raise AssertionError(f"wrong data at {at}")

    def stop(self):
        """How many writes there were, all as wanted."""
        self.ending.set()
        self.join(60)
        if self.error:
            raise self.error
        return self.writes


class ChainCase(tidemark.TestCase):
    """self.make_chain() makes images a <- b <- c ..., self.start() a daemon with all of them."""

    def make_chain(self, *images, each=MIB):
        """Images of (size in MiB, cluster size, further options). Each gets some stamped blocks;
        self.disk is what the last one shows.
        """
        self.disk = bytearray()
        rng = random.Random(len(images))
        for number, image in enumerate(images):
            mib, cluster, *more = image
            name = NAMES[number] + ".qcow2"
            options = ["-o", f"cluster_size={cluster}", *more]
            if number:
                options += ["-b", NAMES[number - 1] + ".qcow2", "-F", "qcow2"]
            path = self.create(name, f"{mib}M", options=options)
            size = mib * MIB
            self.disk = (self.disk + bytes(size))[:size]
            commands = []
            for i in range(12):
                offset, length = rng.randrange(0, size - each, 512), rng.randrange(512, each, 512)
                stamp = 16 * (number + 1) + i
                if i % 4 == 3:
                    commands.append(f"write -z {offset} {length}")
                    stamp = 0
                else:
                    commands.append(f"write -P {stamp} {offset} {length}")
                self.disk[offset : offset + length] = bytes([stamp]) * length
            tidemark.io(path, *commands, fmt="qcow2")
        self.names = NAMES[: len(images)]

    def blockdevs(self, file_options=None, read_only=None, **more):
        """The arguments of --blockdev of all images; every node is the monitor's."""
        for number, name in enumerate(self.names):
            node = {
                "driver": "qcow2",
                "node-name": name,
                "file": {"driver": "file", "filename": self.path(name + ".qcow2")},
            }
            if number:
                node["backing"] = self.names[number - 1]
            if file_options and name in file_options:
                node["file"] = file_options[name](node["file"])
            if read_only and name in read_only:
                node["read-only"] = True
            yield {**node, **more.get(name, {})}

    def start(self, writable=True, export=None, **more):
        self.nbd = self.path("nbd.sock")
        self.uri = tidemark.nbd_uri(self.nbd, "disk")
        self.server = self.daemon("--nbd-server", f"addr.type=unix,addr.path={self.nbd}")
        self.qmp = self.server.qmp
        for node in self.blockdevs(**more):
            self.qmp.command("blockdev-add", **node)
        self.qmp.command(
            "block-export-add",
            type="nbd",
            id="export",
            node_name=export or self.names[-1],
            name="disk",
            writable=writable,
        )

    # Jobs.

    def events(self, job, until="null", timeout=30):
        """What happens to a job from now on, up to a state: its states, and BLOCK_JOB_ events."""
        seen = []
        while True:
            event = self.next_event(timeout)
            data = event["data"]
            if data.get("id", data.get("device")) != job:
                continue
            if event["event"] == "JOB_STATUS_CHANGE":
                seen.append(data["status"])
            else:
                seen.append(event["event"].replace("BLOCK_JOB_", ""))
                self.last = data
            if seen[-1] == until:
                return seen

    def next_event(self, timeout):
        if not self.qmp.events:
            self.qmp.sock.settimeout(timeout)
            try:
                self.qmp.events.append(self.qmp.receive())
            except EOFError:
                raise AssertionError(self.server.log()) from None
            self.qmp.sock.settimeout(20)
        return self.qmp.events.pop(0)

    def refused(self, command, **arguments):
        """The sentence of the error."""
        with self.assertRaises(QmpError) as caught:
            self.qmp.command(command, **arguments)
        return caught.exception.desc

    def job(self, name="job"):
        for job in self.qmp.command("query-block-jobs"):
            if job["device"] == name:
                return job
        return None

    def wait_offset(self, at_least, name="job"):
        tidemark.wait_until(lambda: self.job(name)["offset"] >= at_least, f"progress of {name}")

    # Results.

    def backing(self, image):
        """What the header records: (name, format)."""
        info = json.loads(
            tidemark.qemu_img("info", "-U", "--output=json", self.path(image + ".qcow2")).stdout
        )
        return info.get("backing-filename"), info.get("backing-filename-format")

    def assert_disk(self, image=None, expected=None):
        """After the daemon has ended: contents, and QEMU's check of all images."""
        path = self.path((image or self.names[-1]) + ".qcow2")
        raw = self.path("raw")
        tidemark.qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
        expected = self.disk if expected is None else expected
        with open(raw, "rb") as file:
            found = file.read()
        os.unlink(raw)
        self.assertEqual(len(found), len(expected))
        if found != bytes(expected):
            at = next(i for i in range(0, len(found), 512) if found[i : i + 512] != expected[i : i + 512])
            self.fail(f"{path} differs at {at}")
        for name in self.names:
            tidemark.qemu_img("check", "-q", "-f", "qcow2", self.path(name + ".qcow2"))
