# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys for tests, in directories as tls-creds-x509 and tls-creds-psk take them."""

import os
import shutil

from tidemark import qemu, run

KEY_OPTIONS = "signing_key\nencryption_key\n"


class Authority:
    """A certificate authority in `directory`, which makes directories of credentials there."""

    def __init__(self, directory, name="ca"):
        self.dir = directory
        self.name = name
        self.key = self.make_key(name)
        self.cert = self.certtool(
            name, f"cn = {name}\nca\ncert_signing_key\n", "--generate-self-signed",
            "--load-privkey", self.key,
        )  # fmt: skip

    def path(self, name):
        return os.path.join(self.dir, name)

    def make_key(self, name):
        path = self.path(name + ".key.pem")
        run(qemu("certtool"), "--generate-privkey", "--key-type", "ecdsa", "--outfile", path)
        return path

    def certtool(self, name, template, *arguments):
        info, path = self.path(name + ".info"), self.path(name + ".cert.pem")
        with open(info, "w", encoding="ascii") as f:
            f.write(template)
        run(qemu("certtool"), *arguments, "--template", info, "--outfile", path)
        return path

    def make(self, name, role, extra="", trusts=None, file_role=None):
        """Credentials of a "server" or "client"; the path of their directory.

        extra: more lines of the template; trusts: the authority whose certificate goes with them;
        file_role: the role that the files are named by.
        """
        file_role = file_role or role
        names = "dns_name = disk.example\nip_address = 127.0.0.1\n" if role == "server" else ""
        key = self.make_key(name)
        cert = self.certtool(
            name, f"cn = {name}\norganization = Tests\n{names}tls_www_{role}\n{KEY_OPTIONS}{extra}",
            "--generate-certificate", "--load-ca-privkey", self.key,
            "--load-ca-certificate", self.cert, "--load-privkey", key,
        )  # fmt: skip
        where = self.path(name)
        os.mkdir(where)
        shutil.copy((trusts or self).cert, os.path.join(where, "ca-cert.pem"))
        shutil.copy(cert, os.path.join(where, f"{file_role}-cert.pem"))
        shutil.copy(key, os.path.join(where, f"{file_role}-key.pem"))
        return where

    def trust_only(self, name):
        """A client's directory with the authority's certificate and no other."""
        where = self.path(name)
        os.mkdir(where)
        shutil.copy(self.cert, os.path.join(where, "ca-cert.pem"))
        return where


def make_psk(directory, name, **keys):
    """A directory with keys.psk: users and keys in hexadecimal."""
    where = os.path.join(directory, name)
    os.mkdir(where)
    with open(os.path.join(where, "keys.psk"), "w", encoding="ascii") as f:
        for user, key in keys.items():
            f.write(f"{user}:{key}\n")
    return where


def x509(endpoint, directory, more=""):
    return f"tls-creds-x509,id=tls0,endpoint={endpoint},dir={directory}{more}"


def psk(endpoint, directory, user=None, more=""):
    name = f",username={user}" if user else ""
    return f"tls-creds-psk,id=tls0,endpoint={endpoint},dir={directory}{name}{more}"
