// SPDX-License-Identifier: GPL-2.0-only
/* What a page looks like, in 28 bits: enough to see that it has changed. */
#include "fusor.h"

#include <linux/bitops.h>
#include <linux/mm.h>
#include <linux/uaccess.h>

#define WORDS (PAGE_SIZE / sizeof(u64))

static u64 fusor_zero_hash __ro_after_init;

/*
 * Not cryptographic and not the hypervisor's hash: four independent chains of add and rotate, three
 * instructions a word. A collision loses a hint, no more.
 *
 * The page is not held: it may be freed, reused or taken out of the direct map (secret memory,
 * module memory, debug_pagealloc) while it is read. Therefore every load may fault.
 */
static bool fusor_hash(const u64 *p, u64 *hash)
{
	const u64 *end = p + WORDS;
	u64 a = 1, b = 2, c = 3, d = 4;
	u64 v, w, x, y;

	pagefault_disable();
	for (; p < end; p += 8) {
		__get_kernel_nofault(&v, p, u64, fault);
		__get_kernel_nofault(&w, p + 1, u64, fault);
		__get_kernel_nofault(&x, p + 2, u64, fault);
		__get_kernel_nofault(&y, p + 3, u64, fault);
		a = rol64(a + v, 9);
		b = rol64(b + w, 9);
		c = rol64(c + x, 9);
		d = rol64(d + y, 9);
		__get_kernel_nofault(&v, p + 4, u64, fault);
		__get_kernel_nofault(&w, p + 5, u64, fault);
		__get_kernel_nofault(&x, p + 6, u64, fault);
		__get_kernel_nofault(&y, p + 7, u64, fault);
		a = rol64(a + v, 9);
		b = rol64(b + w, 9);
		c = rol64(c + x, 9);
		d = rol64(d + y, 9);
	}
	pagefault_enable();
	a = (a ^ rol64(b, 13)) * 0x9e3779b97f4a7c15ULL;
	c = (c ^ rol64(d, 29)) * 0xc2b2ae3d27d4eb4fULL;
	*hash = (a ^ rol64(c, 31)) * 0x9e3779b97f4a7c15ULL;
	return true;

fault:
	pagefault_enable();
	return false;
}

void fusor_checksum_init(void)
{
	/* Wrong without it is only the class of zero pages. */
	if (!fusor_hash(page_address(ZERO_PAGE(0)), &fusor_zero_hash))
		fusor_zero_hash = 0;
}

/**
 * fusor_checksum - read a page
 * @pfn: a pfn of RAM
 * @sum: gets 28 bits
 * @zero: gets whether the page is all zero
 *
 * Return: false when it cannot be read now.
 */
bool fusor_checksum(unsigned long pfn, u32 *sum, bool *zero)
{
	u64 hash;

	if (!fusor_hash(__va(PFN_PHYS(pfn)), &hash))
		return false;
	*sum = hash >> 36;
	*zero = hash == fusor_zero_hash;
	fusor_add(summed, 1);
	return true;
}
