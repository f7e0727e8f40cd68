# SPDX-License-Identifier: Apache-2.0
"""Images of full backups have clusters of 256 KiB, what is recorded and merged has 64 KiB."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import unittest

import nbd

from made_repository import CLUSTER, change_manifest
from qcow2_edit import Image
from tidemark import TestCase, can_connect, img, nbd_uri, qemu_img, run, tool, wait_until

# The disk ends within a cluster of either size.
COUNT = 86
SIZE = 85 * CLUSTER + 5120


class ClustersCase(TestCase):
    def setUp(self):
        super().setUp()
        self.random = random.Random(self.id())
        self.disk, self.repository = self.path("disk.raw"), self.path("backups")
        self.model = bytearray(SIZE)
        self.contents = {}  # by id
        with open(self.disk, "wb") as f:
            f.truncate(SIZE)

    def put(self, cluster, data):
        size = min(CLUSTER, SIZE - cluster * CLUSTER)
        self.model[cluster * CLUSTER : cluster * CLUSTER + size] = data[:size]
        with open(self.disk, "r+b") as f:
            f.seek(cluster * CLUSTER)
            f.write(data[:size])

    def change(self, clusters, zero=False):
        for n in clusters:
            text = f"{self.random.random()} ".encode() * 8192
            self.put(n, self.random.choice((text[:CLUSTER], self.random.randbytes(CLUSTER))))
        if zero:
            self.put(self.random.choice(list(clusters)), bytes(CLUSTER))

    def fill(self):
        """Data with holes in between, and groups of which some are all data and some all hole."""
        self.change(n for n in range(COUNT) if n < 12 or 20 <= n < 40 and n % 3 or n in (61, 85))
        self.change(range(64, 84))

    def backup(self, *words):
        said = run(
            *tool("backup"), "--image", self.disk, "--format", "raw", "--to", self.repository,
            "--output=json", *words,
        ).stdout  # fmt: skip
        ident = json.loads(said)["id"]
        self.contents[ident] = bytes(self.model)
        return ident

    def file(self, ident, name="disk.qcow2"):
        return os.path.join(self.repository, ident, name)

    def listed(self):
        return json.loads(run(*tool("backups"), "--output=json", self.repository).stdout)

    def manifest(self, ident):
        with open(self.file(ident, "manifest.json"), encoding="utf-8") as f:
            return json.load(f)

    def assert_cluster_size(self, ident, size):
        self.assertEqual(Image(self.file(ident)).cluster_size, size)
        self.assertEqual(self.manifest(ident)["cluster-size"], size)

    def assert_right(self, *idents):
        """By ourselves, and by QEMU."""
        run(*tool("verify"), self.repository)
        self.assertEqual([b["id"] for b in self.listed()], list(idents))
        for ident in idents:
            run(*tool("restore"), self.repository, "--at", ident, "--force", self.path("out.raw"))
            with open(self.path("out.raw"), "rb") as f:
                self.assertEqual(f.read(), self.contents[ident], ident)
            qemu_img("check", self.file(ident))
            qemu_img("convert", "-O", "raw", self.file(ident), self.path("qemu.raw"))
            with open(self.path("qemu.raw"), "rb") as f:
                self.assertEqual(f.read(), self.contents[ident], ident)

    def prune(self, *words):
        run(*tool("prune"), self.repository, *words)

    def describe_image(self, ident, **changes):
        """Make the manifest say what the image is now."""
        with open(self.file(ident), "rb") as f:
            data = f.read()
        changes["image"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        change_manifest(self.file(ident, "manifest.json"), **changes)

    def make_old(self, ident):
        """The full backup as programs before made it."""
        img("convert", "-q", "-c", "-O", "qcow2", "-o", "compression_type=zstd,cluster_size=64k",
            self.file(ident), self.path("old.qcow2"))  # fmt: skip
        shutil.copyfile(self.path("old.qcow2"), self.file(ident))
        self.describe_image(ident, **{"cluster-size": CLUSTER})


class Merges(ClustersCase):
    def merge_all(self, expected):
        """Increments are merged into the full backup one by one; `expected`: its clusters then."""
        while len(order := [b["id"] for b in self.listed()]) > 1:
            self.prune(f"--keep-last={len(order) - 1}")
            self.assert_cluster_size(order[1], expected(self.listed()[0]))
            self.assert_right(*order[1:])

    def take_chain(self, *changes):
        self.fill()
        order = [self.backup()]
        self.assert_cluster_size(order[0], 4 * CLUSTER)
        for clusters in changes:
            self.change(clusters, zero=len(clusters) > 1)
            order.append(self.backup())
            self.assert_cluster_size(order[-1], CLUSTER)
        return order

    def test_of_parts_of_clusters(self):
        patched = []
        order = self.take_chain([2], [24, 85], [50, 51, 52, 53], [61, 62, 63])
        self.assert_right(*order)

        def expected(full):
            patched.append(full.get("patched-bytes", 0))
            return 4 * CLUSTER

        self.merge_all(expected)
        # Into a copy of the image at first, and then from its clusters.
        self.assertEqual(patched[0], 4 * CLUSTER)
        self.assertIn(0, patched)

    def test_into_a_full_backup_as_programs_before_made_it(self):
        order = self.take_chain([2, 3], range(66, 82), [24, 60])
        self.make_old(order[0])
        self.assert_cluster_size(order[0], CLUSTER)
        self.assert_right(*order)
        patched = []

        def expected(full):
            patched.append(full.get("patched-bytes", 0) // CLUSTER)
            return 4 * CLUSTER if 0 in patched else CLUSTER

        self.merge_all(expected)
        # Into a copy of that image, from its clusters, and into a copy of the new one.
        self.assertEqual(patched, [1, 0, 4])

    def test_when_all_of_a_cluster_has_become_zero(self):
        self.fill()
        order = [self.backup()]
        for n in range(4, 8):
            self.put(n, bytes(CLUSTER))
        order.append(self.backup())
        self.prune("--keep-last=1")
        self.assert_right(order[1])
        with open(self.file(order[1]), "rb") as f:
            self.assertEqual(len(f.read()), self.manifest(order[1])["image"]["size"])
        mapped = json.loads(img("map", "--output=json", self.file(order[1])).stdout)
        hole = next(m for m in mapped if m["start"] <= 4 * CLUSTER < m["start"] + m["length"])
        self.assertTrue(hole["zero"])

    def test_gaps_of_patches_take_no_space(self):
        def text():
            return self.random.randbytes(CLUSTER // 2).hex().encode()

        for n in range(COUNT):
            self.put(n, text())
        first = self.backup()
        before = os.stat(self.file(first)).st_blocks * 512
        # The copy of the second merge has the gaps of the first.
        for clusters, patched in ([0, 20, 40], 12), ([8], 16):
            for n in clusters:
                self.put(n, text())
            ident = self.backup()
            self.prune("--keep-last=1")
            (full,) = self.listed()
            self.assertEqual(full["patched-bytes"], patched * CLUSTER)
            self.assertLess(os.stat(self.file(ident)).st_blocks * 512, before + 2 * CLUSTER)
        self.assert_right(ident)


class Holes(ClustersCase):
    def test_are_not_recorded_and_come_back_by_repair(self):
        self.fill()
        order = [self.backup()]
        self.change([22, 23])
        order.append(self.backup())
        for ident in order:
            with open(self.file(ident, "checksums"), "rb") as f:
                before = f.read()
            os.unlink(self.file(ident, "checksums"))
            run(*tool("repair"), self.repository)
            with open(self.file(ident, "checksums"), "rb") as f:
                self.assertEqual(f.read(), before)
            os.unlink(self.file(ident, "manifest.json"))
            run(*tool("repair"), self.repository)
        self.assert_cluster_size(order[0], 4 * CLUSTER)
        self.assert_right(*order)

    def test_that_are_none_are_found(self):
        self.fill()
        ident = self.backup()
        self.put(21, self.random.randbytes(CLUSTER))
        img("convert", "-q", "-c", "-O", "qcow2", "-o", "compression_type=zstd,cluster_size=256k",
            self.disk, self.path("more.qcow2"))  # fmt: skip
        shutil.copyfile(self.path("more.qcow2"), self.file(ident))
        self.describe_image(ident)
        result = run(*tool("verify"), self.repository, check=False)
        self.assertEqual(result.returncode, 2, result.stdout)
        self.assertIn(f"offset {21 * CLUSTER} it should read as zeroes", result.stdout + result.stderr)


class Parts(ClustersCase):
    def test_of_clusters_are_read(self):
        self.fill()
        self.make_old(self.backup())
        self.change([21, 30])
        self.backup()
        self.check_parts()
        self.repository = self.path("new")
        self.backup()
        self.change([21, 30, 3, 85])
        self.backup()
        self.check_parts()

    def check_parts(self):
        socket = self.path("point.sock")
        server = subprocess.Popen([*tool("serve"), self.repository, "-k", socket])
        try:
            wait_until(lambda: can_connect(socket), "the server")
            client = nbd.NBD()
            client.connect_uri(nbd_uri(socket, ""))
            places = [(n * 4096, 4096) for n in range(64)]
            for _ in range(150):
                start = self.random.randrange(SIZE // 512)
                most = min(SIZE // 512 - start, self.random.choice((8, 160, 900)))
                places.append((start * 512, self.random.randrange(1, most + 1) * 512))
            for offset, length in places:
                data = client.pread(length, offset)
                self.assertEqual(data, self.model[offset : offset + length], (offset, length))
            client.shutdown()
        finally:
            server.terminate()
            server.wait()

    def test_before_damage_are_read(self):
        for n in range(8):
            self.put(n, self.random.randbytes(CLUSTER // 2).hex().encode())
        ident = self.backup()
        image = Image(self.file(ident))
        place = image.u64(image.l2_place(0)) & ((1 << 52) - 1)
        # A frame of zstd: a header of 9 bytes, and two blocks with a header of 3 bytes each.
        second = place + 12 + (int.from_bytes(image.read(place + 9, 3), "little") >> 3)
        image.write(second + 3, b"\xff" * 64)
        socket = self.path("point.sock")
        server = subprocess.Popen([*tool("serve"), self.repository, "-k", socket],
                                  stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            wait_until(lambda: can_connect(socket), "the server")
            client = nbd.NBD()
            client.connect_uri(nbd_uri(socket, ""))
            for n in 0, 1, 0, 1, 4, 5, 6, 7:
                offset = n * CLUSTER
                data = client.pread(CLUSTER, offset)
                self.assertEqual(data, self.model[offset : offset + CLUSTER], n)
            for n in 2, 3:
                self.assertRaises(nbd.Error, client.pread, CLUSTER, n * CLUSTER)
            client.shutdown()
        finally:
            server.terminate()
            server.wait()

    def test_increments_do_not_have_large_clusters(self):
        self.fill()
        self.backup()
        self.change([1, 2])
        ident = self.backup()
        with open(self.file(ident), "r+b") as f:
            f.seek(20)
            f.write((18).to_bytes(4, "big"))
        self.describe_image(ident)
        result = run(*tool("restore"), self.repository, self.path("out.raw"), check=False)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn("has clusters of a size that no backup has", result.stderr)


if __name__ == "__main__":
    unittest.main()
