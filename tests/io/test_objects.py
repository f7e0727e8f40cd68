# SPDX-License-Identifier: Apache-2.0
"""Objects that event loops have in QEMU: their settings are checked. Objects whose files hang."""

import base64
import json
import os

import tidemark
from qmp import QmpError


class ObjectsTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.qmp = self.daemon().qmp

    def add(self, kind, **options):
        self.qmp.command("object-add", qom_type=kind, id="x", **options)
        self.qmp.command("object-del", id="x")

    def test_settings_are_taken(self):
        self.add("iothread")
        pool = {"thread-pool-min": 1, "thread-pool-max": 8, "aio-max-batch": 16}
        self.add("iothread", **pool, **{"poll-max-ns": 0, "poll-grow": 2, "poll-shrink": 3})
        self.add("main-loop")
        self.add("main-loop", **pool)

    def test_one_main_loop(self):
        self.qmp.command("object-add", **{"qom-type": "main-loop", "id": "m"})
        with self.assertRaisesRegex(QmpError, "only one main-loop instance allowed"):
            self.qmp.command("object-add", **{"qom-type": "main-loop", "id": "n"})
        self.qmp.command("object-del", id="m")
        self.add("main-loop")

    def test_settings_that_make_no_sense_are_refused(self):
        cases = [
            ({"poll-max-ns": -1}, r"poll-max-ns value must be in range \[0, 9223372036854775807\]"),
            ({"aio-max-batch": -1}, "aio-max-batch value must be in range"),
            ({"thread-pool-min": 5, "thread-pool-max": 2}, "bad thread-pool-min/thread-pool-max"),
            ({"thread-pool-min": 65}, "bad thread-pool-min/thread-pool-max values"),
            ({"thread-pool-min": "1"}, "'thread-pool-min', expected: integer"),
            ({"poll": 1}, "'poll' is unexpected"),
        ]
        for options, sentence in cases:
            with self.assertRaisesRegex(QmpError, sentence):
                self.add("iothread", **options)
        with self.assertRaisesRegex(QmpError, "'poll-max-ns' is unexpected"):
            self.add("main-loop", **{"poll-max-ns": 1})

    def test_a_file_that_cannot_be_rules_is_not_read_to_its_end(self):
        disk = self.path("disk")
        with open(disk, "wb") as f:
            f.truncate(1 << 40)
        with self.assertRaisesRegex(QmpError, "Unable to read rules from .*: longer than 16777216"):
            self.add("authz-list-file", filename=disk)

    def test_what_there_is_not_is_refused_by_name(self):
        for kind in "thread-context", "pr-manager-helper":
            with self.assertRaisesRegex(QmpError, f"'qom-type' does not accept value '{kind}'"):
                self.add(kind)
        with self.assertRaisesRegex(QmpError, "'driver' does not accept value 'vvfat'"):
            self.qmp.command("blockdev-add", driver="vvfat", node_name="v", dir=self.dir)
        with self.assertRaisesRegex(QmpError, "'pr-manager' is unexpected"):
            self.qmp.command(
                "blockdev-add", driver="file", filename="x", node_name="f", pr_manager="p"
            )


class HungFileTest(tidemark.TestCase):
    """The file of an object does not answer: a FIFO into which nobody writes."""

    TYPES = (
        ("secret", "file", "", {}),
        ("tls-creds-psk", "dir", "keys.psk", {"endpoint": "client"}),
        ("tls-creds-x509", "dir", "ca-cert.pem", {"endpoint": "client", "sanity-check": False}),
        ("authz-list-file", "filename", "", {}),
    )

    def setUp(self):
        super().setUp()
        self.server = self.daemon()
        self.qmp = self.server.qmp

    def hang(self, monitor, kind="secret", option="file", name="", **more):
        """Begin to add the object x of that type. The end of the FIFO for writing."""
        folder = self.path(kind)
        os.mkdir(folder)
        fifo = os.path.join(folder, name or "file")
        os.mkfifo(fifo)
        arguments = {"qom-type": kind, "id": "x", option: folder if name else fifo, **more}
        monitor.send_raw(json.dumps({"execute": "object-add", "arguments": arguments}))
        return self.writer_of(fifo)

    def writer_of(self, fifo):
        found = []

        def has_reader():
            try:
                found.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                return False
            return True

        tidemark.wait_until(has_reader, f"a reader of {fifo}")
        return os.fdopen(found[0], "wb")

    def objects(self):
        return [p["name"] for p in self.qmp.command("qom-list", path="/objects")]

    def test_other_monitors_go_on(self):
        for kind, option, name, more in self.TYPES:
            with self.subTest(kind), self.server.connect() as waiting:
                with self.hang(waiting, kind, option, name, **more):
                    self.qmp.command("blockdev-add", driver="null-co", node_name="n")
                    self.qmp.command("blockdev-del", node_name="n")
                    self.assertNotIn("x", self.objects())
                    with self.assertRaisesRegex(QmpError, "duplicate property 'x'"):
                        self.qmp.command("object-add", qom_type="secret", id="x", data="a")
                    with self.assertRaisesRegex(QmpError, "object 'x' not found"):
                        self.qmp.command("object-del", id="x")
                made = "return" in waiting.receive_answer()  # of an empty file
                self.assertEqual(made, kind in ("secret", "tls-creds-x509"))
                self.assertEqual(made, "x" in self.objects())
                if not made:  # the id is free again
                    self.qmp.command("object-add", qom_type="secret", id="x", data="a")
                self.qmp.command("object-del", id="x")

    def test_it_finds_the_secret_that_it_refers_to(self):
        key, iv = (base64.b64encode(bytes(size)).decode() for size in (32, 16))
        self.qmp.command("object-add", qom_type="secret", id="k", format="base64", data=key)
        for keyid, wanted in ("k", "multiple of block size"), ("no", "No secret with id 'no'"):
            os.makedirs(self.path("secret"), exist_ok=True)
            with open(self.path("secret/plain"), "w", encoding="ascii") as file:
                file.write("x")
            with self.assertRaisesRegex(QmpError, wanted):
                self.qmp.command("object-add", qom_type="secret", id="x", keyid=keyid, iv=iv,
                                 file=file.name)  # fmt: skip

    def test_the_daemon_ends(self):
        with self.server.connect() as waiting, self.hang(waiting):
            self.server.stop()

    def test_the_daemon_ends_by_quit(self):
        with self.server.connect() as waiting, self.hang(waiting):
            self.server.quit()

    def test_a_daemon_that_starts_ends(self):
        fifo = self.path("fifo")
        os.mkfifo(fifo)
        server = self.daemon("--object", f"secret,id=x,file={fifo}", name="starting", connect=False)
        with self.writer_of(fifo):
            server.stop(expect=None)


if __name__ == "__main__":
    tidemark.unittest.main()
