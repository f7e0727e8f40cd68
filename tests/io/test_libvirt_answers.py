# SPDX-License-Identifier: Apache-2.0
"""The dialogues of libvirt's driver, with ours and with QEMU's daemon: answers to commands, and
states and events of jobs, are the same. (What becomes of disks: test_libvirt_dialogues.)
"""

import concurrent.futures
import unittest

import test_libvirt_dialogues as dialogues
import tidemark

# QEMU's daemon stops a server only when its clients have taken what they have asked for.
ALONE = {"test_pull_ends_with_the_server"}


def listen(kind, name, program):
    """Have a dialogue; what was answered, and what events said of jobs."""

    class Listener(kind):
        def assert_contents(self, *unused):
            pass

        def assert_disk(self, *unused):
            pass

        def assert_bitmaps(self, *unused):
            pass

        def assert_copied(self, disk):
            self.end(disk)
            return True

        def assert_snapshots(self):
            self.end(*self.tops)

        def assert_backups(self, backups):
            pass

    Listener.program = program
    test = Listener(name)
    test.debug()
    return test.say.answers, test.say.states


class SameAnswers(unittest.TestCase):
    def compare(self, kind):
        """All dialogues of a class, with both daemons at a time."""
        names = [n for n in unittest.defaultTestLoader.getTestCaseNames(kind) if n not in ALONE]
        self.assertGreater(len(names), 1)
        programs = None, [tidemark.qemu("qemu-storage-daemon")]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for name in names:
                with self.subTest(name):
                    ours, qemus = pool.map(lambda p, n=name: listen(kind, n, p), programs)
                    self.assertEqual(ours, qemus)

    def test_backups(self):
        self.compare(dialogues.Backups)

    def test_snapshots(self):
        self.compare(dialogues.Snapshots)

    def test_copies(self):
        self.compare(dialogues.Copies)

    def test_chains(self):
        self.compare(dialogues.Chains)


if __name__ == "__main__":
    unittest.main()
