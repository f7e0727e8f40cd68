# SPDX-License-Identifier: Apache-2.0
"""What block status says, and whom it asks."""

import json
import random
import struct
import unittest

from nbd_raw import RawClient
from nbd_server import NbdServer, QemuNbd
from tidemark import TestCase, img, io, qemu_img, qemu_io, run, tool

MIB = 1 << 20
BLOCK_STATUS, READ, REQ_ONE = 7, 0, 8
BASE, DEPTH = b"base:allocation", b"qemu:allocation-depth"


class FailingStatus(TestCase):
    def setUp(self):
        super().setUp()
        self.image = self.path("disk.raw")
        with open(self.image, "wb") as file:
            file.truncate(4 * MIB)
            file.write(b"x" * 65536)
        config = self.path("status.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write('[inject-error]\nevent = "none"\niotype = "block-status"\nerrno = "5"\n')
        self.options = ",".join([
            "driver=raw", "file.driver=blkdebug", f"file.config={config}", "file.image.driver=file",
            f"file.image.filename={self.image}",
        ])  # fmt: skip

    def test_map_of_raw_fails_where_its_file_does_not_tell(self):
        result = img("map", "--image-opts", "--output=json", self.options, check=False)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn("Input/output error", result.stderr)
        self.assertNotIn('"data"', result.stdout)

    def test_convert_of_raw_fails_where_its_file_does_not_tell(self):
        target = self.path("target.raw")
        result = img("convert", "--image-opts", "-O", "raw", self.options, target, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("error while reading block status at offset 0", result.stderr)

    def served(self):
        return self.own(NbdServer(self.dir, "-r", "-A", "--image-opts", self.options))

    def test_depth_needs_no_answer_of_the_file(self):
        with RawClient(self.served().socket) as client:
            client.go(contexts=[DEPTH])
            client.request(BLOCK_STATUS, 0, 4 * MIB)
            ((kind, payload),) = client.chunks()
        self.assertEqual((kind, payload[4:]), (5, b"\0\x40\0\0" + b"\0\0\0\1"))

    def test_base_allocation_is_an_error(self):
        with RawClient(self.served().socket) as client:
            client.go(contexts=[BASE])
            client.request(BLOCK_STATUS, 0, 4 * MIB)
            self.assertEqual(client.error(), 5)

    def test_large_reads_do_without_status(self):
        with RawClient(self.served().socket) as client:
            client.go()
            client.request(READ, 0, 128 << 10)
            ((kind, payload),) = client.chunks()
        self.assertEqual((kind, payload[8:]), (1, b"x" * 65536 + bytes(65536)))

    def test_what_io_shows_as_allocated_was_asked_for(self):
        """A program that counts what `qemu-io map` asks of a server finds its questions."""
        for command in ("map", "alloc 0 4M"):
            words = ("-r", "-c", command, "--image-opts", self.options)
            result = run(*tool("io"), *words, check=False)
            self.assertIn("Input/output error", result.stdout + result.stderr, command)
            self.assertNotIn("bytes     allocated", result.stdout)


def join(extents):
    """[length, flags] pairs, neighbours with the same flags made one."""
    joined = []
    for length, flags in extents:
        if joined and joined[-1][1] == flags:
            joined[-1][0] += length
        else:
            joined.append([length, flags])
    return joined


class ContextsOfChains(TestCase):
    """What contexts tell of chains is what QEMU tells, however they are asked."""

    SIZE = 4 * MIB + 1536
    OPTIONS = ["cluster_size=4k", "cluster_size=64k", "extended_l2=on,cluster_size=128k", "compat=0.10"]

    def write(self, image, rng, clusters, size):
        commands = []
        for _ in range(clusters):
            at = rng.randrange(size // 512) * 512
            length = min(rng.choice([512, 4096, 65536, 200 << 10]), size - at)
            commands.append(rng.choice(["write", "write", "write -z", "write -z -u", "discard"]) + f" {at} {length}")
        io(image, *commands, fmt="qcow2")

    def make_chain(self, name, rng, layers):
        below = None
        for layer in range(layers):
            size = self.SIZE if layer == layers - 1 else rng.choice([self.SIZE, MIB + 512, 6 * MIB])
            words = ["-o", rng.choice(self.OPTIONS)] + (["-b", below, "-F", "qcow2"] if below else [])
            image = self.create(f"{name}-{layer}.qcow2", str(size), options=words)
            self.write(image, rng, rng.choice([0, 8, 40]), size)
            below = image
        return below

    def asked(self, client, contexts, step, flags=0):
        """For each context its extents, from requests of `step` bytes."""
        found = [[] for _ in contexts]
        for begin in range(0, self.SIZE, step):
            end = min(begin + step, self.SIZE)
            at = [begin] * len(contexts)
            while min(at) < end:
                first = min(at)
                client.request(BLOCK_STATUS, first, end - first, flags=flags)
                for i, (_, payload) in enumerate(client.chunks()):
                    words = struct.unpack(f">{(len(payload) - 4) // 4}I", payload[4:])
                    place = first
                    for length, value in zip(words[::2], words[1::2]):
                        fresh = place + length - max(at[i], place)
                        if fresh > 0:
                            found[i].append([fresh, value])
                            at[i] += fresh
                        place += length
        return [join(extents) for extents in found]

    def test_chains_as_qemu_nbd(self):
        for seed in range(6):
            rng = random.Random(seed)
            image = self.make_chain(seed, rng, 1 + seed % 4)
            arguments = ("-r", "-A", "-f", "qcow2", image)
            theirs = self.own(QemuNbd(self.dir, *arguments, name=f"qemu{seed}"))
            ours = self.own(NbdServer(self.dir, *arguments, name=f"nbd{seed}"))
            with RawClient(theirs.socket) as client:
                client.go(contexts=[BASE, DEPTH])
                wanted = self.asked(client, [BASE, DEPTH], self.SIZE)
            with RawClient(ours.socket) as client:
                client.go(contexts=[BASE, DEPTH])
                for step, flags in ((self.SIZE, 0), (333 << 10, 0), (self.SIZE, REQ_ONE)):
                    found = self.asked(client, [BASE, DEPTH], step, flags)
                    self.assertEqual(found, wanted, (seed, step, flags))
            with RawClient(ours.socket) as client:
                client.go(contexts=[DEPTH])
                self.assertEqual(self.asked(client, [DEPTH], self.SIZE), wanted[1:], seed)


class HolesInClusters(TestCase):
    """Files are asked for them that have clearly less storage than clusters in use."""

    def extents(self, image, program=img):
        found = json.loads(program("map", "--output=json", image).stdout)
        return [(e["start"], e["length"], e["data"], e["zero"]) for e in found]

    def test_unwritten_clusters_of_a_preallocated_image_are_zero(self):
        image = self.create("disk.qcow2", "64M", options=("-o", "preallocation=metadata"))
        io(image, "write 32M 1M", fmt="qcow2")
        self.assertEqual(self.extents(image), [
            (0, 32 * MIB, True, True), (32 * MIB, MIB, True, False), (33 * MIB, 31 * MIB, True, True),
        ])  # fmt: skip

    def test_what_a_resize_preallocates_is_zero(self):
        image = self.create("disk.qcow2", "8M")
        io(image, "write 0 8M", fmt="qcow2")
        img("resize", "-q", "-f", "qcow2", "--preallocation=metadata", image, "64M")
        self.assertEqual(self.extents(image), [(0, 8 * MIB, True, False), (8 * MIB, 56 * MIB, True, True)])

    def test_clusters_written_in_part_are_told_as_by_qemu(self):
        """Whole, or with holes: that depends on how they are stored."""
        for name, write in (("ours", io), ("theirs", qemu_io)):
            image = self.create(f"{name}.qcow2", "64M")
            write(image, *[f"write {i * 128}k 4k" for i in range(8)], fmt="qcow2")
            self.assertEqual(self.extents(image)[0][2:], (True, False))
            self.assertEqual(self.extents(image), self.extents(image, qemu_img))

    def test_a_data_file_is_asked_too(self):
        """Unless it is small."""
        for size, least, most in ((512, 510, 511), (64, 0, 0)):
            data = self.path(f"{size}.data")
            options = ("-o", f"data_file={data},preallocation=metadata")
            image = self.create(f"{size}.qcow2", f"{size}M", options=options)
            io(image, "write 1M 1M", fmt="qcow2")
            zero = sum(length for _, length, _, zero in self.extents(image) if zero) / MIB
            self.assertTrue(least <= zero <= most, zero)

    def test_extended_entries(self):
        options = ("-o", "extended_l2=on,preallocation=metadata")
        image = self.create("disk.qcow2", "64M", options=options)
        io(image, "write 1M 1M", fmt="qcow2")
        self.assertEqual(self.extents(image)[0], (0, MIB, True, True))


if __name__ == "__main__":
    unittest.main()
