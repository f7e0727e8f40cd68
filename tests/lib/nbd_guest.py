# SPDX-License-Identifier: Apache-2.0
"""A Linux guest in QEMU, without KVM, whose disk is an export of ours: it makes a file system,
writes a tree, unmounts, mounts again and checks it.
"""

import glob
import os
import subprocess
import unittest

from nbd_server import NbdServer
from tidemark import TestCase, img, qemu, run

SIZE = "256M"
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
           "virtio_blk")  # fmt: skip

SCRIPT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for m in {modules}; do insmod /$m.ko; done
for i in 1 2 3 4 5 6 7 8 9 10; do [ -e /dev/vda ] && break; sleep 1; done
fail() {{ echo "GUEST-FAILED $1"; poweroff -f; sleep 1000; }}
mkfs.ext4 -q -E nodiscard /dev/vda || fail mkfs
mkdir /m; mount -t ext4 /dev/vda /m || fail mount
for d in 1 2 3 4 5; do
    mkdir /m/$d
    for f in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/m/$d/$f bs=4k count=$((d * f)) 2>/dev/null; done
done
cp -r /bin /m/copy
rm -r /m/3
(cd /m && find . -type f | sort | xargs md5sum > /sums)
sync; umount /m || fail umount
echo 3 > /proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /m || fail remount
(cd /m && md5sum -c /sums > /checked) || fail check
fstrim /m; umount /m
echo "GUEST-CHECKED $(grep -c OK /checked)"
poweroff -f
sleep 1000
"""


def cpio(entries):
    """An initramfs of (name, mode, contents)."""
    out = b""
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")]):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return out


def read(path):
    with open(path, "rb") as file:
        return file.read()


def libraries(program):
    """What the dynamic linker loads for it, and that itself."""
    words = run("ldd", program).stdout.split()
    return [word for word in words if word.startswith("/")]


def kernel():
    """The newest kernel of Debian: its version."""
    return sorted(glob.glob("/boot/vmlinuz-*-cloud-amd64"))[-1].split("vmlinuz-")[1]


def initramfs(path, script, programs, modules, files=None):
    """Make the file `path`, with busybox, `programs`, of which the libraries come along, modules of
    the kernel and further files: {name: contents}.
    """
    entries = {d: (0o40755, b"") for d in ("bin", "proc", "sys", "dev", "tmp", "lib", "lib64", "usr")}
    entries["init"] = (0o100755, script.encode())
    entries["bin/busybox"] = (0o100755, read(qemu("busybox")))
    for program in programs:
        entries["bin/" + os.path.basename(program)] = (0o100755, read(program))
        for library in libraries(program):
            folder = ""
            for part in library.strip("/").split("/")[:-1]:
                folder = os.path.join(folder, part)
                entries.setdefault(folder, (0o40755, b""))
            entries[library.strip("/")] = (0o100755, read(library))
    for module in modules:
        (name,) = glob.glob(f"/lib/modules/{kernel()}/kernel/**/{module}.ko", recursive=True)
        entries[module + ".ko"] = (0o100644, read(name))
    for name, data in (files or {}).items():
        entries[name] = (0o100644, data)
    with open(path, "wb") as file:
        file.write(cpio((name, *entry) for name, entry in entries.items()))
    return path


def boot(archive, *arguments, memory=256):
    """Run a guest to its end; what it said."""
    return subprocess.run(
        [qemu("qemu-system-x86_64"), "-accel", "tcg,thread=multi", "-cpu", "max", "-m", str(memory),
         "-smp", "2", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-kernel",
         f"/boot/vmlinuz-{kernel()}", "-initrd", archive, "-append",
         "console=ttyS0 quiet panic=-1", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=600,
        check=False,
    )  # fmt: skip


class GuestTest(TestCase):
    def test_a_guest_keeps_a_file_system_on_an_export(self):
        image = self.create("disk.qcow2", SIZE)
        server = self.own(NbdServer(self.dir, "-f", "qcow2", "--discard=unmap", image))
        disk = f"driver=nbd,node-name=d,server.type=unix,server.path={server.socket},discard=unmap"
        archive = initramfs(self.path("initramfs"), SCRIPT.format(modules=" ".join(MODULES)),
                            [qemu("mkfs.ext4")], MODULES)  # fmt: skip
        guest = boot(archive, "-blockdev", disk, "-device", "virtio-blk-pci,drive=d")
        # 8 files in 4 directories, and the programs.
        self.assertRegex(guest.stdout, r"GUEST-CHECKED [34]\d\b", guest.stderr)
        server.stop()
        img("check", image)
        raw = self.path("disk.raw")
        img("convert", "-O", "raw", image, raw)
        result = run("e2fsck", "-fn", raw, check=False)
        self.assertEqual(result.returncode, 0, result.stdout)


if __name__ == "__main__":
    unittest.main()
