// SPDX-License-Identifier: BSD-2-Clause
// sources: kernel/files.c
// Finding the files that were loaded at boot.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "fake.h"
#include "kernel/error.h"
#include "kernel/files.h"
#include "kernel/memory.h"

static struct boot_info info;

static void add(const char *path, uint64_t base, uint64_t size, enum boot_file_status status)
{
    struct boot_file *f = &info.files[info.file_count++];
    strncpy(f->path, path, sizeof(f->path));
    f->base = base;
    f->size = size;
    f->status = status;
}

static int setup(void **state)
{
    (void)state;
    fake_machine(16 * PAGE_SIZE, 1);
    memset(&info, 0, sizeof(info));
    add("\\guests\\vmlinuz", PAGE_SIZE, 100, BOOT_FILE_LOADED);
    add("guests/Initrd.IMG", 2 * PAGE_SIZE, 0, BOOT_FILE_LOADED);
    add("\\guests\\gone", 0, 0, BOOT_FILE_MISSING);
    add("\\guests\\bad", 0, 0, BOOT_FILE_UNREADABLE);
    add("\\guests\\big", 0, 0, BOOT_FILE_NO_MEMORY);
    files_init(&info);
    return 0;
}

static void test_find(void **state)
{
    (void)state;
    const uint8_t *data = NULL;
    uint64_t size = 1;
    static const char *const same[] = {"\\guests\\vmlinuz", "/guests/vmlinuz", "GUESTS\\VmLinuz",
                                       "guests/vmlinuz"};
    for (size_t i = 0; i < 4; i++) {
        data = NULL;
        assert_int_equal(files_find(same[i], &data, &size), 0);
        assert_ptr_equal(data, hpa_to_pointer(hpa(PAGE_SIZE)));
        assert_int_equal(size, 100);
    }
    assert_int_equal(files_find("\\guests\\initrd.img", &data, &size), 0);
    assert_ptr_equal(data, hpa_to_pointer(hpa(2 * PAGE_SIZE)));
    assert_int_equal(size, 0); // an empty file is a file
    size = 77;
    static const char *const unreadable[] = {"\\guests\\gone", "\\guests\\bad", "/Guests/Big"};
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(files_find(unreadable[i], &data, &size), E_IO);
    static const char *const unknown[] = {
        "", "\\", "vmlinuz", "\\guests", "guests\\vmlinuz\\", "guests\\vmlinu", "guests\\vmlinuzz"};
    for (size_t i = 0; i < 7; i++)
        assert_int_equal(files_find(unknown[i], &data, &size), E_NOENT);
    assert_int_equal(size, 77);
}

static void test_named_twice(void **state)
{
    (void)state;
    // The second naming of a file succeeded: good enough.
    add("/GUESTS/GONE", 3 * PAGE_SIZE, 5, BOOT_FILE_LOADED);
    files_init(&info);
    const uint8_t *data;
    uint64_t size;
    assert_int_equal(files_find("\\guests\\gone", &data, &size), 0);
    assert_int_equal(size, 5);
}

static void test_bounds(void **state)
{
    (void)state;
    assert_int_equal(files_count(), 5);
    assert_ptr_equal(files_get(4), &info.files[4]);
    assert_null(files_get(5));
    assert_null(files_get(UINT32_MAX));
    // A path that fills its field has no terminator; it matches nothing and is not read beyond.
    memset(info.files[0].path, 'p', BOOT_PATH_MAX);
    char longer[BOOT_PATH_MAX + 10];
    memset(longer, 'p', sizeof(longer));
    longer[sizeof(longer) - 1] = '\0';
    const uint8_t *data;
    uint64_t size;
    assert_int_equal(files_find(longer, &data, &size), E_NOENT);
    info.file_count = 1000000;
    files_init(&info);
    assert_int_equal(files_count(), BOOT_MAX_FILES);
    assert_int_equal(files_find("nothing", &data, &size), E_NOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_find, setup),
        cmocka_unit_test_setup(test_named_twice, setup),
        cmocka_unit_test_setup(test_bounds, setup),
    };
    return cmocka_run_group_tests_name("files", tests, NULL, NULL);
}
