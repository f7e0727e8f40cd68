/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/img/command_line.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

void img_progress_begin(struct progress *p, bool wanted, uint64_t total)
{
    enum progress_form form = PROGRESS_NONE;

    if (wanted) {
        form = !cli_is_compat() && isatty(STDOUT_FILENO) ? PROGRESS_BAR : PROGRESS_PERCENT;
    }
    progress_begin(p, stdout, form, NULL, total);
}

int img_parse(const struct cli_arg *args, const struct cli_usage *usage, int argc, char **argv,
              struct cli_image *image, struct error *err)
{
    int first = cli_args_parse(args, usage, argc, argv);

    if (first < 0) {
        return first;
    }
    if (first != argc - 1) {
        return cli_usage_error(err, usage, "Expecting one image file name");
    }
    image->name = argv[first];
    return 0;
}

int img_prepare(const struct cli_image *image, const char *cache_option,
                const struct cli_items *objects, struct error *err)
{
    int r = cli_check_cache_mode(image->cache, cache_option, err);

    return r < 0 ? r : cli_add_objects(objects, err);
}

int img_refuse_useless(const struct img_useless *options, size_t count, const char *where,
                       struct error *err)
{
    for (size_t i = 0; i < count && !cli_is_compat(); i++) {
        if (options[i].given) {
            return error_set(err, EINVAL, "%s has no effect %s", options[i].name, where);
        }
    }
    return 0;
}

int img_parse_output(const struct cli_usage *usage, const char *text, bool *ret_json,
                     struct error *err)
{
    return cli_parse_output(text, ret_json, NULL) < 0
               ? cli_usage_error(err, usage, "--output expects 'human' or 'json' not '%s'", text)
               : 0;
}
