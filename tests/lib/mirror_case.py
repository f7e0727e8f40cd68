# SPDX-License-Identifier: Apache-2.0
"""What tests of mirrors share: guests that write stamped blocks, and a daemon with two disks."""

import os
import random
import struct
import threading
import time

import tidemark
from nbd_raw import RawClient
from qmp import QmpError

MIB = 1 << 20
SIZE = 16 * MIB + 3 * 512  # an end inside a cluster
BLOCK = 4096
READ, WRITE, FLUSH, TRIM, ZEROES = 0, 1, 3, 4, 6


class Guest(threading.Thread):
    """Writes stamped blocks through a connection of its own, of which `count` share the disk, and
    reads them again. `model` has what was acknowledged."""

    def __init__(self, path, name, model, index=0, count=1, seed=1, small=False, span=None):
        super().__init__(daemon=True)
        self.client = RawClient(path)
        self.client.go(name)
        self.model, self.index, self.count = model, index, count
        self.random = random.Random(f"{seed}.{index}")
        self.small = small
        self.span = span or len(model)  # it writes in this part of the disk only
        self.stamp = 0
        self.writes = 0
        self.slowest = 0
        self.failure = None
        self.halt = threading.Event()

    def block(self):
        blocks = self.span // BLOCK // self.count
        return (self.random.randrange(blocks) * self.count + self.index) * BLOCK

    def write_once(self):
        offset, length = self.block(), BLOCK
        if self.small:
            length = self.random.choice((512, 1024, 1536, BLOCK))
            offset += self.random.randrange(0, BLOCK - length + 1, 512)
        if self.random.random() < 0.1:
            self.client.request(ZEROES, offset, length)
            data = bytes(length)
        else:
            self.stamp += 1
            data = struct.pack("<QII", offset, self.index, self.stamp) * (length // 16)
            self.client.request(WRITE, offset, length, payload=data)
        error = self.client.error()
        if error:
            raise AssertionError(f"write at {offset}: error {error}")
        self.model[offset : offset + length] = data
        self.writes += 1

    def read_once(self):
        offset = self.block()
        self.client.request(READ, offset, BLOCK)
        seen = bytearray(BLOCK)
        for kind, payload in self.client.chunks():
            at = struct.unpack(">Q", payload[:8])[0] - offset if payload else 0
            if kind == 1:
                seen[at : at + len(payload) - 8] = payload[8:]
            elif kind & 0x8000:
                raise AssertionError(f"read at {offset}: {payload}")
        if seen != self.model[offset : offset + BLOCK]:
            raise AssertionError(f"read at {offset}: not what was written last")

    def run(self):
        try:
            while not self.halt.is_set():
                before = time.monotonic()
                self.write_once()
                self.slowest = max(self.slowest, time.monotonic() - before)
                if self.random.random() < 0.2:
                    self.read_once()
        except Exception as e:  # the test looks at it
            self.failure = e

    def stop(self):
        self.halt.set()
        self.join(20)
        if self.failure:
            raise self.failure
        if self.is_alive():
            raise AssertionError("the guest hangs")
        self.client.sock.close()


class MirrorCase(tidemark.TestCase):
    """A daemon with the node "s" (source), exported as "disk", and "t" (target)."""

    source_format = target_format = "qcow2"
    size = SIZE
    reactors = 3

    def setUp(self):
        super().setUp()
        self.model = bytearray(self.size)
        self.nbd = self.path("nbd.sock")
        self.guests = []

    def make(self, name, fmt=None, size=None, *options):
        path = self.path(name)
        tidemark.img("create", "-q", "-f", fmt or self.source_format, *options, path, size or self.size)
        return path

    def fill(self, path, fmt=None):
        """Some data, zeroes over data, and holes."""
        def write(offset, length, byte):
            self.model[offset : offset + length] = bytes([byte]) * length
            return f"write -P {byte} {offset} {length}"

        def zeroes(offset, length):
            self.model[offset : offset + length] = bytes(length)
            return f"write -z {offset} {length}"

        tidemark.io(
            path,
            write(0, 3 * MIB, 1),
            write(5 * MIB + 1024, 70000 // 512 * 512, 2),
            write(7 * MIB, 64 * 1024, 0),
            zeroes(8 * MIB, 256 * 1024),
            write(9 * MIB + 4096, 4096, 3),
            write(12 * MIB, MIB, 4),
            write(self.size - 5 * 512, 5 * 512, 5),
            fmt=fmt or self.source_format,
        )

    def blockdev(self, node, path, fmt, **more):
        options = {"driver": fmt, "node-name": node, "file.driver": "file", "file.filename": path}
        options.update({"file.node-name": node + "-file", "discard": "unmap", **more})
        return "--blockdev", ",".join(f"{k}={v}" for k, v in options.items())

    def start(self, *more, source=None, target=None, fill=True):
        self.source = source or self.make("s", self.source_format)
        self.target = target or self.make("t", self.target_format)
        if fill:
            self.fill(self.source)
        threads = [w for i in range(self.reactors) for w in ("--object", f"iothread,id=io{i}")]
        self.server = self.daemon(
            *threads,
            *self.blockdev("s", self.source, self.source_format),
            *self.blockdev("t", self.target, self.target_format),
            *more,
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
            "--export",
            "type=nbd,id=export,node-name=s,name=disk,writable=on",
        )
        self.qmp = self.server.qmp

    def mirror(self, **more):
        named = {"job_id": "j", "device": "s", "target": "t", "sync": "full", **more}
        return self.qmp.command("blockdev-mirror", **named)

    def job(self):
        for job in self.qmp.command("query-block-jobs"):
            if job["device"] == "j":
                return job
        return None

    def wait_ready(self):
        return self.qmp.wait_event("BLOCK_JOB_READY")

    def wait_end(self, event="BLOCK_JOB_COMPLETED"):
        data = self.qmp.wait_event(event)["data"]
        tidemark.wait_until(lambda: self.job() is None, "the end of the job")
        return data

    def complete(self):
        self.qmp.command("job-complete", id="j")
        data = self.wait_end()
        self.assertNotIn("error", data)
        return data

    def exported_node(self, export="export"):
        for e in self.qmp.command("query-block-exports"):
            if e["id"] == export:
                return e["node-name"]
        return None

    def start_guests(self, count=1, **more):
        self.guests = [
            Guest(self.nbd, b"disk", self.model, i, count, **more) for i in range(count)
        ]
        for guest in self.guests:
            guest.start()

    def stop_guests(self):
        for guest in self.guests:
            guest.stop()
        self.guests = []

    def contents(self, path, fmt):
        raw = self.path("contents.raw")
        tidemark.img("convert", "-U", "-f", fmt, "-O", "raw", path, raw)
        with open(raw, "rb") as f:
            data = f.read()
        os.unlink(raw)
        return data

    def assert_same(self, seen, wanted):
        self.assertEqual(len(seen), len(wanted))
        if seen != wanted:
            for at in range(0, len(wanted), 512):
                if seen[at : at + 512] != wanted[at : at + 512]:
                    self.fail(f"differs at {at}: {seen[at:at+16]}, not {wanted[at:at+16]}")

    def assert_target_is(self, model, path=None, fmt=None):
        """After the daemon has ended."""
        self.server.quit()
        path, fmt = path or self.target, fmt or self.target_format
        self.assert_same(self.contents(path, fmt), bytes(model))
        if fmt == "qcow2":
            tidemark.img("check", "-q", path)

    def assert_refused(self, desc, **more):
        with self.assertRaises(QmpError) as caught:
            self.mirror(**more)
        self.assertEqual(caught.exception.desc, desc)
