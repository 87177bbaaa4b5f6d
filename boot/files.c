// SPDX-License-Identifier: BSD-2-Clause
// Reads the configuration and the files it names from the volume that Fusor was started from: once
// boot services have ended there is no file system. A file that cannot be had is recorded with the
// reason, and the start goes on; the kernel's configuration parser complains with the line that
// names it.
#include "boot/boot.h"

#include "boot/config_lex.h"
#include "kernel/format.h"
#include "kernel/string.h"

#define CONFIG_PATH     "\\fusor\\fusor.conf"
#define CONFIG_MAX_SIZE (UINT64_C(1) << 20)
#define KIB             UINT64_C(1024)
#define MIB             (KIB * 1024)
#define SHOW_PERCENT    (8 * MIB) // from this size on
#define READ_CHUNK      MIB

static EFI_GUID file_system_guid = {
    0x964e5b22, 0x6459, 0x11d2, {0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static EFI_GUID loaded_image_guid = {
    0x5b1b31a1, 0x9562, 0x11d2, {0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static EFI_GUID file_info_guid = {
    0x09576e92, 0x6d3f, 0x11d2, {0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};

static EFI_FILE_HANDLE volume;

// EFI_FILE_INFO ends in a name of variable length; 512 characters hold every name FAT has.
union file_info {
    EFI_FILE_INFO info;
    uint8_t room[sizeof(EFI_FILE_INFO) + 512 * sizeof(CHAR16)];
};

EFI_STATUS files_open_volume(EFI_HANDLE image)
{
    EFI_LOADED_IMAGE *loaded = NULL;
    EFI_FILE_IO_INTERFACE *fs = NULL;
    EFI_STATUS status = efi->HandleProtocol(image, &loaded_image_guid, (void **)&loaded);

    if (!EFI_ERROR(status)) {
        status = efi->HandleProtocol(loaded->DeviceHandle, &file_system_guid, (void **)&fs);
    }
    return EFI_ERROR(status) ? status : fs->OpenVolume(fs, &volume);
}

// Opens by a path as people write it: '/' or '\', with or without one in front.
static EFI_STATUS open_path(const char *path, EFI_FILE_HANDLE *file)
{
    CHAR16 wide[BOOT_PATH_MAX + 1];
    UINTN used = 0;

    if (volume == NULL) {
        return EFI_NOT_FOUND;
    }
    wide[used++] = L'\\';
    while (*path == '/' || *path == '\\') {
        path++;
    }
    for (; *path != '\0' && used < BOOT_PATH_MAX; path++) {
        // Which characters a byte above 7Fh means is not known here.
        if ((unsigned char)*path > 0x7e) {
            return EFI_NOT_FOUND;
        }
        wide[used++] = *path == '/' ? L'\\' : (CHAR16)*path;
    }
    wide[used] = 0;
    return volume->Open(volume, file, wide, EFI_FILE_MODE_READ, 0);
}

bool files_exists(const char *path)
{
    EFI_FILE_HANDLE file;

    if (EFI_ERROR(open_path(path, &file))) {
        return false;
    }
    file->Close(file);
    return true;
}

// Reads `size` bytes and shows how far it is, every ten percent, if that is worth while.
static EFI_STATUS read_all(EFI_FILE_HANDLE file, uint8_t *to, uint64_t size, bool show_percent)
{
    uint64_t shown = 0;

    for (uint64_t done = 0; done < size;) {
        UINTN chunk = size - done < READ_CHUNK ? size - done : READ_CHUNK;
        EFI_STATUS status = file->Read(file, &chunk, to + done);

        if (EFI_ERROR(status)) {
            return status;
        }
        if (chunk == 0) {
            return EFI_END_OF_FILE; // shorter than its directory entry says
        }
        done += chunk;
        while (show_percent && shown + 10 <= done * 100 / size) {
            shown += 10;
            say(" %llu%%", (unsigned long long)shown);
        }
    }
    return EFI_SUCCESS;
}

// Reads an open file into memory of its own, zero behind its end up to the page boundary.
static enum boot_file_status read_file(EFI_FILE_HANDLE file, uint64_t size, bool show_percent,
                                       uint64_t *base)
{
    EFI_PHYSICAL_ADDRESS memory = 0;
    UINTN pages = (size + BOOT_PAGE - 1) / BOOT_PAGE;

    *base = 0;
    if (size == 0) {
        return BOOT_FILE_LOADED;
    }
    if (EFI_ERROR(efi->AllocatePages(AllocateAnyPages, EfiLoaderData, pages, &memory))) {
        return BOOT_FILE_NO_MEMORY;
    }
    if (EFI_ERROR(read_all(file, (uint8_t *)(uintptr_t)memory, size, show_percent))) {
        efi->FreePages(memory, pages);
        return BOOT_FILE_UNREADABLE;
    }
    memset((uint8_t *)(uintptr_t)memory + size, 0, pages * BOOT_PAGE - size);
    *base = memory;
    return BOOT_FILE_LOADED;
}

static bool get_file_info(EFI_FILE_HANDLE file, union file_info *out)
{
    UINTN size = sizeof(*out);

    return !EFI_ERROR(file->GetInfo(file, &file_info_guid, &size, out));
}

static char fold(char c)
{
    if (c >= 'A' && c <= 'Z') {
        return (char)(c - 'A' + 'a');
    }
    return c == '/' ? '\\' : c;
}

// Paths of one file: FAT does not tell letter cases apart.
static bool same_path(const char *a, const char *b)
{
    while (fold(*a) == '\\') {
        a++;
    }
    while (fold(*b) == '\\') {
        b++;
    }
    while (*a != '\0' && fold(*a) == fold(*b)) {
        a++;
        b++;
    }
    return *a == *b;
}

// An entry for `path`; NULL if there is one already, or no room.
static struct boot_file *new_entry(struct boot_info *info, const char *path)
{
    struct boot_file *entry;

    for (uint32_t i = 0; i < info->file_count; i++) {
        if (same_path(info->files[i].path, path)) {
            return NULL;
        }
    }
    if (strlen(path) >= BOOT_PATH_MAX) {
        say("fusor: not loaded, the path is longer than %u characters: %s\n", BOOT_PATH_MAX - 1,
            path);
        return NULL;
    }
    if (info->file_count >= BOOT_MAX_FILES) {
        say("fusor: not loaded, there are more than %u files: %s\n", BOOT_MAX_FILES, path);
        return NULL;
    }
    entry = &info->files[info->file_count++];
    memset(entry, 0, sizeof(*entry));
    memcpy(entry->path, path, strlen(path) + 1);
    return entry;
}

// Gives the memory of `entry` back if an earlier file has the same content, and shares that one's.
static const struct boot_file *share_content(struct boot_info *info, struct boot_file *entry)
{
    for (struct boot_file *f = info->files; f < entry; f++) {
        if (f->status == BOOT_FILE_LOADED && f->size == entry->size && entry->size > 0 &&
            memcmp((const void *)(uintptr_t)f->base, (const void *)(uintptr_t)entry->base,
                   entry->size) == 0) {
            efi->FreePages(entry->base, (entry->size + BOOT_PAGE - 1) / BOOT_PAGE);
            entry->base = f->base;
            return f;
        }
    }
    return NULL;
}

static void load_open_file(struct boot_info *info, const char *path, EFI_FILE_HANDLE file,
                           uint64_t size)
{
    struct boot_file *entry = new_entry(info, path);
    const struct boot_file *same = NULL;

    if (entry == NULL) {
        return;
    }
    if (size >= MIB) {
        say("fusor: loading %s, %llu MiB:", path, (unsigned long long)((size + MIB / 2) / MIB));
    } else {
        say("fusor: loading %s, %llu KiB:", path, (unsigned long long)((size + KIB - 1) / KIB));
    }
    entry->size = size;
    entry->status = read_file(file, size, size >= SHOW_PERCENT, &entry->base);
    switch (entry->status) {
    case BOOT_FILE_LOADED:
        same = share_content(info, entry);
        if (same != NULL) {
            say(" done, the same as %s\n", same->path);
        } else {
            say(" done\n");
        }
        break;
    case BOOT_FILE_NO_MEMORY:
        say(" not enough memory\n");
        break;
    default:
        say(" cannot be read\n");
        break;
    }
    if (entry->status != BOOT_FILE_LOADED) {
        entry->size = 0;
    }
}

static void record_failure(struct boot_info *info, const char *path, enum boot_file_status status,
                           const char *text)
{
    struct boot_file *entry = new_entry(info, path);

    if (entry != NULL) {
        entry->status = status;
        say("fusor: %s: %s\n", path, text);
    }
}

// Loads the files of an open directory; directories in it are left alone.
static void load_directory(struct boot_info *info, const char *path, EFI_FILE_HANDLE directory)
{
    static union file_info child;
    size_t length = strlen(path);

    while (length > 0 && fold(path[length - 1]) == '\\') {
        length--;
    }
    for (;;) {
        char name[BOOT_PATH_MAX + 512];
        int used = format_text(name, BOOT_PATH_MAX, "%.*s\\", (int)length, path);
        UINTN size = sizeof(child);
        EFI_FILE_HANDLE file;

        if (EFI_ERROR(directory->Read(directory, &size, &child))) {
            record_failure(info, path, BOOT_FILE_UNREADABLE, "the directory cannot be read");
            return;
        }
        if (size == 0) {
            return;
        }
        if ((child.info.Attribute & EFI_FILE_DIRECTORY) != 0) {
            continue;
        }
        for (const CHAR16 *c = child.info.FileName; *c != 0 && used < (int)sizeof(name) - 1; c++) {
            name[used++] = *c < 0x7f ? (char)*c : '?';
        }
        name[used] = '\0';
        if (EFI_ERROR(
                directory->Open(directory, &file, child.info.FileName, EFI_FILE_MODE_READ, 0))) {
            record_failure(info, name, BOOT_FILE_UNREADABLE, "cannot be opened");
            continue;
        }
        load_open_file(info, name, file, child.info.FileSize);
        file->Close(file);
    }
}

static void load_path(struct boot_info *info, const char *path, bool may_be_directory)
{
    static union file_info about;
    EFI_FILE_HANDLE file;
    EFI_STATUS status;

    if (strlen(path) >= BOOT_PATH_MAX) {
        new_entry(info, path); // says so
        return;
    }
    status = open_path(path, &file);
    if (EFI_ERROR(status)) {
        if (status == EFI_NOT_FOUND) {
            record_failure(info, path, BOOT_FILE_MISSING, "not found");
        } else {
            record_failure(info, path, BOOT_FILE_UNREADABLE, "cannot be opened");
        }
        return;
    }
    if (!get_file_info(file, &about)) {
        record_failure(info, path, BOOT_FILE_UNREADABLE, "cannot be read");
    } else if ((about.info.Attribute & EFI_FILE_DIRECTORY) == 0) {
        load_open_file(info, path, file, about.info.FileSize);
    } else if (may_be_directory) {
        load_directory(info, path, file);
    } else {
        record_failure(info, path, BOOT_FILE_UNREADABLE, "is a directory");
    }
    file->Close(file);
}

static bool read_config(struct boot_info *info)
{
    static union file_info about;
    EFI_FILE_HANDLE file;
    enum boot_file_status status = BOOT_FILE_UNREADABLE;

    if (EFI_ERROR(open_path(CONFIG_PATH, &file))) {
        say("fusor: there is no " CONFIG_PATH ": a console without VMs\n");
        return false;
    }
    if (get_file_info(file, &about) && (about.info.Attribute & EFI_FILE_DIRECTORY) == 0 &&
        about.info.FileSize <= CONFIG_MAX_SIZE) {
        info->config_size = about.info.FileSize;
        status = read_file(file, info->config_size, false, &info->config);
    }
    if (status == BOOT_FILE_LOADED && info->config_size == 0) {
        // An empty configuration is one all the same: its address says so.
        info->config = allocate_zeroed(1);
    }
    file->Close(file);
    if (status != BOOT_FILE_LOADED) {
        info->config_size = 0;
        say("fusor: " CONFIG_PATH " cannot be read (a file of at most 1 MiB was expected)\n");
        return false;
    }
    info->flags |= BOOT_CONFIG;
    return true;
}

void files_load(struct boot_info *info)
{
    static struct config_item item;
    struct config_lexer lexer;
    enum config_token token;

    if (!read_config(info)) {
        return;
    }
    config_lex_init(&lexer, (const char *)(uintptr_t)info->config, info->config_size);
    // Malformed lines are the kernel's to report, with all the other errors.
    while ((token = config_lex_next(&lexer, &item)) != CONFIG_END) {
        if (token == CONFIG_PAIR && item.value[0] != '\0' &&
            config_key_names_file(item.section, item.key)) {
            load_path(info, item.value, item.section == CONFIG_HOST);
        }
    }
}
