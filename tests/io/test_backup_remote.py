# SPDX-License-Identifier: Apache-2.0
"""Backups of a daemon on another machine, and of one that another user runs."""

import json
import os
import subprocess
import tempfile

import nbd

from backup_case import MIB, BackupCase
from qmp import QmpError
from test_backup_kills import KillCase
from test_ssh import Ssh, free_port
from tidemark import BUILD, TestCase, run, tool, wait_until
from tls_creds import Authority, x509

CLUSTER = 65536
NOBODY = 65534


def with_monitor(path):
    """A daemon with one more monitor."""
    chardev = f"socket,id=more,path={path},server=on,wait=off"
    return [*tool("daemon"), "--chardev", chardev, "--monitor", "chardev=more"]


class RemoteCase(BackupCase):
    """As if it were on another machine: the address says so."""

    size = 8 * MIB

    def backup_words(self, *words):
        return [
            *tool("backup"), "--qmp", self.address(), "--node", "disk", "--to", self.repository,
            *self.words(), *words,
        ]  # fmt: skip

    def words(self):
        return []

    def check_rounds(self):
        taken = []
        self.write_random(0, 4 * MIB)
        taken.append((self.backup(), bytes(self.model)))
        self.write_random(MIB, CLUSTER)
        taken.append((self.backup(), bytes(self.model)))
        self.write_random(2 * MIB, MIB)
        held = self.hold_backup()
        model = bytes(self.model)
        self.write_random(2 * MIB, MIB)
        status, said = held.release()
        self.assertEqual(status, 0, said)
        taken.append((self.list_backups()[-1], model))
        self.assertEqual(
            [(m["kind"], m["moved-bytes"]) for m, _ in taken],
            [("full", 4 * MIB), ("incremental", CLUSTER), ("incremental", MIB)],
        )
        for manifest, model in taken:
            self.assert_restores(manifest, model)
        self.assert_sound()
        self.assert_settled()

    def names_in_use(self):
        """Of files that the daemon has open."""
        fds = f"/proc/{self.server.process.pid}/fd"
        return [os.readlink(os.path.join(fds, fd)) for fd in os.listdir(fds)]

    def check_kill(self):
        self.write_random(0, MIB)
        self.backup()
        self.write_random(0, CLUSTER)
        self.hold_backup().kill()
        self.assertTrue(any("deleted" in n for n in self.names_in_use()))
        self.write_random(0, MIB)
        own, self.repository = self.repository, os.path.dirname(self.repository) + "/other"
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("under way", result.stderr)
        self.assertIn("--forget", result.stderr)
        self.repository = own
        (left,) = json.loads(
            run(
                *tool("backup"), "--qmp", self.address(), *self.words(), "--leftovers",
                "--output=json",
            ).stdout
        )  # fmt: skip
        self.assertEqual((left["node"], left["bitmaps"]), ("disk", 2))
        manifest = self.backup()
        self.assertEqual((manifest["reason"], manifest["moved-bytes"]), (None, MIB))
        self.assert_restores(manifest, self.model)
        self.assert_settled()
        self.assertFalse(any("deleted" in n for n in self.names_in_use()))

    def check_guard(self):
        self.write_random(0, MIB)
        self.backup()
        self.write_random(0, CLUSTER)
        self.hold_backup(guard=True).kill()
        wait_until(lambda: not self.own_nodes(), "the guard")
        wait_until(lambda: len(self.own_bitmaps()) == 1, "the bitmaps in order")


class TcpCase(RemoteCase):
    monitor = nbd = ""
    objects = ()

    def start(self):
        self.port, self.nbd_port = free_port(), free_port()
        self.server = self.daemon(
            *self.objects,
            "--chardev", f"socket,id=remote,host=127.0.0.1,port={self.port},server=on,wait=off"
            + self.monitor,
            "--monitor", "chardev=remote",
            "--blockdev", "driver=qcow2,node-name=disk,discard=unmap,"
            f"file.driver=file,file.discard=unmap,file.filename={self.image}",
            "--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={self.nbd_port}"
            + self.nbd,
            "--export", "type=nbd,id=export0,node-name=disk,name=disk,writable=on",
        )  # fmt: skip

    def client(self):
        handle = nbd.NBD()
        if self.nbd:
            handle.set_tls(nbd.TLS_REQUIRE)
            handle.set_tls_certificates(self.client_creds)
        handle.set_export_name("disk")
        handle.connect_tcp("127.0.0.1", str(self.nbd_port))
        return handle

    def address(self):
        return f"tcp:127.0.0.1:{self.port}"


class TestTcp(TcpCase):
    def test_every_point_in_time_restores(self):
        self.check_rounds()

    def test_what_a_killed_run_has_left(self):
        self.check_kill()

    def test_a_guard_cleans_up_after_a_kill(self):
        self.check_guard()

    def test_an_audit(self):
        self.write_random(0, MIB)
        self.backup()
        words = [*tool("audit"), "--qmp", self.address(), "--node", "disk", "--to",
                 self.repository, "--output=json"]  # fmt: skip
        self.assertEqual(json.loads(run(*words).stdout)["missed-bytes"], 0)

    def test_the_disk_is_known_by_its_machine(self):
        self.write_random(0, MIB)
        self.assertEqual(self.backup()["disk"], "127.0.0.1:" + os.path.realpath(self.image))

    def test_the_temporary_image_has_no_name(self):
        self.write_random(0, MIB)
        held = self.hold_backup("--fleece-dir", self.dir)
        names = os.listdir(self.dir)
        self.assertEqual(held.release()[0], 0)
        self.assertFalse([n for n in names if "tidemark" in n], names)
        result = run(*self.backup_words("--fleece-dir", "/nowhere"), check=False)
        self.assertIn("'/nowhere'", result.stderr)
        self.assert_settled()

    def test_wrong_addresses(self):
        for address, why in (
            ("tcp:127.0.0.1", "expected tcp:HOST:PORT"),
            ("tcp:::1:5", "expected tcp:HOST:PORT"),
            (f"tcp:[::1]:{free_port()}", "Failed to connect to"),
            (f"tcp:127.0.0.1:{self.nbd_port}", "no QMP"),
        ):
            words = [w if w != self.address() else address for w in self.backup_words()]
            result = run(*words, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(why, result.stderr)

    def test_a_disk_is_not_restored_to_another_machine(self):
        self.write_random(0, MIB)
        self.backup()
        result = run(
            *tool("restore"), self.repository, self.path("new.raw"), "--qmp", self.address(),
            "--node", "new", check=False,
        )  # fmt: skip
        self.assertEqual(result.returncode, 1)
        self.assertIn("is on another machine", result.stderr)
        self.assertFalse(os.path.exists(self.path("new.raw")))


class TestKills(TcpCase, KillCase):
    daemon_may_die = True

    def test_random_moments(self):
        self.run_rounds()


class TestTls(TcpCase):
    monitor, nbd = ",tls-creds=tls0", ",tls-creds=tls0"

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="tm-tls-")
        cls.addClassCleanup(cls.folder.cleanup)
        ca = Authority(cls.folder.name, "ca")
        cls.objects = ("--object", x509("server", ca.make("server", "server")))
        cls.client_creds = ca.make("client", "client")
        cls.strangers = Authority(cls.folder.name, "ca2").make("stranger", "client")

    def words(self):
        return ["--object", x509("client", self.client_creds), "--qmp-tls-creds", "tls0",
                "--tls-creds", "tls0"]  # fmt: skip

    def test_every_point_in_time_restores(self):
        self.check_rounds()

    def test_a_guard_cleans_up_after_a_kill(self):
        self.check_guard()

    def test_who_is_not_trusted(self):
        self.write_random(0, MIB)
        for words, why in (
            (["--object", x509("client", self.strangers), "--qmp-tls-creds", "tls0"], "TLS with"),
            ([*self.words(), "--tls-hostname", "other.example"], "TLS with"),
            ([], "name credentials with --qmp-tls-creds"),
            (self.words()[:-2], "name credentials with --tls-creds"),
        ):
            result = run(
                *tool("backup"), "--qmp", self.address(), "--node", "disk", "--to",
                self.path("never"), *words, check=False,
            )  # fmt: skip
            self.assertEqual(result.returncode, 1)
            self.assertIn(why, result.stderr)


class TestSsh(RemoteCase, Ssh):
    """The SSH server runs before; nobody needs its `server`."""

    def start(self):
        super().start(program=with_monitor(self.path("remote.qmp")))

    def address(self):
        hash_ = "sha256:" + self.fingerprint("sha256")
        return f"ssh://127.0.0.1:{self.port}{self.dir}/remote.qmp?host_key_check={hash_}"

    def test_every_point_in_time_restores(self):
        self.check_rounds()

    def test_what_a_killed_run_has_left(self):
        self.check_kill()

    def test_a_guard_cleans_up_after_a_kill(self):
        self.check_guard()

    def test_the_connection_ends_before_the_program(self):
        """Else its thread uses libraries that have cleaned up, now and then."""
        late = os.path.join(BUILD, "tests", "tools", "liblate_end.so")
        for words in (["--leftovers"], ["--node", "disk", "--to", self.repository]):
            command = [*tool("backup"), "--qmp", self.address(), *words]
            result = subprocess.run(command, env={**os.environ, "LD_PRELOAD": late},
                                    capture_output=True, check=False)  # fmt: skip
            self.assertEqual(result.returncode, 0, result.stderr)

    def test_an_nbd_server_at_a_relative_path(self):
        """Relative to the directory of the daemon, which is on the other machine."""
        self.write_random(0, MIB)
        path = os.path.relpath(self.socket, os.readlink(f"/proc/{self.server.process.pid}/cwd"))
        self.server.qmp.command("nbd-server-stop")
        self.server.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        self.assert_restores(self.backup(), self.model)

    def test_a_machine_whose_key_is_not_known(self):
        address = self.address().split("?", maxsplit=1)[0]
        result = run(*tool("backup"), "--qmp", address, "--node", "disk", "--to",
                     self.repository, check=False)  # fmt: skip
        self.assertEqual(result.returncode, 1)
        self.assertIn(address, result.stderr)
        self.assertIn(f"'ssh 127.0.0.1 -p {self.port}' has to work", result.stderr)

    def test_a_socket_that_is_not_there(self):
        address = self.address().replace("remote.qmp", "none.qmp")
        result = run(*tool("backup"), "--qmp", address, "--node", "disk", "--to",
                     self.repository, check=False)  # fmt: skip
        self.assertEqual(result.returncode, 1)
        self.assertIn("does not connect to its socket", result.stderr)


class TestAnotherUser(RemoteCase):
    """The backup runs as nobody, and may give no files to the daemon's user."""

    def setUp(self):
        super().setUp()
        os.chmod(self.dir, 0o755)
        self.repository = self.path("of-nobody/backups")
        os.mkdir(self.path("of-nobody"))
        os.chown(self.path("of-nobody"), NOBODY, NOBODY)

    def start(self):
        super().start(program=with_monitor(self.path("other.qmp")))
        for name in (self.path("other.qmp"), self.socket):
            os.chmod(name, 0o777)

    def address(self):
        return self.path("other.qmp")

    def backup_words(self, *words):
        program = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        return ["setpriv", *program, *super().backup_words(*words)]

    def test_every_point_in_time_restores(self):
        self.check_rounds()

    def test_what_a_killed_run_has_left(self):
        self.check_kill()


class TestTemporaryFiles(TestCase):
    def test_a_file_that_lives_as_long_as_its_node(self):
        server = self.daemon()
        where = self.path("here")
        os.mkdir(where)
        add = {"driver": "file", "node-name": "t", "filename": where, "x-temporary": 5 * MIB}
        server.qmp.command("blockdev-add", **add)
        (node,) = server.qmp.command("query-named-block-nodes")
        self.assertEqual(node["image"]["virtual-size"], 5 * MIB)
        self.assertEqual(os.listdir(where), [])
        server.qmp.command("blockdev-del", **{"node-name": "t"})
        fds = f"/proc/{server.process.pid}/fd"
        self.assertNotIn(where, "".join(os.readlink(f"{fds}/{fd}") for fd in os.listdir(fds)))
        for more, why in (
            ({"read-only": True}, "Read-only file system"),
            ({"filename": self.path("none")}, "No such file or directory"),
            ({"x-temporary": 1 << 62}, "File too large"),
        ):
            with self.assertRaisesRegex(QmpError, why):
                server.qmp.command("blockdev-add", **{**add, **more})
