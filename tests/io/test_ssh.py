# SPDX-License-Identifier: Apache-2.0
"""Files over SSH: a server of its own, on a free port, with keys made for the test."""

import getpass
import hashlib
import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import unittest

from tidemark import Process, TestCase, can_connect, compat, img, io, qemu_img, run, tool, wait_until

SSHD = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class Ssh(TestCase):
    settings = ""  # of the server

    def sftp(self):
        return "internal-sftp"

    def setUp(self):
        super().setUp()
        for name in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.path(name))
        self.port = free_port()
        config = self.path("sshd_config")
        with open(config, "w", encoding="utf-8") as f:
            f.write(
                f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.path('host')}\n"
                f"AuthorizedKeysFile {self.path('user.pub')}\nStrictModes no\nUsePAM no\n"
                f"PasswordAuthentication no\nPidFile none\nSubsystem sftp {self.sftp()}\n"
                f"{self.settings}"
            )
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        self.server = self.own(Process([SSHD, "-D", "-e", "-f", config], self.path("sshd.log")))
        self.server.wait_for(lambda: answers(self.port), "the server")
        self.start_agent()
        self.directory = self.path("files")
        os.mkdir(self.directory)

    def start_agent(self):
        agent = self.path("agent")
        self.own(Process(["ssh-agent", "-D", "-a", agent], self.path("agent.log")))
        wait_until(lambda: can_connect(agent), "the agent")
        before = os.environ.get("SSH_AUTH_SOCK")
        os.environ["SSH_AUTH_SOCK"] = agent
        self.addCleanup(
            lambda: os.environ.pop("SSH_AUTH_SOCK")
            if before is None
            else os.environ.update(SSH_AUTH_SOCK=before)
        )
        run("ssh-add", "-q", self.path("user"))

    def fingerprint(self, kind):
        with open(self.path("host.pub"), encoding="utf-8") as f:
            return hashlib.new(kind, base64.b64decode(f.read().split()[1])).hexdigest()

    def local(self, name):
        return os.path.join(self.directory, name)

    def uri(self, name, check="no"):
        return (
            f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.local(name)}"
            f"?host_key_check={check}"
        )


class Files(Ssh):
    def test_qcow2(self):
        uri = self.uri("disk.qcow2")
        img("create", "-q", "-f", "qcow2", uri, "64M")
        io(uri, "write -P 1 0 1M", "write -P 2 63M 1M", "flush", "write -z 64k 64k", fmt="qcow2")
        reads = ("read -P 1 0 64k", "read -P 0 64k 64k", "read -P 0 1M 62M", "read -P 2 63M 1M")
        io(uri, *reads, fmt="qcow2")
        path = self.local("disk.qcow2")
        qemu_img("check", path)
        run("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 1 128k 896k", path)

    def test_raw_of_any_size(self):
        path = self.local("disk.raw")
        with open(path, "wb") as f:
            f.write(b"x" * 100000)
        uri = self.uri("disk.raw")
        info = json.loads(img("info", "-f", "raw", "--output=json", uri).stdout)
        self.assertEqual(info["virtual-size"], 100352)
        io(uri, "read -P 120 0 100000", "read -P 0 100000 352", "write -P 7 99999 3", fmt="raw")
        with open(path, "rb") as f:
            self.assertEqual(f.read(), b"x" * 99999 + b"\7\7\7")
        img("resize", "-q", "-f", "raw", uri, "2M")
        self.assertEqual(os.path.getsize(path), 2 << 20)

    def test_convert_there_and_back(self):
        source, back = self.path("source.raw"), self.path("back.raw")
        with open(source, "wb") as f:
            f.write(os.urandom(3 << 20) + bytes(1 << 20))
        for fmt in ("raw", "qcow2"):
            uri = self.uri("there." + fmt)
            img("convert", "-f", "raw", "-O", fmt, source, uri)
            img("convert", "-f", fmt, "-O", "raw", uri, back)
            qemu_img("compare", "-f", "raw", "-F", fmt, source, self.local("there." + fmt))
            qemu_img("compare", "-f", "raw", "-F", "raw", source, back)

    def test_options_and_the_name_they_give(self):
        img("create", "-q", "-f", "raw", self.local("disk.raw"), "1M")
        options = (
            f"driver=raw,file.driver=ssh,file.server.host=127.0.0.1,file.server.port={self.port},"
            f"file.path={self.local('disk.raw')},file.host-key-check.mode=hash,"
            f"file.host-key-check.type=sha1,file.host-key-check.hash={self.fingerprint('sha1')}"
        )
        out = run(compat("qemu-img"), "info", "--image-opts", options).stdout
        self.assertIn(f"ssh://127.0.0.1:{self.port}{self.local('disk.raw')}", out)

    def test_relative_names_are_of_the_server(self):
        odd = self.local("100%41?")
        os.mkdir(odd)
        for directory in (odd, self.dir):
            img("create", "-q", "-f", "raw", os.path.join(directory, "base.raw"), "1M")
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", odd + "/top.qcow2")
        where = f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.local('100%2541%3F')}/"
        top = where + "top.qcow2?host_key_check=no"
        info = json.loads(img("info", "-f", "qcow2", "--output=json", top).stdout)
        self.assertEqual(info["full-backing-filename"], where + "base.raw")
        # Not that of the working directory; and the server has to prove who it is for each file.
        program, word = tool("io")
        command = (os.path.abspath(program), word, "-r", "-f", "qcow2", "-c", "read 0 512", top)
        result = run(*command, cwd=self.dir, check=False)
        self.assertRegex(result.stderr, "known_hosts|host key for this server not found")
        new = where + "new.qcow2?host_key_check=no"
        img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", new)
        info = json.loads(qemu_img("info", "--output=json", odd + "/new.qcow2").stdout)
        self.assertEqual((info["backing-filename"], info["virtual-size"]), ("base.raw", 1 << 20))

    def test_the_server_has_to_be_the_one_that_is_meant(self):
        img("create", "-q", "-f", "raw", self.local("disk.raw"), "1M")
        for kind in ("md5", "sha1", "sha256"):
            good = self.fingerprint(kind)
            img("info", "-f", "raw", self.uri("disk.raw", f"{kind}:{good}"))
            colons = ":".join(re.findall("..", good)).upper()
            img("info", "-f", "raw", self.uri("disk.raw", f"{kind}:{colons}"))
            for bad in ("wrong", good[:-1], good + "0", ""):
                result = img("info", "-f", "raw", self.uri("disk.raw", f"{kind}:{bad}"), check=False)
                self.assertIn(f"fingerprint '{kind}:", result.stderr)
                self.assertIn(f"does not match host_key_check '{kind}:{bad}'", result.stderr)
        result = img("info", "-f", "raw", self.uri("disk.raw", "yes"), check=False)
        self.assertRegex(result.stderr, "known_hosts|host key for this server not found")
        result = img("info", "-f", "raw", self.uri("disk.raw", "maybe"), check=False)
        self.assertIn("unknown host_key_check setting (maybe)", result.stderr)

    def test_who_has_no_key_is_refused(self):
        run("ssh-add", "-q", "-D")
        result = img("info", "-f", "raw", self.uri("disk.raw"), check=False)
        self.assertIn("failed to authenticate using publickey", result.stderr)

    def test_files_that_cannot_be_opened(self):
        for name, words in (
            ("missing", "No such file (libssh error code: 1, sftp error code: 2)"),
            (".", "no regular file"),
        ):
            result = img("info", "-f", "raw", self.uri(name), check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(words, result.stderr)

    def test_a_server_that_goes_away_is_an_error(self):
        img("create", "-q", "-f", "raw", self.local("disk.raw"), "1M")
        command = [compat("qemu-io"), "-f", "raw", self.uri("disk.raw")]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as client:
            client.stdin.write("read 0 4k\n")
            client.stdin.flush()
            wait_until(lambda: "4096" in client.stdout.readline(), "the first read")
            subprocess.run(["pkill", "-P", str(self.server.pid)], check=True)  # the connection
            self.server.kill()
            output, _ = client.communicate("read 0 4k\nquit\n", timeout=60)
        self.assertIn("read failed: Input/output error", output)


class FileOfImpossibleSize(Ssh):
    """A server that tells nonsense: as the sftp subsystem, it answers what opening a file asks."""

    SERVER = """\
import os, struct, sys

def receive(size):
    data = sys.stdin.buffer.read(size)
    return data if len(data) == size else sys.exit()

def answer(kind, body):
    os.write(1, struct.pack(">IB", len(body) + 1, kind) + body)

while True:
    request = receive(*struct.unpack(">I", receive(4)))
    if request[0] == 1:
        answer(2, struct.pack(">I", 3))
    elif request[0] == 3:
        answer(102, request[1:5] + struct.pack(">I", 1) + b"h")
    elif request[0] == 8:
        answer(105, request[1:5] + struct.pack(">IQI", 1 | 4, (1 << 64) - 1000, 0o100644))
    else:
        answer(101, request[1:5] + bytes(12))
"""

    def sftp(self):
        with open(self.path("sftp.py"), "w", encoding="ascii") as f:
            f.write(self.SERVER)
        return f"{sys.executable} {self.path('sftp.py')}"

    def test_it_is_refused(self):
        result = img("info", "-f", "raw", self.uri("disk.raw"), check=False)
        self.assertIn("has an impossible size: 18446744073709550616 bytes", result.stderr)


class Names(TestCase):
    def test_malformed_ones(self):
        for name, words in (
            ("ssh:host/path", "expected ssh://HOST/PATH"),
            ("ssh://host", "the path is missing"),
            ("ssh:///path", "the host is missing"),
            ("ssh://[::1/path", "an IPv6 address ends with ']'"),
            ("ssh://host/pa%zzth", "escape"),
            ("ssh://host/path?x=y", "only the parameter 'host_key_check'"),
        ):
            result = img("info", name, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(words, result.stderr)

    def test_nobody_there(self):
        port = free_port()
        result = img("info", f"ssh://127.0.0.1:{port}/path", check=False)
        self.assertIn(f"Failed to connect to '127.0.0.1:{port}': Connection refused", result.stderr)


if __name__ == "__main__":
    unittest.main()
