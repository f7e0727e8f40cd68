# SPDX-License-Identifier: Apache-2.0
"""Run the unittest file named on the command line and report it in TAP.

Usage: tap_unittest.py FILE [PATTERN...]   (patterns select test names, as in unittest -k)
"""

import importlib.util
import os
import sys
import unittest


class TapResult(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.number = 0
        self.bad = set()

    def line(self, ok, test, suffix=""):
        self.number += 1
        print(f"{'ok' if ok else 'not ok'} {self.number} - {name_of(test)}{suffix}", flush=True)

    def complain(self, test, err):
        self.bad.add(test)
        for text in self._exc_info_to_string(err, test).splitlines():
            print("# " + text, flush=True)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.complain(test, err)
        if not isinstance(test, unittest.TestCase):
            self.line(False, test)

    def addError(self, test, err):
        super().addError(test, err)
        self.complain(test, err)
        if not isinstance(test, unittest.TestCase):
            # A failed setUpClass or setUpModule has no stopTest of its own.
            self.line(False, test)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            print("# in " + subtest._subDescription(), flush=True)
            self.complain(test, err)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.line(False, test, f" # SKIP {reason}")
        self.bad.add(test)
        self.reported = test

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.bad.add(test)

    def startTest(self, test):
        super().startTest(test)
        self.reported = None

    def stopTest(self, test):
        super().stopTest(test)
        if self.reported is not test:
            self.line(test not in self.bad, test)


def name_of(test):
    return test.id() if hasattr(test, "id") else str(test)


def main():
    path, patterns = sys.argv[1], sys.argv[2:]
    name = os.path.splitext(os.path.basename(path))[0]
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    loader = unittest.TestLoader()
    if patterns:
        loader.testNamePatterns = [p if "*" in p else f"*{p}*" for p in patterns]
    tests = loader.loadTestsFromModule(module)
    if tests.countTestCases() == 0:
        print(f"Bail out! {path} contains no tests")
        return 1
    print(f"1..{tests.countTestCases()}", flush=True)
    result = TapResult()
    tests.run(result)
    return 1 if result.bad else 0


if __name__ == "__main__":
    sys.exit(main())
