# SPDX-License-Identifier: Apache-2.0
"""The metadata context x-tidemark:merged: allocation, depth and dirty bits in one list."""

import os
import random
import struct
import unittest

import nbd_raw
from nbd_raw import LIST_META, RawClient, meta_data
from nbd_server import NbdServer
from tidemark import TestCase, img, io, tool

SIZE = 16 << 20
CLUSTER = 65536
HOLE, ZERO, LOCAL, BACKING, DIRTY = 1, 2, 4, 8, 16
BASE, DEPTH, MERGED = b"base:allocation", b"qemu:allocation-depth", b"x-tidemark:merged"


def statuses(client, contexts, size, step=None):
    """For each context its extents of [0, size), by requests for `step` bytes: {name: [...]}."""
    ids = {}
    for kind, data in client.ask(nbd_raw.SET_META, meta_data(b"", *contexts)):
        if kind == nbd_raw.META_CONTEXT:
            ids[struct.unpack(">I", data[:4])[0]] = data[4:]
    client.ask(nbd_raw.GO, nbd_raw.go_data(b""))
    found = {name: [] for name in contexts}
    for name in contexts:
        offset = 0
        while offset < size:
            client.request(nbd_raw.BLOCK_STATUS, offset, min(step or size, size - offset))
            for kind, payload in client.chunks():
                assert kind in (5, 6), (kind, payload)
                if ids[struct.unpack(">I", payload[:4])[0]] != name:
                    continue
                form, head = (">QQ", 8) if kind == 6 else (">II", 4)
                extents = list(struct.iter_unpack(form, payload[head:]))
                assert all(a[1] != b[1] for a, b in zip(extents, extents[1:])), "not coalesced"
                for length, flags in extents:
                    found[name].append((offset, length, flags))
                    offset += length
    return found


def by_unit(extents, size, unit=512):
    flags = []
    for start, length, value in extents:
        assert start % unit == 0 and length % unit == 0
        flags[start // unit :] = [value] * (length // unit)
    return flags[: size // unit]


def expected(base, depth, dirty):
    layer = LOCAL if depth == 1 else BACKING if depth > 1 else 0
    return base | layer | (DIRTY if dirty else 0)


class MergedTest(TestCase):
    def chain(self, seed):
        """Three layers with data, zeroes and holes in all; the top has the bitmaps b0 and b1."""
        rng = random.Random(seed)
        below = None
        for name in ("base", "mid", "top"):
            path = self.path(f"{name}{seed}.qcow2")
            more = ["-b", below, "-F", "qcow2"] if below else []
            size = SIZE if name != "mid" else SIZE - 5 * CLUSTER
            img("create", "-q", "-f", "qcow2", *more, path, str(size))
            if name == "top":
                for n in range(2):
                    img("bitmap", "-f", "qcow2", "--add", "-g", str(CLUSTER >> n), path, f"b{n}")
            commands = []
            for _ in range(20):
                kind = rng.choice(("write", "write -z", "write -z -u", "discard"))
                start = rng.randrange(size // CLUSTER) * CLUSTER
                length = min(rng.randrange(1, 8) * CLUSTER, size - start)
                if kind == "write" and rng.random() < 0.3:
                    length = 4096
                commands.append(f"{kind} {start} {length}")
            io(path, *commands, fmt="qcow2", options=("-d", "unmap"))
            below = path
        return path

    def test_equals_the_separate_contexts(self):
        for seed in range(4):
            image = self.chain(seed)
            server = self.own(
                NbdServer(self.dir, "-r", "-A", "-B", "b0", "-B", "b1", "-f", "qcow2", image,
                          name=f"s{seed}")
            )  # fmt: skip
            bits = [b"qemu:dirty-bitmap:b0", b"qemu:dirty-bitmap:b1"]
            merged = [MERGED, MERGED + b":b0", MERGED + b":b1"]
            for extended in (False, True):
                for step in (None, 3 * CLUSTER + 512):
                    with RawClient(server.socket) as client:
                        if extended:
                            client.negotiate_extended()
                        else:
                            client.negotiate_structured()
                        found = statuses(client, [BASE, DEPTH, *bits, *merged], SIZE, step)
                    units = {name: by_unit(e, SIZE) for name, e in found.items()}
                    for name, dirty in zip(merged, (None, *bits)):
                        marks = units[dirty] if dirty else [0] * (SIZE // 512)
                        want = list(map(expected, units[BASE], units[DEPTH], marks))
                        self.assertEqual(units[name], want, (seed, extended, step, name))
            server.stop()

    def test_zero_clusters_over_a_backing_file_are_local(self):
        base, top = self.path("b.qcow2"), self.path("t.qcow2")
        img("create", "-q", "-f", "qcow2", base, "256k")
        io(base, "write 0 256k", fmt="qcow2")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        io(top, "write -z -u 64k 64k", "write 128k 64k", fmt="qcow2")
        server = self.own(NbdServer(self.dir, "-r", "-f", "qcow2", top))
        with RawClient(server.socket) as client:
            client.negotiate_structured()
            found = statuses(client, [MERGED], 256 << 10)[MERGED]
        self.assertEqual(
            found,
            [
                (0, CLUSTER, BACKING),
                (CLUSTER, CLUSTER, LOCAL | ZERO | HOLE),
                (2 * CLUSTER, CLUSTER, LOCAL),
                (3 * CLUSTER, CLUSTER, BACKING),
            ],
        )

    def names(self, server):
        with RawClient(server.socket) as client:
            client.negotiate_structured()
            return [data[4:] for _, data in client.ask(LIST_META, meta_data(b""))[:-1]]

    def test_under_the_name_of_qemu_nbd_it_is_not_offered(self):
        image = self.create("d.raw", "1M", fmt="raw")
        program = os.path.join(os.path.dirname(tool("nbd")[0]), "compat", "qemu-nbd")
        server = self.own(
            NbdServer(self.dir, "-A", "-f", "raw", image, name="compat", program=[program])
        )
        self.assertEqual(self.names(server), [BASE, DEPTH])
        server.stop()
        server = self.own(NbdServer(self.dir, "-f", "raw", image, name="own"))
        self.assertEqual(self.names(server), [BASE, MERGED])

    def test_an_extent_may_have_more_than_4_gib(self):
        image = self.create("large.qcow2", "6T", fmt="qcow2")
        server = self.own(NbdServer(self.dir, "-r", "-f", "qcow2", image))
        with RawClient(server.socket) as client:
            client.negotiate_extended()
            found = statuses(client, [MERGED], 6 << 40)[MERGED]
        self.assertEqual(found, [(0, 6 << 40, HOLE | ZERO)])


if __name__ == "__main__":
    unittest.main()
