/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/serving.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "nbd/server.h"
#include "stats/metrics.h"

#define SLOW_SECONDS_MAX 1e9

static int apply_slow_request(const char *value, struct error *err)
{
    char *end;
    double seconds = strtod(value, &end);

    if (end == value || *end != '\0' || !isfinite(seconds) || seconds < 0 ||
        seconds > SLOW_SECONDS_MAX) {
        return error_set(
            err, EINVAL,
            "Invalid value '%s' of --slow-request: expected seconds, such as 10 or 0.5", value);
    }
    nbd_set_slow_limit((int64_t)(seconds * 1e9));
    return 0;
}

int cli_serving_apply(const struct cli_serving *s, struct error *err)
{
    return s->slow_request ? apply_slow_request(s->slow_request, err) : 0;
}

int cli_serving_co_start(const struct cli_serving *s, struct error *err)
{
    return s->metrics ? metrics_co_start(s->metrics, err) : 0;
}

void cli_serving_co_stop(void)
{
    metrics_co_stop();
}
