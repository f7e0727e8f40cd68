# SPDX-License-Identifier: Apache-2.0
"""Who is kept out of a TLS server though his certificate is sound: the revoked, and those that no
rule names.
"""

import os
import shutil

from test_nbd_tls import TlsTest
from tidemark import qemu, run
from tls_creds import x509


class Revoked(TlsTest):
    def revoke(self, name):
        """A list of revoked certificates of the authority, with this one on it."""
        template, path = self.path("crl.info"), self.path("ca-crl.pem")
        with open(template, "w", encoding="ascii") as f:
            f.write("crl_next_update = 30\ncrl_number = 5\n")
        run(
            qemu("certtool"), "--generate-crl", "--load-ca-privkey", self.creds.ca.key,
            "--load-ca-certificate", self.creds.ca.cert, "--load-certificate", self.creds.ca.path(f"{name}.cert.pem"),
            "--template", template, "--outfile", path,
        )  # fmt: skip
        return path

    def with_list(self, directory, name):
        """Credentials with a list on which the certificate `name` is."""
        where = self.path(os.path.basename(directory) + "-with-list")
        shutil.copytree(directory, where)
        shutil.copy(self.revoke(name), where)
        return where

    def test_a_revoked_client(self):
        server = self.serve(x509("server", self.with_list(self.creds.server, "client2")))
        self.assert_let_in(server, self.client())
        result = self.info(server, x509("client", self.creds.client2))
        self.assert_refused("non-properly terminated", result)
        self.assertIn("The certificate has been revoked", server.log())

    def test_a_revoked_server(self):
        server = self.serve(x509("server", self.creds.server))
        client = x509("client", self.with_list(self.creds.client, "server"))
        self.assert_refused("The certificate has been revoked", self.info(server, client))


class Unnamed(TlsTest):
    def serve_by_rules(self, policy):
        return self.serve(
            x509("server", self.creds.server), "--object",
            f'{{"qom-type": "authz-list", "id": "authz0"{policy}, "rules": ['
            '{"match": "O=Tests,CN=client", "policy": "allow"}]}',
            "--tls-authz", "authz0", name=f"n{len(policy)}",
        )  # fmt: skip

    def test_no_rule_and_a_policy_that_denies(self):
        for policy in ("", ', "policy": "deny"'):
            with self.subTest(policy=policy):
                server = self.serve_by_rules(policy)
                self.assert_let_in(server, self.client())
                result = self.info(server, x509("client", self.creds.client2))
                self.assert_refused("non-properly terminated", result)
                self.end_processes()

    def test_no_rule_and_a_policy_that_allows(self):
        server = self.serve_by_rules(', "policy": "allow"')
        self.assert_let_in(server, x509("client", self.creds.client2))
