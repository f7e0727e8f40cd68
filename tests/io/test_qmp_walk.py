# SPDX-License-Identifier: Apache-2.0
"""Random commands, made from query-qmp-schema, under load: the daemon answers each, and lives.

Values are right mostly, and wrong now and then. By hand, for an hour, with another seed:

    TIDEMARK_WALK_SECONDS=3600 TIDEMARK_WALK_SEED=17 python3 -m unittest test_qmp_walk

with the variables that CONTRIBUTING.md names for single cases.
"""

import json
import os
import random
import threading
import time
import unittest

import nbd_raw
import tidemark

SECONDS = float(os.environ.get("TIDEMARK_WALK_SECONDS", 8))
SEED = int(os.environ.get("TIDEMARK_WALK_SEED", time.time_ns() % 2**32))

# Commands that end the daemon or the session, or make files of any name.
NOT_SENT = {"quit", "qmp_capabilities", "chardev-add", "chardev-change", "getfd", "add-fd"}
NODES = [*"abcdef", "disk", "file", "scratch"]
NUMBERS = [0, 1, 2, 3, 7, 511, 512, 4096, 65536, 1 << 20, 1 << 24]
ODD_NUMBERS = [-1, -(2**63), 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
WRONG = [None, True, 0, -1, 1.5, "", "x", [], [1], {}, {"x": 1}, "a\0b", "ä" * 300]
# A driver that ends the program, as QEMU's does, when two files differ.
ENDS_ALL = "blkverify"
# Numbers for which a large one means a long wait.
BRIEF = {
    "cbw-timeout",
    "handshake-max-seconds",
    "latency-ns",
    "open-timeout",
    "reconnect-delay",
    "timeout",
}
# Members that name files.
FILES = {"filename", "path", "config", "dir", "snapshot-file", "backing-file", "target"}


class Walker:
    """Values of the types of a schema."""

    def __init__(self, schema, directory, seed):
        self.types = {t["name"]: t for t in schema}
        self.commands = [
            t for t in schema if t["meta-type"] == "command" and t["name"] not in NOT_SENT
        ]
        self.directory = directory
        self.random = random.Random(seed)

    def text(self, member):
        if member in FILES and self.random.random() < 0.9:
            return os.path.join(self.directory, self.random.choice(["1", "2", "3", "none/4"]))
        if member == "url":
            return "http://127.0.0.1:1/x"
        if member in ("host", "server"):
            return "127.0.0.1"
        if member == "port":
            return self.random.choice(["1", "0"])
        return self.random.choice(NODES)

    def number(self, member):
        if member in BRIEF:
            return self.random.choice([0, 1])
        return self.random.choice(ODD_NUMBERS if self.random.random() < 0.1 else NUMBERS)

    def builtin(self, entry, member):
        kind = entry["json-type"]
        if kind == "string":
            return self.text(member)
        if kind == "int":
            return self.number(member)
        if kind == "boolean":
            return self.random.random() < 0.5
        if kind == "number":
            return self.random.choice([0, 1, 0.5])
        return None if kind == "null" else self.random.choice(WRONG)

    def members(self, entry, depth):
        value = {}
        for member in entry["members"]:
            likely = 0.25 / (depth + 1) if "default" in member else 0.99
            if self.random.random() < likely or member["name"] == "node-name" and depth == 0:
                value[member["name"]] = self.value(member["type"], member["name"], depth + 1)
        if "tag" in entry and value.get(entry["tag"]) is not None:
            for variant in entry["variants"]:
                if variant["case"] == value[entry["tag"]]:
                    value.update(self.members(self.types[variant["type"]], depth))
        return value

    def right(self, name, member, depth):
        entry = self.types[name]
        meta = entry["meta-type"]
        if meta == "builtin":
            return self.builtin(entry, member)
        if meta == "enum":
            return self.random.choice([v for v in entry["values"] if v != ENDS_ALL])
        if meta == "array":
            count = self.random.choice([0, 1, 1, 2, 3])
            return [self.value(entry["element-type"], member, depth + 1) for _ in range(count)]
        if meta == "alternate":
            choices = [m["type"] for m in entry["members"]]
            # Options in options in options: seldom.
            simple = [c for c in choices if self.types[c]["meta-type"] != "object"]
            few = depth > 2 and simple
            return self.value(self.random.choice(simple if few else choices), member, depth)
        return self.members(entry, depth)

    def value(self, name, member, depth):
        if self.random.random() < 0.01:
            return self.random.choice(WRONG)
        return self.right(name, member, depth)

    def command(self):
        entry = self.random.choice(self.commands)
        arguments = self.members(self.types[entry["arg-type"]], 0)
        if self.random.random() < 0.02:
            arguments["bogus"] = 1
        return entry, arguments


class QmpWalk(tidemark.TestCase):
    def write_until(self, done):
        """Write to the disk until `done`, or until its export ends; how many writes were done."""
        count = 0
        try:
            with nbd_raw.RawClient(self.sock) as client:
                client.go(b"disk", structured=False)
                while not done.is_set():
                    client.request(nbd_raw.WRITE, 4096, 4096, payload=b"x" * 4096)
                    client.receive(16)
                    count += 1
        except (OSError, EOFError, AssertionError):
            pass
        return count

    def load(self, daemon, done):
        """A guest whose manager brings back what random commands have taken away."""
        address = {"type": "unix", "data": {"path": self.sock}}
        export = {"type": "nbd", "id": "export", "node-name": "disk", "writable": True}
        try:
            with daemon.connect() as qmp:
                while not done.is_set():
                    self.written += self.write_until(done)
                    self.returns += 1
                    qmp.execute("nbd-server-stop")
                    for name, arguments in (
                        ("blockdev-add", self.node),
                        ("nbd-server-start", {"addr": address}),
                        ("block-export-add", export),
                    ):
                        qmp.execute(name, arguments)
                    qmp.events.clear()
                    done.wait(0.02)
        except (OSError, EOFError) as error:
            print(f"# the load ended: {error!r}")

    def start(self):
        disk = self.create("disk.qcow2", "64M")
        self.sock = self.path("nbd.sock")
        self.written = self.returns = 0
        file = {"driver": "file", "node-name": "file", "filename": disk}
        self.node = {"driver": "qcow2", "node-name": "disk", "file": file}
        return self.daemon(
            "--blockdev", json.dumps(self.node),
            "--blockdev", "null-co,node-name=scratch,size=64M",
            "--nbd-server", f"addr.type=unix,addr.path={self.sock}",
            "--export", "nbd,id=export,node-name=disk,writable=on",
            cwd=self.dir,
        )  # fmt: skip

    def check_answer(self, walker, kind, value, path):
        """A value has the type that the schema has for it."""
        entry = walker.types[kind]
        if entry["meta-type"] == "array":
            for element in value:
                self.check_answer(walker, entry["element-type"], element, path)
        elif entry["meta-type"] == "enum":
            self.assertIn(value, entry["values"], path)
        elif entry["meta-type"] == "object":
            known = {m["name"]: m for m in entry["members"]}
            for variant in entry.get("variants", []):
                if value[entry["tag"]] == variant["case"]:
                    known.update({m["name"]: m for m in walker.types[variant["type"]]["members"]})
            self.assertLessEqual(set(value), set(known), path)
            for name, member in known.items():
                if name in value:
                    self.check_answer(walker, member["type"], value[name], f"{path}.{name}")
                else:
                    self.assertIn("default", member, f"{path}.{name}")

    def test_random_commands(self):
        daemon = self.start()
        walker = Walker(daemon.qmp.command("query-qmp-schema"), self.dir, SEED)
        done, sent, accepted = threading.Event(), 0, 0
        load = threading.Thread(target=self.load, args=(daemon, done))
        load.start()
        self.addCleanup(load.join)
        self.addCleanup(done.set)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            entry, arguments = walker.command()
            sent += 1
            try:
                answer = daemon.qmp.execute(entry["name"], arguments)
            except (OSError, EOFError) as error:
                self.fail(f"seed {SEED}, {entry['name']} {arguments}: {error!r}\n{daemon.log()}")
            if "return" in answer:
                accepted += 1
                self.check_answer(walker, entry["ret-type"], answer["return"], entry["name"])
            else:
                self.assertNotEqual(answer["error"]["desc"], "", f"{entry['name']} {arguments}")
            daemon.qmp.events.clear()
        done.set()
        load.join()
        print(f"# {sent} commands, {accepted} accepted, {self.written} writes", end="; ")
        print(f"the disk was brought back {self.returns} times")
        self.assertGreater(self.written, 100, f"seed {SEED}")
        self.assertGreater(accepted, sent / 20, f"seed {SEED}")
        self.assertIn(daemon.stop(expect=None), (0, 1), f"seed {SEED}: {daemon.log()}")


if __name__ == "__main__":
    unittest.main()
