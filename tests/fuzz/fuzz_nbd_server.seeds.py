#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_nbd_server: each command after a full handshake, and each option."""

import os
import struct
import sys

READY = 15
READY_READ_ONLY = 31
EXTENDED = 32 | READY


def request(kind, offset, length, flags=0, payload=b""):
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, 1, offset, length) + payload


def extended(kind, offset, length, flags=0, payload=b""):
    return struct.pack(">IHHQQQ", 0x21E41C71, flags, kind, 1, offset, length) + payload


def option(number, data=b""):
    return struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data


def string(text):
    return struct.pack(">I", len(text)) + text


SEEDS = {
    "read": (READY, request(0, 0, 4096)),
    "read-large": (READY, request(0, 0, 1 << 20)),
    "read-df": (READY, request(0, 4096, 1 << 17, flags=4)),
    "read-simple": (9, request(0, 0, 4096)),
    "write": (READY, request(1, 512, 4096, payload=b"x" * 4096)),
    "write-fua": (READY, request(1, 0, 100, flags=1, payload=b"y" * 100)),
    "write-large": (READY, request(1, 0, 1 << 17, payload=b"z" * (1 << 17))),
    "write-refused": (READY_READ_ONLY, request(1, 0, 64, payload=b"q" * 64) + request(0, 0, 64)),
    "flush-disc": (READY, request(3, 0, 0) + request(2, 0, 0)),
    "trim": (READY, request(4, 0, 65536)),
    "cache": (READY, request(5, 0, 1 << 20)),
    "zeroes": (READY, request(6, 0, 65536, flags=0x12)),
    "status": (READY, request(7, 0, 1 << 20)),
    "status-one": (READY_READ_ONLY, request(7, 0, 1 << 20, flags=8)),
    "beyond": (READY, request(0, 1 << 20, 1) + request(1, (1 << 64) - 1, 2, payload=b"ab")),
    "batch": (READY, b"".join(request(0, i * 4096, 4096) for i in range(16))),
    "extended-read": (EXTENDED, extended(0, 0, 1 << 17)),
    "extended-write": (EXTENDED, extended(1, 0, 1 << 17, 32, b"w" * (1 << 17))),
    "extended-payload": (EXTENDED, extended(4, 0, 64, 32, b"w" * 64) + extended(7, 0, 1 << 20)),
    "extended-zeroes": (EXTENDED, extended(6, 0, 1 << 20) + extended(4, 0, 1 << 63)),
    "extended-option": (3, option(11) + option(8) + option(6, string(b"rw") + b"\0\0")),
    "list": (3, option(3) + option(2)),
    "info": (3, option(6, string(b"rw") + struct.pack(">HHH", 2, 1, 3))),
    "export-name": (1, option(1, b"rw") + request(0, 0, 512)),
    "starttls": (1, option(5)),
    "list-meta": (3, option(9, string(b"rw") + struct.pack(">I", 0))),
    "wildcards": (3, option(9, string(b"ro") + struct.pack(">I", 1) + string(b"qemu:"))),
    "nothing": (0, b"\0\0\0\3"),
}


def main():
    for name, (how, data) in SEEDS.items():
        with open(os.path.join(sys.argv[1], name), "wb") as seed:
            seed.write(bytes([how]) + data)


if __name__ == "__main__":
    main()
