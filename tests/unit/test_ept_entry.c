// SPDX-License-Identifier: BSD-2-Clause
// The real encoding of EPT entries, bit by bit against the SDM (vol. 3, tables 29-1 to 29-7): the
// other tests of ept/ use an encoding of their own.

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernel/x86/arch/ept.h"

#define BIT(n) (UINT64_C(1) << (n))

static void test_tables_and_pointer(void **state)
{
    (void)state;
    for (int level = 2; level <= 4; level++) {
        uint64_t entry = arch_ept_make_table(0x12345, level);
        assert_int_equal(entry, 0x12345000 | 7);
        assert_true(arch_ept_present(entry, level));
        assert_false(arch_ept_is_leaf(entry, level));
        assert_true(arch_ept_is_table(entry | BIT(8), level));
        assert_false(arch_ept_is_table(0, level));
        assert_int_equal(arch_ept_table(entry | BIT(8), level), 0x12345); // the CPU's accessed flag
        assert_false(arch_ept_present(0, level));
    }
    // Write-back (6), walk length 4 (3 in bits 5:3), A/D in bit 6.
    assert_int_equal(arch_ept_pointer(0xabc, true), 0xabc000 | 6 | 3 << 3 | 1 << 6);
    assert_int_equal(arch_ept_pointer(0xabc, false), 0xabc000 | 6 | 3 << 3);
}

static void test_leaves(void **state)
{
    (void)state;
    for (int level = 1; level <= 3; level++) {
        for (unsigned permissions = 1; permissions < 8; permissions++) {
            for (unsigned kind = 0; kind < 8; kind++) {
                uint64_t frame = UINT64_C(0x40000) * 0x1234; // aligned for every level
                uint64_t entry = arch_ept_make_leaf(frame, level, permissions, kind);
                uint64_t want = frame << 12 | permissions | 6 << 3 | BIT(6) | (uint64_t)kind << 52 |
                                (level > 1 ? BIT(7) : 0);
                assert_int_equal(entry, want);
                assert_true(arch_ept_present(entry, level));
                assert_true(arch_ept_is_leaf(entry, level));
                assert_false(level > 1 && arch_ept_is_table(entry, level));
                struct arch_ept_leaf leaf = arch_ept_leaf(entry, level);
                assert_int_equal(leaf.frame, frame);
                assert_int_equal(leaf.permissions, permissions);
                assert_int_equal(leaf.kind, kind);
                assert_false(leaf.accessed || leaf.dirty);

                assert_int_equal(arch_ept_set_accessed_dirty(entry, level, true, false),
                                 entry | BIT(8));
                assert_int_equal(arch_ept_set_accessed_dirty(entry, level, false, true),
                                 entry | BIT(9));
                uint64_t both = arch_ept_set_accessed_dirty(entry, level, true, true);
                assert_int_equal(both, entry | BIT(8) | BIT(9));
                assert_int_equal(arch_ept_set_accessed_dirty(both, level, false, false), both);
                assert_true(arch_ept_leaf(both, level).accessed &&
                            arch_ept_leaf(both, level).dirty);
                assert_int_equal(arch_ept_clear_dirty(both, level), entry);
            }
        }
    }
    assert_int_equal(arch_ept_leaf(arch_ept_make_leaf(BIT(40) - 1, 1, 7, 7), 1).frame, BIT(40) - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables_and_pointer),
        cmocka_unit_test(test_leaves),
    };
    return cmocka_run_group_tests_name("ept entries", tests, NULL, NULL);
}
