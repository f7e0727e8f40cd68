# SPDX-License-Identifier: Apache-2.0
"""kill -9 in the midst of allocating writes over NBD: the image opens, qemu-img check finds at most
leaks, and every flushed write is there."""

import random
import struct
import threading
import time
import unittest

import nbd
from tidemark import TestCase, can_connect, nbd_uri, qemu_img, wait_until

SECTOR = 512
SLOT = 4096
SIZE = 192 << 20
WRITERS = 3
KILLS_PER_IMAGE = 10


def stamp(slot, sequence):
    """4 KiB, each sector of which tells where it belongs and which write it is of."""
    return b"".join(
        struct.pack("<QQQ", 0x6B696C6C2D392121, slot * 8 + i, sequence).ljust(SECTOR, b"\x5a")
        for i in range(SLOT // SECTOR)
    )


def sequences(slot, data):
    """The write that each sector of a slot is of: 0 for zeroes, None for anything else."""
    found = set()
    for i in range(SLOT // SECTOR):
        sector = data[i * SECTOR : (i + 1) * SECTOR]
        magic, number, sequence = struct.unpack_from("<QQQ", sector)
        if sector == bytes(SECTOR):
            found.add(0)
        elif sector == stamp(slot, sequence)[i * SECTOR : (i + 1) * SECTOR]:
            found.add(sequence)
        else:
            found.add(None)
    return found


class Writer:
    """Writes stamped slots over a connection of its own until that is cut off. The slots are its
    own, too. For each: `flushed`, the last write that a flush made stable, and `pending`, those
    sent since.
    """

    def __init__(self, index):
        self.index = index
        self.flushed = {}
        self.pending = {}
        self.sequence = 0
        self.flushes = 0
        self.touched = set()

    def allowed(self, slot):
        return {self.flushed.get(slot, 0), *self.pending.get(slot, ())}

    def run(self, uri, seed, started):
        rng = random.Random(seed)
        self.touched = set(self.pending)
        client = nbd.NBD()
        try:
            client.connect_uri(uri)
            started.set()
            while True:
                self.step(client, rng)
        except nbd.Error:
            pass  # the end of the daemon
        finally:
            started.set()

    def step(self, client, rng):
        if rng.random() < 0.1:
            sent = {slot: list(writes) for slot, writes in self.pending.items()}
            client.flush()
            self.flushes += 1
            for slot, writes in sent.items():
                self.flushed[slot] = writes[-1]
            self.pending.clear()
            return
        slot = rng.randrange(SIZE // SLOT // WRITERS) * WRITERS + self.index
        self.sequence += 1
        self.pending.setdefault(slot, []).append(self.sequence)
        self.touched.add(slot)
        client.pwrite(stamp(slot, self.sequence), slot * SLOT)

    def settle(self, slot, sequence):
        """What a slot was found to hold after a crash is stable from now on: it was read from
        there.
        """
        self.flushed[slot] = sequence
        self.pending.pop(slot, None)


class KillTest(TestCase):
    def start(self, image):
        # The socket of a daemon that was killed can be connected to for a moment.
        socket = self.path(f"nbd{len(self.processes)}")
        daemon = self.daemon(
            "--blockdev", f"driver=file,node-name=file,filename={image}",
            "--blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap",
            "--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=10",
            "--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on",
            connect=False,
        )  # fmt: skip
        daemon.wait_for(lambda: can_connect(socket), "the NBD server")
        return daemon, nbd_uri(socket, "disk")

    def verify(self, uri, writers):
        """All slots of the last round, as the restarted daemon shows them."""
        client = nbd.NBD()
        client.connect_uri(uri)
        for writer in writers:
            for slot in writer.touched:
                found = sequences(slot, bytes(client.pread(SLOT, slot * SLOT)))
                self.assertLessEqual(found, writer.allowed(slot), f"slot {slot}")
                writer.settle(slot, max(found))
        client.shutdown()

    def check(self, image):
        """Also waits for the image lock: what io_uring had in flight holds it a little longer than
        the process that was killed lives.
        """

        def unlocked():
            result = qemu_img("check", "-f", "qcow2", image, check=False)
            return None if "lock" in result.stderr else result

        result = wait_until(unlocked, "the image lock of a daemon that was killed")
        self.assertIn(result.returncode, (0, 3), result.stdout + result.stderr)

    def round(self, image, writers, seed):
        daemon, uri = self.start(image)
        self.verify(uri, writers)
        started = [threading.Event() for _ in writers]
        threads = [
            threading.Thread(
                target=w.run, args=(uri, seed * WRITERS + w.index, event), daemon=True
            )
            for w, event in zip(writers, started)
        ]
        for thread in threads:
            thread.start()
        for event in started:
            self.assertTrue(event.wait(60))
        time.sleep(random.Random(seed).uniform(0.02, 0.25))
        daemon.kill()
        for thread in threads:
            thread.join(60)
            self.assertFalse(thread.is_alive())
        self.check(image)

    def survive(self, cluster_size, seed):
        image = self.create("disk.qcow2", str(SIZE), options=["-o", f"cluster_size={cluster_size}"])
        writers = [Writer(i) for i in range(WRITERS)]
        for kill in range(KILLS_PER_IMAGE):
            self.round(image, writers, seed * KILLS_PER_IMAGE + kill)
        daemon, uri = self.start(image)
        self.verify(uri, writers)
        daemon.stop()
        self.check(image)
        self.assertGreater(sum(w.flushes for w in writers), 5, "nothing was put to the test")

    def test_clusters_of_64k(self):
        self.survive("64k", 0)

    def test_clusters_of_4k(self):
        self.survive("4k", 1)

    def test_clusters_of_2m(self):
        self.survive("2M", 2)

    def test_clusters_of_16k(self):
        self.survive("16k", 3)

    def test_clusters_of_512k(self):
        self.survive("512k", 4)


if __name__ == "__main__":
    unittest.main()
