/* SPDX-License-Identifier: Apache-2.0 */
#include "pages.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/iov.h"
#include "random.h"

static uint8_t zero_page[PAGE_BYTES]; /* stands for any page of zeroes, and is never written */

static void *must(void *memory)
{
    if (!memory) {
        abort();
    }
    return memory;
}

/* --- pages ------------------------------------------------------------------------------------ */

static const uint8_t *peek(const struct pages *f, size_t i)
{
    while (f) {
        if (i < f->slots && f->pages[i].data) {
            return f->pages[i].data;
        }
        if ((uint64_t)i * PAGE_BYTES >= f->below_end) {
            return zero_page;
        }
        f = f->below;
    }
    return zero_page;
}

static void set_page(struct pages *f, size_t i, uint8_t *data)
{
    if (i >= f->slots) {
        size_t slots = MAX(2 * f->slots, round_up(i + 1, 64));

        f->pages = must(realloc(f->pages, slots * sizeof(*f->pages)));
        memset(f->pages + f->slots, 0, (slots - f->slots) * sizeof(*f->pages));
        f->slots = slots;
    }
    if (!f->pages[i].data) {
        if (f->own_count == f->own_capacity) {
            f->own_capacity = MAX(2 * f->own_capacity, 64);
            f->own = must(realloc(f->own, f->own_capacity * sizeof(*f->own)));
        }
        f->own[f->own_count++] = i;
    } else if (f->pages[i].data != zero_page) {
        free(f->pages[i].data);
    }
    f->pages[i] = (struct page){.data = data};
}

/* A page to be changed. */
static uint8_t *touch(struct pages *f, size_t i)
{
    if (i >= f->slots || !f->pages[i].data || f->pages[i].data == zero_page) {
        uint8_t *data = must(malloc(PAGE_BYTES));

        memcpy(data, peek(f, i), PAGE_BYTES);
        set_page(f, i, data);
    }
    f->pages[i].hash = 0;
    return f->pages[i].data;
}

void pages_reset(struct pages *f, struct pages *below)
{
    for (size_t i = 0; i < f->own_count; i++) {
        struct page *p = &f->pages[f->own[i]];

        if (p->data != zero_page) {
            free(p->data);
        }
        *p = (struct page){0};
    }
    f->own_count = 0;
    f->below = below;
    f->size = f->below_end = below ? below->size : 0;
}

void pages_release(struct pages *f)
{
    pages_reset(f, NULL);
    free(f->pages);
    free(f->own);
    *f = (struct pages){0};
}

/* --- contents --------------------------------------------------------------------------------- */

/* The part of [offset, offset + length) in the page of `offset`. */
static uint64_t in_page(uint64_t offset, uint64_t length)
{
    return MIN(length, PAGE_BYTES - offset % PAGE_BYTES);
}

void pages_resize(struct pages *f, uint64_t size)
{
    uint64_t old_size = f->size;

    if (size < old_size) {
        pages_zero(f, size, old_size - size);
        f->below_end = MIN(f->below_end, round_up(size, PAGE_BYTES));
    }
    f->size = size;
}

void pages_read(const struct pages *f, uint64_t offset, void *buf, uint64_t length)
{
    for (uint64_t done = 0, n; done < length; done += n) {
        n = in_page(offset + done, length - done);
        memcpy((uint8_t *)buf + done,
               peek(f, (offset + done) / PAGE_BYTES) + (offset + done) % PAGE_BYTES, n);
    }
}

void pages_write(struct pages *f, uint64_t offset, const void *buf, uint64_t length)
{
    length = MIN(length, f->size - MIN(offset, f->size));
    for (uint64_t done = 0, n; done < length; done += n) {
        n = in_page(offset + done, length - done);
        memcpy(touch(f, (offset + done) / PAGE_BYTES) + (offset + done) % PAGE_BYTES,
               (const uint8_t *)buf + done, n);
    }
}

void pages_zero(struct pages *f, uint64_t offset, uint64_t length)
{
    length = MIN(length, f->size - MIN(offset, f->size));
    for (uint64_t done = 0, n; done < length; done += n) {
        size_t i = (offset + done) / PAGE_BYTES;

        n = in_page(offset + done, length - done);
        if (peek(f, i) == zero_page) {
            continue;
        }
        if (n == PAGE_BYTES) {
            set_page(f, i, zero_page);
        } else {
            memset(touch(f, i) + (offset + done) % PAGE_BYTES, 0, n);
        }
    }
}

/* --- hash ------------------------------------------------------------------------------------- */

/* Of one page; pages of zeroes have 1, wherever they come from. */
static uint64_t page_hash(struct pages *f, size_t i)
{
    while (f) {
        if (i < f->slots && f->pages[i].data) {
            struct page *p = &f->pages[i];

            if (p->hash == 0) {
                p->hash =
                    buffer_is_zero(p->data, PAGE_BYTES) ? 1 : hash_bytes(p->data, PAGE_BYTES) | 2;
            }
            return p->hash;
        }
        if ((uint64_t)i * PAGE_BYTES >= f->below_end) {
            return 1;
        }
        f = f->below;
    }
    return 1;
}

uint64_t pages_hash(struct pages *f)
{
    uint64_t sum = random_mix(f->size + 1);

    for (size_t i = 0; (uint64_t)i * PAGE_BYTES < f->size; i++) {
        uint64_t hash = page_hash(f, i);

        if (hash != 1) {
            sum += random_mix(hash + i);
        }
    }
    return sum | 1;
}
