// SPDX-License-Identifier: BSD-2-Clause
// kernel/files.h over the array boot_files, which stands before this is included.
#pragma once

#include <string.h>

#include "kernel/error.h"
#include "kernel/files.h"

unsigned files_count(void)
{
    return (unsigned)ARRAY_SIZE(boot_files);
}

const struct boot_file *files_get(unsigned index)
{
    return &boot_files[index];
}

int files_find(const char *path, const uint8_t **data, uint64_t *size)
{
    for (unsigned i = 0; i < ARRAY_SIZE(boot_files); i++)
        if (strcmp(path, boot_files[i].path) == 0) {
            if (boot_files[i].status != BOOT_FILE_LOADED)
                return E_IO;
            *data = (const uint8_t *)"";
            *size = boot_files[i].size;
            return 0;
        }
    return E_NOENT;
}
