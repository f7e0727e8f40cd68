# SPDX-License-Identifier: Apache-2.0
"""Layers over NBD: img map --layers, and img rebuild-chain, with several servers."""

import json
import os
import random
import unittest

from nbd_server import Nbdkit, NbdServer, QemuNbd
from tidemark import TestCase, img, io

SIZE = (12 << 20) + 512
CLUSTER = 65536


class LayersTest(TestCase):
    def chain(self, name, seed):
        rng = random.Random(seed)
        below, names = None, []
        for layer in range(3):
            path = self.path(f"{name}{layer}.qcow2")
            more = ["-b", below, "-F", "qcow2"] if below else []
            img("create", "-q", "-f", "qcow2", *more, path, str(SIZE))
            commands = []
            for _ in range(14):
                start = rng.randrange(SIZE // CLUSTER) * CLUSTER
                length = min(rng.randrange(1, 8) * CLUSTER, SIZE - start)
                kind = rng.choice((f"write -P {rng.randrange(1, 255)}", "write -z", "write -z -u"))
                commands.append(f"{kind} {start} {length}")
            io(path, *commands, fmt="qcow2")
            below = path
            names.append(path)
        return names

    def rebuild(self, uri, name):
        directory = self.path(name)
        out = img("rebuild-chain", uri, directory).stdout.split()
        self.assertEqual(out, [os.path.join(directory, f"layer-{n}.qcow2") for n in range(len(out))])
        for path in out:
            self.assertEqual(img("check", "-q", path).returncode, 0)
        return out

    def layers(self, path):
        """What of the chain is where, apart from where images store it."""
        found = []
        for e in json.loads(img("map", "--output=json", path).stdout):
            # An area that no layer has shows as one of the last.
            depth = e["depth"] if e["present"] else None
            entry = (depth, e["zero"])
            if found and found[-1][2] == entry:
                found[-1][1] += e["length"]
            else:
                found.append([e["start"], e["length"], entry])
        return found

    def check_chain(self, server_of, count):
        for seed in range(2):
            names = self.chain(f"c{count}-{seed}-", seed)
            server = self.own(server_of(f"s{count}-{seed}", names[-1]))
            made = self.rebuild(server.uri(), f"r{count}-{seed}")
            self.assertEqual(len(made), count)
            img("compare", "-f", "qcow2", "-F", "qcow2", names[-1], made[-1], "-U")
            if count == len(names):
                self.assertEqual(self.layers(made[-1]), self.layers(names[-1]))
            server.stop()

    def test_all_layers_of_our_server(self):
        self.check_chain(
            lambda name, image: NbdServer(self.dir, "-r", "-A", "-f", "qcow2", image, name=name), 3
        )

    def test_all_layers_of_qemu_nbd(self):
        self.check_chain(
            lambda name, image: QemuNbd(self.dir, "-r", "-A", "-f", "qcow2", image, name=name), 3
        )

    def test_backing_files_become_one_where_depths_are_not_offered(self):
        self.check_chain(
            lambda name, image: NbdServer(self.dir, "-r", "-f", "qcow2", image, name=name), 2
        )

    def test_a_server_without_layers_gives_one_image(self):
        raw = self.path("disk.raw")
        img("convert", "-O", "raw", self.chain("kit", 7)[-1], raw)
        server = self.own(Nbdkit(self.dir, "file", raw))
        made = self.rebuild(server.uri(), "kit")
        self.assertEqual(len(made), 1)
        img("compare", "-f", "qcow2", "-F", "raw", made[0], raw)

    def test_zeroes_that_hide_data_stay_in_their_layer(self):
        base, top = self.path("b.qcow2"), self.path("t.qcow2")
        img("create", "-q", "-f", "qcow2", base, "256k")
        io(base, "write -P 1 0 256k", fmt="qcow2")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        io(top, "write -z -u 64k 64k", fmt="qcow2")
        server = self.own(NbdServer(self.dir, "-r", "-A", "-f", "qcow2", top))
        made = self.rebuild(server.uri(), "zero")
        io(made[-1], "read -P 1 0 64k", "read -P 0 64k 64k", "read -P 1 128k 128k", fmt="qcow2")
        self.assertEqual(self.layers(made[-1])[1], [CLUSTER, CLUSTER, (0, True)])

    def test_existing_images_are_not_replaced(self):
        image = self.create("d.raw", "1M", fmt="raw")
        server = self.own(NbdServer(self.dir, "-r", "-f", "raw", image))
        self.rebuild(server.uri(), "twice")
        result = img("rebuild-chain", server.uri(), self.path("twice"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("layer-0.qcow2' exists already", result.stderr)

    def test_what_is_no_server_is_refused(self):
        result = img("rebuild-chain", self.path("disk.raw"), self.path("none"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertFalse(os.path.exists(self.path("none")))

    def test_map_is_the_same_from_one_context_and_from_several(self):
        top = self.chain("map", 3)[-1]
        img("bitmap", "-f", "qcow2", "--add", top, "b0")
        io(top, "write 1M 64k", "write 3M 192k", fmt="qcow2")
        ours = self.own(NbdServer(self.dir, "-r", "-A", "-B", "b0", "-f", "qcow2", top, name="ours"))
        merged = img("map", "--layers", "--bitmap=b0", "--output=json", ours.uri()).stdout
        text = img("map", "--layers", "--bitmap=b0", ours.uri()).stdout
        ours.stop()
        theirs = self.own(QemuNbd(self.dir, "-r", "-A", "-B", "b0", "-f", "qcow2", top, name="theirs"))
        separate = img("map", "--layers", "--bitmap=b0", "--output=json", theirs.uri()).stdout
        self.assertEqual(json.loads(merged), json.loads(separate))
        dirty = [(e["start"], e["length"]) for e in json.loads(merged) if e["dirty"]]
        self.assertEqual(sum(length for _, length in dirty), 4 * CLUSTER)
        self.assertEqual(len(text.splitlines()), len(json.loads(merged)) + 1)
        part = json.loads(
            img("map", "--layers", "--output=json", "-s", "1M", "-l", "64k", theirs.uri()).stdout
        )
        self.assertEqual([(e["start"], e["length"]) for e in part], [(1 << 20, CLUSTER)])

    def test_bitmap_that_is_not_offered(self):
        image = self.create("n.raw", "1M", fmt="raw")
        server = self.own(NbdServer(self.dir, "-r", "-f", "raw", image))
        result = img("map", "--layers", "--bitmap=b9", server.uri(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("does not offer the bitmap 'b9'", result.stderr)


if __name__ == "__main__":
    unittest.main()
