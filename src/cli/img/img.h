/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sub-commands of `tidemark img`. Each runs in a coroutine of the main reactor. It returns its
 * exit status (with an error in `err`, where the status says more than 1), or a negative errno or
 * cli_args_result; the face prints the error.
 */
#ifndef TIDEMARK_CLI_IMG_IMG_H
#define TIDEMARK_CLI_IMG_IMG_H

#include "base/error.h"

/* The sub-commands. argv[0] is the name. Each parses and executes its command line; yields. */
int img_co_amend(int argc, char **argv, struct error *err);
int img_co_bench(int argc, char **argv, struct error *err);
int img_co_bitmap(int argc, char **argv, struct error *err);
int img_co_check(int argc, char **argv, struct error *err);
int img_co_commit(int argc, char **argv, struct error *err);
int img_co_compare(int argc, char **argv, struct error *err);
int img_co_convert(int argc, char **argv, struct error *err);
int img_co_create(int argc, char **argv, struct error *err);
int img_co_dd(int argc, char **argv, struct error *err);
int img_co_info(int argc, char **argv, struct error *err);
int img_co_map(int argc, char **argv, struct error *err);
int img_co_measure(int argc, char **argv, struct error *err);
int img_co_rebase(int argc, char **argv, struct error *err);
int img_co_rebuild_chain(int argc, char **argv, struct error *err);
int img_co_resize(int argc, char **argv, struct error *err);
int img_co_snapshot(int argc, char **argv, struct error *err);

#endif
