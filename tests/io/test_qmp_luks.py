# SPDX-License-Identifier: Apache-2.0
"""Encrypted disks in a daemon: making them, changing their keys while they are in use."""

import glob
import json
import unittest

import tidemark
from qmp import QmpError

MIB = 1 << 20
KEY = {"key-secret": "a", "iter-time": 10}


class LuksTest(tidemark.TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        self.qmp = self.start().qmp

    def start(self, name=None):
        server = self.daemon() if name is None else self.daemon(name=name)
        for name in "abc":
            server.qmp.execute("object-add", {"qom-type": "secret", "id": name, "data": name * 9})
        return server

    def job(self, command, qmp=None, **arguments):
        """Run a job to its end: its error, or None."""
        qmp = qmp or self.qmp
        qmp.command(command, job_id="j", **arguments)
        tidemark.wait_until(
            lambda: qmp.command("query-jobs")[0]["status"] == "concluded", "the job to end"
        )
        error = qmp.command("query-jobs")[0].get("error")
        qmp.command("job-dismiss", id="j")
        return error

    def create(self, driver, name, **more):
        path = self.path(name)
        with open(path, "wb"):
            pass
        options = {"driver": driver, "file": {"driver": "file", "filename": path}, "size": MIB}
        options.update(KEY if driver == "luks" else {"encrypt": {"format": "luks", **KEY}})
        self.assertIsNone(self.job("blockdev-create", options={**options, **more}))
        return path

    def add(self, driver, path, qmp=None, secret="a", **more):
        key = {"key-secret": secret}
        options = key if driver == "luks" else {"encrypt": {"format": "luks", **key}}
        file = {"driver": "file", "filename": path}
        options = {"driver": driver, "node-name": "n", "file": file, **options, **more}
        answer = (qmp or self.qmp).execute("blockdev-add", options)
        return answer.get("error", {}).get("desc")

    def amend(self, driver, qmp=None, force=False, **change):
        change = {k.replace("_", "-"): v for k, v in change.items()}
        options = change if driver == "luks" else {"encrypt": {"format": "luks", **change}}
        return self.job(
            "x-blockdev-amend", qmp, node_name="n", force=force,
            options={"driver": driver, **options},
        )  # fmt: skip

    def test_keys_change_in_use(self):
        for driver in ("luks", "qcow2"):
            with self.subTest(driver=driver):
                path = self.create(driver, f"disk.{driver}")
                self.assertIsNone(self.add(driver, path))
                new = {"state": "active", "new_secret": "b", "iter_time": 10}
                self.assertIsNone(self.amend(driver, **new))
                self.assertIn("Refusing to overwrite", self.amend(driver, keyslot=1, **new))
                self.assertIsNone(self.amend(driver, force=True, keyslot=1, **new))
                self.assertIsNone(self.amend(driver, state="inactive", old_secret="a"))
                self.assertIn("Invalid password", self.amend(driver, **new))
                self.assertIsNone(self.amend(driver, secret="b", **{**new, "new_secret": "c"}))
                error = self.amend(driver, state="inactive", old_secret="a")
                self.assertEqual(
                    error, "No keyslots match given (old) password for erase operation"
                )
                self.qmp.command("blockdev-del", node_name="n")
                self.assertIn("Invalid password", self.add(driver, path))
                for secret in "bc":
                    self.assertIsNone(self.add(driver, path, secret=secret))
                    self.qmp.command("blockdev-del", node_name="n")

    def test_only_one_program_may_change_keys(self):
        path = self.create("luks", "disk.luks")
        other = self.start("other").qmp
        self.assertIsNone(self.add("luks", path))
        self.assertIsNone(self.add("luks", path, other))
        new = {"state": "active", "new_secret": "b", "iter_time": 10}
        for qmp in (self.qmp, other):
            with self.assertRaisesRegex(QmpError, 'Failed to get shared "consistent read" lock'):
                self.amend("luks", qmp, **new)
        self.qmp.command("blockdev-del", node_name="n")
        self.assertIsNone(self.amend("luks", other, **new))
        # An addition that the other program made is known.
        self.assertIsNone(self.add("luks", path))
        other.command("blockdev-del", node_name="n")
        self.assertIsNone(self.amend("luks", state="inactive", old_secret="a"))

    def test_a_backup_has_what_the_guest_wrote(self):
        """And its manifest says that nothing protects it any more."""
        secret, repository = ("--object", "secret,id=a,data=" + "a" * 9), self.path("backups")
        path = self.create("luks", "disk.luks")
        opened = f"driver=luks,key-secret=a,file.filename={path}"
        tidemark.io(opened, f"write -P 7 0 {MIB}", options=(*secret, "--image-opts"))
        self.assertIsNone(self.add("luks", path))
        words = ("--qmp", self.path("daemon.qmp"), "--node", "n", "--to", repository)
        tidemark.run(*tidemark.tool("backup"), *words)
        (name,) = glob.glob(f"{repository}/*/manifest.json")
        with open(name, encoding="utf-8") as file:
            manifest = json.load(file)
        self.assertEqual((manifest["disk-encrypted"], manifest["protection"]), (True, "none"))
        tidemark.run(*tidemark.tool("restore"), repository, self.path("restored"))
        with open(self.path("restored"), "rb") as file:
            self.assertEqual(file.read(), b"\7" * MIB)

    def test_read_only(self):
        path = self.create("luks", "disk.luks")
        self.assertIsNone(self.add("luks", path, **{"read-only": True}))
        with self.assertRaisesRegex(QmpError, "Block node is read-only"):
            self.amend("luks", state="active", new_secret="b", iter_time=10)

    def test_a_detached_header(self):
        files = {}
        for name in ("header", "payload"):
            files[name] = {"driver": "file", "filename": self.path(name)}
            with open(self.path(name), "wb"):
                pass
        options = {"driver": "luks", "size": MIB, **KEY}
        options.update(file=files["payload"], header=files["header"])
        self.assertIsNone(self.job("blockdev-create", options=options))
        self.assertIsNone(self.add("luks", self.path("payload"), header=files["header"]))
        sizes = {n["node-name"]: n["image"]["actual-size"] for n in self.qmp.command("query-named-block-nodes")}
        self.assertEqual(sizes["n"], sum(size for name, size in sizes.items() if name != "n"))
        new = {"state": "active", "new_secret": "b", "iter_time": 10}
        self.assertIsNone(self.amend("luks", **new))
        self.qmp.command("blockdev-del", node_name="n")
        opened = f"driver=luks,key-secret=b,file.filename={self.path('payload')}"
        opened += f",header.filename={self.path('header')}"
        secret = ("--object", "secret,id=b,data=bbbbbbbbb", "--image-opts")
        tidemark.io(opened, f"write -P 7 0 {MIB}", options=secret)
        tidemark.io(opened, f"read -P 7 0 {MIB}", options=secret)
        with open(self.path("payload"), "rb") as file:
            data = file.read()
        self.assertEqual(len(data), MIB)
        self.assertNotIn(b"\7" * 32, data)

    def test_sizes_and_errors(self):
        path = self.create("luks", "disk.luks")
        options = {"driver": "luks", "file": {"driver": "file", "filename": path}, "size": MIB}
        error = self.job("blockdev-create", options=options)
        self.assertEqual(error, "Parameter 'key-secret' is required for cipher")
        error = self.job("blockdev-create", options={**options, "key-secret": "z"})
        self.assertEqual(error, "No secret with id 'z'")
        error = self.job("blockdev-create", options={**options, **KEY, "size": (1 << 63) - 512})
        self.assertEqual(error, "The requested file size is too large")
        self.assertIsNone(self.add("luks", path))
        self.qmp.command("block_resize", node_name="n", size=2 * MIB)
        self.assertEqual(
            self.qmp.command("query-named-block-nodes")[0]["image"]["virtual-size"], 2 * MIB
        )

    def test_a_file_is_kept_when_no_passphrase_can_be_had(self):
        latin1 = {"qom-type": "secret", "id": "latin1", "format": "base64", "data": "/w=="}
        self.qmp.command("object-add", **latin1)
        path = self.path("disk")
        old = b"old data" * 1000
        with open(path, "wb") as file:
            file.write(old)
        options = {"file": {"driver": "file", "filename": path}, "size": MIB}
        for name, error in (
            ("z", "No secret with id 'z'"),
            ("latin1", "Data from secret latin1 is not valid UTF-8"),
        ):
            key = {"key-secret": name}
            for more in (
                {"driver": "luks", **key},
                {"driver": "qcow2", "encrypt": {"format": "luks", **key}},
            ):
                with self.subTest(**more):
                    self.assertEqual(
                        self.job("blockdev-create", options={**options, **more}), error
                    )
                    with open(path, "rb") as file:
                        self.assertEqual(file.read(), old)


if __name__ == "__main__":
    unittest.main()
