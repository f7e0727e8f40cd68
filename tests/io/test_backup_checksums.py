# SPDX-License-Identifier: Apache-2.0
"""Incremental by checksum, of a daemon that computes the checksums of what it has: only what
differs is read over NBD. Without the command, or when it fails, all is read, as from others.
"""

import base64
import json
import socket
import threading

from backup_case import MIB, BackupCase
from tidemark import run, tool

CLUSTER = 65536
SUMS = "x-blockdev-checksums"


class Between:
    """Between backup and monitor: counts commands, and may answer in place of the monitor.

    `answer(number, request)` gives the answer to a command for checksums, or None; and
    `change(result)` changes what the monitor has returned.
    """

    def __init__(self, server, path):
        self.server = server
        self.count = self.read_bytes = 0
        self.answer, self.change = lambda number, request: None, lambda result: None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, self.server.connect(negotiate=False) as monitor:
                self.relay(client, monitor)

    def relay(self, client, monitor):
        client.sendall(json.dumps(monitor.greeting).encode() + b"\n")
        with client.makefile("r", encoding="utf-8") as requests:
            for line in requests:
                request = json.loads(line)
                answer = self.relay_request(request, line, monitor)
                client.sendall(json.dumps({**answer, "id": request["id"]}).encode() + b"\n")

    def relay_request(self, request, line, monitor):
        name = request["execute"]
        if name == "block-export-del":
            self.read_bytes = self.bytes_of_export(request["arguments"]["id"])
        if name == SUMS:
            self.count += 1
            answer = self.answer(self.count, request)
            if answer:
                return answer
        monitor.send_raw(line)
        answer = monitor.receive_answer()
        if name == SUMS and "return" in answer:
            self.change(answer["return"])
        return answer

    def bytes_of_export(self, name):
        with self.server.connect() as monitor:
            exports = monitor.command("x-tidemark-query-stats", target="export")
        return sum(e["stats"]["read-bytes"] for e in exports if e["labels"]["export"] == name)


def error(error_class, desc):
    return {"error": {"class": error_class, "desc": desc}}


class Checksums(BackupCase):
    size = 24 * MIB + 512

    def setUp(self):
        super().setUp()
        self.write_random(0, 20 * MIB)
        self.write_random(24 * MIB, 512)
        self.backup()
        self.between = Between(self.server, self.path("between.sock"))
        self.addCleanup(self.between.listener.close)
        # 5 clusters: 2, 1 that is zero on the disk, 1 that is in the parent, 1 of 512 bytes.
        self.write_random(3 * MIB + 100, CLUSTER)
        self.write(5 * MIB, bytes(CLUSTER))
        self.write_random(22 * MIB, 100)
        self.write_random(24 * MIB, 512)
        self.write(7 * MIB, bytes(self.model[7 * MIB : 8 * MIB]))

    def compare(self, *words):
        command = self.backup_words("--compare", "--output=json", *words)
        command[command.index("--qmp") + 1] = self.path("between.sock")
        manifest = json.loads(run(*command).stdout)
        self.assertEqual(manifest["kind"], "incremental")
        self.assertEqual(manifest["changed-bytes"], 5 * CLUSTER)
        self.assertEqual(manifest["moved-bytes"], 20 * MIB + CLUSTER + 512)
        self.assert_restores(manifest, self.model)
        self.assert_settled()
        run(*tool("verify"), self.repository)
        return manifest

    def assert_all_was_read(self):
        self.assertGreaterEqual(self.between.read_bytes, 20 * MIB)

    def test_only_what_differs_is_read(self):
        self.compare()
        self.assertGreaterEqual(self.between.count, 1)
        self.assertEqual(self.between.read_bytes, 4 * CLUSTER + 512)

    def test_the_rate_is_kept(self):
        """2 MiB a time, and what is asked for first need not wait."""
        self.compare("--rate", "16M")
        self.assertGreaterEqual(self.between.count, 10)
        self.assertEqual(self.between.read_bytes, 4 * CLUSTER + 512)

    def test_a_daemon_without_the_command(self):
        said = error("CommandNotFound", f"The command {SUMS} has not been found")
        self.between.answer = lambda number, request: said
        self.compare()
        self.assertEqual(self.between.count, 1)
        self.assert_all_was_read()

    def test_answers_in_parts(self):
        def cut(result):
            length = min(result["length"], MIB)
            raw = base64.b64decode(result["sha256"])[: -(-length // CLUSTER) * 32]
            result.update(length=length, sha256=base64.b64encode(raw).decode())

        self.between.change = cut
        self.compare()
        self.assertGreaterEqual(self.between.count, 20)
        self.assertEqual(self.between.read_bytes, 4 * CLUSTER + 512)

    def test_a_failure_in_the_middle(self):
        failure = error("GenericError", "Node 'x' has not answered for 3 s")
        self.between.answer = lambda number, request: failure if number == 5 else None
        self.compare("--rate", "16M")
        self.assertEqual(self.between.count, 5)
        self.assertGreater(self.between.read_bytes, 8 * MIB)
        self.assertLess(self.between.read_bytes, 16 * MIB)

    def test_answers_that_are_none(self):
        for change in (
            {"length": 0},
            {"length": 1 << 40},
            {"length": 512},
            {"sha256": "?"},
            {"sha256": ""},
            {"sha256": "AAAA"},
            {"sha256": None},
            {"length": "x", "sha256": 5},
        ):
            with self.subTest(change):
                self.between.count = 0
                self.between.change = lambda result, change=change: result.update(change)
                self.write_random(3 * MIB + 100, CLUSTER)
                run(*self.words_between())
                self.assertEqual(self.between.count, 1)
                self.assert_all_was_read()
                self.assert_restores(self.list_backups()[-1], self.model)

    def words_between(self):
        command = self.backup_words("--compare")
        command[command.index("--qmp") + 1] = self.path("between.sock")
        return command


class Scattered(BackupCase):
    size = 128 * MIB

    def test_single_clusters_are_fetched_together(self):
        """Each question would wait for the answer to the one before it."""
        for offset in 0, 40, 80, 120:
            self.write_random(offset * MIB, CLUSTER)
        self.backup()
        between = Between(self.server, self.path("between.sock"))
        self.addCleanup(between.listener.close)
        self.write_random(80 * MIB, 512)
        command = self.backup_words("--compare", "--output=json")
        command[command.index("--qmp") + 1] = self.path("between.sock")
        manifest = json.loads(run(*command).stdout)
        self.assertEqual(manifest["changed-bytes"], CLUSTER)
        self.assertEqual((between.count, between.read_bytes), (0, 4 * CLUSTER))
        self.assert_restores(manifest, self.model)


class Audit(BackupCase):
    """It reads what differs by the daemon's checksums, and so does not believe that it differs."""

    size = 24 * MIB + 512

    def setUp(self):
        super().setUp()
        self.write_random(0, 20 * MIB)
        self.write_random(24 * MIB, 512)
        self.backup()
        self.between = Between(self.server, self.path("between.sock"))
        self.addCleanup(self.between.listener.close)

    def audit(self, status=0):
        words = [*tool("audit"), "--qmp", self.path("between.sock"), "--node", "disk",
                 "--to", self.repository, "--output=json"]  # fmt: skip
        result = run(*words, check=False)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        self.assert_settled()
        return json.loads(result.stdout)

    def miss(self, offset, data):
        self.write(offset, data)
        (name,) = self.own_bitmaps()
        self.server.qmp.command("block-dirty-bitmap-clear", node="disk", name=name)

    def test_what_is_right_is_not_read(self):
        self.write_random(3 * MIB, 10)
        found = self.audit()
        self.assertEqual((found["missed-bytes"], found["marked-bytes"]), (0, CLUSTER))
        self.assertGreaterEqual(self.between.count, 1)
        self.assertEqual(self.between.read_bytes, 0)

    def test_what_differs_is_read(self):
        self.miss(5 * MIB + 7, b"x" * CLUSTER)
        self.miss(9 * MIB, bytes(CLUSTER))
        self.miss(24 * MIB + 1, b"y")
        areas = [(5 * MIB, 2 * CLUSTER), (9 * MIB, CLUSTER), (24 * MIB, 512)]
        found = self.audit(status=2)
        self.assertEqual([(a["offset"], a["length"]) for a in found["areas"]], areas)
        # What became zero need not be read; nor is it where it is a hole.
        self.assertLessEqual(self.between.read_bytes, 3 * CLUSTER + 512)

    def test_what_it_cannot_learn_is_read(self):
        said = error("CommandNotFound", f"The command {SUMS} has not been found")
        self.between.answer = lambda number, request: said
        self.miss(5 * MIB, b"x" * 100)
        self.assertEqual(self.audit(status=2)["missed-bytes"], CLUSTER)
        self.assertEqual(self.between.count, 1)
        self.assertGreaterEqual(self.between.read_bytes, 20 * MIB)

    def test_answers_in_parts(self):
        def cut(result):
            length = min(result["length"], MIB)
            raw = base64.b64decode(result["sha256"])[: -(-length // CLUSTER) * 32]
            result.update(length=length, sha256=base64.b64encode(raw).decode())

        self.between.change = cut
        self.miss(19 * MIB, b"x")
        self.assertEqual(self.audit(status=2)["missed-bytes"], CLUSTER)
        self.assertLessEqual(self.between.read_bytes, CLUSTER)

    def test_a_wrong_checksum_is_no_change(self):
        def change(result):
            raw = bytearray(base64.b64decode(result["sha256"]))
            raw[3 * 32] ^= 1
            result["sha256"] = base64.b64encode(raw).decode()

        self.between.change = change
        self.assertEqual(self.audit()["missed-bytes"], 0)
        self.assertGreaterEqual(self.between.read_bytes, CLUSTER)
