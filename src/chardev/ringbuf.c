/* SPDX-License-Identifier: Apache-2.0 */
/* The type ringbuf: memory that keeps the latest output, for ringbuf-read. There is no input. */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/log.h"
#include "chardev/internal.h"

#define DEFAULT_SIZE 65536
#define GREATEST_SIZE (1 << 30)

struct ringbuf_chardev {
    struct chardev base;
    struct chardev_ends ends;
    char *bytes;                 /* owned */
    size_t size;                 /* a power of two */
    uint64_t produced, consumed; /* their difference is at most `size` */
};

static struct ringbuf_chardev *ringbuf(const struct chardev *c)
{
    return container_of(c, struct ringbuf_chardev, base);
}

bool chardev_is_ringbuf(const struct chardev *c)
{
    return c->ops == &chardev_ringbuf_ops;
}

size_t chardev_ringbuf_size(const struct chardev *c)
{
    return ringbuf(c)->size;
}

void chardev_ringbuf_write(struct chardev *c, const char *data, size_t size)
{
    struct ringbuf_chardev *r = ringbuf(c);

    for (size_t i = 0; i < size; i++) {
        r->bytes[r->produced++ & (r->size - 1)] = data[i];
    }
    if (r->produced - r->consumed > r->size) {
        r->consumed = r->produced - r->size;
    }
}

size_t chardev_ringbuf_read(struct chardev *c, char *buf, size_t size)
{
    struct ringbuf_chardev *r = ringbuf(c);
    size_t count = 0;

    chardev_catch_up(c, &r->ends);
    while (count < size && r->consumed < r->produced) {
        buf[count++] = r->bytes[r->consumed++ & (r->size - 1)];
    }
    return count;
}

static int co_open_ringbuf(struct chardev *c, struct json_object *data, struct error *err)
{
    struct ringbuf_chardev *r = ringbuf(c);
    int64_t size = chardev_number(data, "size", DEFAULT_SIZE);

    r->ends = (struct chardev_ends){.in = -1, .out = -1, .keep = chardev_ringbuf_write, .near = -1};
    if (size <= 0 || !is_power_of_2((uint64_t)size)) {
        return error_set(err, EINVAL, "size of ringbuf chardev must be power of two");
    }
    if (size > GREATEST_SIZE) {
        return error_set(err, EINVAL, "A ringbuf chardev has at most %d bytes", GREATEST_SIZE);
    }
    r->size = (size_t)size;
    r->bytes = malloc(r->size);
    return r->bytes ? 0 : error_out_of_memory(err);
}

static void co_fill_ringbuf(void *arg)
{
    struct chardev *c = arg;
    ERROR_AUTO(err);

    if (chardev_co_carry(c, &ringbuf(c)->ends, &err) < 0) {
        log_error("chardev '%s': %s", c->id, error_message(&err));
    }
    chardev_ran(c);
}

static int start_ringbuf(struct chardev *c, struct error *err)
{
    return chardev_spawn(c, co_fill_ringbuf, err);
}

static void co_free_ringbuf(struct chardev *c)
{
    free(ringbuf(c)->bytes);
}

const struct chardev_ops chardev_ringbuf_ops = {
    .name = "ringbuf",
    .size = sizeof(struct ringbuf_chardev),
    .co_open = co_open_ringbuf,
    .start = start_ringbuf,
    .co_free = co_free_ringbuf,
};
