# SPDX-License-Identifier: Apache-2.0
"""Descriptors passed to a monitor: names, sets, files opened through them, hostile clients."""

import contextlib
import json
import os
import socket

import tidemark
from qmp import QmpError


class PassedFdTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.server = self.daemon()
        self.qmp = self.server.qmp

    def open(self, path, flags=os.O_RDONLY):
        fd = os.open(path, flags)
        self.addCleanup(os.close, fd)
        return fd

    def raw(self, name="disk.raw", size="1M"):
        return self.create(name, size, "raw")

    def send(self, command, fds, qmp=None, /, **arguments):
        """A command whose message carries descriptors; its whole answer."""
        qmp = qmp or self.qmp
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        message = json.dumps({"execute": command, "arguments": arguments}).encode()
        socket.send_fds(qmp.sock, [message], fds)
        return qmp.receive_answer()

    def passed(self, command, fds, qmp=None, /, **arguments):
        answer = self.send(command, fds, qmp, **arguments)
        self.assertIn("return", answer)
        return answer["return"]

    def refused(self, command, wanted, **arguments):
        with self.assertRaises(QmpError) as caught:
            self.qmp.command(command, **arguments)
        self.assertEqual(caught.exception.desc, wanted)

    def open_files(self):
        """How many descriptors the daemon has for files of the test."""
        folder = f"/proc/{self.server.pid}/fd"
        count = 0
        for fd in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                count += os.readlink(f"{folder}/{fd}").startswith(self.dir)
        return count

    def sets(self):
        return {
            s["fdset-id"]: [fd.get("opaque") for fd in s["fds"]]
            for s in self.qmp.command("query-fdsets")
        }


class NameTest(PassedFdTest):
    def test_a_descriptor_gets_a_name_and_loses_it(self):
        before = self.open_files()
        fd = self.open(self.raw())
        self.refused("getfd", "No file descriptor supplied via SCM_RIGHTS", fdname="a")
        self.assertEqual(self.passed("getfd", [fd], fdname="a"), {})
        self.passed("getfd", [fd], fdname="a")
        self.assertEqual(self.open_files(), before + 1)
        self.qmp.command("closefd", fdname="a")
        self.assertEqual(self.open_files(), before)
        self.refused("closefd", "File descriptor named 'a' not found", fdname="a")

    def test_a_name_does_not_begin_with_a_digit(self):
        before = self.open_files()
        answer = self.send("getfd", [self.open(self.raw())], fdname="0a")
        self.assertEqual(
            answer["error"]["desc"], "Parameter 'fdname' expects a name not starting with a digit"
        )
        self.assertEqual(self.open_files(), before)

    def test_names_belong_to_the_monitor_and_outlive_its_clients(self):
        self.passed("getfd", [self.open(self.raw())], fdname="a")
        self.qmp.close()
        self.qmp = self.server.qmp = self.server.connect()
        self.qmp.command("closefd", fdname="a")

    def test_the_nbd_server_listens_on_a_named_socket(self):
        path = self.path("nbd.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            self.passed("getfd", [listener.fileno()], fdname="nbd")
        for name in "other", "5":
            self.refused(
                "nbd-server-start",
                f"File descriptor named '{name}' has not been found",
                addr={"type": "fd", "data": {"str": name}},
            )
        self.qmp.command("nbd-server-start", addr={"type": "fd", "data": {"str": "nbd"}})
        self.refused("closefd", "File descriptor named 'nbd' not found", fdname="nbd")
        self.qmp.command("blockdev-add", driver="null-co", node_name="null", size=65536)
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="null")
        tidemark.img("info", tidemark.nbd_uri(path, "null"))

    def test_a_named_descriptor_that_is_no_socket_is_refused_and_closed(self):
        before = self.open_files()
        self.passed("getfd", [self.open(self.raw())], fdname="file")
        self.refused(
            "nbd-server-start",
            "File descriptor 'file' is not a socket",
            addr={"type": "fd", "data": {"str": "file"}},
        )
        self.assertEqual(self.open_files(), before)


    def test_descriptors_belong_to_requests_that_wait(self):
        """With execution out of band the monitor reads ahead."""
        fds = [self.open(self.raw(f"{i}.raw")) for i in range(5)]
        with self.server.connect(negotiate=False) as client:
            client.execute("qmp_capabilities", {"enable": ["oob"]})
            for number, fd in enumerate(fds):
                message = {"execute": "add-fd", "arguments": {"fdset-id": number}}
                socket.send_fds(client.sock, [json.dumps(message).encode()], [fd])
            answers = [client.receive_answer()["return"] for _ in fds]
        for answer in answers:
            path = os.readlink(f"/proc/{self.server.pid}/fd/{answer['fd']}")
            self.assertEqual(path, self.path(f"{answer['fdset-id']}.raw"))


class SetTest(PassedFdTest):
    def test_sets_get_the_lowest_free_id(self):
        fd = self.open(self.raw())
        for wanted in 0, 1, 2:
            self.assertEqual(self.passed("add-fd", [fd])["fdset-id"], wanted)
        self.qmp.command("remove-fd", fdset_id=1)
        self.assertEqual(self.passed("add-fd", [fd], opaque="x")["fdset-id"], 1)
        answer = self.passed("add-fd", [fd], fdset_id=1, opaque="y")
        self.assertEqual(sorted(answer), ["fd", "fdset-id"])
        self.assertEqual(self.sets(), {2: [None], 1: ["x", "y"], 0: [None]})
        self.assertEqual(list(self.sets()), [2, 1, 0])
        self.qmp.command("remove-fd", fdset_id=1, fd=answer["fd"])
        self.assertEqual(self.sets()[1], ["x"])

    def test_what_is_not_there_is_named(self):
        fd = self.open(self.raw())
        self.refused("add-fd", "No file descriptor supplied via SCM_RIGHTS", fdset_id=1)
        answer = self.send("add-fd", [fd], fdset_id=-1)
        self.assertEqual(
            answer["error"]["desc"], "Parameter 'fdset-id' expects a non-negative value"
        )
        self.passed("add-fd", [fd], fdset_id=1)
        self.refused("remove-fd", "File descriptor named 'fdset-id:2' not found", fdset_id=2)
        self.refused(
            "remove-fd", "File descriptor named 'fdset-id:1, fd:99' not found", fdset_id=1, fd=99
        )

    def refused_open(self, filename, why, **options):
        self.refused("blockdev-add", why, driver="file", node_name="n", filename=filename, **options)

    def test_the_access_mode_decides(self):
        image = self.raw()
        self.passed("add-fd", [self.open(image)], fdset_id=1)
        self.passed("add-fd", [self.open(image, os.O_RDWR)], fdset_id=2)
        denied = "Could not dup FD for /dev/fdset/%d flags %d: Permission denied"
        self.refused_open("/dev/fdset/1", denied % (1, 2))
        self.refused_open("/dev/fdset/2", denied % (2, 0), read_only=True)
        self.refused_open(
            "/dev/fdset/7", "Could not dup FD for /dev/fdset/7 flags 2: No such file or directory"
        )
        self.refused_open("/dev/fdset/x", "Could not parse fdset /dev/fdset/x")
        self.refused_open("/dev/fdset/-1", "Could not parse fdset /dev/fdset/-1")
        for node, number, more in ("r", 1, {"read_only": True}), ("w", 2, {}):
            self.qmp.command(
                "blockdev-add", driver="file", node_name=node, filename=f"/dev/fdset/{number}", **more
            )
        self.qmp.command("blockdev-del", node_name="r")
        self.qmp.command(
            "blockdev-add",
            driver="file",
            node_name="r",
            filename="/dev/fdset/1",
            auto_read_only=True,
        )

    def test_a_set_without_descriptors_lives_as_long_as_its_nodes(self):
        before = self.open_files()
        image = self.raw()
        self.passed("add-fd", [self.open(image, os.O_RDWR)], fdset_id=1)
        self.qmp.command("blockdev-add", driver="file", node_name="n", filename="/dev/fdset/1")
        self.qmp.command("remove-fd", fdset_id=1)
        self.assertEqual(self.sets(), {1: []})
        self.refused(
            "blockdev-add",
            "Could not dup FD for /dev/fdset/1 flags 2: Permission denied",
            driver="file",
            node_name="m",
            filename="/dev/fdset/1",
        )
        self.qmp.command("blockdev-del", node_name="n")
        self.assertEqual(self.sets(), {})
        self.assertEqual(self.open_files(), before)

    def test_a_closed_node_holds_no_lock(self):
        image = self.raw()
        self.passed("add-fd", [self.open(image, os.O_RDWR)], fdset_id=1)
        for node in "a", "b":
            self.qmp.command(
                "blockdev-add", driver="raw", node_name=node, file={"driver": "file", "filename": "/dev/fdset/1"}
            )
        write = ("write -P 1 0 4k",)
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": self.path("n")}})
        for node in "a", "b":
            self.qmp.command("block-export-add", type="nbd", id=node, node_name=node, writable=True)
        self.assertIn("lock", tidemark.io(image, *write, fmt="raw", check=False).stderr)
        for node in "a", "b":
            self.qmp.command("block-export-del", id=node)
            self.qmp.wait_event("BLOCK_EXPORT_DELETED")
            self.qmp.command("blockdev-del", node_name=node)
        self.assertEqual(self.sets(), {1: [None]})
        tidemark.io(image, *write, fmt="raw")

    def test_an_overlay_is_committed_into_a_base_of_a_set(self):
        """A node that was opened for reading is reopened for writing through its set."""
        base, top = self.create("base.qcow2", "1M"), self.create("top.qcow2", "1M")
        tidemark.io(top, "write -P 7 0 64k", fmt="qcow2")
        for flags in os.O_RDONLY, os.O_RDWR:
            self.passed("add-fd", [self.open(base, flags)], fdset_id=3)
        os.unlink(base)
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="base",
            read_only=True,
            file={"driver": "file", "filename": "/dev/fdset/3"},
        )
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="top",
            file={"driver": "file", "filename": top},
            backing="base",
        )
        self.qmp.command("block-commit", job_id="c", device="top", base_node="base")
        self.qmp.wait_event("BLOCK_JOB_READY")
        self.qmp.command("job-complete", id="c")
        self.qmp.wait_event("BLOCK_JOB_COMPLETED")
        copy = self.path("copy")
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": self.path("n")}})
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="base")
        tidemark.img("convert", tidemark.nbd_uri(self.path("n"), "base"), copy)
        with open(copy, "rb") as data:
            self.assertEqual(data.read(65536), b"\7" * 65536)

    def test_another_file_of_a_set_does_not_take_the_place_of_the_first(self):
        one, other = self.raw("one"), self.raw("other")
        self.passed("add-fd", [self.open(one)], fdset_id=1)
        self.passed("add-fd", [self.open(other, os.O_RDWR)], fdset_id=1)
        options = {"driver": "file", "node-name": "n", "filename": "/dev/fdset/1"}
        self.qmp.command("blockdev-add", **options, read_only=True)
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("blockdev-reopen", options=[options])
        self.assertIn("Permission denied", caught.exception.desc)

    def test_an_image_is_created_in_a_descriptor(self):
        image = self.path("new")
        self.passed("add-fd", [self.open(image, os.O_RDWR | os.O_CREAT)], fdset_id=1)
        self.qmp.command(
            "blockdev-create",
            job_id="c",
            options={"driver": "file", "filename": "/dev/fdset/1", "size": 1 << 20},
        )
        self.qmp.command("query-jobs")
        tidemark.wait_until(lambda: os.path.getsize(image) == 1 << 20, "the image")


class HostileTest(PassedFdTest):
    def test_what_no_command_takes_is_closed(self):
        fd = self.open(self.raw())
        before = self.open_files()
        for command, arguments in (
            ("query-version", {}),
            ("no-such-command", {}),
            ("add-fd", {"fdset_id": -1}),
            ("add-fd", {"fdset_id": "x"}),
            ("getfd", {}),
            ("getfd", {"fdname": "1"}),
        ):
            for _ in range(100):
                self.send(command, [fd] * 16, **arguments)
        self.assertLessEqual(self.open_files(), before + 1)
        self.qmp.close()
        self.qmp = self.server.qmp = self.server.connect()
        tidemark.wait_until(lambda: self.open_files() == before, "the descriptors to be closed")

    def test_the_first_of_many_descriptors_is_taken(self):
        image = self.raw()
        fds = [self.open(image)] + [self.open(self.raw("other"))] * 252
        before = self.open_files()
        self.passed("add-fd", fds, fdset_id=1)
        self.assertEqual(self.open_files(), before + 1)
        self.qmp.command(
            "blockdev-add", driver="file", node_name="n", filename="/dev/fdset/1", read_only=True
        )
        folder = f"/proc/{self.server.pid}/fd"
        names = [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]
        self.assertEqual(names.count(image), 2)
        self.assertNotIn(self.path("other"), names)

    def test_half_a_message_with_descriptors_leaves_none(self):
        fd = self.open(self.raw())
        before = self.open_files()
        for _ in range(20):
            with self.server.connect() as client:
                socket.send_fds(client.sock, [b'{"execute": "add-'], [fd] * 10)
                socket.send_fds(client.sock, [b'fd", "argu'], [fd] * 10)
        tidemark.wait_until(lambda: self.open_files() == before, "the descriptors to be closed")

    def test_a_client_that_has_not_negotiated_adds_nothing(self):
        fd = self.open(self.raw())
        before = self.open_files()
        with self.server.connect(negotiate=False) as client:
            self.assertIn("error", self.send("add-fd", [fd], client))
        tidemark.wait_until(lambda: self.open_files() == before, "the descriptor to be closed")
        self.assertEqual(self.sets(), {})
