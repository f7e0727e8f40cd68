#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_qmp_json: a byte for the size of the pieces, then messages as clients send them,
and broken ones.
"""

import os
import sys

SEEDS = {
    "command": b'\x40{"execute": "query-version", "id": 7}\r\n',
    "arguments": b'\x03{"execute":"blockdev-add","arguments":{"driver":"raw","file":{"driver":"file",'
                 b'"filename":"\xc3\xa9\\u00e9"},"offset":0,"read-only":true,"x":null}}\n',
    "quotes": b"\x00{'execute': 'it\\'s \"x\"'}\n",
    "numbers": b"\x10[0,-0,1.5,-1e-5,18446744073709551615,18446744073709551616,-9223372036854775809]\n",
    "strings": b'\x10["\\b\\f\\n\\r\\t\\/\\\\\\"","\\ud83d\\ude00","\\u0000"]\n',
    "errors": b'\x08{"a":1,}{"a":1,"a":2}\n{"a":01}\n{a:1}[1 2]"\\q""\\ud800"\n@\n\xff{}\n',
    "same place": b'\x40{"zfa": 1, "id": 2, "a": {"zfa": -0.0, "id": null}}\n',
    "deep": b"\x20" + b"[" * 25 + b"\n" + b"[" * 19 + b"]" * 19 + b"\n",
}


def main():
    folder = sys.argv[1]
    for name, data in SEEDS.items():
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data)


if __name__ == "__main__":
    main()
