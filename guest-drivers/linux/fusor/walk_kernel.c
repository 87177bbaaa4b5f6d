// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's text and read-only data, and the modules'.
 *
 * Their symbols are not exported, but the page tables say it better: what the kernel maps without
 * write permission at its own addresses is text or read-only data.
 */
#include "fusor.h"

#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pgtable.h>
#include <asm/page_64_types.h>
#include <asm/pgtable_64_types.h>

static bool kernel_pages = true;
module_param(kernel_pages, bool, 0644);
MODULE_PARM_DESC(kernel_pages, "hint kernel text and read-only data (Y)");

static bool module_pages = true;
module_param(module_pages, bool, 0644);
MODULE_PARM_DESC(module_pages, "hint text and read-only data of modules (Y)");

/*
 * The image's own pages are reserved. Gaps between its sections are given back to the page
 * allocator but stay mapped.
 */
static bool fusor_in_image(unsigned long pfn)
{
	struct page *page = pfn_to_online_page(pfn);

	return page && PageReserved(page);
}

static bool fusor_large_leaf(unsigned long pfn)
{
	unsigned long i;

	for (i = 0; i < FUSOR_RANGE_PAGES && fusor_in_image(pfn + i); i++)
		;
	if (i == FUSOR_RANGE_PAGES && READ_ONCE(fusor_whole_ranges) &&
	    fusor_consider_whole(pfn, FUSOR_CLASS_KERNEL))
		return true;
	for (i = 0; i < FUSOR_RANGE_PAGES; i++) {
		if (i % FUSOR_SLICE == 0 && !fusor_breathe())
			return false;
		if (fusor_in_image(pfn + i))
			fusor_consider(pfn + i, FUSOR_CLASS_KERNEL, true);
	}
	return fusor_breathe(); /* so that the caller's slice may go on */
}

static void fusor_small_leaf(unsigned long pfn, enum fusor_class class)
{
	if (class == FUSOR_CLASS_KERNEL ? fusor_in_image(pfn) : pfn_to_online_page(pfn) != NULL)
		fusor_consider(pfn, class, true);
}

/*
 * Page tables of these ranges are not freed while the kernel runs, only entries change. Large pages
 * are met in the image only.
 */
static bool fusor_walk_mapping(unsigned long start, unsigned long end, enum fusor_class class)
{
	unsigned long address = start, next;
	unsigned int looked = 0;

	/* `end` may be the last page of the address space, hence the second condition. */
	for (; address < end && address >= start; address = next) {
		unsigned int level;
		pte_t *pte = lookup_address(address, &level), entry;

		if (looked++ % FUSOR_SLICE == 0 && !fusor_breathe())
			return false;
		if (!pte || level > PG_LEVEL_2M) {
			next = (address | ~PMD_MASK) + 1;
			continue;
		}
		next = level == PG_LEVEL_2M ? (address | ~PMD_MASK) + 1 : address + PAGE_SIZE;
		entry = READ_ONCE(*pte);
		if (!(pte_flags(entry) & _PAGE_PRESENT) || pte_flags(entry) & _PAGE_RW)
			continue;
		if (level == PG_LEVEL_4K)
			fusor_small_leaf(pte_pfn(entry), class);
		else if (class == FUSOR_CLASS_KERNEL &&
			 !fusor_large_leaf(pmd_pfn(__pmd(pte_val(entry)))))
			return false;
	}
	return fusor_breathe();
}

bool fusor_walk_kernel(void)
{
	if (!READ_ONCE(kernel_pages))
		return true;
	return fusor_walk_mapping(__START_KERNEL_map, MODULES_VADDR, FUSOR_CLASS_KERNEL);
}

bool fusor_walk_modules(void)
{
	if (!READ_ONCE(module_pages))
		return true;
	return fusor_walk_mapping(MODULES_VADDR, MODULES_END, FUSOR_CLASS_MODULE);
}
