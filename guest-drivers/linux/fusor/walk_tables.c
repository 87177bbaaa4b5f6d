// SPDX-License-Identifier: GPL-2.0-only
/*
 * Finds the page tables of the kernel's half of the address space.
 *
 * Page tables must not be hinted: the CPU sets accessed and dirty bits in them, and under a
 * hypervisor with EPT accessed/dirty flags every walk through a write-protected table is a write.
 * Tables of processes have a page type; those of the kernel are ordinary or reserved pages, so they
 * are found by walking them. Top-level tables of processes are recognized in walk_pages.c.
 */
#include "fusor.h"

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/uaccess.h>
#include <asm/cpufeature.h>
#include <asm/processor-flags.h>
#include <asm/special_insns.h>

/* The kernel's half of a top-level table. */
#define KERNEL_HALF (PTRS_PER_PGD / 2)

static bool fusor_read_entry(unsigned long table, unsigned int i, u64 *entry)
{
	const u64 *p = (const u64 *)__va(PFN_PHYS(table)) + i;

	pagefault_disable();
	__get_kernel_nofault(entry, p, u64, fault);
	pagefault_enable();
	return true;

fault:
	pagefault_enable();
	return false;
}

/*
 * `level` 1: the entries of `table` map 4 KiB pages. The tables may change meanwhile: what looks
 * like a table then is RAM all the same (fusor_mark_table checks), and costs it a hint.
 */
static void fusor_walk_table(unsigned long table, int level, unsigned int first)
{
	unsigned int i;
	u64 entry;

	if (!fusor_mark_table(table))
		return;
	fusor_add(tables, 1);
	if (level == 1)
		return;
	for (i = first; i < PTRS_PER_PGD; i++) {
		if (!fusor_read_entry(table, i, &entry))
			return;
		if (!(entry & _PAGE_PRESENT) || (level <= 3 && entry & _PAGE_PSE))
			continue;
		fusor_walk_table((entry & PTE_PFN_MASK) >> PAGE_SHIFT, level - 1, 0);
	}
}

bool fusor_walk_tables(void)
{
	int levels = native_read_cr4() & X86_CR4_LA57 ? 5 : 4;
	unsigned long top = read_cr3_pa() >> PAGE_SHIFT;

	WRITE_ONCE(fusor_count.tables, 0);
	/*
	 * Any process will do: the kernel's half is the same in all. With page-table isolation the
	 * top level is a pair, kernel first.
	 */
	if (boot_cpu_has(X86_FEATURE_PTI)) {
		top &= ~1UL;
		fusor_walk_table(top + 1, levels, KERNEL_HALF);
	}
	fusor_walk_table(top, levels, KERNEL_HALF);
	return fusor_breathe();
}
