// SPDX-License-Identifier: BSD-2-Clause
// The files that the boot stage loaded; they stay in memory.
#pragma once

#include "kernel/boot_info.h"
#include "kernel/types.h"

void files_init(const struct boot_info *info);
// Finds a file by the path written in the config ('/' and '\\' and letter case do not matter: FAT).
// Returns 0 and the contents; E_NOENT when the path was not named at boot, E_IO when it could not
// be read.
int files_find(const char *path, const uint8_t **data, uint64_t *size);
unsigned files_count(void);
const struct boot_file *files_get(unsigned index);
