#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_nbd_tls: what may come before, within and after a TLS handshake."""

import os
import struct
import sys

FLAGS, STARTTLS, HANDSHAKE, CLEAR_END, GO = 1, 2, 4, 8, 16
IN_TLS = FLAGS | STARTTLS | HANDSHAKE


def option(number, data=b""):
    return struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data


def request(kind, offset, length, payload=b""):
    return struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, offset, length) + payload


def record(kind, data):
    return struct.pack(">BHH", kind, 0x0303, len(data)) + data


DISK = struct.pack(">I", 4) + b"disk" + b"\0\0"

SEEDS = {
    "nothing": (0, b""),
    "clear-go": (FLAGS, option(7, DISK)),
    "clear-export-name": (FLAGS, option(1, b"disk")),
    "clear-options": (FLAGS, option(8) + option(3) + option(11) + option(2)),
    "starttls-with-data": (FLAGS, option(5, b"x")),
    "starttls-twice": (FLAGS, option(5) + option(5)),
    "injected": (FLAGS | STARTTLS, option(7, DISK)),
    "hello-cut": (FLAGS | STARTTLS, record(22, b"\1\0\0\x40" + b"\3\3" + bytes(40))),
    "alert": (FLAGS | STARTTLS, record(21, b"\2\x28")),
    "garbage": (FLAGS | STARTTLS, bytes(range(256)) * 4),
    "long-record": (FLAGS | STARTTLS, struct.pack(">BHH", 22, 0x0303, 0xFFFF) + b"x" * 1000),
    "options": (IN_TLS, option(8) + option(3) + option(6, DISK) + option(7, DISK) + request(0, 0, 512)),
    "starttls-in-tls": (IN_TLS, option(5) + option(7, DISK)),
    "abort": (IN_TLS, option(2)),
    "requests": (IN_TLS | GO, request(0, 0, 1 << 17) + request(1, 0, 512, b"w" * 512) + request(2, 0, 0)),
    "cut-request": (IN_TLS | GO, request(1, 0, 4096, b"w" * 100)),
    "clear-after-tls": (IN_TLS | CLEAR_END, option(7, DISK) * 2),
    "record-after-tls": (IN_TLS | GO | CLEAR_END, request(0, 0, 64) + record(23, b"y" * 23)),
}


def main():
    for name, (how, data) in SEEDS.items():
        with open(os.path.join(sys.argv[1], name), "wb") as seed:
            seed.write(bytes([how]) + data)


if __name__ == "__main__":
    main()
