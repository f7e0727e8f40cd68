# SPDX-License-Identifier: Apache-2.0
"""Objects that event loops have in QEMU: their settings are checked."""

import tidemark
from qmp import QmpError


class ObjectsTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.qmp = self.daemon().qmp

    def add(self, kind, **options):
        self.qmp.command("object-add", qom_type=kind, id="x", **options)
        self.qmp.command("object-del", id="x")

    def test_settings_are_taken(self):
        self.add("iothread")
        pool = {"thread-pool-min": 1, "thread-pool-max": 8, "aio-max-batch": 16}
        self.add("iothread", **pool, **{"poll-max-ns": 0, "poll-grow": 2, "poll-shrink": 3})
        self.add("main-loop")
        self.add("main-loop", **pool)

    def test_settings_that_make_no_sense_are_refused(self):
        cases = [
            ({"poll-max-ns": -1}, r"poll-max-ns value must be in range \[0, 9223372036854775807\]"),
            ({"aio-max-batch": -1}, "aio-max-batch value must be in range"),
            ({"thread-pool-min": 5, "thread-pool-max": 2}, "bad thread-pool-min/thread-pool-max"),
            ({"thread-pool-min": 65}, "bad thread-pool-min/thread-pool-max values"),
            ({"thread-pool-min": "1"}, "'thread-pool-min', expected: integer"),
            ({"poll": 1}, "'poll' is unexpected"),
        ]
        for options, sentence in cases:
            with self.assertRaisesRegex(QmpError, sentence):
                self.add("iothread", **options)
        with self.assertRaisesRegex(QmpError, "'poll-max-ns' is unexpected"):
            self.add("main-loop", **{"poll-max-ns": 1})

    def test_what_there_is_not_is_refused_by_name(self):
        for kind in "thread-context", "pr-manager-helper":
            with self.assertRaisesRegex(QmpError, f"'qom-type' does not accept value '{kind}'"):
                self.add(kind)
        with self.assertRaisesRegex(QmpError, "'driver' does not accept value 'vvfat'"):
            self.qmp.command("blockdev-add", driver="vvfat", node_name="v", dir=self.dir)
        with self.assertRaisesRegex(QmpError, "'pr-manager' is unexpected"):
            self.qmp.command(
                "blockdev-add", driver="file", filename="x", node_name="f", pr_manager="p"
            )


if __name__ == "__main__":
    tidemark.unittest.main()
