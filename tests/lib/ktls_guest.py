# SPDX-License-Identifier: Apache-2.0
"""Records of TLS that a real kernel makes (kTLS): in a Linux guest, without KVM, libnbd reads from
our server, and our client writes to it, with each cipher, and what arrives is compared.
"""

import re
import unittest

from nbd_guest import boot, initramfs
from tidemark import TestCase, qemu, tool

KEY = "00112233445566778899aabbccddeeff"
# In the order in which they need each other.
MODULES = ("tls", "cryptd", "crypto_simd", "aesni-intel", "gcm", "ctr", "ccm", "seqiv",
           "chacha20poly1305", "libchacha", "chacha-x86_64", "chacha_generic", "libpoly1305",
           "poly1305_generic")  # fmt: skip
CIPHERS = {
    "TLS1.3:AES-128-GCM": True, "TLS1.3:CHACHA20-POLY1305": True, "TLS1.2:AES-128-GCM": True,
    "TLS1.2:AES-256-GCM": True, "TLS1.2:CHACHA20-POLY1305": True, "TLS1.3:AES-128-CCM": False,
}  # fmt: skip
GNUTLS = "/usr/lib/x86_64-linux-gnu/libgnutls.so.30"

SCRIPT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
for m in {modules}; do insmod /$m.ko; done
ifconfig lo 127.0.0.1 up
cd /tmp
dd if=/dev/urandom of=old bs=1M count=8 2>/dev/null
dd if=/dev/urandom of=new bs=1M count=8 2>/dev/null
disk=driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port=10809,file.tls-creds=tls0
for c in {ciphers}; do
    creds="tls-creds-psk,id=tls0,x-ktls=on,dir=/,priority=NORMAL:-VERS-ALL:-CIPHER-ALL:+VERS-${{c%:*}}:+${{c#*:}}"
    cp old disk
    tidemark nbd -t -f raw -b 127.0.0.1 -p 10809 --log-level info --object "$creds,endpoint=server" \\
        --tls-creds tls0 disk 2>log &
    until grep -q listens log; do sleep 1; done
    nbdcopy --connections=1 --request-size=1048576 --requests=8 \\
        "nbds://alice@127.0.0.1/?tls-psk-file=/keys.psk" copy && cmp copy old &&
        tidemark img convert -n -f raw --object "$creds,endpoint=client,username=alice" \\
            --target-image-opts new $disk && kill $! && wait $! && cmp disk new && echo "SAME $c"
    kill $! 2>/dev/null
    grep connected log
done
echo "RECORDS $(grep TlsTxSw /proc/net/tls_stat)"
poweroff -f
sleep 1000
"""


class KernelTlsGuestTest(TestCase):
    def test_the_records_of_a_real_kernel(self):
        script = SCRIPT.format(modules=" ".join(MODULES), ciphers=" ".join(CIPHERS))
        archive = initramfs(self.path("initramfs"), script, [tool("nbd")[0], qemu("nbdcopy"), GNUTLS],
                            MODULES, {"keys.psk": f"alice:{KEY}\n".encode()})  # fmt: skip
        said = boot(archive, memory=1024).stdout
        for cipher in CIPHERS:
            self.assertIn(f"SAME {cipher}", said)
        sessions = sum(CIPHERS.values())
        self.assertEqual(said.count("by TLS of the kernel (kTLS)"), 2 * sessions, said)
        # Those of the server, and those of our client; libnbd leaves them to GnuTLS.
        self.assertEqual(re.findall(r"RECORDS TlsTxSw\s+(\d+)", said), [str(3 * sessions)], said)


if __name__ == "__main__":
    unittest.main()
