# SPDX-License-Identifier: Apache-2.0
"""Encrypted repositories: what they show without the key, their form, keys, and daily work."""

import json
import os
import shutil
import struct
import subprocess

import sealed
import test_secret
from backup_case import MIB, BackupCase
from encrypted_case import FILES, MATERIAL, START, EncryptedCase, flip
from made_repository import CLUSTER, MadeRepository
from tidemark import run, tool, wait_until


class TestSecrecy(BackupCase):
    def test_nothing_can_be_read_without_the_key(self):
        key = self.path("key")
        with open(key, "wb") as f:
            f.write(MATERIAL)
        self.start()
        pattern = (b"a text of the guest " * 4096)[:65536]
        self.write(0, pattern)
        taken = self.backup("--encrypt", "--key-file", key)
        self.write(MIB, pattern)
        self.backup("--key-file", key)
        run(*tool("verify"), "--key-file", key, self.repository)
        secrets = [b"a text of the guest", b"QFI\xfb", b"TIDESUMS", taken["node"].encode() + b'"',
                   taken["machine-id"].encode(), taken["bitmap"].encode(),
                   self.repository.encode()]  # fmt: skip
        found = set()
        for place, _, files in os.walk(self.repository):
            for name in files:
                found.add(name)
                with open(os.path.join(place, name), "rb") as f:
                    content = f.read()
                for secret in secrets:
                    self.assertFalse(secret in content, (secret, name))
        self.assertEqual(found, {*FILES, "repository.json", ".tidemark-lock",
                                 ".tidemark-verified"})  # fmt: skip


class TestFormat(EncryptedCase):
    def test_the_files_are_what_is_documented(self):
        self.make(2)
        manifest = json.loads(sealed.Sealed(self.file(1, "manifest.json"), MATERIAL,
                                            sealed.MANIFEST).contents())  # fmt: skip
        self.assertEqual(manifest["id"], self.order[1])
        sums = sealed.Sealed(self.file(1, "checksums"), MATERIAL, sealed.SUMS).contents()
        self.assertEqual(sums[:8], b"TIDESUMS")
        os.mkdir(self.path("open"))
        for n in range(2):
            os.mkdir(self.path(f"open/{self.order[n]}"))
            image = sealed.Sealed(self.file(n, "disk.qcow2"), MATERIAL, sealed.IMAGE)
            self.make_file(f"open/{self.order[n]}/disk.qcow2", image.contents())
        run("qemu-img", "convert", "-O", "raw", self.path(f"open/{self.order[1]}/disk.qcow2"),
            self.path("by-qemu.raw"))  # fmt: skip
        with open(self.path("by-qemu.raw"), "rb") as f:
            self.assertEqual(f.read(), bytes(self.made.models[self.order[1]]))

    def test_no_nonce_is_used_twice_with_a_key_also_not_by_merges(self):
        self.make(8)
        seen = {}

        def look():
            for backup in os.listdir(self.repository):
                image = os.path.join(self.repository, backup, "disk.qcow2")
                if not os.path.exists(image):
                    continue
                file = sealed.Sealed(image, MATERIAL, sealed.IMAGE)
                for nonce, data, _ in file.pieces():
                    key = (file.key, nonce)
                    self.assertEqual(seen.setdefault(key, data), data)
                self.assertEqual(len(set(file.nonces())), len(file.nonces()))

        look()
        for keep in (7, 5, 1):
            run(*tool("prune"), *self.keys, f"--keep-last={keep}", self.repository)
            look()
            self.assertEqual(self.damaged(), [])
            self.assert_restores(len(self.order) - keep)
            self.assert_restores(len(self.order) - 1)


class TestKeys(EncryptedCase):
    FACES = (["backups"], ["verify"], ["restore", "out.raw"], ["prune", "--keep-last=1"],
             ["copy", "copy"], ["repair", "--new-id"], ["metrics"], ["files"], ["test-restore"],
             ["serve"], ["audit", "--qmp=none", "--node=d", "--to"])  # fmt: skip

    def said_by(self, words, keys):
        face, *rest = words
        to = [self.repository] if "--to" in rest else []
        before = [] if to else [self.repository]
        rest = [self.path(w) if w in ("out.raw", "copy") else w for w in rest]
        result = run(*tool(face), *keys, *(rest + to if to else
                     [w for w in rest if w[0] == "-"] + before +
                     [w for w in rest if w[0] != "-"]), check=False)  # fmt: skip
        return result

    def test_every_command_says_that_it_needs_the_key_or_the_right_one(self):
        self.make(2)
        wrong = self.make_file("wrong", b"w" * 40)
        kept = self.snapshot()
        for words in self.FACES:
            for keys, why in (([], "is encrypted, and needs its key"),
                              (["--key-file", wrong], "another key")):  # fmt: skip
                with self.subTest(words=words, keys=keys):
                    result = self.said_by(words, keys)
                    if words[0] == "audit":
                        self.assertNotEqual(result.returncode, 0)
                        continue
                    self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
                    self.assertEqual(result.stderr.count(why), 1, result.stderr)
                    self.assertNotIn(self.order[0], result.stdout + result.stderr)
        self.assertEqual(subprocess.run(["diff", "-r", kept, self.repository]).returncode, 0)

    def test_a_passphrase(self):
        self.make(2)
        phrase = ["--passphrase-file", self.make_file("phrase", b"correct horse battery\n")]
        again = ["--passphrase-file", self.make_file("again", b"correct horse battery")]
        wrong = ["--passphrase-file", self.make_file("wrong", b"wrong horse battery")]
        disk = self.path("disk.raw")
        self.make_file("disk.raw", self.random.randbytes(4 * CLUSTER))
        for name in ("one", "two"):
            run(*tool("backup"), "--image", disk, "--format=raw", *phrase, "--encrypt",
                "--to", self.path(name))  # fmt: skip
        descriptions = []
        for name in ("one", "two"):
            with open(self.path(f"{name}/repository.json"), encoding="utf-8") as f:
                descriptions.append(json.load(f))
        self.assertNotEqual(descriptions[0]["key"], descriptions[1]["key"])
        self.ask("verify", self.path("one"), keys=again)
        self.assertEqual(self.ask("verify", self.path("one"), keys=wrong, status=1)
                         ["error"]["kind"], "key")  # fmt: skip
        self.assertEqual(self.ask("verify", self.path("one"), status=1)["error"]["kind"], "key")
        self.ask("copy", self.path("one"), self.path("copied"), keys=phrase)
        self.ask("verify", self.path("copied"), keys=phrase)
        # The salt is in every file, so a lost description is no lost key.
        os.unlink(self.path("one/repository.json"))
        self.ask("repair", self.path("one"), keys=phrase)
        self.ask("verify", self.path("one"), keys=phrase)
        self.ask("verify", self.path("one"), keys=[*phrase, *self.keys], status=1)

    def test_how_a_passphrase_is_used_is_not_left_to_the_repository(self):
        """Little work would help somebody who guesses; much would take all memory."""
        phrase = ["--passphrase-file", self.make_file("phrase", b"correct horse battery\n")]
        self.make_file("disk.raw", self.random.randbytes(CLUSTER))
        one = self.path("one")
        run(*tool("backup"), "--image", self.path("disk.raw"), "--format=raw", *phrase, "--encrypt",
            "--to", one)  # fmt: skip
        (backup,) = [n for n in os.listdir(one) if n.startswith("2")]
        with open(os.path.join(one, "repository.json"), encoding="utf-8") as f:
            made = json.load(f)
        for log_n, why in ((1, "easy to guess"), (14, "easy to guess"), (19, "too much memory")):
            with open(os.path.join(one, "repository.json"), "w", encoding="utf-8") as f:
                json.dump({k: v for k, v in {**made, "scrypt-log-n": log_n}.items()
                           if k != "sha256"}, f)  # fmt: skip
            error = self.ask("verify", one, keys=phrase, status=1)["error"]
            self.assertEqual(error["kind"], "key")
            self.assertIn(why, error["message"])
            # Nor is a key that came from such work put into a new description.
            os.unlink(os.path.join(one, "repository.json"))
            with open(os.path.join(one, backup, "manifest.json"), "r+b") as f:
                f.seek(80)
                f.write(struct.pack("<I", log_n))
            error = self.ask("repair", one, keys=phrase, status=1)["error"]
            self.assertIn(why, error["message"])
            self.assertFalse(os.path.exists(os.path.join(one, "repository.json")))

    def test_a_command_that_prints_the_key(self):
        self.make(2)
        self.ask("verify", self.repository, keys=["--key-command", f"cat {self.key}"])
        for command in ("false", f"cat {self.key}; false", "echo short"):
            error = self.ask("verify", self.repository, keys=["--key-command", command],
                             status=1)["error"]  # fmt: skip
            self.assertEqual(error["kind"], "key")

    def test_encryption_is_decided_at_the_beginning(self):
        disk = self.make_file("disk.raw", self.random.randbytes(CLUSTER))
        words = [*tool("backup"), "--image", disk, "--format=raw", "--to", self.path("other")]
        run(*words, *self.keys)
        result = run(*words, *self.keys, "--encrypt", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("is not encrypted", result.stderr)
        result = run(*words[:-1], self.path("new"), "--encrypt", check=False)
        self.assertIn("needs a key", result.stderr)
        self.assertFalse(os.path.exists(self.path("new/repository.json")))
        # An encrypted repository is not copied into a plain one.
        self.make(2)
        result = run(*tool("copy"), *self.keys, self.repository, self.path("other"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(len(self.ask("backups", self.path("other"))), 1)

    def test_a_plain_repository_in_its_place_is_noticed(self):
        self.make(2)
        shutil.rmtree(self.repository)
        made = MadeRepository(self.repository)
        made.add(START, {0: b"x" * CLUSTER})
        error = self.ask("restore", self.repository, self.path("out.raw"), status=1)["error"]
        self.assertEqual(error["kind"], "key")


class TestMemory(EncryptedCase):
    def test_a_core_dump_has_no_key(self):
        self.make(2)
        sock = self.path("serve.sock")
        run(*tool("serve"), *self.keys, self.repository, "-k", sock, "--fork",
            "--pid-file", self.path("pid"))  # fmt: skip
        with open(self.path("pid"), encoding="utf-8") as f:
            pid = int(f.read())
        self.addCleanup(os.kill, pid, 15)
        run("qemu-img", "convert", "-O", "raw", f"nbd+unix:///?socket={sock}", self.path("n.raw"))
        memory = test_secret.SecretTest.dumpable_memory(pid)
        self.assertIn(self.repository.encode(), memory)
        self.assertNotIn(MATERIAL, memory)
        for purpose in (b"sealed files", b"manifests"):
            key = sealed.hmac_sha256(MATERIAL, b"tidemark backup: " + purpose)
            self.assertFalse(key in memory, purpose)
        for n in range(2):
            for name, kind in (("manifest.json", sealed.MANIFEST), ("checksums", sealed.SUMS),
                               ("disk.qcow2", sealed.IMAGE)):  # fmt: skip
                key = sealed.Sealed(self.file(n, name), MATERIAL, kind).key
                self.assertFalse(key in memory, (n, name))


class TestBackups(BackupCase):
    def setUp(self):
        super().setUp()
        with open(self.path("key"), "wb") as f:
            f.write(MATERIAL)
        self.keys = ["--key-file", self.path("key")]

    def restored(self, manifest):
        run(*tool("restore"), *self.keys, self.repository, "--force", "--at", manifest["id"],
            self.path("out.raw"))  # fmt: skip
        with open(self.path("out.raw"), "rb") as f:
            return f.read()

    def test_by_bitmap_by_checksum_and_after_a_prune(self):
        self.start()
        taken = []
        for i, words in enumerate((["--encrypt"], [], ["--compare"], [], ["--full"], [])):
            self.write_random(i * MIB, 3 * 65536)
            self.zero((i + 1) * MIB, 65536)
            model = bytes(self.model)
            taken.append((self.backup(*self.keys, *words), model))
        kinds = [m["kind"] for m, _ in taken]
        self.assertEqual(kinds, ["full"] + ["incremental"] * 3 + ["full", "incremental"])
        for manifest, model in taken:
            self.assertEqual(self.restored(manifest), model)
        run(*tool("prune"), *self.keys, "--keep-last=2", self.repository)
        for manifest, model in taken[-2:]:
            self.assertEqual(self.restored(manifest), model)
        run(*tool("verify"), *self.keys, self.repository)
        after = self.backup(*self.keys)
        self.assertEqual(after["kind"], "incremental")
        self.assertEqual(self.restored(after), bytes(self.model))

    def test_a_served_point_in_time(self):
        self.start()
        self.write_random(0, 4 * MIB)
        self.backup(*self.keys, "--encrypt")
        sock = self.path("serve.sock")
        run(*tool("serve"), *self.keys, self.repository, "-k", sock, "--fork",
            "--pid-file", self.path("pid"))  # fmt: skip
        with open(self.path("pid"), encoding="utf-8") as f:
            self.addCleanup(os.kill, int(f.read()), 15)
        run("qemu-img", "convert", "-O", "raw", f"nbd+unix:///?socket={sock}", self.path("n.raw"))
        with open(self.path("n.raw"), "rb") as f:
            self.assertEqual(f.read(), bytes(self.model))


class TestNodes(EncryptedCase):
    """Points in time as nodes of a daemon, each with a key of its own."""

    def test_secrets_are_keys_of_nodes(self):
        self.make(2)
        phrase = self.make_file("phrase", b"correct horse battery\n")
        disk = self.random.randbytes(3 * CLUSTER)
        other = self.path("other")
        run(*tool("backup"), "--image", self.make_file("disk.raw", disk), "--format=raw",
            "--passphrase-file", phrase, "--encrypt", "--to", other)  # fmt: skip
        server = self.daemon("--object", f"secret,id=key,file={self.key}",
                             "--object", f"secret,id=phrase,file={phrase}",
                             "--object", "secret,id=short,data=abc")  # fmt: skip

        def add(repository, name, **options):
            server.qmp.command(
                "blockdev-add",
                **{"driver": "tidemark-backup", "node-name": name, "repository": repository},
                **{k.replace("_", "-"): v for k, v in options.items()},
            )

        for repository, options, why in (
            (self.repository, {}, "needs its key"),
            (self.repository, {"passphrase_secret": "phrase"}, "another key"),
            (self.repository, {"key_secret": "none"}, "none"),
            (self.repository, {"key_secret": "short"}, "has 3 bytes"),
            (other, {"key_secret": "key"}, "another key"),
            (other, {"key_secret": "key", "passphrase_secret": "phrase"}, "exclude"),
        ):
            with self.assertRaisesRegex(Exception, why):
                add(repository, "x", **options)
        add(self.repository, "a", key_secret="key")
        add(other, "b", passphrase_secret="phrase")
        for secret in ("key", "phrase"):
            server.qmp.command("object-del", id=secret)
        for node, model in (("a", bytes(self.made.models[self.order[-1]])), ("b", disk)):
            target = self.make_file(node + ".raw", bytes(len(model)))
            server.qmp.command("blockdev-add", **{"driver": "file", "node-name": node + "-to",
                                                  "filename": target})  # fmt: skip
            server.qmp.command("blockdev-backup", **{"device": node, "target": node + "-to",
                                                     "sync": "full", "job-id": "j" + node})  # fmt: skip
            wait_until(lambda: not server.qmp.command("query-jobs"), "the copy")
            server.qmp.command("blockdev-del", **{"node-name": node + "-to"})
            server.qmp.command("blockdev-del", **{"node-name": node})
            with open(target, "rb") as f:
                self.assertTrue(f.read() == model, node)


class TestRepair(EncryptedCase):
    def lose(self, n, name):
        os.unlink(self.file(n, name))

    def items(self, status=0):
        result = self.ask("repair", self.repository, status=status)
        return [(i.get("id"), i["file"], i["repaired"]) for i in result["items"]]

    def test_lost_checksums_are_made_again_from_an_image_that_is_proved(self):
        self.make()
        for n in (0, 2):
            self.lose(n, "checksums")
        self.assertEqual(
            self.items(), [(self.order[n], "checksums", True) for n in (0, 2)]
        )
        self.ask("verify", self.repository)
        for n in range(4):
            self.assert_restores(n)
        manifest = sealed.Sealed(self.file(2, "manifest.json"), MATERIAL, sealed.MANIFEST)
        self.assertFalse(json.loads(manifest.contents()).get("rebuilt", False))

    def test_a_lost_manifest_is_made_again_from_files_that_agree(self):
        self.make()
        for n in (1, 3):
            self.lose(n, "manifest.json")
        self.assertEqual(
            self.items(), [(self.order[n], "manifest.json", True) for n in (1, 3)]
        )
        self.ask("verify", self.repository)
        for n in range(4):
            self.assert_restores(n)

    def test_what_does_not_prove_itself_stays_lost(self):
        self.make()
        self.lose(1, "checksums")
        flip(self.file(1, "disk.qcow2"), 20000)
        self.lose(2, "manifest.json")
        shutil.copy(self.file(3, "checksums"), self.file(2, "checksums"))
        self.lose(3, "manifest.json")
        flip(self.file(3, "disk.qcow2"), 9000)
        self.assertEqual(
            sorted(self.items(status=2)),
            [(self.order[1], "checksums", False)]
            + [(self.order[n], "manifest.json", False) for n in (2, 3)],
        )
        self.assert_restores(0)
        for n in (1, 2, 3):
            self.assertEqual(
                [f for f in os.listdir(os.path.dirname(self.file(n, ""))) if "tidemark" in f], []
            )
