# SPDX-License-Identifier: Apache-2.0
"""Backups of several disks at one moment: sets, the guest agent, hooks."""

import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import threading
import time

import nbd

from backup_case import MIB, BackupCase
from test_backup_checksums import Between, error
from tidemark import Process, can_connect, nbd_uri, qemu, run, tool, wait_until

CLUSTER = 65536


class Agent:
    """One that notes what it is asked; commands of `mute` get no answer, those of `refuse` an
    error. With the first command of `late` it waits for a while, with that of `leave` it is gone
    for a while. `frozen`: it was left so; with a time, until then.
    """

    def __init__(self, path, mute=(), refuse=(), late=None, leave=None, frozen=None):
        self.frozen = frozen
        self.commands, self.mute, self.refuse = [], mute, refuse
        self.path, self.late, self.leave = path, late, leave
        self.listen()

    def listen(self):
        path = self.path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            # What an earlier client was answered too late.
            client.sendall(b'{"return": 77}\n')
            threading.Thread(target=self.talk, args=(client,), daemon=True).start()

    def talk(self, client):
        with client, client.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line.lstrip(b"\xff"))
                command = request["execute"]
                self.commands.append((command, time.monotonic_ns()))
                if command == self.leave:
                    self.leave = None
                    self.listener.shutdown(socket.SHUT_RDWR)
                    os.unlink(self.path)
                    client.shutdown(socket.SHUT_RDWR)
                    time.sleep(1.5)
                    self.listen()
                    return
                if command == self.late:
                    self.late = None
                    time.sleep(1.5)
                if command in self.mute:
                    continue
                if self.frozen is not None and time.monotonic() > self.frozen:
                    self.frozen = None
                if command == "guest-fsfreeze-thaw":
                    self.frozen = None
                is_refused = self.frozen is not None and command == "guest-fsfreeze-freeze"
                if command in self.refuse or is_refused:
                    answer = {"error": {"class": "GenericError", "desc": "no freezing today"}}
                elif command == "guest-fsfreeze-status":
                    answer = {"return": "thawed" if self.frozen is None else "frozen"}
                else:
                    answer = {"return": request.get("arguments", {}).get("id", 2)}
                start = b"\xff" if command == "guest-sync-delimited" else b""
                client.sendall(start + json.dumps(answer).encode() + b"\n")

    def names(self):
        names = [c.removeprefix("guest-") for c, _ in self.commands if "sync" not in c]
        return [n for n in names if n != "fsfreeze-status"]


class FilterThatGoes(Between):
    """The first answer about exports is older than the one about nodes."""

    asked = 0

    def relay_request(self, request, line, monitor):
        answer = super().relay_request(request, line, monitor)
        if request["execute"] == "query-block-exports":
            self.asked += 1
            if self.asked == 1:
                answer["return"][0]["node-name"] = "tidemark-0123abcd-20260101T000000Z-cbw"
        return answer


class DevicesUnknown(Between):
    def relay_request(self, request, line, monitor):
        answer = super().relay_request(request, line, monitor)
        return error("GenericError", "not now") if request["execute"] == "query-block" else answer


class SetCase(BackupCase):
    size = 4 * MIB
    disks = ("a", "b")

    def program(self):
        return {}

    def start(self, *_, **__):
        self.socket = self.path("nbd.sock")
        words = ["--nbd-server", f"addr.type=unix,addr.path={self.socket}"]
        self.images = {}
        for d in self.disks:
            self.images[d] = self.path(d + ".qcow2")
            if not os.path.exists(self.images[d]):
                self.create(d + ".qcow2", str(self.size))
            words += [
                "--blockdev",
                f"driver=qcow2,node-name={d},file.driver=file,file.filename={self.images[d]}",
                "--export", f"type=nbd,id=e-{d},node-name={d},name={d},writable=on",
            ]  # fmt: skip
        self.server = self.daemon(*words, **self.program())
        self.server.wait_for(lambda: can_connect(self.socket), "the NBD server")
        self.models = getattr(self, "models", {d: bytearray(self.size) for d in self.disks})
        self.monitor = self.server.qmp_path
        self.more_words = []

    def write_to(self, disk, offset, length):
        data = self.random.randbytes(length)
        handle = nbd.NBD()
        handle.connect_uri(nbd_uri(self.socket, disk))
        handle.pwrite(data, offset)
        handle.flush()
        handle.shutdown()
        self.models[disk][offset : offset + length] = data

    def backup_words(self, *words):
        return [
            *tool("backup"), "--qmp", self.monitor, "--vm", "guest1", "--to", self.repository,
            *self.more_words, *words,
        ]  # fmt: skip

    def sets(self):
        return json.loads(run(*tool("sets"), "--output=json", self.repository).stdout)

    def assert_set_restores(self, one, models):
        target = self.path("restored")
        run(*tool("sets"), self.repository, "--restore", target, "--at", one["set"]["id"])
        for d in self.disks:
            with open(os.path.join(target, d + ".raw"), "rb") as f:
                self.assertTrue(f.read() == models[d], d)
            os.unlink(os.path.join(target, d + ".raw"))

    def assert_settled(self):
        self.assertEqual(self.own_nodes(), [])
        self.assertEqual(self.own_exports(), [])
        for d in self.disks:
            bitmaps = self.server.qmp.bitmaps(d)
            self.assertEqual([b["recording"] for b in bitmaps.values()], [True])


class TestSets(SetCase):
    def test_all_disks_incrementally_and_back(self):
        taken = []
        for turn in range(3):
            self.write_to("a", turn * MIB, 100000)
            self.write_to("b", 2 * MIB, 4096 * (turn + 1))
            taken.append((self.backup(), {d: bytes(m) for d, m in self.models.items()}))
        for one, models in taken:
            self.assert_set_restores(one, models)
            self.assertEqual({m["set"] for m in one["backups"]}, {one["set"]["id"]})
            begins = {m["checkpoint"]["begin"]["monotonic-ns"] for m in one["backups"]}
            self.assertEqual(len(begins), 1)
        self.assertEqual([m["kind"] for m in taken[2][0]["backups"]], ["incremental"] * 2)
        self.assertEqual(
            [(s["id"], s["machine"], len(s["disks"])) for s in self.sets()],
            [(one["set"]["id"], "guest1", 2) for one, _ in taken],
        )
        for d in self.disks:
            run(*tool("verify"), os.path.join(self.repository, d))
        self.assert_settled()

    def test_the_moment_is_the_same_for_all(self):
        """A counter that is written to one disk and then to the other."""
        stop = threading.Event()

        def count():
            handles = []
            for d in self.disks:
                handles.append(nbd.NBD())
                handles[-1].connect_uri(nbd_uri(self.socket, d))
            n = 0
            while not stop.is_set():
                n += 1
                for handle in handles:
                    handle.pwrite(struct.pack("<Q", n) * 64, 0)

        writer = threading.Thread(target=count)
        writer.start()
        try:
            time.sleep(0.1)
            sets = [self.backup() for _ in range(4)]
        finally:
            stop.set()
            writer.join()
        seen = []
        for one in sets:
            target = self.path(one["set"]["id"])
            run(*tool("sets"), self.repository, "--restore", target, "--at", one["set"]["id"])
            values = []
            for d in self.disks:
                with open(os.path.join(target, d + ".raw"), "rb") as f:
                    values.append(struct.unpack("<Q", f.read(8))[0])
            self.assertIn(values[0] - values[1], (0, 1))
            seen.append(values[0])
        self.assertEqual(seen, sorted(seen))
        self.assertGreater(seen[-1], seen[0])

    def test_named_disks_and_a_definition(self):
        definition = self.path("guest1.xml")
        with open(definition, "w", encoding="utf-8") as f:
            f.write("<domain/>\n")
        self.disks = ("b", "a")
        one = self.backup("--node", "b", "--node", "a", "--definition", definition)
        self.assertEqual([d["directory"] for d in one["set"]["disks"]], ["b", "a"])
        self.assertEqual(one["set"]["definition"], "guest1.xml")
        path = os.path.join(self.repository, "sets", one["set"]["id"], "definition")
        with open(path, encoding="utf-8") as f:
            self.assertEqual(f.read(), "<domain/>\n")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_a_disk_that_nothing_uses_is_named(self):
        """A node with an export, a file below a node, and what is read-only are no such disks."""
        self.assertEqual(run(*self.backup_words()).stderr, "")
        for node, more in ("spare", {}), ("medium", {"read-only": True}):
            self.create(node + ".qcow2", str(self.size))
            file = {"driver": "file", "filename": self.path(node + ".qcow2"), "node-name": node + "-f"}
            self.server.qmp.command(
                "blockdev-add", **{"driver": "qcow2", "node-name": node, "file": file, **more}
            )
        err = run(*self.backup_words()).stderr
        self.assertEqual(err.count("left out"), 1, err)
        self.assertIn("Node 'spare' is left out: no device and no export has it", err)
        run(*self.backup_words("--node", "spare", "--node", "a"))

    def test_nothing_is_complete_when_one_disk_fails(self):
        self.write_to("a", 0, MIB)
        self.write_to("b", 0, MIB)
        self.backup()
        before = {d: list(self.server.qmp.bitmaps(d)) for d in self.disks}
        self.write_to("a", MIB, CLUSTER)
        result = run(*self.backup_words("--node", "a", "--node", "c"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("has no node 'c'", result.stderr)
        self.server.qmp.command(
            "blockdev-add", **{"driver": "raw", "node-name": "above", "file": "b"}
        )
        self.server.qmp.command(
            "block-export-add",
            **{"type": "nbd", "id": "above", "node-name": "above", "writable": True},
        )
        result = run(*self.backup_words("--node", "a", "--node", "b"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Permission conflict", result.stderr)
        self.assertEqual({d: list(self.server.qmp.bitmaps(d)) for d in self.disks}, before)
        self.assertEqual(len(self.sets()), 1)
        self.server.qmp.command("block-export-del", id="above")
        self.server.qmp.command("blockdev-del", **{"node-name": "above"})
        one = self.backup()
        self.assertEqual([m["changed-bytes"] for m in one["backups"]], [CLUSTER, 0])
        self.assert_set_restores(one, self.models)

    def test_killed_at_any_time(self):
        for d in self.disks:
            self.write_to(d, 0, 2 * MIB)
        first, models = self.backup(), {d: bytes(m) for d, m in self.models.items()}
        for milliseconds in (10, 20, 40, 60, 90):
            self.write_to(self.random.choice(self.disks), self.random.randrange(2 * MIB), MIB)
            process = self.start_backup()
            time.sleep(milliseconds / 1000)
            process.kill()
        one = self.backup()
        self.assertEqual([m["reason"] for m in one["backups"]], [None, None])
        self.assert_set_restores(one, self.models)
        self.assert_set_restores(first, models)
        self.assert_settled()

    def test_a_filter_that_goes_while_disks_are_listed_takes_no_disk_away(self):
        """That of a killed run, which the daemon takes out after the export was shown with it."""
        between = FilterThatGoes(self.server, self.path("between.sock"))
        self.addCleanup(between.listener.close)
        self.monitor = self.path("between.sock")
        one = self.backup()
        self.assertGreaterEqual(between.asked, 2)
        self.assertEqual([d["directory"] for d in one["set"]["disks"]], list(self.disks))

    def test_devices_that_cannot_be_listed_are_not_left_out(self):
        between = DevicesUnknown(self.server, self.path("between.sock"))
        self.addCleanup(between.listener.close)
        self.monitor = self.path("between.sock")
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn("refused 'query-block'", result.stderr)

    def test_runs_at_once_make_sets_of_their_own(self):
        for _ in range(4):
            processes = [
                self.own(Process(self.backup_words("--node", d), self.path(f"{d}.log")))
                for d in self.disks
            ]
            for d, process in zip(self.disks, processes):
                with open(self.path(f"{d}.log"), encoding="utf-8") as f:
                    self.assertEqual(process.wait(), 0, f.read())
        sets = self.sets()
        self.assertEqual(sorted(s["disks"][0]["directory"] for s in sets), ["a"] * 4 + ["b"] * 4)
        self.assertEqual([s["problems"] for s in sets], [[]] * 8)

    def test_an_id_that_a_killed_run_has_kept_is_given_up(self):
        self.backup()
        sets = os.path.join(self.repository, "sets")
        os.mkdir(os.path.join(sets, ".tidemark-tmp-20260101T000000Z"))
        run(*self.backup_words("--node", "none"), check=False)
        run(*self.backup_words("--pre-hook", "false"), check=False)
        self.assertEqual(len(os.listdir(sets)), 1)

    def test_a_set_that_cannot_be_written_leaves_no_backup_of_one_disk(self):
        self.backup()
        sets, before = os.path.join(self.repository, "sets"), {}
        for d in self.disks:
            before[d] = sorted(os.listdir(os.path.join(self.repository, d)))
            self.write_to(d, 0, CLUSTER)
        held = self.hold_backup()
        for name in os.listdir(sets):
            if name.startswith("."):
                os.rmdir(os.path.join(sets, name))
        self.assertEqual(held.release()[0], 1)
        for d in self.disks:
            self.assertEqual(sorted(os.listdir(os.path.join(self.repository, d))), before[d])
        self.assertEqual([m["changed-bytes"] for m in self.backup()["backups"]], [CLUSTER] * 2)

    def test_abort(self):
        self.backup()
        self.hold_backup().kill()
        run(*self.backup_words("--abort"))
        self.assert_settled()

    def test_a_directory_of_one_disk_is_refused(self):
        run(*tool("backup"), "--qmp", self.monitor, "--node", "a", "--to", self.repository)
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("holds the backups of one disk", result.stderr)

    def test_a_directory_without_sets(self):
        result = run(*tool("sets"), self.dir, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"There are no sets in '{self.dir}'", result.stderr)

    def test_a_damaged_description(self):
        one = self.backup()
        path = os.path.join(self.repository, "sets", one["set"]["id"], "set.json")
        with open(path, encoding="utf-8") as f:
            text = f.read()
        second = self.backup()
        with open(path, "w", encoding="utf-8") as f:
            f.write(text.replace('"a"', '"b"'))
        damaged, sound = self.sets()
        self.assertEqual(damaged, {"id": one["set"]["id"], "damaged": True})
        self.assertEqual(sound["id"], second["set"]["id"])
        self.assertIn("DAMAGED", run(*tool("sets"), self.repository).stdout)
        words = [*tool("sets"), self.repository, "--restore", self.path("r")]
        result = run(*words, "--at", one["set"]["id"], check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("is damaged", result.stderr)
        run(*words)


class TestManyDisks(SetCase):
    disks = tuple(f"d{i}" for i in range(12))

    def test_few_files_may_be_open_at_first(self):
        def limit():
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))

        subprocess.run(self.backup_words(), preexec_fn=limit, check=True, capture_output=True)
        self.assertEqual([len(s["disks"]) for s in self.sets()], [12])


class TestSetsThatLoseBackups(SetCase):
    """What other commands do to the backups of a set, and what becomes of the set."""

    def take(self, count):
        taken = []
        for turn in range(count):
            for d in self.disks:
                self.write_to(d, turn * 128 * 1024, CLUSTER)
            taken.append((self.backup(), {d: bytes(m) for d, m in self.models.items()}))
        return taken

    def at(self, disk):
        return os.path.join(self.repository, disk)

    def problems(self):
        return [[p["directory"] for p in s["problems"]] for s in self.sets()]

    def refuses(self, one, why, *words):
        target = self.path("refused")
        words = [*tool("sets"), self.repository, "--restore", target, "--at", one["set"]["id"],
                 "--output=json", *words]  # fmt: skip
        result = run(*words, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(why, json.loads(result.stdout)["error"]["message"])
        self.assertFalse(os.path.exists(target))

    def test_pruned_ones(self):
        taken = self.take(4)
        second = taken[1][0]["backups"][0]["id"]
        run(*tool("prune"), self.at("a"), "--remove", second)
        self.assertEqual(self.problems(), [[], ["a"], [], []])
        self.assertIn(f"NOT WHOLE: a: Backup {second} is gone",
                      run(*tool("sets"), self.repository).stdout)  # fmt: skip
        self.refuses(taken[1][0], f"Disk 'a': Backup {second} is gone")
        for n in (0, 2, 3):
            self.assert_set_restores(*taken[n])
        # The last of its backups goes, and another set loses one.
        run(*tool("prune"), self.at("b"), "--keep-last", "1", "--dry-run")
        self.assertEqual(len(self.sets()), 4)
        run(*tool("prune"), self.at("b"), "--keep-last", "2")
        self.assertEqual(self.problems(), [["b"], [], []])
        run(*tool("prune"), self.at("a"), "--keep-last", "2")
        self.assertEqual(self.problems(), [[], []])
        self.assertEqual(len(os.listdir(os.path.join(self.repository, "sets"))), 2)
        for one in taken[2:]:
            self.assert_set_restores(*one)
        self.assertEqual([m["kind"] for m in self.backup()["backups"]], ["incremental"] * 2)

    def test_a_disk_that_is_not_there_keeps_its_sets(self):
        self.take(2)
        os.rename(self.at("b"), self.path("elsewhere"))
        run(*tool("prune"), self.at("a"), "--keep-last", "1")
        self.assertEqual(self.problems(), [["a", "b"], ["b"]])
        os.rename(self.path("elsewhere"), self.at("b"))
        self.assertEqual(self.problems(), [["a"], []])

    def test_damaged_ones_and_those_of_another_set(self):
        taken = self.take(3)
        names = [t[0]["backups"][1]["id"] for t in taken]
        manifest = os.path.join(self.at("b"), names[1], "manifest.json")
        os.rename(manifest, manifest + ".away")
        self.assertEqual(self.problems(), [[], ["b"], ["b"]])
        self.refuses(taken[2][0], "damaged")
        os.rename(manifest + ".away", manifest)
        self.assertEqual(self.problems(), [[], [], []])
        path = os.path.join(self.repository, "sets", taken[1][0]["set"]["id"])
        other = os.path.join(self.repository, "sets", "20260101T000000Z")
        os.rename(path, other)
        self.assertEqual(self.sets()[0], {"id": "20260101T000000Z", "damaged": True})

    def test_sets_are_no_repository(self):
        self.take(1)
        listed = json.loads(run(*tool("backups"), "--output=json", self.repository).stdout)
        self.assertEqual([r["path"] for r in listed["repositories"]], ["a", "b"])
        figures = self.path("figures.prom")
        run(*tool("metrics"), "--to", figures, self.repository)
        with open(figures, encoding="utf-8") as f:
            self.assertNotIn("sets", f.read())
        sets = os.path.join(self.repository, "sets")
        for words in (["repair"], ["prune", "--keep-last", "1"], ["verify"]):
            result = run(*tool(words[0]), *words[1:], sets, check=False)
            self.assertEqual((words[0], result.returncode), (words[0], 1))
        self.assertEqual(os.listdir(sets), [self.sets()[0]["id"]])
        result = run(*tool("restore"), self.repository, self.path("out.raw"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("name the directory of a disk", result.stderr)

    def test_copies(self):
        taken = self.take(2)
        for place in self.repository, os.path.join(self.repository, "inside"):
            result = run(*tool("copy"), self.repository, place, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("' is in '", result.stderr)
        self.assertEqual(sorted(os.listdir(self.repository)), ["a", "b", "sets"])
        copy = self.path("copy")
        os.mkdir(copy)
        for d in self.disks:
            run(*tool("copy"), self.at(d), os.path.join(copy, d), "--last", "1")
        shutil.copytree(os.path.join(self.repository, "sets"), os.path.join(copy, "sets"))
        self.repository = copy
        self.assertEqual(self.problems(), [["a", "b"], []])
        self.assert_set_restores(*taken[1])

    def test_a_restore_says_what_it_did_and_overwrites_nothing(self):
        taken = self.take(1)[0][0]
        target = self.path("restored")
        words = [*tool("sets"), self.repository, "--restore", target, "--output=json"]
        said = json.loads(run(*words).stdout)
        self.assertEqual(said["set"], taken["set"]["id"])
        self.assertEqual([(d["directory"], d["id"], d["target"]) for d in said["disks"]],
                         [(m["node"], m["id"], f"{target}/{m['node']}.raw")
                          for m in taken["backups"]])  # fmt: skip
        os.unlink(os.path.join(target, "a.raw"))
        result = run(*words, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("b.raw' exists", json.loads(result.stdout)["error"]["message"])
        self.assertEqual(os.listdir(target), ["b.raw"])

    def test_a_key(self):
        key, wrong = self.path("key"), self.path("wrong")
        for path in (key, wrong):
            with open(path, "wb") as f:
                f.write(self.random.randbytes(32))
        self.more_words = ["--key-file", key]
        self.take(1)
        run(*tool("sets"), self.repository, "--key-file", key)
        for words in ([], ["--restore", self.path("none")]):
            result = run(*tool("sets"), self.repository, "--key-file", wrong, *words, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("has another key than the given one", result.stderr)
        self.assertFalse(os.path.exists(self.path("none")))


class TestQuiesce(SetCase):
    def agent(self, **how):
        path = self.path("qga.sock")
        self.more_words = ["--agent", path, "--agent-timeout", "1"]
        return Agent(path, **how)

    def test_the_guest_is_frozen_for_the_moment_only(self):
        agent = self.agent()
        one = self.backup()
        self.assertEqual(agent.names(), ["fsfreeze-freeze", "fsfreeze-thaw"])
        times = {c: t for c, t in agent.commands}
        moment = one["backups"][0]["checkpoint"]
        self.assertLess(times["guest-fsfreeze-freeze"], moment["begin"]["monotonic-ns"])
        self.assertLess(moment["end"]["monotonic-ns"], times["guest-fsfreeze-thaw"])

    def test_it_is_thawed_when_the_checkpoint_fails(self):
        agent = self.agent()
        run(*self.backup_words("--node", "a", "--nbd", "nbd://[bad"), check=False)
        run(*self.backup_words("--fleece-dir", self.path("none")), check=False)
        self.assertEqual(agent.names().count("fsfreeze-freeze"), agent.names().count("fsfreeze-thaw"))

    def test_it_is_thawed_when_the_freeze_is_not_answered(self):
        agent = self.agent(mute=("guest-fsfreeze-freeze",))
        result = run(*self.backup_words("--no-guard"), check=False)  # which would thaw, too
        self.assertEqual(result.returncode, 1)
        self.assertIn("does not answer within 1 seconds", result.stderr)
        self.assertEqual(agent.names()[0], "fsfreeze-freeze")
        self.assertEqual(set(agent.names()[1:]), {"fsfreeze-thaw"})

    def test_a_freeze_that_is_refused(self):
        agent = self.agent(refuse=("guest-fsfreeze-freeze",))
        result = run(*self.backup_words(), check=False)
        self.assertIn("no freezing today", result.stderr)
        self.assertEqual(agent.names()[-1], "fsfreeze-thaw")
        self.assertEqual(self.own_nodes(), [])

    def test_a_thaw_that_fails_is_reported_and_the_backup_stays(self):
        agent = self.agent(refuse=("guest-fsfreeze-thaw",))
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 3, result.stderr)
        self.assertIn("The guest may still be frozen", result.stderr)
        self.assertEqual(agent.names().count("fsfreeze-thaw"), 5)
        self.assertEqual(len(self.sets()), 1)

    def test_it_is_thawed_when_the_run_is_killed_meanwhile(self):
        agent = self.agent(mute=("guest-fsfreeze-freeze",))
        self.more_words[-1] = "30"
        process = self.own(Process(self.backup_words(), self.path("backup.log")))
        wait_until(lambda: "fsfreeze-freeze" in agent.names(), "the freeze")
        process.kill()
        wait_until(lambda: agent.names()[-1] == "fsfreeze-thaw", "the guard")

    def test_it_is_thawed_by_an_agent_that_is_late_or_gone(self):
        """A late answer to the freeze is not taken for one to the thaw."""
        for how, said in (({"late": "guest-fsfreeze-freeze"}, "does not answer within 1 seconds"),
                          ({"leave": "guest-fsfreeze-freeze"}, "Could not ask the guest agent")):
            with self.subTest(how=how):
                path = self.path(f"qga-{list(how)[0]}.sock")
                agent = Agent(path, **how)
                result = run(*self.backup_words("--agent", path, "--agent-timeout=1"), check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn(said, result.stderr)
                self.assertNotIn("frozen", result.stderr)
                self.assertEqual(agent.names()[-1], "fsfreeze-thaw")

    def test_a_guest_that_a_killed_run_has_left_frozen_is_thawed_first(self):
        agent = self.agent(frozen=float("inf"))
        result = run(*self.backup_words("--output=json"))
        self.assertIn("were frozen before this run", result.stderr)
        self.assertEqual(agent.names(), ["fsfreeze-thaw", "fsfreeze-freeze", "fsfreeze-thaw"])

    def test_abort_thaws(self):
        agent = self.agent(frozen=float("inf"))
        done = json.loads(run(*self.backup_words("--abort", "--output=json")).stdout)
        self.assertEqual(done, {"to": self.repository})
        self.assertEqual(agent.names(), ["fsfreeze-thaw"])

    def test_another_program_s_freeze_ends_by_itself(self):
        agent = self.agent(frozen=time.monotonic() + 3)
        result = run(*self.backup_words("--output=json"))
        self.assertNotIn("frozen", result.stderr)
        self.assertEqual(agent.names(), ["fsfreeze-freeze", "fsfreeze-thaw"])

    def test_an_agent_without_a_status_of_freezes(self):
        agent = self.agent(refuse=("guest-fsfreeze-status",))
        self.backup()
        self.assertEqual(agent.names(), ["fsfreeze-freeze", "fsfreeze-thaw"])

    def test_a_guest_that_stays_frozen_after_a_failure_is_said(self):
        self.agent(mute=("guest-fsfreeze-freeze",), refuse=("guest-fsfreeze-thaw",))
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("The guest may still be frozen: The guest agent refused", result.stderr)

    def test_a_hook_that_is_stopped(self):
        begun = self.path("begun")
        stopped = subprocess.Popen(
            self.backup_words("--pre-hook", f"echo x > {begun}; exec sleep 600"),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(stopped.kill)
        wait_until(lambda: os.path.exists(begun), "the hook")
        stopped.terminate()
        self.assertIn("exec sleep 600' was stopped", stopped.communicate(timeout=60)[1])
        self.assertEqual(stopped.returncode, 1)
        self.assertEqual(self.own_nodes(), [])

    def test_hooks(self):
        log = self.path("log")
        note = f'echo noise; echo "$TIDEMARK_VM $TIDEMARK_STATUS" >> {log}'
        result = run(*self.backup_words("--pre-hook", "kill -9 $$"), check=False)
        self.assertIn("The hook 'kill -9 $$' was ended by signal 9", result.stderr)
        self.backup("--pre-hook", note, "--post-hook", note)
        result = run(*self.backup_words("--pre-hook", "exit 3", "--post-hook", note), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("The hook 'exit 3' failed with status 3", result.stderr)
        with open(log, encoding="utf-8") as f:
            self.assertEqual(f.read().split("\n"), ["guest1 begin", "guest1 ok", "guest1 failed", ""])
        result = run(*self.backup_words("--post-hook", "exit 4"), check=False)
        self.assertEqual(result.returncode, 3)
        self.assertEqual(len(self.sets()), 2)
        self.assert_settled()


class TestOfQemu(SetCase):
    """The same of QEMU's storage daemon."""

    def program(self):
        return {
            "program": [
                qemu("qemu-storage-daemon"),
                "--chardev", f"socket,id=backup,path={self.path('m.qmp')},server=on,wait=off",
                "--monitor", "chardev=backup",
            ]
        }  # fmt: skip

    def start(self, *_, **__):
        super().start()
        self.monitor = self.path("m.qmp")
        wait_until(lambda: os.path.exists(self.monitor), "the second monitor")
        self.more_words = ["--nbd", nbd_uri(self.socket)]

    def test_all_disks_incrementally_and_back(self):
        TestSets.test_all_disks_incrementally_and_back(self)

    def test_the_moment_is_the_same_for_all(self):
        TestSets.test_the_moment_is_the_same_for_all(self)
