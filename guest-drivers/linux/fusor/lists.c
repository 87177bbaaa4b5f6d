// SPDX-License-Identifier: GPL-2.0-only
/* Lists of pages that are no hints: to the balloon, from it, and free ones. */
#include "fusor.h"

#include <linux/io.h>
#include <linux/minmax.h>
#include <linux/printk.h>

#include "hypercall.h"

/**
 * fusor_call_list - send a list as far as it goes
 * @number: the call
 * @list: entries, in one page of the direct map
 * @n: how many
 * @why: gets a negative fusor_error_code when the entry behind the last that was done was refused,
 *	else 0
 *
 * Fusor ends a call early when the virtual CPU has something else to do, and has handled it by the
 * time we call again. Does not sleep.
 *
 * Return: how many entries were done, from the first on.
 */
unsigned int fusor_call_list(u64 number, u64 *list, unsigned int n, s64 *why)
{
	unsigned int done = 0;

	*why = 0;
	while (done < n) {
		unsigned int part = min(n - done, fusor_list_max);
		s64 result = fusor_call(number, virt_to_phys(list + done), part);

		if (result > 0 && result <= part) {
			done += result;
			continue;
		}
		if (result > part)
			pr_warn_once("Fusor answered %lld to a list of %u pages\n", result, part);
		*why = result < 0 ? result : -FUSOR_EAGAIN;
		break;
	}
	return done;
}
