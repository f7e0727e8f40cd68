# SPDX-License-Identifier: Apache-2.0
"""Images on a web server: what is read, what is asked for, and servers that misbehave."""

import os
import random
import time

import tidemark
from http_server import Http2Server, HttpServer, hang, hang_up, respond
from nbd_raw import EIO, READ, RawClient
from qmp import QmpError
from tls_creds import Authority

KIB, MIB = 1 << 10, 1 << 20


class HttpCase(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.content = random.Random(1).randbytes(3 * MIB + 1000)
        self.server = self.serve(self.content)

    def serve(self, content, **more):
        server = HttpServer(content, **more)
        self.addCleanup(server.stop)
        return server

    def wide(self, **more):
        """Options of a node, as text."""
        options = {"driver": "http", "url": self.server.url(), **more}
        return ",".join(f"{key}={value}" for key, value in options.items())

    def read(self, *lines, objects=(), check=True, env=None, **more):
        words = [word for o in objects for word in ("--object", o)]
        return tidemark.io(
            self.wide(**more), *lines, options=("-r", *words, "--image-opts"), check=check, env=env
        )

    def fails(self, sentence, *lines, **more):
        result = self.read(*lines, check=False, **more)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(sentence, result.stdout + result.stderr)

    def copy(self, *arguments):
        """The image by `img convert`."""
        target = self.path("copy.raw")
        result = tidemark.img("convert", *arguments, "-O", "raw", self.server.url(), target)
        with open(target, "rb") as f:
            return f.read(), result.stderr


class HttpTest(HttpCase):
    def test_an_image_is_copied(self):
        data, _ = self.copy("-f", "raw")
        self.assertEqual(len(data), 3 * MIB + 1024)
        self.assertEqual(data, self.content + bytes(24))

    def test_reads_of_all_kinds(self):
        self.server.content = bytes(i // 512 % 251 for i in range(MIB)) + b"\7" * 100
        lines = ["length"]
        rng = random.Random(2)
        for _ in range(200):
            sector = rng.randrange(2048)
            lines.append(f"read -P {sector % 251} {sector * 512 + rng.randrange(256)} 256")
        lines += [f"read -P 7 {MIB} 100", f"read -P 0 {MIB + 100} 412"]
        result = self.read(*lines, readahead=0)
        self.assertNotIn("failed", result.stdout)
        self.assertIn("1.000 MiB", result.stdout.replace("1 MiB", "1.000 MiB"))

    def test_what_is_read_in_sequence_is_read_ahead(self):
        lines = [f"read -q {i * 4096} 4k" for i in range(256)]
        self.read(*lines)
        few = len(self.server.requests)
        self.server.requests.clear()
        self.read(*lines, readahead=0)
        self.assertLess(few, 6)
        self.assertEqual(len(self.server.requests), 17)

    def test_what_was_read_is_not_asked_for_again(self):
        self.read(*["read -q 0 64k", "read -q 2M 64k"] * 20)
        self.assertLess(len(self.server.requests), 4)

    def test_readers_at_once_ask_once(self):
        self.read(*["aio_read -q 64k 4k"] * 30, "aio_flush")
        self.assertEqual(len(self.server.requests), 2)

    def test_a_connection_is_used_again(self):
        self.copy("-f", "raw")
        self.assertLess(self.server.connections, 10)

    def test_an_empty_file(self):
        self.server.content = b""
        self.assertIn("0 bytes", self.read("length").stdout)

    def test_images_of_formats_and_their_backing_files(self):
        base = self.create("disk.base", "1M")
        tidemark.io(base, "write -P 5 0 1M", fmt="qcow2")
        top = self.create("disk", "1M", options=("-u", "-F", "qcow2", "-b", "disk.base"))
        tidemark.io(top, "write -P 6 64k 64k", fmt="qcow2", options=("-U",), check=False)
        with open(base, "rb") as f:
            files = {"/disk.base": f.read()}
        with open(top, "rb") as f:
            files["/disk"] = f.read()
        self.server.files = files
        name = 'json:{"driver":"qcow2","file":{"driver":"http","url":"%s"}}' % self.server.url()
        for image in (name, self.server.url()):
            result = tidemark.io(image, "read -P 5 0 64k", options=("-r",))
            self.assertNotIn("failed", result.stdout)
        self.assertIn("file format: qcow2", tidemark.img("info", self.server.url()).stdout)

    def test_nothing_is_written(self):
        sentence = "curl driver does not support writes"
        result = tidemark.io(self.server.url(), "read 0 512", fmt="raw", check=False)
        self.assertIn(sentence, result.stderr)
        daemon = self.daemon()
        options = {"driver": "http", "node-name": "h", "url": self.server.url()}
        with self.assertRaisesRegex(QmpError, sentence):
            daemon.qmp.command("blockdev-add", **options)
        daemon.qmp.command("blockdev-add", **options, auto_read_only=True)
        with self.assertRaisesRegex(QmpError, sentence):
            daemon.qmp.command("blockdev-reopen", options=[options])
        daemon.qmp.command("blockdev-reopen", options=[{**options, "read-only": True}])
        daemon.stop()


class AccessTest(HttpCase):
    def test_passwords(self):
        self.server.user = "otto:geheim"
        secret = ("secret,id=s,data=geheim",)
        self.fails("The requested URL returned error: 401", "length")
        self.fails("error: 401", "length", username="otto", **{"password-secret": "w"},
                   objects=("secret,id=w,data=falsch",))  # fmt: skip
        self.read("read 0 64k", username="otto", **{"password-secret": "s"}, objects=secret)
        self.read("read 0 64k", url=self.server.url().replace("//", "//otto:geheim@"))

    def test_a_proxy(self):
        self.server.proxy_user = "otto:geheim"
        more = {
            "url": "http://elsewhere.example/disk",
            "env": {**os.environ, "http_proxy": self.server.url("")},
        }
        proxy = {"proxy-username": "otto", "proxy-password-secret": "s"}
        self.fails("407", "length", **more)
        self.read("read 0 64k", **more, **proxy, objects=("secret,id=s,data=geheim",))

    def test_cookies(self):
        self.server.cookie = "a=1; b=2"
        self.fails("error: 403", "length")
        self.read("read 0 64k", cookie="a=1; b=2")
        secret = ("secret,id=s,data=a=1; b=2",)
        self.read("read 0 64k", **{"cookie-secret": "s"}, objects=secret)

    def test_redirects(self):
        self.server.redirect = self.server.url()
        self.read("read 0 64k", url=self.server.url("/moved"))
        self.server.redirect = self.server.url("/moved")
        self.fails("redirects", "length", url=self.server.url("/moved"))
        self.server.redirect = "file:///etc/hostname"
        self.fails("CURL: Error opening file:", "length", url=self.server.url("/moved"))

    def test_certificates(self):
        where = Authority(self.dir).make("web", "server")
        tls = self.serve(self.content, tls=(f"{where}/server-cert.pem", f"{where}/server-key.pem"))
        wide = {"driver": "https", "url": tls.url()}
        self.fails("certificate", "length", **wide)
        self.read("read 0 64k", **wide, sslverify="off")
        tls.redirect = self.server.url()
        self.fails("CURL: Error opening file:", "length", driver="https", url=tls.url("/moved"),
                   sslverify="off")  # fmt: skip

    def test_what_makes_no_sense_is_refused(self):
        cases = [
            ("curl driver cannot handle the URL 'ftp://x/y'", {"url": "ftp://x/y"}),
            ("https curl driver cannot handle the URL", {"driver": "https"}),
            ("is not a multiple of 512", {"readahead": 5}),
            ("readahead may not be above 67108864", {"readahead": "128M"}),
            ("timeout parameter is too large or negative", {"timeout": 10001}),
            ("cannot handle both cookie and cookie secret", {"cookie": 1, "cookie-secret": "s"}),
            ("No secret with id 's'", {"cookie-secret": "s"}),
            ("No secret with id 's'", {"password-secret": "s"}),
            ("doesn't support the option 'sslverify'", {"sslverify": "off"}),
            ("error: 404", {"url": self.server.url("/other")}),
            ("onnect", {"url": "http://127.0.0.1:1/disk"}),
        ]
        for sentence, options in cases:
            with self.subTest(sentence=sentence):
                self.fails(sentence, "length", **options)


class MisbehaviourTest(HttpCase):
    """Servers that lie, die and hang, after the first request, by which the file is opened."""

    def misbehave(self, answer, times=1000):
        def function(count, first, handler):
            return 1 < count <= 1 + times and answer(first, handler)

        self.server.count = 0
        self.server.misbehave = function

    def test_a_server_without_ranges_is_refused(self):
        self.server.ranges = False
        self.fails("Server does not support 'range' (byte ranges).", "length")

    def test_connections_that_break_off_are_continued(self):
        def answer(first, handler):
            last = len(self.content) - 1
            half = self.content[first : first + 40000]
            return respond(handler, first, min(first + 65535, last), last + 1, half)

        self.misbehave(answer, times=3)
        data, log = self.copy("-f", "raw", "-m", "1")
        self.assertEqual(data[: len(self.content)], self.content)
        self.assertEqual(log, "")

    def test_a_server_that_is_busy_is_asked_again(self):
        self.misbehave(lambda first, handler: self.server.fail(handler, 503) or True, times=2)
        data, _ = self.copy("-f", "raw", "-m", "1")
        self.assertEqual(data[: len(self.content)], self.content)

    def test_a_server_that_dies_for_good_fails_the_read(self):
        self.misbehave(lambda first, handler: hang_up(handler))
        self.fails("read failed: Input/output error", "read 0 4k")
        self.server.misbehave = None
        self.read("read 0 4k")

    def test_lies(self):
        size = len(self.content)

        def lie(first, last, total, body, status=206):
            return lambda at, handler: respond(handler, first, last, total, body, status)

        cases = {
            "another range": lie(512, 65535 + 512, size, self.content[512 : 65536 + 512]),
            "a longer file": lie(0, 65535, size + 1, self.content[:65536]),
            "a shorter file": lie(0, 65535, 65536, self.content[:65536]),
            "a longer range": lie(0, size - 1, size, self.content),
            "no such range": lie(0, 65535, size, self.content[:65536], status=200),
            "a range that ends before it begins": lie(100, 0, size, b""),
            "huge numbers": lie(0, 2**64, 2**64 + 1, self.content[:65536]),
            "a file without a length": lie(0, 65535, "*", b"x" * 65536),
        }
        for name, answer in cases.items():
            with self.subTest(name=name):
                self.misbehave(answer)
                self.fails("Input/output error", "read 0 4k", readahead=0)

    def test_more_bytes_than_the_length_are_not_data(self):
        def answer(first, handler):
            part = self.content[first : first + 65536]
            return respond(handler, first, first + 65535, len(self.content), part + b"x" * 500)

        self.misbehave(answer)
        first = self.content[0]
        self.read("read 0 4k", f"read -P {first} 0 1", readahead=0)

    def test_a_file_that_has_changed_is_not_mixed(self):
        self.server.tag = '"one"'

        def answer(first, handler):
            self.server.tag = '"two"'
            return False

        self.misbehave(answer)
        result = self.read("read 0 4k", readahead=0, check=False)
        self.assertIn("The file has changed on the server.", result.stdout + result.stderr)

    def test_without_a_tag_the_time_tells_that_a_file_has_changed(self):
        for tag in None, 'W/"one"':
            with self.subTest(tag=tag):
                self.server.count = 0
                self.server.tag = tag
                self.server.modified = "Sat, 01 Aug 2026 10:00:00 GMT"

                def answer(first, handler):
                    self.server.modified = "Sat, 01 Aug 2026 10:00:01 GMT"
                    return False

                self.misbehave(answer)
                result = self.read("read 0 4k", readahead=0, check=False)
                self.assertIn(
                    "The file has changed on the server.", result.stdout + result.stderr
                )

    def test_the_time_of_an_answer_says_nothing(self):
        def answer(number, first, handler):
            self.server.modified = f"Sat, 01 Aug 2026 10:00:{number:02} GMT"
            handler.date_time_string = lambda *unused: self.server.modified
            return False

        self.server.misbehave = answer
        self.read("read 0 4k", readahead=0)
        self.assertGreater(self.server.count, 1)

    def test_where_tags_agree_the_time_says_nothing(self):
        self.server.tag = '"one"'
        self.server.modified = "Sat, 01 Aug 2026 10:00:00 GMT"

        def answer(first, handler):
            self.server.modified = "Sat, 01 Aug 2026 10:00:01 GMT"
            return False

        self.misbehave(answer)
        self.read("read 0 4k", readahead=0)

    def test_a_file_that_is_sent_compressed_is_refused(self):
        sentence = "Server sends the file compressed (Content-Encoding)."
        self.server.encoding = "gzip"
        self.fails(sentence, "length")
        self.server.encoding = "identity"
        self.read("read 0 4k", readahead=0)

        def answer(first, handler):
            self.server.encoding = "gzip"
            return False

        self.server.count = 0
        self.misbehave(answer)
        self.fails(sentence, "read 0 4k", readahead=0)

    def test_a_server_may_send_less_than_it_was_asked_for(self):
        self.server.range_max = 50000
        data, log = self.copy("-f", "raw", "-m", "1")
        self.assertEqual(data[: len(self.content)], self.content)
        self.assertEqual(log, "")

    def test_a_server_that_sends_next_to_nothing_fails_the_read(self):
        self.server.range_max = 100
        self.fails("Input/output error", "read 0 64k", readahead=0)
        self.assertLess(self.server.count, 10)

    def test_streams_of_http2_that_are_reset_are_tried_again(self):
        where = Authority(self.dir).make("web", "server")
        content = self.content[: 64 * KIB]
        tls = (f"{where}/server-cert.pem", f"{where}/server-key.pem")
        server = Http2Server(content, tls, resets=2)
        self.addCleanup(server.stop)
        wide = {"driver": "https", "url": server.url(), "sslverify": "off"}
        self.read(f"read -P {content[0]} 0 1", **wide)
        self.assertEqual(server.reset_count, 2)

    def test_a_weak_tag_says_nothing(self):
        self.server.tag = 'W/"one"'

        def answer(first, handler):
            self.server.tag = 'W/"two"'
            return False

        self.misbehave(answer)
        self.read("read 0 4k", readahead=0)

    def test_a_server_that_hangs(self):
        for open_hangs in True, False:
            with self.subTest(open_hangs=open_hangs):
                self.server.count = 0
                self.server.misbehave = lambda count, first, handler: (
                    count > 1 or open_hangs
                ) and hang(20)
                before = time.monotonic()
                self.read("read 0 4k", timeout=1, check=False)
                self.assertLess(time.monotonic() - before, 8)

    def test_a_hung_server_holds_up_nobody_else(self):
        self.misbehave(lambda first, handler: hang(20))
        daemon = self.daemon(
            "--blockdev",
            self.wide(timeout=2, **{"node-name": "h", "read-only": "on"}),
            "--blockdev",
            "driver=null-co,node-name=n,read-only=on",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.path('nbd')}",
            *(w for n in "hn" for w in ("--export", f"type=nbd,id={n},node-name={n},name={n}")),
        )
        hung, other = RawClient(self.path("nbd")), RawClient(self.path("nbd"))
        hung.go(b"h", structured=False)
        other.go(b"n", structured=False)
        hung.request(READ, 0, 4096)
        before = time.monotonic()
        other.request(READ, 0, 4096)
        other.receive(16 + 4096)
        daemon.qmp.command("query-named-block-nodes")
        self.assertLess(time.monotonic() - before, 1)
        self.assertEqual(hung.receive(16)[7], EIO)
        daemon.stop()
        self.assertIn("bytes at 0 failed: Operation too slow", daemon.log())


if __name__ == "__main__":
    tidemark.unittest.main()
