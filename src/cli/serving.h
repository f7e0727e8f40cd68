/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of the faces that serve clients, `daemon` and `nbd`: how these are watched.
 */
#ifndef TIDEMARK_CLI_SERVING_H
#define TIDEMARK_CLI_SERVING_H

#include "base/error.h"
#include "cli/args.h"

struct cli_serving {
    /* Value of --slow-request; NULL: not given. */
    const char *slow_request;
    /* Value of --metrics; NULL: not given. */
    const char *metrics;
};

/* Rows of a table of arguments (cli/args.h) for `s`, a struct cli_serving. */
/* clang-format off */
#define CLI_SERVING_ARGS(s)                                                                        \
    {"metrics", 0, CLI_VALUE, &(s).metrics, "ADDR",                                                \
     "figures for Prometheus, by HTTP: [HOST:]PORT or a path"},                                    \
    {"slow-request", 0, CLI_VALUE, &(s).slow_request, "SECONDS",                                   \
     "report requests that take longer (default 10; 0: none)"}
/* clang-format on */

/* Check the values and set what they say. -EINVAL. Before threads start; does not yield. */
int cli_serving_apply(const struct cli_serving *s, struct error *err);

/* Start what the options ask for, and end it. Main reactor; both yield. */
int cli_serving_co_start(const struct cli_serving *s, struct error *err);
void cli_serving_co_stop(void);

#endif
