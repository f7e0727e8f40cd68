# SPDX-License-Identifier: Apache-2.0
"""Commands to our daemon and to QEMU's at the same time, whose answers are compared."""

import os

import tidemark


class SameAnswersCase(tidemark.TestCase):
    """`self.same(command, arguments)` runs a command on both; each daemon has a folder of its own,
    in which relative names of files are looked up."""

    def setUp(self):
        super().setUp()
        self.daemons = {}
        for name, program in (
            ("ours", [tidemark.compat("qemu-storage-daemon")]),
            ("qemu", [tidemark.qemu("qemu-storage-daemon")]),
        ):
            os.mkdir(self.path(name))
            program[0] = os.path.abspath(program[0])
            self.daemons[name] = self.own(
                tidemark.Daemon(self.path(name), name=name, program=program, cwd=self.path(name))
            )
        self.ours = self.daemons["ours"].qmp
        self.qemus = self.daemons["qemu"].qmp

    def folders(self):
        return [self.path(name) for name in self.daemons]

    def same(self, command, arguments=None, change=lambda answer: answer):
        """Both answer the same, after change(answer); the answer."""
        mine = change(self.ours.execute(command, arguments))
        theirs = change(self.qemus.execute(command, arguments))
        with self.subTest(command=command, arguments=arguments):
            self.assertEqual(mine, theirs)
        return mine

    def alone(self, command, arguments=None):
        """The answer of ours, for what QEMU's 7.2 does not have."""
        return self.ours.execute(command, arguments)
