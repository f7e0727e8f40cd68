#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_content_range: values of the header Content-Range, good and bad."""

import os
import sys

SEEDS = {
    "range": b" bytes 0-65535/1048576\r\n",
    "unknown": b"bytes 5-6/*",
    "unsatisfied": b"bytes */1000",
    "huge": b"bytes 9223372036854775806-9223372036854775807/18446744073709551616",
    "backwards": b"bytes 6-5/10",
}


def main():
    folder = sys.argv[1]
    for name, data in SEEDS.items():
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data)


if __name__ == "__main__":
    main()
