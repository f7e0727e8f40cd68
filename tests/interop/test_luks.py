# SPDX-License-Identifier: Apache-2.0
"""LUKS volumes, made and used by Tidemark, by QEMU and by cryptsetup in turns."""

import itertools
import json
import os
import random
import struct
import unittest

from tidemark import TestCase, img, io, qemu_img, qemu_io, run

SECRETS = tuple(
    word
    for name, text in (("a", "alpha"), ("b", "beta"), ("c", "gamma"), ("wrong", "omega"))
    for word in ("--object", f"secret,id={name},data={text}")
)
QUICK = "iter-time=10"
SIZE = 1 << 20
KINDS = (
    "",
    "cipher-alg=aes-128,hash-alg=sha1",
    "cipher-alg=aes-192,hash-alg=sha512",
    "cipher-mode=cbc,ivgen-alg=essiv,hash-alg=ripemd160",
    "cipher-mode=cbc,ivgen-alg=plain,hash-alg=sha384",
    "cipher-mode=cbc,ivgen-alg=plain64,hash-alg=sha224",
    "cipher-mode=ecb",
    "cipher-mode=ctr",
    "cipher-alg=serpent-256",
    "cipher-alg=serpent-128,cipher-mode=cbc,ivgen-alg=essiv",
    "cipher-alg=twofish-256",
    "cipher-alg=twofish-192",
    "cipher-alg=twofish-128,cipher-mode=cbc",
    "cipher-alg=cast5-128,cipher-mode=cbc",
    "ivgen-alg=essiv,ivgen-hash-alg=sha256",
)
SLOTS, SLOT_SIZE, PAYLOAD = 208, 48, 2068480
HASHES = ("sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")


def aes_kinds():
    """(bits, mode, ivgen, hash): those that cryptsetup opens without the kernel's device mapper."""
    turn = itertools.cycle(HASHES)
    for mode, sizes in (("xts", (128, 256)), ("cbc", (128, 192, 256))):
        for bits, ivgen in itertools.product(sizes, ("plain", "plain64", "essiv:sha256")):
            yield bits, mode, ivgen, next(turn)


def opened(path, secret="a", more=""):
    key = f",key-secret={secret}" if secret else ""
    return f"driver=luks{key},file.driver=file,file.filename={path}{more}"


def run_io(program, path, *commands, secret="a", more="", **rest):
    options = (*SECRETS, "--image-opts")
    return program(opened(path, secret, more), *commands, options=options, **rest)


def create(program, path, kind="", size=SIZE):
    options = f"key-secret=a,{QUICK}" + (f",{kind}" if kind else "")
    words = ("create", "-q", "-f", "luks", *SECRETS, "-o", options, path, str(size))
    for _ in range(9):  # QEMU fails to measure on a machine that is busy
        result = program(*words, check=program is img)
        if result.returncode == 0:
            break
    return path


def amend(program, path, options, *more, secret="a", **rest):
    words = ("amend", *SECRETS, "--image-opts", opened(path, secret), "-o", options)
    return program(*words, *more, **rest)


def info(program, path):
    return json.loads(program("info", "-f", "luks", "--output=json", path).stdout)


def cryptsetup(*args, **rest):
    return run("cryptsetup", "-q", *args, **rest)


class Volumes(TestCase):
    def test_each_reads_what_the_other_wrote(self):
        for number, kind in enumerate(KINDS):
            with self.subTest(kind=kind):
                # QEMU takes seconds to make one, whatever iter-time says.
                maker = qemu_img if number % 4 == 1 else img
                writer, reader = ((io, qemu_io), (qemu_io, io))[number % 2]
                path = create(maker, self.path(f"{number}.luks"), kind)
                run_io(writer, path, "write -P 17 0 64k", "write -P 3 70000 5000")
                run_io(reader, path, "read -P 17 0 64k", "read -P 3 70000 5000",
                       "write -P 5 1000 3k")  # fmt: skip
                run_io(writer, path, "read -P 17 0 1000", "read -P 5 1000 3k", "read -P 17 4072 4k")

    def test_random_requests(self):
        rng = random.Random(7)
        path = create(img, self.path("disk.luks"))
        model = bytearray(SIZE)
        run_io(io, path, f"write -z 0 {SIZE}")
        for _ in range(6):
            commands = []
            for _ in range(16):
                at, byte = rng.randrange(SIZE), rng.randrange(1, 256)
                size = min(rng.choice((1, 511, 512, 4096, 70000, 400000)), SIZE - at)
                commands.append(f"write -P {byte} {at} {size}")
                model[at : at + size] = bytes([byte]) * size
            run_io(rng.choice((io, qemu_io)), path, *commands)
        for program in (img, qemu_img):
            raw = self.path("raw")
            program("convert", *SECRETS, "--image-opts", "-O", "raw", opened(path), raw)
            with open(raw, "rb") as disk:
                self.assertEqual(disk.read(), model)

    def test_info_is_the_same(self):
        for number, kind in enumerate((KINDS[0], KINDS[3], KINDS[9])):
            path = create((img, qemu_img)[number % 2], self.path(f"{number}.luks"), kind)
            ours, theirs = info(img, path), info(qemu_img, path)
            detached = ours["format-specific"]["data"].pop("detached-header")
            self.assertIs(detached, False)  # QEMU has this since version 9
            for report in (ours, theirs):
                report.pop("children", None)
                report.pop("actual-size")
            self.assertEqual(ours, theirs)

    def test_convert_both_ways(self):
        raw = self.path("in.raw")
        with open(raw, "wb") as disk:
            disk.write(random.Random(1).randbytes(300000) + bytes(SIZE - 300000))
        for number, (there, back) in enumerate(((img, qemu_img), (qemu_img, img))):
            locked, plain = self.path(f"{number}.luks"), self.path(f"{number}.raw")
            options = ("-O", "luks", "-o", f"key-secret=a,{QUICK}")
            there("convert", *SECRETS, "-f", "raw", *options, raw, locked)
            back("convert", *SECRETS, "--image-opts", "-O", "raw", opened(locked), plain)
            with open(raw, "rb") as a, open(plain, "rb") as b:
                self.assertEqual(a.read(), b.read())

    def test_sizes(self):
        path = create(img, self.path("disk.luks"))
        self.assertEqual(os.path.getsize(path), PAYLOAD + SIZE)
        img("resize", *SECRETS, "--image-opts", opened(path), "+1M")
        self.assertEqual(info(qemu_img, path)["virtual-size"], 2 * SIZE)
        img("resize", "--shrink", *SECRETS, "--image-opts", opened(path), "512k")
        self.assertEqual(os.path.getsize(path), PAYLOAD + SIZE // 2)
        words = ("measure", "-O", "luks", *SECRETS, "-o", "key-secret=a", "--size", "1G")
        self.assertEqual(img(*words).stdout, qemu_img(*words).stdout)

    def test_messages_are_those_of_qemu(self):
        path = create(img, self.path("disk.luks"))
        for program in (io, qemu_io):
            result = run_io(program, path, "read 0 512", secret="wrong", check=False)
            self.assertIn("Invalid password, cannot unlock any keyslot", result.stderr)
            result = run_io(program, path, "read 0 512", secret="", check=False)
            self.assertIn("Parameter 'key-secret' is required for cipher", result.stderr)
            result = run_io(program, path, "read 0 512", secret="none", check=False)
            self.assertIn("No secret with id 'none'", result.stderr)

    def test_passphrases_are_bytes(self):
        for text in ("", "p\\303\\251"):
            file = self.path("secret")
            with open(file, "w", encoding="utf-8") as out:
                out.write(text)
            path = self.path("disk.luks")
            secret = ("--object", f"secret,id=f,file={file}")
            options = f"key-secret=f,{QUICK}"
            img("create", "-q", "-f", "luks", *secret, "-o", options, path, "64k")
            for program in (io, qemu_io):
                program(opened(path, "f"), "read 0 512", options=(*secret, "--image-opts"))

    def test_a_new_passphrase_is_text(self):
        """Others could not open the volume; what was there before stays, other than with QEMU."""
        file = self.path("secret")
        for data in (b":<;\xff", b"a\0b", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
            with open(file, "wb") as out:
                out.write(data)
            secret = ("--object", f"secret,id=f,file={file}")
            path = self.path("disk")
            for fmt, prefix in (("luks", ""), ("qcow2", "encrypt.format=luks,encrypt.")):
                for program in (img, qemu_img):
                    with open(path, "wb") as out:
                        out.write(b"old")
                    options = f"{prefix}key-secret=f,{prefix and 'encrypt.'}{QUICK}"
                    words = ("create", "-q", "-f", fmt, *secret, "-o", options, path, "1M")
                    result = program(*words, check=False)
                    self.assertIn("Data from secret f is not valid UTF-8", result.stderr)
                    if program is img:
                        with open(path, "rb") as old:
                            self.assertEqual(old.read(), b"old", (fmt, data))
                    else:
                        self.assertFalse(os.path.exists(path), (fmt, data))
        disk = create(img, self.path("disk.luks"))
        result = amend(img, disk, f"state=active,new-secret=f,{QUICK}", *secret, check=False)
        self.assertIn("is not valid UTF-8", result.stderr)


class Slots(TestCase):
    def works(self, path, *secrets):
        for secret in ("a", "b", "c"):
            for program in (io, qemu_io):
                result = run_io(program, path, "read -P 9 0 4k", secret=secret, check=False)
                self.assertEqual(result.returncode == 0, secret in secrets, result.stderr)

    def new(self):
        path = create(img, self.path("disk.luks"))
        run_io(io, path, "write -P 9 0 4k")
        return path

    def test_slots_come_and_go(self):
        path = self.new()
        amend(img, path, f"state=active,new-secret=b,{QUICK}")
        self.works(path, "a", "b")
        amend(qemu_img, path, f"state=active,new-secret=c,{QUICK},keyslot=6", secret="b")
        self.works(path, "a", "b", "c")
        amend(img, path, "state=inactive,old-secret=a", secret="b")
        self.works(path, "b", "c")
        amend(img, path, "state=inactive,keyslot=6", secret="b")
        self.works(path, "b")
        slots = info(img, path)["format-specific"]["data"]["slots"]
        self.assertEqual([s["active"] for s in slots], [False, True] + [False] * 6)

    def test_the_material_of_an_erased_slot_is_gone(self):
        path = self.new()
        with open(path, "rb") as file:
            before = file.read(PAYLOAD)
        amend(img, path, f"state=active,new-secret=b,{QUICK}")
        amend(img, path, "state=inactive,keyslot=0", secret="b")
        with open(path, "rb") as file:
            after = file.read(PAYLOAD)
        same = sum(a == b for a, b in zip(before[4096:260096], after[4096:260096]))
        self.assertLess(same, 3000)
        self.assertEqual(after[SLOTS : SLOTS + 40], struct.pack(">II32x", 0xDEAD, 0))

    def test_an_active_slot_is_replaced_by_force(self):
        path = self.new()
        result = amend(img, path, f"state=active,new-secret=b,keyslot=0,{QUICK}", check=False)
        self.assertIn("Refusing to overwrite active keyslot 0", result.stderr)
        amend(img, path, f"state=active,new-secret=b,keyslot=0,{QUICK}", "--force")
        self.works(path, "b")
        slots = info(img, path)["format-specific"]["data"]["slots"]
        self.assertEqual([s["active"] for s in slots], [True] + [False] * 7)

    def test_the_last_slot_goes_by_force_only(self):
        path = self.new()
        for options in ("state=inactive,keyslot=0", "state=inactive,old-secret=a"):
            result = amend(img, path, options, check=False)
            self.assertIn("refusing operation", result.stderr)
        self.works(path, "a")
        amend(img, path, "state=inactive,keyslot=0", "--force")
        self.works(path)

    def test_refusals_are_worded_as_by_qemu(self):
        path = self.new()
        for options, message in (
            ("state=active", "'new-secret' is required to activate a keyslot"),
            ("new-secret=b", "Parameter 'state' is missing"),
            ("state=on", "Parameter 'state' does not accept value 'on'"),
            ("state=active,new-secret=b,old-secret=a",
             "'old-secret' must not be given when activating keyslots"),
            ("state=active,new-secret=none", "No secret with id 'none'"),
            ("state=active,new-secret=b,keyslot=8",
             "Invalid keyslot 8 specified, must be between 0 and 7"),
            ("state=inactive", "To erase keyslot(s), either explicit keyslot index or the password "
             "currently contained in them must be given"),
            ("state=inactive,new-secret=b",
             "'new-secret' must not be given when erasing keyslots"),
            ("state=inactive,iter-time=10,keyslot=0",
             "'iter-time' must not be given when erasing keyslots"),
            ("state=inactive,keyslot=8", "Invalid keyslot 8 specified, must be between 0 and 7"),
            ("state=inactive,keyslot=5", "Given keyslot 5 is already erased (inactive)"),
            ("state=inactive,old-secret=c",
             "No keyslots match given (old) password for erase operation"),
            ("state=inactive,old-secret=none", "No secret with id 'none'"),
        ):  # fmt: skip
            with self.subTest(options=options):
                result = amend(img, path, options, check=False)
                self.assertEqual(result.returncode, 1)
                self.assertEqual(result.stderr.split(": ", 1)[1].strip(), message)
        self.works(path, "a")


class Cryptsetup(TestCase):
    def opens(self, path, password):
        """Whether cryptsetup accepts a passphrase."""
        file = self.path("passphrase")
        with open(file, "w", encoding="ascii") as out:
            out.write(password)
        words = ("open", "--test-passphrase", f"--key-file={file}", path)
        return cryptsetup(*words, check=False).returncode == 0

    def test_it_opens_what_we_make(self):
        for number, kind in enumerate((KINDS[0], KINDS[3], KINDS[8])):
            with self.subTest(kind=kind):
                path = create(img, self.path(f"{number}.luks"), kind)
                cryptsetup("isLuks", "--type", "luks1", path)
                dump = cryptsetup("luksDump", path).stdout
                self.assertIn("Key Slot 0: ENABLED", dump)
        path = create(img, self.path("disk.luks"))
        self.assertTrue(self.opens(path, "alpha"))
        self.assertFalse(self.opens(path, "omega"))

    def test_we_open_what_it_makes(self):
        """Each AES kind; `make luks-matrix` has the other ciphers, and data through dm-crypt."""
        key = self.path("key")
        with open(key, "w", encoding="ascii") as out:
            out.write("alpha")
        for number, (bits, mode, ivgen, digest) in enumerate(aes_kinds()):
            with self.subTest(bits=bits, mode=mode, ivgen=ivgen, digest=digest):
                path = self.path(f"{number}.luks")
                with open(path, "wb") as file:
                    file.truncate(4 << 20)
                cryptsetup("luksFormat", "--type", "luks1", "--cipher", f"aes-{mode}-{ivgen}", "--key-size",
                           str(bits * (2 if mode == "xts" else 1)), "--hash", digest,
                           "--pbkdf-force-iterations", "1000", f"--key-file={key}", path)  # fmt: skip
                run_io(io, path, "write -P 21 0 64k")
                if (bits, mode) != (192, "cbc"):  # an assertion of QEMU 7.2 fails
                    run_io(qemu_io, path, "read -P 21 0 64k")
                amend(img, path, f"state=active,new-secret=b,{QUICK},keyslot=7")
                self.assertTrue(self.opens(path, "beta"))
                os.unlink(path)

    def test_it_opens_each_aes_kind_that_we_make(self):
        for number, (bits, mode, ivgen, digest) in enumerate(aes_kinds()):
            with self.subTest(bits=bits, mode=mode, ivgen=ivgen, digest=digest):
                ivgen, _, ivhash = ivgen.partition(":")
                kind = f"cipher-alg=aes-{bits},cipher-mode={mode},ivgen-alg={ivgen},hash-alg={digest}"
                path = create(img, self.path(f"{number}.luks"), kind + (f",ivgen-hash-alg={ivhash}" if ivhash else ""))
                self.assertTrue(self.opens(path, "alpha"))
                self.assertFalse(self.opens(path, "omega"))
                os.unlink(path)


class Hostile(TestCase):
    """Headers that are wrong, or were made to do harm."""

    def refused(self, good, message, *edits, same=True):
        path = self.path("bad.luks")
        image = bytearray(good)
        for offset, new in edits:
            image[offset : offset + len(new)] = new
        with open(path, "wb") as file:
            file.write(image)
        ours = img("info", "-f", "luks", path, check=False)
        self.assertEqual(ours.returncode, 1, message)
        self.assertIn(message, ours.stderr)
        if same and edits[0][0] % 3 == 0:  # QEMU is asked about some of them
            self.assertIn(message, qemu_img("info", "-f", "luks", path, check=False).stderr)

    def test_headers(self):
        with open(create(img, self.path("good.luks"), size=65536), "rb") as file:
            good = file.read()

        def slot(number, offset, value):
            return SLOTS + number * SLOT_SIZE + offset, struct.pack(">I", value)

        def word(offset, value):
            return offset, struct.pack(">I", value)

        for message, edit in (
            ("Volume is not in LUKS format", (0, b"X")),
            ("LUKS version 2 is not supported", (6, b"\0\2")),
            ("Algorithm 'foo' with key size 32 bytes not supported", (8, b"foo\0")),
            ("LUKS header cipher name is not NUL terminated", (8, b"a" * 32)),
            ("LUKS header cipher mode is not NUL terminated", (40, b"a" * 32)),
            ("LUKS header hash spec is not NUL terminated", (72, b"a" * 32)),
            ("Cipher mode 'foo' not supported", (40, b"foo-plain64\0")),
            ("Unexpected cipher mode string format 'xts'", (40, b"xts\0")),
            ("IV generator 'foo' not supported", (40, b"xts-foo\0")),
            ("Hash algorithm 'foo' not supported", (40, b"cbc-essiv:foo\0")),
            ("Hash algorithm 'foo' not supported", (72, b"foo\0")),
            ("LUKS payload is overlapping with the header", word(104, 0)),
            ("Keyslot 0 is overlapping with the encrypted payload", word(104, 100)),
            ("LUKS key iteration count is zero", word(164, 0)),
            ("Keyslot 0 state (active/disable) is corrupted", slot(0, 0, 5)),
            ("Keyslot 0 iteration count is zero", slot(0, 4, 0)),
            ("Keyslot 0 is overlapping with the LUKS header", slot(0, 40, 2)),
            ("Keyslot 3 is corrupted (stripes 1 != 4000)", slot(3, 44, 1)),
            ("Keyslots 0 and 1 are overlapping in the header", slot(1, 40, 9)),
        ):
            with self.subTest(message=message):
                self.refused(good, message, edit)
        for message, edit in (
            ("overlapping with the encrypted payload", slot(0, 40, 0xFFFFFFF0)),
            ("past the end of the file", word(104, 0xFFFFFFFF)),
            ("cannot be split", word(108, 0xFFFFFFFF)),
            ("at most 100000000 are accepted", slot(0, 4, 0xFFFFFFFF)),
            ("at most 100000000 are accepted", word(164, 0xFFFFFFFF)),
        ):
            with self.subTest(message=message):
                self.refused(good, message, edit, same=False)
        self.refused(good[:592], "past the end of the file", same=False)
        self.refused(good[:100], "Unable to read LUKS header", same=False)


if __name__ == "__main__":
    unittest.main()
