/* SPDX-License-Identifier: Apache-2.0 */
/* The program build/compat/qemu-system-x86_64: src/cli/machine/machine.h. */
#include "cli/machine/machine.h"

int main(int argc, char **argv)
{
    return cli_machine_main(argc, argv);
}
