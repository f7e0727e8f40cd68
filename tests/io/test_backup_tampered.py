# SPDX-License-Identifier: Apache-2.0
"""Encrypted repositories: no change of their files goes unnoticed."""

import json
import os
import shutil

import sealed
from encrypted_case import FILES, EncryptedCase, flip
from tidemark import run, tool


class TestChanges(EncryptedCase):
    def places(self, path):
        """Of each part of a file: header fields, and nonce, contents and tag of some pieces."""
        size = os.path.getsize(path)
        head = [0, 12, 24, 40, 80, 90, 100, 112]
        return head + sorted({sealed.HEADER + n for n in (0, 12)} |
                             {self.random.randrange(sealed.HEADER, size) for _ in range(3)} |
                             {size - 1})  # fmt: skip

    def test_one_flipped_bit_anywhere(self):
        self.make(2)
        for name in FILES:
            path = self.file(0, name)
            for place in self.places(path):
                if place >= os.path.getsize(path):
                    continue
                with self.subTest(name=name, place=place):
                    flip(path, place)
                    self.assertIn(self.order[0], self.damaged(), self.said)
                    got = self.try_restore(1)
                    self.assertIn(got, (None, bytes(self.made.models[self.order[1]])))
                    self.assertTrue(got or self.order[0] in self.said, self.said)
                    flip(path, place)
        self.assertEqual(self.damaged(), [])

    def test_cut_and_longer_files(self):
        self.make(2)
        for name in FILES:
            path = self.file(1, name)
            with open(path, "rb") as f:
                whole = f.read()
            piece = sealed.PIECE + sealed.OVERHEAD
            for content in (whole[:-1], whole[:-piece], b"", whole + whole[-piece:]):
                with self.subTest(name=name, size=len(content)):
                    with open(path, "wb") as f:
                        f.write(content)
                    self.assertEqual(self.damaged(), [self.order[1]], self.said)
                    self.assertIsNone(self.try_restore(1))
            with open(path, "wb") as f:
                f.write(whole)
        self.assert_restores(1)

    def test_files_of_other_backups(self):
        self.make(3)
        kept = self.snapshot()
        for names in (["manifest.json"], ["checksums"], ["disk.qcow2"],
                      ["checksums", "disk.qcow2"], list(FILES)):  # fmt: skip
            with self.subTest(names=names):
                for name in names:
                    shutil.copy(os.path.join(kept, self.order[2], name), self.file(1, name))
                self.assertIn(self.order[1], self.damaged())
                self.assertIsNone(self.try_restore(1))
                for name in names:
                    shutil.copy(os.path.join(kept, self.order[1], name), self.file(1, name))
        # A checksum file for a manifest, or the reverse, is of another kind.
        shutil.copy(os.path.join(kept, self.order[1], "checksums"), self.file(1, "manifest.json"))
        self.assertIn(self.order[1], self.damaged())

    def test_pieces_in_other_places(self):
        self.make(2)
        path, piece = self.file(0, "disk.qcow2"), sealed.PIECE + sealed.OVERHEAD
        with open(path, "rb") as f:
            whole = f.read()
        count = (len(whole) - sealed.HEADER) // piece
        for a, b in ((0, 1), (1, count - 1), (count - 2, count - 1)):
            first, second = sealed.HEADER + a * piece, sealed.HEADER + b * piece
            changed = bytearray(whole)
            changed[first : first + piece] = whole[second : second + piece]
            changed[second : second + piece] = whole[first : first + piece]
            with open(path, "wb") as f:
                f.write(changed)
            self.assertIn(self.order[0], self.damaged())
            got = self.try_restore(0)
            self.assertIn(got, (None, bytes(self.made.models[self.order[0]])))

    def test_earlier_files_of_a_backup_that_a_merge_replaced(self):
        self.make(4)
        kept = self.snapshot()
        run(*tool("prune"), *self.keys, "--keep-last=1", self.repository)
        for names in (["disk.qcow2"], ["checksums"], ["checksums", "disk.qcow2"]):
            shutil.copytree(self.repository, self.path("now"))
            for name in names:
                shutil.copy(os.path.join(kept, self.order[3], name), self.file(3, name))
            self.assertEqual(self.damaged(), [self.order[3]])
            self.assertIsNone(self.try_restore(3))
            shutil.rmtree(self.repository)
            os.rename(self.path("now"), self.repository)
        # With its manifest, too, it is an incremental one whose parent is gone.
        for name in FILES:
            shutil.copy(os.path.join(kept, self.order[3], name), self.file(3, name))
        self.assertIsNone(self.try_restore(3))

    def test_a_description_that_says_that_nothing_is_encrypted(self):
        self.make(2)
        path = os.path.join(self.repository, "repository.json")
        with open(path, encoding="utf-8") as f:
            o = json.load(f)
        for change in ({"encryption": None, "version": 1}, {"key": None}, {"key": "0" * 64},
                       {"scrypt-log-n": 63, "scrypt-salt": "AAAAAAAAAAAAAAAAAAAAAA=="}):  # fmt: skip
            with self.subTest(change=change):
                changed = {k: v for k, v in {**o, **change}.items() if v is not None}
                del changed["sha256"]
                with open(path, "w", encoding="utf-8") as f:
                    json.dump(changed, f)
                got = self.try_restore(1)
                self.assertIn(got, (None, bytes(self.made.models[self.order[1]])))
                result = run(*tool("verify"), *self.keys, self.repository, check=False)
                self.assertNotEqual(result.returncode, 0)
