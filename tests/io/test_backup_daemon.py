# SPDX-License-Identifier: Apache-2.0
"""What backups have in a daemon: names, leftovers and the way back; daemons that are hard to reach.
"""

import collections
import hashlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import threading
import time

from backup_case import MIB, BackupCase, HeldUp
from qmp import Qmp
from tidemark import Process, can_connect, freeze, img, qemu_img, run, tool, wait_until
from tls_creds import make_psk, psk

CLUSTER = 65536
ROOT = os.geteuid() == 0


class SmallCase(BackupCase):
    size = 4 * MIB

    def backup_to(self, directory, *words):
        kept, self.repository = self.repository, directory
        try:
            return self.backup(*words)
        finally:
            self.repository = kept

    def backup_log(self, *words):
        """One that fails; what it said."""
        result = run(*self.backup_words(*words), check=False)
        self.assertEqual(result.returncode, 1, result.stdout)
        return result.stderr

    def leftovers(self):
        out = run(*tool("backup"), "--qmp", self.server.qmp_path, "--leftovers", "--output=json")
        return json.loads(out.stdout)

    def fleeces(self, where=None):
        return [n for n in os.listdir(where or self.dir) if n.startswith(".tidemark-")]

    def cut_off(self, *words):
        """A backup that is killed with its filter in place."""
        self.hold_backup(*words).kill()
        self.assertNotEqual(self.own_nodes(), [])


class TestNames(SmallCase):
    def test_no_two_runs_have_one_name_for_a_bitmap(self):
        """A copy of a repository, and backups to both in the same second."""
        copy = self.path("copy")
        self.write_random(0, MIB)
        self.backup()
        self.copy_to_another_machine(copy)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(1 - time.time() % 1)  # so that both may well begin in the same second
            a = self.backup()
            self.write_random(MIB, CLUSTER)
            b = self.backup_to(copy)
            self.assertNotEqual(a["bitmap"], b["bitmap"])
            if a["id"] == b["id"]:
                break
        self.assertEqual(a["id"], b["id"])
        self.write_random(2 * MIB, CLUSTER)
        self.assert_restores(self.backup(), self.model)

    def test_a_node_that_was_renamed_is_known_by_its_bitmap(self):
        self.write_random(0, MIB)
        self.backup()
        self.server.quit()
        self.server = self.daemon(
            "--blockdev",
            f"driver=qcow2,node-name=other,file.driver=file,file.filename={self.image}",
        )
        words = [w if w != "disk" else "other" for w in self.backup_words("--output=json")]
        manifest = json.loads(run(*words).stdout)
        self.assertEqual((manifest["kind"], manifest["node"]), ("incremental", "other"))
        self.assert_restores(manifest, self.model)

    def test_a_disk_with_an_odd_name(self):
        self.server.quit()
        os.rename(self.image, self.path("a\tdisk"))
        self.image = self.path("a\tdisk")
        self.start()
        self.write_random(0, MIB)
        self.backup()
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_restores(manifest, self.model)

    def test_another_disk_by_the_same_node_name_is_not_taken_for_the_first(self):
        self.write_random(0, MIB)
        self.backup()
        self.server.quit()
        first = self.image
        self.image = self.create("second.qcow2", str(self.size))
        self.start()
        self.model = bytearray(self.size)
        self.assertIn(f"holds backups of disk '{first}', not of '{self.image}'", self.backup_log())
        manifest = self.backup("--same-disk")
        self.assertEqual((manifest["kind"], manifest["changed-bytes"]), ("incremental", MIB))
        self.assert_restores(manifest, self.model)
        self.assertEqual(self.backup()["kind"], "incremental")


class TestLease(SmallCase):
    """The daemon cleans up after a run whose connection has ended: without a guard, too."""

    def hold_leased(self):
        held = self.own(HeldUp(self.backup_words("--no-guard")))
        wait_until(self.own_exports, "the export")
        return held

    def wait_gone(self):
        wait_until(lambda: not self.own_nodes(), "the end of the lease")
        exports = self.server.qmp.command("query-block-exports")
        self.assertEqual([e["node-name"] for e in exports], ["disk"])

        def images():
            return [n for f in self.fleeces() for n in os.listdir(self.path(f)) if n != "lock"]

        wait_until(lambda: not images(), "the end of the temporary image")

    def test_view_filter_and_temporary_image_go_with_the_connection(self):
        self.write_random(0, MIB)
        self.backup()
        self.write_random(0, CLUSTER)
        self.hold_leased().kill()
        self.wait_gone()
        self.write_random(2 * MIB, CLUSTER)
        manifest = self.backup()
        self.assertEqual((manifest["reason"], manifest["changed-bytes"]), (None, 2 * CLUSTER))
        self.assert_restores(manifest, self.model)
        self.assert_settled()
        self.assertEqual(self.fleeces(), [])

    def test_the_next_run_need_not_wait_for_that(self):
        self.write_random(0, MIB)
        self.backup()
        for _ in range(5):
            self.write_random(0, CLUSTER)
            self.hold_leased().kill()
            manifest = self.backup()
            self.assertIsNone(manifest["reason"])
        self.assert_restores(manifest, self.model)
        self.assert_settled()

    def test_a_view_that_another_connection_has_leased_too_stays(self):
        self.backup()
        held = self.hold_leased()
        with Qmp(self.server.qmp_path) as other:
            for name in self.own_exports():
                other.command("x-tidemark-lease", node_name=f"{name}-snap")
            held.kill()
            time.sleep(0.5)
            self.assertEqual(len(self.own_nodes()), 3)
        self.wait_gone()
        self.backup()
        self.assert_settled()


class TestGuard(SmallCase):
    """Another process cleans up after a run that is killed."""

    def test_a_killed_run_leaves_nothing(self):
        self.write_random(0, MIB)
        self.backup()
        self.write_random(0, CLUSTER)
        held = self.hold_backup(guard=True)
        self.assertEqual(len(self.fleeces()), 1)
        held.kill()
        wait_until(lambda: not self.own_nodes() and not self.fleeces(), "the guard")
        wait_until(lambda: len(self.own_bitmaps()) == 1, "the bitmaps in order")
        self.write_random(2 * MIB, CLUSTER)
        manifest = self.backup()
        self.assertEqual((manifest["reason"], manifest["changed-bytes"]), (None, 2 * CLUSTER))
        self.assert_restores(manifest, self.model)
        self.assert_settled()

    def test_the_next_run_need_not_wait_for_it(self):
        self.write_random(0, MIB)
        self.backup()
        for _ in range(5):
            self.write_random(0, CLUSTER)
            self.hold_backup(guard=True).kill()
            manifest = self.backup()
            self.assertIsNone(manifest["reason"])
        self.assert_restores(manifest, self.model)
        self.assert_settled()

    def pass_on(self, client, cut):
        """All that is said, `cut`: up to the answer to the one that makes the filter."""
        with client, socket.socket(socket.AF_UNIX) as daemon:
            daemon.connect(self.server.qmp_path)
            other, asked = {client: daemon, daemon: client}, False
            while True:
                for source in select.select([client, daemon], [], [])[0]:
                    data = source.recv(65536)
                    if not data or (cut and asked and source is daemon and b'"return"' in data):
                        return
                    asked = asked or b'"copy-before-write"' in data
                    other[source].sendall(data)

    def test_a_checkpoint_without_an_answer_is_removed(self):
        """The daemon has made it, and the connection ends before the answer comes."""
        self.write_random(0, MIB)
        self.backup()
        path = self.path("between.sock")

        def serve():
            for cut in True, False:
                self.pass_on(listener.accept()[0], cut)

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            words = [w if w != self.server.qmp_path else path for w in self.backup_words()]
            result = run(*words, check=False)
            self.assertEqual(result.returncode, 1, result.stdout)
            self.assertIn("made all the same", result.stderr)
            wait_until(lambda: not self.own_nodes(), "the guard")
            wait_until(lambda: len(self.own_bitmaps()) == 1, "the bitmaps in order")
            thread.join(30)
        self.assertEqual(self.fleeces(), [])
        self.assertIsNone(self.backup()["reason"])

    def guards(self):
        lines = run("ps", "-eo", "pid,args").stdout.splitlines()
        return [int(c.split()[0]) for c in lines if self.dir in c and "--abort-after" in c]

    def test_a_service_manager_stops_the_run_before_the_guard(self):
        """All processes get SIGTERM."""
        held = self.hold_backup(guard=True)
        (guard,) = self.guards()
        os.kill(guard, signal.SIGTERM)
        held.kill()
        wait_until(lambda: not self.own_nodes() and not self.fleeces(), "the guard")
        wait_until(lambda: not self.guards(), "the end of the guard")

    def test_it_ends_with_the_run(self):
        held = self.hold_backup(guard=True)
        self.assertEqual(len(self.guards()), 1)
        self.assertEqual(held.release()[0], 0)
        wait_until(lambda: not self.guards(), "the end of the guard")
        self.assertEqual(len(self.own_bitmaps()), 1)


class TestLongChains(SmallCase):
    size = MIB

    def lengthen(self, first, last, length):
        """Put copies of an empty increment between it and its parent, each building on the one
        before.
        """
        parent = first["id"]
        source = os.path.join(self.repository, last["id"])
        with open(os.path.join(source, "disk.qcow2"), "rb") as f:
            image = f.read()
        with open(os.path.join(source, "manifest.json"), encoding="utf-8") as f:
            m = json.load(f, object_pairs_hook=collections.OrderedDict)
        shutil.rmtree(source)
        for number in range(length):
            backup = f"20990101T{number:06}Z"
            path = os.path.join(self.repository, backup)
            data = image.replace(first["id"].encode(), parent.encode())
            m.update(id=backup, parent=parent, sequence=first["sequence"] + 1 + number)
            m["image"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            m.pop("sha256", None)
            text = json.dumps(m, separators=(",", ":"))
            m["sha256"] = hashlib.sha256(text.encode()).hexdigest()
            os.mkdir(path)
            with open(os.path.join(path, "disk.qcow2"), "wb") as f:
                f.write(data)
            with open(os.path.join(path, "manifest.json"), "w", encoding="utf-8") as f:
                json.dump(m, f)
            with open(os.path.join(path, "checksums"), "wb") as f:
                f.write(self.sums)
            parent = backup

    def test_a_chain_of_hundreds_goes_on_and_can_be_read(self):
        self.write_random(0, self.size // 2)
        first = self.backup()
        time.sleep(1.1)  # else the id has a number behind it
        last = self.backup()
        with open(os.path.join(self.repository, last["id"], "checksums"), "rb") as f:
            self.sums = f.read()
        self.lengthen(first, last, 600)
        self.write_random(0, CLUSTER)
        manifest = self.backup()
        self.assertEqual(manifest["parent"], "20990101T000599Z")
        self.assert_restores(manifest, self.model)

        def few_descriptors():
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

        run(*tool("verify"), self.repository, "--at", manifest["id"])
        run(*tool("restore"), self.repository, "--force", self.path("restored.raw"),
            preexec_fn=few_descriptors)  # fmt: skip


class TestLeftovers(SmallCase):
    def setUp(self):
        super().setUp()
        self.write_random(0, 3 * MIB)

    def test_hang_up_ends_a_backup_in_order(self):
        held = self.hold_backup()
        held.process.send_signal(signal.SIGHUP)
        status, said = held.release()
        self.assertEqual(status, 1)
        self.assertIn("topped", said)
        self.assert_settled()
        self.assertEqual(self.fleeces(), [])

    def test_another_directory_can_be_used_after_a_kill(self):
        other = self.path("other")
        self.backup()
        self.write_random(0, MIB)
        self.cut_off()
        self.write_random(2 * MIB, CLUSTER)
        manifest = self.backup_to(other)
        self.assertEqual(self.own_nodes(), [])
        self.assertEqual(self.fleeces(), [])
        self.assertTrue(manifest["kind"] == "full")
        self.assertEqual(self.backup()["kind"], "incremental")
        self.assertEqual(self.backup_to(other)["kind"], "incremental")
        self.assert_sound()

    def test_another_directory_has_to_wait_for_a_run_that_lives(self):
        held = self.hold_backup()
        nodes = self.own_nodes()
        words = [w if w != self.repository else self.path("other") for w in self.backup_words()]
        result = run(*words, check=False)
        self.assertIn("Another backup of node 'disk' is under way", result.stderr)
        self.assertEqual([entry["state"] for entry in self.leftovers()], ["running"])
        repository = self.leftovers()[0]["repository"]
        result = run(*tool("backup"), "--qmp", self.server.qmp_path, "--forget", repository,
                     check=False)  # fmt: skip
        self.assertIn("is under way", result.stderr)
        self.assertEqual(self.own_nodes(), nodes)
        self.assertEqual(held.release()[0], 0)

    def test_a_copy_of_the_directory_does_not_end_a_run_that_lives(self):
        self.backup()
        self.copy_to_another_machine(self.path("copy"))
        held = self.hold_backup("--full")
        words = [w if w != self.repository else self.path("copy") for w in self.backup_words()]
        self.assertIn("is under way", run(*words, check=False).stderr)
        self.assertEqual(held.release()[0], 0)

    def test_abort_puts_the_daemon_in_order_and_takes_no_backup(self):
        self.backup()
        self.write_random(0, MIB)
        self.cut_off()
        run(*self.backup_words("--abort"))
        self.assert_settled()
        self.assertEqual(self.fleeces(), [])
        self.assert_clean_directory()
        self.assertEqual(len(self.list_backups()), 1)
        self.assertEqual(self.backup()["kind"], "incremental")

    def test_what_a_lost_directory_has_left_is_listed_and_forgotten(self):
        self.backup()
        self.write_random(0, MIB)
        self.cut_off()
        shutil.rmtree(self.repository)
        (entry,) = self.leftovers()
        self.assertEqual((entry["node"], entry["state"]), ("disk", "cut-off"))
        self.assertEqual(entry["bitmaps"], 2)
        run(*tool("backup"), "--qmp", self.server.qmp_path, "--forget", entry["repository"])
        self.assertEqual(self.leftovers(), [])
        self.assertEqual((self.own_nodes(), self.own_bitmaps(), self.fleeces()), ([], {}, []))

    def test_a_temporary_image_elsewhere_is_found_by_the_next_run(self):
        elsewhere = self.path("elsewhere")
        os.mkdir(elsewhere)
        self.cut_off("--fleece-dir", elsewhere)
        self.assertEqual(len(self.fleeces(elsewhere)), 1)
        self.backup()
        self.assertEqual(self.fleeces(elsewhere), [])

    def test_what_neither_directory_nor_daemon_know_is_removed_by_the_next_run(self):
        self.cut_off()
        shutil.rmtree(self.repository)
        (left,) = self.fleeces()
        self.server.kill()
        wait_until(lambda: not can_connect(self.server.qmp_path), "the end of the daemon")
        self.start()
        self.backup()
        self.assertEqual(self.fleeces(), [])
        os.makedirs(self.path(left))
        self.backup()
        self.assertEqual(self.fleeces(), [left], "no lock: perhaps a run that begins")

    def test_a_run_that_begins_is_not_taken_for_a_dead_one(self):
        elsewhere = self.path("elsewhere")
        os.mkdir(elsewhere)
        slow = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=flock",
                "-e", "inject=flock:delay_enter=1500000",
                *self.backup_words("--fleece-dir", elsewhere)]  # fmt: skip
        first = self.own(Process(slow, self.path("first.log")))
        wait_until(lambda: self.fleeces(elsewhere), "the directory of the first run")
        time.sleep(0.2)
        self.backup_to(self.path("second"), "--fleece-dir", elsewhere)
        self.assertEqual(first.wait(), 0, first.log())
        self.assertEqual(self.fleeces(elsewhere), [])

    def test_a_directory_can_not_have_other_files_removed(self):
        """The record of where a temporary image is may name anything."""
        victim = self.path("victim")
        os.mkdir(victim)
        with open(os.path.join(victim, "fleece.raw"), "w", encoding="utf-8"):
            pass
        self.backup()
        draft = os.path.join(self.repository, ".tidemark-tmp-x")
        os.mkdir(draft)
        with open(os.path.join(draft, "fleece"), "w", encoding="utf-8") as f:
            f.write(victim)
        self.backup()
        self.assertEqual(os.listdir(victim), ["fleece.raw"])


class TestGuestSafety(SmallCase):
    def asked_of_the_daemon(self, *words):
        """The transaction of a backup, as seen by one who listens in between."""
        seen, path = [], self.path("between.sock")

        def pump(source, sink, keep):
            while data := source.recv(65536):
                if keep:
                    seen.append(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

        def serve():
            with listener.accept()[0] as client, socket.socket(socket.AF_UNIX) as daemon:
                daemon.connect(self.server.qmp_path)
                back = threading.Thread(target=pump, args=(daemon, client, False))
                back.start()
                pump(client, daemon, True)
                back.join(30)

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            thread = threading.Thread(target=serve)
            thread.start()
            command = [w if w != self.server.qmp_path else path for w in self.backup_words(*words)]
            run(*command)
            thread.join(30)
        os.unlink(path)
        lines = [json.loads(line) for line in b"".join(seen).splitlines() if line]
        actions = [a for line in lines if line["execute"] == "transaction"
                   for a in line["arguments"]["actions"]]  # fmt: skip
        return {a["data"]["driver"]: a["data"] for a in actions if a["type"] == "blockdev-add"}

    def test_a_write_of_the_guest_waits_thirty_seconds_at_most(self):
        added = self.asked_of_the_daemon()
        self.assertEqual(added["copy-before-write"]["cbw-timeout"], 30)
        added = self.asked_of_the_daemon("--cbw-timeout", "5")
        self.assertEqual(added["copy-before-write"]["cbw-timeout"], 5)
        added = self.asked_of_the_daemon("--cbw-timeout", "0")
        self.assertNotIn("cbw-timeout", added["copy-before-write"])

    def test_old_data_is_kept_beside_the_disk(self):
        os.mkdir(self.path("images"))
        self.server.quit()
        os.rename(self.image, self.path("images/disk.qcow2"))
        self.image = self.path("images/disk.qcow2")
        self.start()
        filename = self.asked_of_the_daemon()["raw"]["file"]["filename"]
        self.assertTrue(filename.startswith(self.path("images/.tidemark-")), filename)
        self.assertEqual(os.listdir(self.path("images")), ["disk.qcow2"])

    def test_a_file_system_without_files_so_large(self):
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, 3 * MIB))

        self.write_random(0, MIB)
        process = self.own(
            Process(self.backup_words(), self.path("backup.log"), preexec_fn=limit)
        )
        self.assertEqual(process.wait(), 0, process.log())
        self.assert_restores(self.list_backups()[0], self.model)

    def test_a_daemon_that_dies_when_all_is_fetched(self):
        """The backup is complete; that the daemon could not be put in order has a status of its
        own.
        """

        def all_is_fetched():
            """The header of the checksums is written last."""
            (draft,) = [n for n in os.listdir(self.repository) if n.startswith(".tidemark-tmp-")]
            with open(os.path.join(self.repository, draft, "checksums"), "rb") as f:
                return f.read(8) == b"TIDESUMS"

        self.write_random(0, CLUSTER)  # so little that nothing is printed before the end
        held = self.hold_backup()
        wait_until(all_is_fetched, "the checksums")
        self.server.kill()
        status, said = held.release()
        self.assertEqual(status, 3, said)
        self.assertIn("is complete; the next backup will try again", said)
        self.assert_sound()

    def test_a_message_guesses_at_space_only_where_that_may_be(self):
        self.assertNotIn("could not keep old data",
                         self.backup_log("--nbd", "nbd:unix:/nowhere"))  # fmt: skip


class TestSpaceOfTheGuest(SmallCase):
    """The disk is on a small file system."""

    size = 64 * MIB

    def setUp(self):
        super().setUp()
        self.server.quit()
        self.images = self.path("images")
        as_root = () if ROOT else ("sudo", "-n")
        os.mkdir(self.images)
        run(*as_root, "mount", "-t", "tmpfs", "-o", f"size=80m,uid={os.geteuid()}", "tmpfs",
            self.images)  # fmt: skip
        self.addCleanup(run, *as_root, "umount", "-l", self.images)
        os.rename(self.path("disk.qcow2"), self.path("moved"))
        shutil.move(self.path("moved"), self.path("images/disk.qcow2"))
        self.image = self.path("images/disk.qcow2")
        self.start()
        self.write_random(0, 48 * MIB)

    def fill(self):
        fs = os.statvfs(self.images)
        with open(self.path("images/filler"), "wb") as f:
            f.write(bytes(fs.f_bavail * fs.f_frsize - MIB // 2))

    def test_old_data_is_kept_elsewhere_if_little_is_left(self):
        self.fill()
        manifest = self.backup()
        self.assertEqual(sorted(os.listdir(self.images)), ["disk.qcow2", "filler"])
        self.assert_restores(manifest, self.model)

    def test_a_backup_ends_before_it_takes_the_last_space(self):
        process = self.start_backup()
        process.wait_for(self.own_nodes, "the filter")
        freeze(process.process.pid)
        self.fill()
        time.sleep(0.3)
        process.process.send_signal(signal.SIGCONT)
        self.assertEqual(process.wait(), 1, process.log())
        self.assertIn("Too little space is left in", process.log())
        self.assert_settled()
        os.unlink(self.path("images/filler"))
        self.assert_restores(self.backup(), self.model)


class TestDaemons(SmallCase):
    def test_relative_path_of_the_nbd_socket(self):
        self.server.quit()
        program = [os.path.abspath(w) if "/" in w else w for w in tool("daemon")]
        self.server = self.daemon(
            "--blockdev", "driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2",
            "--nbd-server", "addr.type=unix,addr.path=nbd.sock",
            "--export", "type=nbd,id=export0,node-name=disk,name=disk,writable=on",
            cwd=self.dir, program=program,
        )  # fmt: skip
        self.server.wait_for(lambda: can_connect(self.socket), "the NBD server")
        self.write_random(0, MIB)
        self.assert_restores(self.backup(), self.model)

    def test_a_server_for_one_connection(self):
        self.write_random(0, MIB)
        self.server.quit()
        self.server = self.daemon(
            "--blockdev",
            f"driver=qcow2,node-name=disk,file.driver=file,file.filename={self.image}",
            "--nbd-server", f"addr.type=unix,addr.path={self.socket},max-connections=1",
            "--export", "type=nbd,id=export0,node-name=disk,name=disk,writable=on",
        )  # fmt: skip
        self.backup()
        self.write_random(0, CLUSTER)
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_restores(manifest, self.model)

    def test_two_disks_share_the_server_that_one_has_started(self):
        self.server.quit()
        second = self.create("second.qcow2", "4M")
        self.server = self.daemon(
            *[w for node, path in (("disk", self.image), ("second", second))
              for w in ("--blockdev", f"driver=qcow2,node-name={node},"
                        f"file.driver=file,file.filename={path}")],
        )  # fmt: skip
        for _ in range(3):
            runs = [
                self.own(
                    Process(
                        [*tool("backup"), "--qmp", self.server.qmp_path, "--node", node,
                         "--to", self.path("to-" + node), "--full"],
                        self.path(node + ".log"),
                    )
                )
                for node in ("disk", "second")
            ]  # fmt: skip
            self.assertEqual([r.wait() for r in runs], [0, 0], [r.log() for r in runs])
        self.assertEqual(self.fleeces(), [])
        self.assertFalse(self.server.qmp.command("query-nbd-server")["running"])

    def test_a_server_that_speaks_tls(self):
        keys = make_psk(self.dir, "psk", alice="0123456789abcdef" * 4)
        self.write_random(0, MIB)
        self.server.quit()
        self.server = self.daemon(
            "--object", psk("server", keys),
            "--blockdev",
            f"driver=qcow2,node-name=disk,file.driver=file,file.filename={self.image}",
            "--nbd-server", f"addr.type=unix,addr.path={self.socket},tls-creds=tls0",
            "--export", "type=nbd,id=export0,node-name=disk,name=disk,writable=on",
        )  # fmt: skip
        self.assertIn("TLS", self.backup_log())
        words = ("--object", psk("client", keys, "alice"), "--tls-creds", "tls0")
        self.assertEqual(self.backup(*words)["kind"], "full")
        manifest = self.backup(*words)
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_restores(manifest, self.model)

    def test_an_image_that_stores_no_bitmaps_has_them_in_memory(self):
        self.server.quit()
        os.unlink(self.image)
        self.image = self.create("disk.qcow2", str(self.size), options=("-o", "compat=0.10"))
        self.start()
        self.write_random(0, MIB)
        self.backup()
        self.write_random(MIB, CLUSTER)
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_restores(manifest, self.model)

    def test_a_daemon_of_another_user(self):
        self.write_random(0, MIB)
        self.server.quit()
        as_other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        for path in (self.dir, self.image):
            run(*(() if ROOT else ("sudo", "-n")), "chown", "65534:65534", path)
        if not ROOT:
            as_other = ["sudo", "-n", *as_other]
        self.server = self.daemon(
            "--blockdev",
            f"driver=qcow2,node-name=disk,file.driver=file,file.filename={self.image}",
            program=[*as_other, *[os.path.abspath(w) if "/" in w else w for w in tool("daemon")]],
        )
        manifest = self.backup()
        self.assertEqual(self.fleeces(), [])
        self.assert_restores(manifest, self.model)
