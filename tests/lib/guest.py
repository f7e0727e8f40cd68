# SPDX-License-Identifier: Apache-2.0
"""Guests that write while the graph under them changes, and know what they have written."""

import random
import struct
import threading
import time

import nbd_raw

BLOCK = 4096


class Guest:
    """A client that writes blocks with stamps to a part of the disk, until it is stopped.

    Each write is waited for, so that the disk must have, at any moment, the latest stamp of each
    block. Several guests on different parts are served by different reactors.
    """

    def __init__(self, socket, export, offset, size, seed, flush_every=64):
        self.client = nbd_raw.RawClient(socket)
        self.client.go(export.encode(), structured=False)
        self.offset, self.blocks = offset, size // BLOCK
        self.random = random.Random(seed)
        self.seed, self.flush_every = seed, flush_every
        self.stamps = {}  # block: number of the latest write
        self.latencies = []  # seconds
        self.failure = None
        self.stopping = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def content(self, number):
        return struct.pack("<QQ", self.seed, number) * (BLOCK // 16)

    def ask(self, kind, offset=0, payload=b""):
        self.client.request(kind, offset, len(payload), payload=payload)
        reply = self.client.receive(16)
        error = struct.unpack(">IIQ", reply)[1]
        if error:
            raise OSError(error, f"guest {self.seed}: request {kind} failed")

    def run(self):
        number = 0
        try:
            while not self.stopping:
                number += 1
                block = self.random.randrange(self.blocks)
                begin = time.monotonic()
                self.ask(nbd_raw.WRITE, self.offset + block * BLOCK, self.content(number))
                self.latencies.append(time.monotonic() - begin)
                self.stamps[block] = number
                if self.flush_every and number % self.flush_every == 0:
                    self.ask(nbd_raw.FLUSH)
        except Exception as e:  # for the test's thread
            self.failure = e

    @property
    def written(self):
        return len(self.latencies)

    def stop(self):
        self.stopping = True
        self.thread.join(20)
        self.client.sock.close()
        if self.failure:
            raise self.failure

    def check(self, image):
        """Compare with the contents of a raw image: blocks that were never written are zeroes."""
        with open(image, "rb") as f:
            f.seek(self.offset)
            for block in range(self.blocks):
                number = self.stamps.get(block)
                wanted = bytes(BLOCK) if number is None else self.content(number)
                if f.read(BLOCK) != wanted:
                    raise AssertionError(f"guest {self.seed}: block {block} is not write {number}")
