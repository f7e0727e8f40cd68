/* SPDX-License-Identifier: Apache-2.0 */
/* Metrics of the process itself, from /proc. What cannot be read is left out. */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "stats/prometheus.h"

static void put(struct strbuf *text, const char *name, const char *type, const char *help,
                double value)
{
    strbuf_printf(text, "# HELP %s %s\n# TYPE %s %s\n%s %.15g\n", name, help, name, type, name,
                  value);
}

/* Fields 14, 15, 22, 23 and 24 of /proc/self/stat, see proc(5). */
struct usage {
    uint64_t user, system, start, virtual, resident;
};

/* Field `number`, 3 or more, of a line whose second field ends at `name_end`. 0 if it is cut. */
static uint64_t read_field(const char *name_end, int number)
{
    const char *field = name_end;

    for (int before = 2; before < number; before++) {
        field = strchr(field + 1, ' ');
        if (!field) {
            return 0;
        }
    }
    return strtoull(field, NULL, 10);
}

static bool read_usage(struct usage *u)
{
    AUTO_CLOSE int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    char line[1024];
    ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);
    const char *name_end;

    if (n <= 0) {
        return false;
    }
    line[n] = '\0';
    /* The name of the program may have any character; ')' ends it. */
    name_end = strrchr(line, ')');
    if (!name_end) {
        return false;
    }
    u->user = read_field(name_end, 14);
    u->system = read_field(name_end, 15);
    u->start = read_field(name_end, 22);
    u->virtual = read_field(name_end, 23);
    u->resident = read_field(name_end, 24);
    return true;
}

static size_t count_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    size_t count = 0;

    if (!dir) {
        return 0;
    }
    while (readdir(dir)) {
        count++;
    }
    closedir(dir);
    /* Without "." and "..", and the descriptor of the directory. */
    return count > 3 ? count - 3 : 0;
}

/* When the system was booted, in seconds after the epoch. */
static double boot_time(void)
{
    struct timespec real, since_boot;

    clock_gettime(CLOCK_REALTIME, &real);
    clock_gettime(CLOCK_BOOTTIME, &since_boot);
    return (double)(real.tv_sec - since_boot.tv_sec) +
           (double)(real.tv_nsec - since_boot.tv_nsec) / 1e9;
}

void prometheus_put_process(struct strbuf *text)
{
    double ticks = (double)sysconf(_SC_CLK_TCK);
    struct rlimit limit;
    struct usage u;

    if (read_usage(&u)) {
        put(text, "process_cpu_seconds_total", "counter", "Processor time, user and system",
            (double)(u.user + u.system) / ticks);
        put(text, "process_start_time_seconds", "gauge", "When the process began, since the epoch",
            boot_time() + (double)u.start / ticks);
        put(text, "process_virtual_memory_bytes", "gauge", "Size of the address space",
            (double)u.virtual);
        put(text, "process_resident_memory_bytes", "gauge", "Memory in use",
            (double)u.resident * (double)sysconf(_SC_PAGESIZE));
    }
    put(text, "process_open_fds", "gauge", "Open file descriptors", (double)count_descriptors());
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        put(text, "process_max_fds", "gauge", "Limit of open file descriptors",
            (double)limit.rlim_cur);
    }
}
