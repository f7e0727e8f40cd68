/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random requests of several guests on a qcow2 image and on an array, which must stay alike.
 *
 * usage: qcow2_model IMAGE SIZE [KEY=VALUE...]
 *   seed=N ops=N rounds=N reactors=N guests=N       guests: on each reactor
 *   compressed=0|1  options=NODE-OPTIONS    (options=l2-cache-size=512,l2-cache-entry-size=512)
 *
 * The image is there already, and so may be IMAGE.model: what it reads as; else it reads as zeroes.
 * Each round opens the image, runs the guests, and closes it again. At the end IMAGE.model is
 * written again, for others to compare.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/driver.h"
#include "file/file_drivers.h"
#include "model_disk.h"
#include "qcow2/qcow2.h"

#define REACTORS_LIMIT 8

struct arguments {
    const char *image;
    uint64_t size;
    unsigned long seed, ops, rounds, reactors, guests, compressed;
    const char *options;
};

struct run {
    const struct arguments *a;
    struct model_disk disk;
    struct reactor *reactors[REACTORS_LIMIT];
    int status;
};

static void model_file(struct run *run, const char *mode)
{
    char name[4096];
    FILE *f;

    snprintf(name, sizeof(name), "%s.model", run->a->image);
    f = fopen(name, mode);
    if (f) {
        size_t n = mode[0] == 'r' ? fread(run->disk.bytes, 1, run->disk.size, f)
                                  : fwrite(run->disk.bytes, 1, run->disk.size, f);

        if (n < run->disk.size) {
            fprintf(stderr, "%s: %zu bytes only\n", name, n);
            run->status = 2;
        }
        fclose(f);
    }
}

static int open_image(struct run *run, struct block_node **ret_node, struct block_root **ret_root)
{
    ERROR_AUTO(err);
    struct options *opts = NULL;
    char text[8192];
    int r;

    snprintf(text, sizeof(text), "driver=qcow2,discard=unmap,file.driver=file,file.filename=%s%s%s",
             run->a->image, run->a->options[0] ? "," : "", run->a->options);
    r = options_parse(text, NULL, &opts, &err);
    r = r < 0 ? r : block_co_open(opts, BLOCK_OPEN_RDWR, ret_node, &err);
    if (r == 0) {
        r = block_co_root_new(*ret_node, "model", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                              BLOCK_PERM_ALL, ret_root, &err);
    }
    if (r < 0) {
        fprintf(stderr, "%s\n", error_message(&err));
    }
    return r;
}

static int round_of(struct run *run, unsigned round)
{
    const struct arguments *a = run->a;
    struct block_node *node;
    struct block_root *root;
    ERROR_AUTO(err);
    int r = open_image(run, &node, &root);

    if (r < 0) {
        return r;
    }
    model_disk_co_run(&(struct model_guests){
        .disk = &run->disk,
        .edge = block_root_edge(root),
        .reactors = run->reactors,
        .reactor_count = (unsigned)a->reactors,
        .per_reactor = (unsigned)a->guests,
        .ops = (unsigned)a->ops,
        .seed = a->seed * 100 + round,
        .cluster_size = node->limits.cluster_size,
        .compressed = a->compressed,
    });
    model_disk_co_verify(&run->disk, block_root_edge(root));
    block_co_root_release(root);
    r = block_co_inactivate(node, &err);
    if (r < 0) {
        fprintf(stderr, "%s\n", error_message(&err));
    }
    block_co_unref(node);
    return r;
}

static void co_main(void *arg)
{
    struct run *run = arg;
    ERROR_AUTO(err);

    run->reactors[0] = reactor_main();
    for (unsigned i = 1; i < run->a->reactors; i++) {
        if (reactor_create("model", &run->reactors[i], &err) < 0) {
            abort();
        }
    }
    for (unsigned i = 0; i < run->a->rounds && run->status == 0; i++) {
        run->status = round_of(run, i) < 0 || atomic_load(&run->disk.failures) ? 1 : 0;
    }
    for (unsigned i = 1; i < run->a->reactors; i++) {
        reactor_destroy(run->reactors[i]);
    }
}

static int parse(int argc, char **argv, struct arguments *a)
{
    struct {
        const char *key;
        unsigned long *value;
    } keys[] = {{"seed=", &a->seed},     {"ops=", &a->ops},
                {"rounds=", &a->rounds}, {"reactors=", &a->reactors},
                {"guests=", &a->guests}, {"compressed=", &a->compressed}};

    for (int i = 3; i < argc; i++) {
        bool known = strncmp(argv[i], "options=", 8) == 0;

        if (known) {
            a->options = argv[i] + 8;
        }
        for (size_t k = 0; k < ARRAY_SIZE(keys); k++) {
            if (strncmp(argv[i], keys[k].key, strlen(keys[k].key)) == 0) {
                *keys[k].value = strtoul(argv[i] + strlen(keys[k].key), NULL, 0);
                known = true;
            }
        }
        if (!known) {
            return -EINVAL;
        }
    }
    return a->reactors >= 1 && a->reactors <= REACTORS_LIMIT ? 0 : -EINVAL;
}

int main(int argc, char **argv)
{
    struct arguments a = {
        .seed = 1, .ops = 100, .rounds = 2, .reactors = 1, .guests = 4, .options = ""};
    struct run run = {.a = &a};
    ERROR_AUTO(err);

    if (argc < 3 || parse(argc, argv, &a) < 0) {
        fprintf(stderr, "usage: qcow2_model IMAGE SIZE [KEY=VALUE...]\n");
        return 2;
    }
    a.image = argv[1];
    a.size = strtoull(argv[2], NULL, 0);
    if (reactor_init_main(&err) < 0) {
        fprintf(stderr, "%s\n", error_message(&err));
        return 2;
    }
    file_register_drivers();
    qcow2_register_driver();
    model_disk_init(&run.disk, a.size);
    model_file(&run, "r");
    reactor_run_until_done(co_main, &run);
    if (run.disk.failures) {
        fprintf(stderr, "seed %lu: %s\n", a.seed, run.disk.why);
    }
    model_file(&run, "w");
    model_disk_release(&run.disk);
    reactor_exit_main();
    return run.status;
}
