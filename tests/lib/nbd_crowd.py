#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Sixteen NBD clients on one image that four reactors serve at the same time.

    TIDEMARK_BUILD=build-tsan tests/lib/nbd_crowd.py [--seconds N] [--seed N] [--format raw]

Each client writes, zeroes, discards and flushes blocks of its own, with several requests on their
way, and reads those of all. Its own have to be what it wrote. A report of a sanitizer is a failure.
"""

import argparse
import os
import random
import struct
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from nbd_raw import (  # noqa: E402
    BLOCK_STATUS,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    RawClient,
)
from tidemark import Daemon, img  # noqa: E402

REACTORS = 4
CLIENTS = 16
BLOCK = 4096
BLOCKS = 4096
DEPTH = 8
CONTEXT = b"base:allocation"


class Wrong(Exception):
    """What a reply is, and should not be."""


def contents(block, stamp):
    return struct.pack("<QQ", block, stamp) * (BLOCK // 16) if stamp else bytes(BLOCK)


class Guest(threading.Thread):
    """One client, whose blocks are those with its number, modulo CLIENTS."""

    def __init__(self, number, socket, seed, end):
        super().__init__()
        self.number, self.socket, self.end = number, socket, end
        self.random = random.Random(f"{seed} {number}")
        self.stamps = {}
        self.requests = 0
        self.failure = None

    def run(self):
        try:
            with RawClient(self.socket, timeout=120) as self.client:
                self.client.go(f"e{self.number % REACTORS}".encode(), contexts=[CONTEXT])
                while time.monotonic() < self.end:
                    self.batch()
        except Exception as e:
            self.failure = f"client {self.number}: {type(e).__name__}: {e}"

    def batch(self):
        """Requests for blocks that differ, all on their way at once."""
        blocks = self.random.sample(range(BLOCKS), DEPTH)
        asked = {}
        for cookie, block in enumerate(blocks):
            kind = self.random.choice((READ, READ, WRITE, WRITE, WRITE_ZEROES, TRIM, FLUSH, BLOCK_STATUS))
            if kind != BLOCK_STATUS and self.random.random() < 0.7:
                block -= block % CLIENTS - self.number
            if kind in (WRITE, WRITE_ZEROES, TRIM) and block % CLIENTS != self.number:
                kind = READ
            if any(block == other for _, other, _ in asked.values()):
                continue
            stamp = self.random.randrange(1, 1 << 60) if kind == WRITE else 0
            payload = contents(block, stamp) if kind == WRITE else b""
            at = (0, 0) if kind == FLUSH else (block * BLOCK, BLOCK)
            self.client.request(kind, *at, cookie=cookie, payload=payload)
            asked[cookie] = kind, block, stamp
        while asked:
            self.reply(asked)

    def reply(self, asked):
        data = bytearray(BLOCK)
        done, cookie = False, None
        while not done:
            cookie, flags, chunk, payload = self.client.chunk()
            done = flags & 1
            if cookie not in asked or chunk & 0x8000:
                raise Wrong(f"chunk {chunk:#x} for cookie {cookie}: {payload!r}")
            if chunk == 1:
                at = int.from_bytes(payload[:8], "big") - asked[cookie][1] * BLOCK
                data[at : at + len(payload) - 8] = payload[8:]
        kind, block, stamp = asked.pop(cookie)
        self.requests += 1
        if kind == READ:
            self.check(block, bytes(data))
        elif kind in (WRITE, WRITE_ZEROES):
            self.stamps[block] = stamp
        elif kind == TRIM:
            self.stamps.pop(block, None)

    def check(self, block, data):
        stamp = self.stamps.get(block)
        if stamp is not None and data != contents(block, stamp):
            raise Wrong(f"block {block} begins with {data[:32]!r}, not with stamp {stamp}")


def serve(directory, form):
    """A daemon that exports one image from several reactors; (daemon, path of the socket)."""
    image, socket = os.path.join(directory, "image"), os.path.join(directory, "crowd")
    img("create", "-q", "-f", form, image, str(BLOCKS * BLOCK))
    daemon = Daemon(
        directory,
        "--blockdev", f"{form},node-name=disk,discard=unmap,file.driver=file,file.filename={image}",
        "--nbd-server", f"addr.type=unix,addr.path={socket}",
    )  # fmt: skip
    for i in range(REACTORS):
        daemon.qmp.command("object-add", qom_type="iothread", id=f"t{i}")
        daemon.qmp.command(
            "block-export-add", type="nbd", id=f"e{i}", name=f"e{i}", node_name="disk",
            writable=True, iothread=f"t{i}",
        )  # fmt: skip
    return daemon, socket


def run_crowd(seed, seconds, form):
    """The number of requests; raises Wrong."""
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        daemon, socket = serve(directory, form)
        try:
            end = time.monotonic() + seconds
            guests = [Guest(n, socket, seed, end) for n in range(CLIENTS)]
            for guest in guests:
                guest.start()
            for guest in guests:
                guest.join()
            failures = [g.failure for g in guests if g.failure]
            if failures:
                raise Wrong("\n".join([*failures, daemon.log()]))
            daemon.stop(expect=0)
        finally:
            daemon.kill()
        if "Sanitizer" in daemon.log():
            raise Wrong(daemon.log())
        return sum(g.requests for g in guests)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--format", choices=("raw", "qcow2"), default="qcow2")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    print(run_crowd(args.seed, args.seconds, args.format), "requests")


if __name__ == "__main__":
    main()
