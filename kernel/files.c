// SPDX-License-Identifier: BSD-2-Clause
// The files that the boot stage loaded.
#include "kernel/files.h"

#include "kernel/error.h"
#include "kernel/memory.h"
#include "kernel/string.h"

static const struct boot_file *files;
static unsigned file_count;

void files_init(const struct boot_info *info)
{
    files = info->files;
    file_count = MIN(info->file_count, BOOT_MAX_FILES);
}

unsigned files_count(void)
{
    return file_count;
}

const struct boot_file *files_get(unsigned index)
{
    return index < file_count ? &files[index] : NULL;
}

// As FAT compares: letter case does not matter. Both separators are one, and paths start at the
// root whether they say so or not.
static char fold(char c)
{
    if (c == '/')
        return '\\';
    if (c >= 'A' && c <= 'Z')
        return (char)(c - 'A' + 'a');
    return c;
}

static const char *skip_root(const char *path)
{
    while (fold(*path) == '\\')
        path++;
    return path;
}

// `stored` need not be terminated within BOOT_PATH_MAX: it comes from another program.
static bool same_path(const char *stored, const char *path)
{
    const char *end = stored + BOOT_PATH_MAX;
    while (stored < end && fold(*stored) == '\\')
        stored++;
    path = skip_root(path);
    for (; stored < end; stored++, path++) {
        if (fold(*stored) != fold(*path))
            return false;
        if (*path == '\0')
            return true;
    }
    return false;
}

int files_find(const char *path, const uint8_t **data, uint64_t *size)
{
    int result = E_NOENT;
    for (unsigned i = 0; i < file_count; i++) {
        const struct boot_file *f = &files[i];
        if (!same_path(f->path, path))
            continue;
        if (f->status == BOOT_FILE_LOADED) {
            *data = hpa_to_pointer(hpa(f->base));
            *size = f->size;
            return 0;
        }
        result = E_IO;
    }
    return result;
}
