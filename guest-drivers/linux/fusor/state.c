// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the driver remembers of every page: four bytes, 0.1 % of memory.
 *
 * Bit 31 set: the page was read. Bit 30: it was hinted as it looked then. Bits 29:28: the pass in
 * which it was read, modulo 4, so that no page is looked at twice in a pass. Bits 27:0: its
 * checksum.
 *
 * Bit 31 clear: bits 30:28 are enum fusor_mark; for MARK_TABLE bits 27:0 are the pass.
 *
 * Only the scanner's thread touches this.
 */
#include "fusor.h"

#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/pfn.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/vmalloc.h>
#include <linux/xarray.h>

#define STATE_READ	BIT(31)
#define STATE_HINTED	BIT(30)
#define STATE_PASS	GENMASK(29, 28)
#define STATE_SUM	GENMASK(27, 0)
#define MARK_SHIFT	28

enum fusor_mark {
	MARK_NONE = 0,
	MARK_FREE = 1,	      /* free in the last pass, never read */
	MARK_FREE_HINTED = 2, /* and hinted */
	MARK_TABLE = 3,	      /* a page table of the kernel */
};

/* Pages of one block: 128 MiB of memory, Linux' section size, so that hot-plugged memory fits in. */
#define BLOCK_SHIFT 15
#define BLOCK_PAGES (1UL << BLOCK_SHIFT)

static DEFINE_XARRAY(fusor_blocks);
static u32 fusor_pass;

/* The block used last: walks go through memory in order. */
static unsigned long fusor_cached_index = ULONG_MAX;
static u32 *fusor_cached_block;

struct fusor_ranges fusor_ram;

static u32 *fusor_state_of(unsigned long pfn)
{
	unsigned long index = pfn >> BLOCK_SHIFT;

	if (index != fusor_cached_index) {
		u32 *block = xa_load(&fusor_blocks, index);

		if (!block)
			return NULL;
		fusor_cached_index = index;
		fusor_cached_block = block;
	}
	return &fusor_cached_block[pfn & (BLOCK_PAGES - 1)];
}

static int fusor_add_range(struct resource *res, void *arg)
{
	struct fusor_ranges *list = arg;
	struct fusor_range r = {
		.first = PFN_UP(res->start),
		.last = PFN_DOWN(res->end + 1) - 1,
	};

	if (r.last < r.first || r.last == ULONG_MAX)
		return 0;
	if (list->count == FUSOR_RANGES_MAX) {
		pr_warn_once("more than %d ranges of RAM, leaving some out\n", FUSOR_RANGES_MAX);
		return 1; /* ends the walk */
	}
	list->range[list->count++] = r;
	return 0;
}

/* Takes a range out of fusor_ram. What no longer fits into the list is not looked at. */
static int fusor_cut_range(struct resource *res, void *arg)
{
	unsigned long first = PFN_DOWN(res->start), last = PFN_UP(res->end + 1) - 1;
	unsigned int i, n = fusor_ram.count;

	for (i = 0; i < n; i++) {
		struct fusor_range *r = &fusor_ram.range[i];
		struct fusor_range behind = { .first = last + 1, .last = r->last };

		if (last < r->first || first > r->last)
			continue;
		if (first <= r->first) {
			r->first = last + 1; /* empty when beyond r->last */
			continue;
		}
		r->last = first - 1;
		if (behind.first <= behind.last && fusor_ram.count < FUSOR_RANGES_MAX)
			fusor_ram.range[fusor_ram.count++] = behind;
	}
	return 0;
}

static int fusor_need_blocks(const struct fusor_range *r)
{
	unsigned long index;

	for (index = r->first >> BLOCK_SHIFT; index <= r->last >> BLOCK_SHIFT; index++) {
		u32 *block;
		int err;

		if (xa_load(&fusor_blocks, index))
			continue;
		block = vzalloc(array_size(BLOCK_PAGES, sizeof(*block)));
		if (!block)
			return -ENOMEM;
		err = xa_err(xa_store(&fusor_blocks, index, block, GFP_KERNEL));
		if (err) {
			vfree(block);
			return err;
		}
		cond_resched();
	}
	return 0;
}

/**
 * fusor_state_begin - begin a pass: which memory there is, and place for what is seen of it
 *
 * RAM is what the resource tree calls System RAM: device memory, firmware and holes are never read.
 * Memory reserved for a crash kernel is left out: it was never touched, and reading it would make
 * the hypervisor provide it.
 *
 * Return: 0, or -ENOMEM: another time.
 */
int fusor_state_begin(void)
{
	unsigned int i;
	int err;

	fusor_pass = (fusor_pass + 1) & STATE_SUM;
	fusor_ram.count = 0;
	walk_iomem_res_desc(IORES_DESC_NONE, IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, 0, -1,
			    &fusor_ram, fusor_add_range);
	walk_iomem_res_desc(IORES_DESC_CRASH_KERNEL, IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, 0,
			    -1, NULL, fusor_cut_range);
	for (i = 0; i < fusor_ram.count; i++) {
		if (fusor_ram.range[i].first > fusor_ram.range[i].last)
			continue;
		err = fusor_need_blocks(&fusor_ram.range[i]);
		if (err)
			return err;
	}
	return 0;
}

void fusor_state_exit(void)
{
	unsigned long index;
	u32 *block;

	xa_for_each(&fusor_blocks, index, block)
		vfree(block);
	xa_destroy(&fusor_blocks);
}

/**
 * fusor_mark_table - note a page table for this pass
 * @pfn: any
 *
 * Return: true when it is RAM and was not noted yet.
 */
bool fusor_mark_table(unsigned long pfn)
{
	u32 *s = fusor_state_of(pfn);
	u32 mark = MARK_TABLE << MARK_SHIFT | fusor_pass;

	if (!s || *s == mark)
		return false;
	*s = mark;
	return true;
}

bool fusor_is_table(unsigned long pfn)
{
	u32 *s = fusor_state_of(pfn);

	return s && *s == (MARK_TABLE << MARK_SHIFT | fusor_pass);
}

static u32 fusor_pass_bits(void)
{
	return fusor_pass << 28 & STATE_PASS;
}

/* True when the page was looked at in this pass already. */
static bool fusor_seen_now(u32 state)
{
	return state & STATE_READ && (state & STATE_PASS) == fusor_pass_bits();
}

/**
 * fusor_consider - look at a page, and hint it when it is new and at rest
 * @pfn: of System RAM
 * @class: where it is known from
 * @steady: nobody is expected to write to it: hinted at first sight. Other pages are hinted when
 *	they look the same in two passes.
 */
void fusor_consider(unsigned long pfn, enum fusor_class class, bool steady)
{
	u32 *s = fusor_state_of(pfn);
	u32 old, sum, now;
	bool zero;

	if (!s || fusor_seen_now(*s))
		return;
	old = *s;
	if (!fusor_checksum(pfn, &sum, &zero)) {
		*s = 0;
		return;
	}
	now = STATE_READ | fusor_pass_bits() | sum;
	if (old & STATE_READ && (old & STATE_SUM) == sum) {
		now |= old & STATE_HINTED;
		steady = true;
	}
	if (steady && !(now & STATE_HINTED)) {
		now |= STATE_HINTED;
		fusor_send(pfn, zero ? FUSOR_CLASS_ZERO : class, 0);
	}
	*s = now;
}

/**
 * fusor_consider_free - look at a free page
 * @pfn: of System RAM
 *
 * It is not read: the guest may never have touched it, and reading would make the hypervisor
 * provide a frame. It is hinted blindly when it was free in two passes.
 */
void fusor_consider_free(unsigned long pfn)
{
	u32 *s = fusor_state_of(pfn);

	if (!s)
		return;
	if (*s == MARK_FREE << MARK_SHIFT) {
		*s = MARK_FREE_HINTED << MARK_SHIFT;
		fusor_send(pfn, FUSOR_CLASS_OTHER, 0);
	} else if (*s != MARK_FREE_HINTED << MARK_SHIFT) {
		*s = MARK_FREE << MARK_SHIFT;
	}
}

/**
 * fusor_consider_whole - look at a 2 MiB range that is steady
 * @pfn: its first
 * @class: where it is known from
 *
 * When nothing of it was hinted so far, it is hinted as a whole, so that Fusor can fuse it without
 * taking a large page apart.
 *
 * Return: false, without effect, when its pages must be considered one by one.
 */
bool fusor_consider_whole(unsigned long pfn, enum fusor_class class)
{
	unsigned long i;

	for (i = 0; i < FUSOR_RANGE_PAGES; i++) {
		u32 *s = fusor_state_of(pfn + i);

		if (!s || (*s & STATE_READ && *s & STATE_HINTED) || fusor_seen_now(*s))
			return false;
	}
	for (i = 0; i < FUSOR_RANGE_PAGES; i++) {
		u32 *s = fusor_state_of(pfn + i);
		u32 sum;
		bool zero;

		*s = 0;
		if (fusor_checksum(pfn + i, &sum, &zero))
			*s = STATE_READ | STATE_HINTED | fusor_pass_bits() | sum;
	}
	fusor_send(pfn, class, FUSOR_RANGE_ORDER);
	return true;
}

static void fusor_forget_state(u32 *s)
{
	if (*s & STATE_READ)
		*s &= ~STATE_HINTED;
	else if (*s == MARK_FREE_HINTED << MARK_SHIFT)
		*s = MARK_FREE << MARK_SHIFT;
}

/* The hint for a page did not get through. */
void fusor_forget(unsigned long pfn)
{
	u32 *s = fusor_state_of(pfn);

	if (s)
		fusor_forget_state(s);
}

/* All hints are to be sent again. */
void fusor_forget_all(void)
{
	unsigned long index, i;
	u32 *block;

	xa_for_each(&fusor_blocks, index, block) {
		for (i = 0; i < BLOCK_PAGES; i++)
			fusor_forget_state(&block[i]);
		cond_resched();
	}
}
