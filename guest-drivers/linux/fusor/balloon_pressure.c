// SPDX-License-Identifier: GPL-2.0-only
/*
 * How much this guest can spare, and what happens when it needs its memory itself.
 *
 * The kernel's estimate of what is available without swapping is the measure: inflation stops at
 * `balloon_margin`; at half of it the shrinker gives pages back while memory is being reclaimed, and
 * before the OOM killer chooses, the OOM notifier does. Afterwards the balloon rests for a while,
 * so that it does not take at once what was just needed. The shrinker must not act earlier: reclaim
 * of page cache is everyday life and would empty any balloon. When Fusor has no frames either, the
 * shrinker has nothing to offer for a while (balloon_pages.c).
 */
#include "balloon.h"

#include <linux/atomic.h>
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/oom.h>
#include <linux/shrinker.h>
#include <linux/version.h>

static unsigned int balloon_margin;
module_param(balloon_margin, uint, 0644);
MODULE_PARM_DESC(balloon_margin,
		 "MiB available to the guest below which the balloon does not grow, 0: 1/32 of memory, at least 16 (0)");

/* Whoever wants the balloon to hold against the guest's need switches these off, as tests do. */
static bool balloon_shrink = true;
module_param(balloon_shrink, bool, 0644);
MODULE_PARM_DESC(balloon_shrink, "give pages back when memory is reclaimed and little is available (Y)");

static bool balloon_oom = true;
module_param(balloon_oom, bool, 0644);
MODULE_PARM_DESC(balloon_oom, "give pages back before the OOM killer chooses a process (Y)");

#define MARGIN_LEAST_MIB 16U
#define PAGES_PER_MIB	 (1UL << (20 - PAGE_SHIFT))

/* After pages had to be given back the balloon does not grow for so long. */
#define REST (10 * HZ)

/*
 * Given back before an OOM kill, and by the shrinker at least: a whole range costs about as much as
 * ten pages, and what is left of the balloon stays whole.
 */
#define OOM_PAGES FUSOR_RANGE_PAGES
#define SHRINK_PAGES ((unsigned long)FUSOR_RANGE_PAGES)

static unsigned long fusor_rest_until;
static atomic_t fusor_resting = ATOMIC_INIT(0);

static unsigned long fusor_margin(void)
{
	unsigned long mib = READ_ONCE(balloon_margin);

	if (mib)
		return mib * PAGES_PER_MIB;
	return max((totalram_pages() + fusor_pages_held()) / 32, MARGIN_LEAST_MIB * PAGES_PER_MIB);
}

static bool fusor_rests(void)
{
	if (!atomic_read(&fusor_resting))
		return false;
	if (time_before(jiffies, READ_ONCE(fusor_rest_until)))
		return true;
	atomic_set(&fusor_resting, 0);
	return false;
}

static void fusor_rest(void)
{
	WRITE_ONCE(fusor_rest_until, jiffies + REST);
	atomic_set(&fusor_resting, 1);
}

/**
 * fusor_room - how many pages may go into the balloon now
 */
unsigned long fusor_room(void)
{
	long available = si_mem_available();
	unsigned long margin = fusor_margin();

	if (fusor_rests() || available < 0 || (unsigned long)available <= margin)
		return 0;
	return (unsigned long)available - margin;
}

static unsigned long fusor_shrink_count(struct shrinker *s, struct shrink_control *sc)
{
	long available;

	if (!READ_ONCE(balloon_shrink) || !fusor_pages_held() || !fusor_may_ask(DEFLATE_SHRINKER))
		return 0;
	available = si_mem_available();
	return available < (long)(fusor_margin() / 2) ? fusor_pages_held() : 0;
}

static unsigned long fusor_shrink_scan(struct shrinker *s, struct shrink_control *sc)
{
	unsigned long freed = fusor_deflate(max(sc->nr_to_scan, SHRINK_PAGES), DEFLATE_SHRINKER);

	if (!freed)
		return SHRINK_STOP;
	fusor_rest();
	return freed;
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
static struct shrinker *fusor_shrinker;

static int fusor_shrinker_register(void)
{
	fusor_shrinker = shrinker_alloc(0, "fusor-balloon");
	if (!fusor_shrinker)
		return -ENOMEM;
	fusor_shrinker->count_objects = fusor_shrink_count;
	fusor_shrinker->scan_objects = fusor_shrink_scan;
	shrinker_register(fusor_shrinker);
	return 0;
}

static void fusor_shrinker_unregister(void)
{
	shrinker_free(fusor_shrinker);
}
#else
static struct shrinker fusor_shrinker = {
	.count_objects = fusor_shrink_count,
	.scan_objects = fusor_shrink_scan,
	.seeks = DEFAULT_SEEKS,
};

static int fusor_shrinker_register(void)
{
	return register_shrinker(&fusor_shrinker, "fusor-balloon");
}

static void fusor_shrinker_unregister(void)
{
	unregister_shrinker(&fusor_shrinker);
}
#endif

/* The killer looks at what was freed: something, and it lets the allocation try again. */
static int fusor_oom(struct notifier_block *nb, unsigned long unused, void *freed)
{
	unsigned long n;

	if (!READ_ONCE(balloon_oom) || !fusor_pages_held())
		return NOTIFY_OK;
	n = fusor_deflate(OOM_PAGES, DEFLATE_OOM);
	if (n) {
		fusor_rest();
		*(unsigned long *)freed += n;
	}
	return NOTIFY_OK;
}

static struct notifier_block fusor_oom_block = {
	.notifier_call = fusor_oom,
	.priority = 1, /* before those that only complain */
};

int fusor_pressure_start(void)
{
	int err = fusor_shrinker_register();

	if (err)
		return err;
	err = register_oom_notifier(&fusor_oom_block);
	if (err)
		fusor_shrinker_unregister();
	return err;
}

void fusor_pressure_stop(void)
{
	unregister_oom_notifier(&fusor_oom_block);
	fusor_shrinker_unregister();
}
