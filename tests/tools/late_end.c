/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loaded into a program (LD_PRELOAD), it draws out the end: a thread other than the main one that
 * learns from recv(2) that a connection has ended goes on 50 ms later, and the program is gone half
 * a second after its libraries have cleaned up. A thread that nobody waits for then uses them after
 * that.
 */
#include <dlfcn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LATE_US 50000
#define END_US 500000

ssize_t recv(int fd, void *buf, size_t size, int flags)
{
    static ssize_t (*real)(int, void *, size_t, int);
    ssize_t n;

    if (!real) {
        real = (ssize_t(*)(int, void *, size_t, int))dlsym(RTLD_NEXT, "recv");
    }
    n = real(fd, buf, size, flags);
    if (n == 0 && getpid() != syscall(SYS_gettid)) {
        usleep(LATE_US);
    }
    return n;
}

__attribute__((destructor)) static void stay(void)
{
    usleep(END_US);
}
