# SPDX-License-Identifier: Apache-2.0
"""Random requests to qcow2: ours judged by qemu-img, and images that QEMU's tools made, read by us.

More sequences than in the suite: TIDEMARK_QCOW2_SEEDS=FIRST-LAST.
"""

import json
import os
import random
import unittest

from tidemark import BUILD, TestCase, img, qemu_img, qemu_io, run

MODEL = os.path.join(BUILD, "tests", "tools", "qcow2_model")
SIZE = (8 << 20) - 512
SMALL_CACHES = "l2-cache-size=512,l2-cache-entry-size=512,refcount-cache-size=512"


def seeds(count):
    first, _, last = os.environ.get("TIDEMARK_QCOW2_SEEDS", f"1-{count}").partition("-")
    return range(int(first), int(last) + 1)


def write_noise(path, size, rng):
    with open(path, "wb") as f:
        for _ in range(size // 4096):
            f.write(rng.choice((bytes(4096), rng.randbytes(4096))))
        f.write(rng.randbytes(size % 4096))


class OurWrites(TestCase):
    """qcow2_model keeps an array along with the image; QEMU looks at both when it has ended."""

    def make(self, rng, cluster):
        path, options = self.path("t.qcow2"), f"cluster_size={cluster}"
        options += f",compression_type={rng.choice(('zlib', 'zstd'))}"
        options += f",refcount_bits={rng.choice((16, 16, 1, 4, 64))}"
        options += f",extended_l2={'on' if cluster >= 16384 and rng.randrange(2) else 'off'}"
        backing = rng.choice((0, 0, SIZE // 3, SIZE * 2))
        if not backing:
            qemu_img("create", "-f", "qcow2", "-o", options, path, SIZE)
            return path
        write_noise(self.path("base.raw"), backing, rng)
        qemu_img(
            "create", "-f", "qcow2", "-o", options, "-b", self.path("base.raw"), "-F", "raw", path, SIZE
        )  # fmt: skip
        qemu_img("convert", "-f", "qcow2", "-O", "raw", path, path + ".model")
        return path

    def test_sequences(self):
        for seed in seeds(10):
            rng = random.Random(seed)
            cluster = 512 << (seed * 5 % 13)
            with self.subTest(seed=seed, cluster=cluster):
                path = self.make(rng, cluster)
                options = [f"options={SMALL_CACHES}"] if seed % 3 == 0 else []
                run(
                    MODEL, path, SIZE, f"seed={seed}", f"reactors={1 + 3 * (seed % 2)}",
                    f"ops={40 if cluster > 65536 else 120}", f"compressed={rng.randrange(2)}",
                    f"guests={rng.randint(1, 6)}", *options,
                )  # fmt: skip
                qemu_img("check", "-f", "qcow2", path)
                qemu_img("compare", "-f", "qcow2", "-F", "raw", path, path + ".model")
                os.unlink(path + ".model")


class TheirWrites(TestCase):
    def assert_reads_alike(self, path):
        img("check", "-f", "qcow2", path)
        qemu_img("convert", "-f", "qcow2", "-O", "raw", path, self.path("theirs.raw"))
        img("convert", "-f", "qcow2", "-O", "raw", path, self.path("ours.raw"))
        with open(self.path("theirs.raw"), "rb") as a, open(self.path("ours.raw"), "rb") as b:
            self.assertTrue(a.read() == b.read(), f"{path} reads differently")

    def test_random_scripts(self):
        for seed in seeds(6):
            rng = random.Random(seed)
            cluster = 512 << rng.randrange(13)
            path = self.path("t.qcow2")
            with self.subTest(seed=seed, cluster=cluster):
                qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={cluster}", path, SIZE)
                commands = [self.command(rng) for _ in range(60)]
                qemu_io(path, *self.compressed(rng, cluster), *commands, fmt="qcow2")
                self.assert_reads_alike(path)

    @staticmethod
    def compressed(rng, cluster):
        """QEMU refuses these where a cluster has contents, so each is written once, and first."""
        for n in rng.sample(range(SIZE // cluster), min(8, SIZE // cluster)):
            yield f"write -c -P {rng.randrange(256)} {n * cluster} {cluster}"

    @staticmethod
    def command(rng, size=SIZE):
        kind = rng.choice(("write", "write", "write", "write -z", "write -zu", "discard"))
        offset = rng.randrange(size // 512) * 512
        length = min(rng.randrange(1, 300) * 512, size - offset)
        pattern = f" -P {rng.randrange(256)}" if kind == "write" else ""
        return f"{kind}{pattern} {offset} {length}"

    def test_compressed_images(self):
        write_noise(self.path("source.raw"), SIZE, random.Random(1))
        for compression in ("zlib", "zstd"):
            for cluster in ("4k", "64k", "2M"):
                with self.subTest(compression=compression, cluster=cluster):
                    path = self.path("t.qcow2")
                    qemu_img(
                        "convert", "-c", "-f", "raw", "-O", "qcow2",
                        "-o", f"compression_type={compression},cluster_size={cluster}",
                        self.path("source.raw"), path,
                    )  # fmt: skip
                    self.assert_reads_alike(path)

    def test_chain(self):
        rng = random.Random(3)
        below = None
        for n, cluster in enumerate(("64k", "4k", "1M")):
            path = self.path(f"{n}.qcow2")
            more = ["-b", below, "-F", "qcow2"] if below else []
            qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={cluster}", *more, path, SIZE >> n)
            qemu_io(path, *(self.command(rng, SIZE >> n) for _ in range(30)), fmt="qcow2")
            below = path
        self.assert_reads_alike(below)


class Bitmaps(TestCase):
    """Bitmaps that one side stored, seen by the other."""

    @staticmethod
    def bitmaps(tool, path):
        info = json.loads(tool("info", "-f", "qcow2", "--output=json", path).stdout)
        found = info["format-specific"]["data"].get("bitmaps", [])
        return {b["name"]: (b["granularity"], sorted(b["flags"])) for b in found}

    def test_theirs_are_listed_recorded_and_removed_by_us(self):
        path = self.create("t.qcow2", "8M", "qcow2")
        qemu_img("bitmap", "--add", "-g", "64k", path, "a")
        qemu_img("bitmap", "--add", "-f", "qcow2", path, "b")
        qemu_img("bitmap", "--disable", path, "b")
        expected = {"a": (65536, ["auto"]), "b": (65536, [])}
        self.assertEqual(self.bitmaps(img, path), expected)
        run(MODEL, path, 8 << 20, "ops=30")
        self.assertEqual(self.bitmaps(qemu_img, path), expected)
        qemu_img("check", path)
        img("bitmap", "--remove", "-f", "qcow2", path, "a")
        self.assertEqual(self.bitmaps(qemu_img, path), {"b": (65536, [])})
        qemu_img("check", path)

    def test_ours_are_merged_by_them(self):
        path, other = self.create("t.qcow2", "8M", "qcow2"), self.create("u.qcow2", "8M", "qcow2")
        img("bitmap", "--add", "-f", "qcow2", path, "ours")
        run(MODEL, path, 8 << 20, "ops=10")
        qemu_img("bitmap", "--add", other, "theirs")
        qemu_img("bitmap", "--merge", "ours", "-b", path, "-F", "qcow2", other, "theirs")
        self.assertEqual(list(self.bitmaps(img, other)), ["theirs"])
        qemu_img("check", path)
        qemu_img("check", other)


if __name__ == "__main__":
    unittest.main()
