/* SPDX-License-Identifier: Apache-2.0 */
/* The machine of a backup, as its manifest names it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "backup/manifest.h"
#include "base/cleanup.h"

#define MACHINE_ID_FILE "/etc/machine-id"
#define MACHINE_ID_DIGITS 32
#define SHOWN_DIGITS 16

/* The hash of the machine's id with a word of our own; "" if the machine has none. */
static void hash_machine_id(char ret_text[static SHA256_HEX_SIZE])
{
    static const char word[] = "tidemark-backup:";
    char text[sizeof(word) + MACHINE_ID_DIGITS];
    uint8_t hash[SHA256_SIZE];
    int fd AUTO_CLOSE = open(MACHINE_ID_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    size_t size = sizeof(word) - 1 + MACHINE_ID_DIGITS;

    ret_text[0] = '\0';
    memcpy(text, word, sizeof(word));
    if (fd < 0 || read(fd, text + sizeof(word) - 1, MACHINE_ID_DIGITS) != MACHINE_ID_DIGITS ||
        sha256_of_buffer(text, size, hash) < 0) {
        return;
    }
    sha256_to_hex(hash, ret_text);
    ret_text[SHOWN_DIGITS] = '\0';
}

int manifest_set_machine(struct manifest *m)
{
    char name[HOST_NAME_MAX + 1] = "", id[SHA256_HEX_SIZE];

    gethostname(name, sizeof(name) - 1);
    hash_machine_id(id);
    if (name[0] && manifest_name_is_valid(name)) {
        m->machine = strdup(name);
    }
    if (id[0]) {
        m->machine_id = strdup(id);
    }
    return (!m->machine && name[0]) || (!m->machine_id && id[0]) ? -ENOMEM : 0;
}
