/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Formats that are recognized, by name and by the signatures of their images, and refused. So the
 * user gets a clear error, and a guest can't turn a raw image whose format is probed into one of
 * them.
 */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "file/drivers.h"

/* Bytes that images of a format have at an offset. */
struct signature {
    const struct block_driver *driver;
    size_t offset, size;
    const char *bytes;
};

static int foreign_refuse(const char *name, struct error *err)
{
    error_set(err, ENOTSUP, "The format '%s' is not supported", name);
    error_hint(err, "Convert the image first, with QEMU's 'qemu-img convert -O qcow2'");
    return -ENOTSUP;
}

static int foreign_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    return foreign_refuse(node->driver->name, err);
}

static int foreign_probe(const struct block_driver *driver, const uint8_t *head, size_t size);

#define FOREIGN(id, name_, suffix_, probe_trailer_)                                                \
    static int id##_probe(const uint8_t *head, size_t size);                                       \
    static const struct block_driver id##_driver = {                                               \
        .name = name_,                                                                             \
        .is_format = true,                                                                         \
        .probe = id##_probe,                                                                       \
        .suffix = suffix_,                                                                         \
        .probe_trailer = probe_trailer_,                                                           \
        .refuse = foreign_refuse,                                                                  \
        .co_open = foreign_co_open,                                                                \
    };                                                                                             \
    static int id##_probe(const uint8_t *head, size_t size)                                        \
    {                                                                                              \
        return foreign_probe(&id##_driver, head, size);                                            \
    }

/* Apple's disk images end with a block of 512 bytes that has this signature. */
static int dmg_probe_trailer(const uint8_t *trailer)
{
    return memcmp(trailer, "koly", 4) == 0 ? 100 : 0;
}

FOREIGN(cloop, "cloop", NULL, NULL)
FOREIGN(dmg, "dmg", ".dmg", dmg_probe_trailer)

static const struct signature signatures[] = {
    {&cloop_driver, 0, 23, "#!/bin/sh\n#V2.0 Format\n"},
    {&dmg_driver, 0, 4, "koly"},
};

static int foreign_probe(const struct block_driver *driver, const uint8_t *head, size_t size)
{
    for (size_t i = 0; i < ARRAY_SIZE(signatures); i++) {
        const struct signature *s = &signatures[i];

        if (s->driver == driver && size >= s->offset + s->size &&
            memcmp(head + s->offset, s->bytes, s->size) == 0) {
            return 100;
        }
    }
    return 0;
}

void foreign_register_drivers(void)
{
    const struct block_driver *last = NULL;

    /* The table has at least one line for each driver, and lines of one driver are adjacent. */
    for (size_t i = 0; i < ARRAY_SIZE(signatures); i++) {
        if (signatures[i].driver != last) {
            last = signatures[i].driver;
            block_register_driver(last);
        }
    }
}
