// SPDX-License-Identifier: GPL-2.0-only
/*
 * All memory by pfn: the page cache first, then the rest.
 *
 * Lists of inodes and processes are not open to modules, but every page tells what it is. Clean pages
 * of a file system with write-back are steady. ramfs, tmpfs and their like mark their pages dirty
 * for ever; those, anonymous memory and the kernel's own are hinted when two passes saw the same.
 *
 * Never hinted: page tables, memory that a balloon or hot-plug took away, poisoned pages, files
 * that somebody has mapped shared and writable.
 */
#include "fusor.h"

#include <linux/backing-dev.h>
#include <linux/fs.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/page-flags.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/uaccess.h>

static bool cache_pages = true;
module_param(cache_pages, bool, 0644);
MODULE_PARM_DESC(cache_pages, "hint the page cache and files in memory (Y)");

static bool other_pages = true;
module_param(other_pages, bool, 0644);
MODULE_PARM_DESC(other_pages,
		 "hint anonymous and kernel memory that does not change between passes (Y)");

static bool free_memory = true;
module_param_named(free_pages, free_memory, bool, 0644);
MODULE_PARM_DESC(free_pages, "hint what lies unused on the free lists (Y)");

enum fusor_kind {
	KIND_NONE, /* not to be hinted, or not now */
	KIND_FILE, /* page cache; *class says whether mapped */
	KIND_REST, /* all else that is in use */
	KIND_FREE, /* not in use */
};

/*
 * A reference and the folio's lock keep the mapping where it is. Nobody waits here: a folio that is
 * locked by somebody else is looked at in the next pass.
 */
static enum fusor_kind fusor_classify_file(struct page *page, struct folio *folio,
					   enum fusor_class *class, bool *steady)
{
	enum fusor_kind kind = KIND_NONE;
	struct address_space *mapping;

	if (!folio_try_get(folio))
		return KIND_NONE;
	if (page_folio(page) != folio || !folio_trylock(folio))
		goto put;
	mapping = folio_test_anon(folio) ? NULL : folio_mapping(folio);
	if (!mapping || !mapping->host || !folio_test_uptodate(folio) ||
	    mapping_writably_mapped(mapping))
		goto unlock;
	if (mapping_can_writeback(mapping)) {
		if (folio_test_dirty(folio) || folio_test_writeback(folio))
			goto unlock;
		*steady = true;
	}
	*class = folio_mapped(folio) ? FUSOR_CLASS_PROCESS : FUSOR_CLASS_CACHE;
	kind = KIND_FILE;
unlock:
	folio_unlock(folio);
put:
	folio_put(folio);
	return kind;
}

/* Pages that are not on an LRU list or not of a file are only read, and reading may fail. */
static enum fusor_kind fusor_classify(struct page *page, enum fusor_class *class, bool *steady)
{
	struct folio *folio = page_folio(page);

	*class = FUSOR_CLASS_OTHER;
	*steady = false;
	if (PageHWPoison(page) || PageOffline(page) || PageTable(page))
		return KIND_NONE;
	if (PageReserved(&folio->page))
		return KIND_REST;
	/*
	 * On a CPU's own free list, or inside a larger allocation that is no folio. Which cannot be
	 * told, so it is treated like free memory.
	 */
	if (!folio_ref_count(folio))
		return KIND_FREE;
	if (folio_test_lru(folio) && !folio_test_anon(folio))
		return fusor_classify_file(page, folio, class, steady);
	return KIND_REST;
}

/*
 * Top-level tables of processes have no page type. They are known by their last entry, the one for
 * the kernel's image, which is the same in all of them; with page-table isolation the second
 * page of the pair is the user's.
 */
static bool fusor_is_top_table(unsigned long pfn)
{
	const u64 *ours = (const u64 *)__va(read_cr3_pa() & PAGE_MASK);
	const u64 *theirs;
	const u64 ignored = _PAGE_ACCESSED | _PAGE_DIRTY;
	u64 a, b;

	if (boot_cpu_has(X86_FEATURE_PTI)) {
		ours = (const u64 *)((unsigned long)ours & ~PAGE_SIZE);
		pfn &= ~1UL;
	}
	theirs = (const u64 *)__va(PFN_PHYS(pfn));
	pagefault_disable();
	__get_kernel_nofault(&a, ours + PTRS_PER_PGD - 1, u64, fault);
	__get_kernel_nofault(&b, theirs + PTRS_PER_PGD - 1, u64, fault);
	pagefault_enable();
	return a && ((a ^ b) & ~ignored) == 0;

fault:
	pagefault_enable();
	return false;
}

/*
 * The pages of a free block, or 0 when this is none. Nothing holds the block together while we look;
 * an order that makes no sense counts as one page.
 */
static unsigned long fusor_free_block(struct page *page, unsigned long pfn)
{
	unsigned long order;

	if (!PageBuddy(page))
		return 0;
	order = READ_ONCE(page->private);
	if (order >= BITS_PER_LONG || 1UL << order > MAX_ORDER_NR_PAGES ||
	    !IS_ALIGNED(pfn, 1UL << order))
		return 1;
	return 1UL << order;
}

/* `free`: pages not in use are looked at, too. */
static void fusor_look(struct page *page, unsigned long pfn, enum fusor_kind wanted, bool free)
{
	enum fusor_class class;
	bool steady;
	enum fusor_kind kind = fusor_classify(page, &class, &steady);

	if (kind == KIND_FREE && free)
		fusor_consider_free(pfn);
	if (kind == KIND_FREE || kind != wanted)
		return;
	if (wanted == KIND_REST && (fusor_is_table(pfn) || fusor_is_top_table(pfn)))
		return;
	fusor_consider(pfn, class, steady);
}

/* With `free`, memory not in use is hinted; without, it is stepped over. */
static bool fusor_walk_range(const struct fusor_range *r, enum fusor_kind wanted, bool free)
{
	unsigned long pfn = r->first, free_end = 0, looked = 0;

	while (pfn <= r->last) {
		unsigned long block;
		struct page *page;

		/* Also before the first: the range before this one may have left hints. */
		if (looked++ % FUSOR_SLICE == 0 && !fusor_breathe())
			return false;
		if (pfn < free_end) {
			fusor_consider_free(pfn++);
			continue;
		}
		page = pfn_to_online_page(pfn);
		if (!page) {
			pfn = (pfn | (PAGES_PER_SUBSECTION - 1)) + 1;
			continue;
		}
		block = fusor_free_block(page, pfn);
		if (!block)
			fusor_look(page, pfn++, wanted, free);
		else if (free)
			free_end = pfn + block;
		else
			pfn += block;
	}
	return true;
}

static bool fusor_walk_ram(enum fusor_kind wanted, bool free)
{
	unsigned int i;

	for (i = 0; i < fusor_ram.count; i++)
		if (!fusor_walk_range(&fusor_ram.range[i], wanted, free))
			return false;
	return fusor_breathe();
}

bool fusor_walk_files(void)
{
	return !READ_ONCE(cache_pages) || fusor_walk_ram(KIND_FILE, false);
}

bool fusor_walk_rest(void)
{
	/*
	 * Also where free pages are reported: only large blocks are, and a hint for a page that was
	 * given back costs next to nothing.
	 */
	bool free = READ_ONCE(free_memory);

	if (READ_ONCE(other_pages))
		return fusor_walk_ram(KIND_REST, free);
	return !free || fusor_walk_ram(KIND_FREE, true);
}
