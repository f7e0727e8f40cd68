#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for the targets fuzz_qcow2_*: small images by qemu-img with everything that the format has.

Each image is there once for each of some last bytes, by which targets choose what they do.
"""

import os
import subprocess
import sys

WRITES = ("write -P 1 0 9k", "write -P 2 20k 512", "write -z 30k 4k")
BITMAPS = (
    ("bitmap", "--add", "-g", "512", "a"),
    ("bitmap", "--add", "-g", "64k", "b"),
    "write -P 1 0 9k",
    ("bitmap", "--disable", "b"),
)
SNAPSHOTS = (
    "write -P 1 0 2k",
    ("snapshot", "-c", "one"),
    "write -P 2 1k 2k",
    ("snapshot", "-c", "two"),
    "write -P 3 2k 2k",
)
COMPRESSED = ("write -c -P 1 0 4k", "write -c -P 2 4k 4k", "write 64k 1k")

# Name, options of creation, size, commands: qemu-io's, or others as (program, argument, ...).
IMAGES = {
    "empty": ("cluster_size=512", "64k", ()),
    "data": ("cluster_size=512", "64k", WRITES),
    "discard": ("cluster_size=512", "64k", ("write -P 1 0 9k", "discard 2k 3k", "write -zu 6k 1k")),
    "4k": ("cluster_size=4k", "1M", ("write -P 1 0 12k", "write -P 2 900k 4k")),
    "lazy": ("cluster_size=4k,lazy_refcounts=on", "1M", ("write -P 1 0 12k",)),
    "zlib": ("cluster_size=4k", "1M", COMPRESSED),
    "zstd": ("cluster_size=4k,compression_type=zstd", "1M", COMPRESSED),
    "bitmaps": ("cluster_size=512", "1M", BITMAPS),
    "bitmaps-and-snapshots": ("cluster_size=512", "64k", BITMAPS + SNAPSHOTS),
    "snapshots": ("cluster_size=512", "64k", SNAPSHOTS),
    "snapshots-compressed": ("cluster_size=4k", "1M", COMPRESSED + SNAPSHOTS),
    "subclusters": (
        "cluster_size=16k,extended_l2=on",
        "128k",
        ("write -P 1 0 1k", "write -P 2 16k 20k", "write -z 17k 1k", "write -c -P 3 64k 16k"),
    ),
    "subclusters-snapshots": ("cluster_size=16k,extended_l2=on", "128k", SNAPSHOTS),
    "preallocated": ("cluster_size=512,preallocation=metadata", "16k", ()),
    "backing": ("cluster_size=512,backing_file=base,backing_fmt=raw", "64k", WRITES),
    "data-file": ("cluster_size=512,data_file=raw", "64k", WRITES),
    "data-file-raw": ("cluster_size=4k,data_file=raw,data_file_raw=on", "64k", WRITES),
    "v2": ("cluster_size=512,compat=0.10", "64k", ("write -P 1 0 2k",)),
    "v2-snapshots": ("cluster_size=512,compat=0.10", "64k", SNAPSHOTS),
    **{
        f"refcounts-{bits}": (f"cluster_size=512,refcount_bits={bits}", "64k", ("write -P 1 0 2k",))
        for bits in (1, 2, 4, 8, 32, 64)
    },
}

# In bits: nothing, one thing, several, all.
LAST_BYTES = (0, 1, 0x1B, 0x7F, 0xFF)


def make(directory, name, options, size, commands):
    def run(*words):
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=directory)

    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-o", options, name, size)
    for command in commands:
        if isinstance(command, str):
            run("qemu-io", "-f", "qcow2", "-c", command, name)
        elif command[0] == "bitmap":
            run("qemu-img", *command[:-1], name, command[-1])
        else:
            run("qemu-img", *command, name)


def main(directory):
    with open(os.path.join(directory, "base"), "wb") as f:
        f.truncate(65536)
    for name, image in IMAGES.items():
        path = os.path.join(directory, name)
        make(directory, name, *image)
        with open(path, "rb") as f:
            data = f.read()
        os.unlink(path)
        for last in LAST_BYTES:
            with open(f"{path}-{last:02x}", "wb") as f:
                f.write(data + bytes([last]))
    for name in ("base", "raw"):
        os.unlink(os.path.join(directory, name))


main(sys.argv[1])
