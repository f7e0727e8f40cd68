/* SPDX-License-Identifier: Apache-2.0 */
#include "base/spawn.h"

#include <signal.h>

int spawn_program(char *const *argv, char *const *environment,
                  const posix_spawn_file_actions_t *actions, pid_t *ret_child)
{
    posix_spawnattr_t attributes;
    sigset_t none, usual;
    int r = posix_spawnattr_init(&attributes);

    if (r != 0) {
        return -r;
    }
    sigemptyset(&none);
    sigemptyset(&usual);
    sigaddset(&usual, SIGPIPE);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &usual);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    r = posix_spawn(ret_child, argv[0], actions, &attributes, argv, environment);
    posix_spawnattr_destroy(&attributes);
    return -r;
}
