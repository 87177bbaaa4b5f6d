// SPDX-License-Identifier: GPL-2.0-only
/*
 * Follows the target that the operator sets.
 *
 * Work is done when the doorbell rings, and every few seconds: a ring may be lost, and what could not
 * be done (no memory to spare here, none to be given back there) is tried again. The target is
 * a wish: what the guest needs for itself it keeps, see balloon_pressure.c.
 *
 * Whoever ends leaves nothing in: on unloading, before hibernation, and before a restart, which may
 * be a kexec: the next kernel knows nothing of this balloon. What Fusor then has no frames for
 * comes back with the first write to it, or when the next driver gets it back (balloon_strays.c).
 */
#include "balloon.h"

#include <linux/bitops.h>
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/notifier.h>
#include <linux/printk.h>
#include <linux/reboot.h>
#include <linux/sched.h>
#include <linux/suspend.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

#include "hypercall.h"

/* Between questions for the target: with a doorbell, and without or while it is not reached. */
#define POLL_SELDOM (5 * HZ)
#define POLL_OFTEN  HZ

/* How long to ask for pages that Fusor has no frames for, and how often. */
#define EMPTY_TIME	  (5 * HZ)
#define EMPTY_TIME_REBOOT HZ
#define EMPTY_WAIT_MS	  10U
#define EMPTY_WAIT_MOST	  200U

enum {
	STILL_ASLEEP, /* suspended, or about to be */
	STILL_ENDING, /* unloading, or the machine restarts */
};

static unsigned long fusor_still; /* bits: the balloon neither grows nor shrinks by itself */
static u64 fusor_target;
static bool fusor_rung;
static struct workqueue_struct *fusor_queue;

u64 fusor_balloon_wanted(void)
{
	return READ_ONCE(fusor_target);
}

static void fusor_ask_target(void)
{
	s64 target = fusor_call(FUSOR_BALLOON_TARGET, 0, 0);

	if (target >= 0)
		WRITE_ONCE(fusor_target, target);
	else
		pr_warn_once("Fusor answered %lld to the question for the target\n", target);
}

/* Returns false when nothing (more) can be done now. */
static bool fusor_balloon_step(void)
{
	u64 held = fusor_pages_held(), target = fusor_target;

	if (held < target)
		return fusor_inflate(target - held);
	if (held > target)
		return fusor_deflate(held - target, DEFLATE_TARGET);
	return false;
}

static void fusor_balloon_work(struct work_struct *work)
{
	bool settled, recovered;

	do {
		bool rung = READ_ONCE(fusor_rung);
		u64 before = fusor_target;

		WRITE_ONCE(fusor_rung, false);
		fusor_ask_target();
		/* While a VM waits for memory Fusor rings all of them, once a second. */
		if (rung && fusor_target == before)
			fusor_machine_short();
		else if (fusor_target != before)
			fusor_frames_expected();
		/* First: what lies in the balloon already cannot be given in whole ranges. */
		recovered = READ_ONCE(fusor_still) || fusor_recover_strays();
		while (!READ_ONCE(fusor_still) && !READ_ONCE(fusor_rung) && fusor_balloon_step())
			cond_resched();
	} while (!READ_ONCE(fusor_still) && READ_ONCE(fusor_rung));
	if (READ_ONCE(fusor_still))
		return;
	settled = fusor_pages_held() == fusor_target && recovered && fusor_doorbell_present();
	queue_delayed_work(fusor_queue, to_delayed_work(work),
			   round_jiffies_relative(settled ? POLL_SELDOM : POLL_OFTEN));
}
static DECLARE_DELAYED_WORK(fusor_worker, fusor_balloon_work);

static void fusor_balloon_go(void)
{
	if (!READ_ONCE(fusor_still))
		mod_delayed_work(fusor_queue, &fusor_worker, 0);
}

/* The doorbell rings. Any context. */
void fusor_balloon_ring(void)
{
	fusor_balloon_add(rings, 1);
	WRITE_ONCE(fusor_rung, true);
	fusor_balloon_go();
}

/* After this only others' need makes the balloon change. */
static void fusor_hold_still(unsigned int reason)
{
	set_bit(reason, &fusor_still);
	cancel_delayed_work_sync(&fusor_worker);
}

/* Takes everything back. Returns false when Fusor does not have it. */
static bool fusor_empty(unsigned long time)
{
	unsigned long end = jiffies + time;
	unsigned int wait = EMPTY_WAIT_MS;

	while (fusor_pages_held()) {
		if (fusor_deflate(fusor_pages_held(), DEFLATE_TARGET)) {
			wait = EMPTY_WAIT_MS;
			cond_resched();
			continue;
		}
		if (time_after(jiffies, end))
			return false;
		msleep(wait);
		wait = min(2 * wait, EMPTY_WAIT_MOST);
	}
	return true;
}

/* An image for hibernation has no balloon in it, and Fusor does not remember it over the restart. */
static int fusor_pm_event(struct notifier_block *nb, unsigned long event, void *unused)
{
	switch (event) {
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:
		fusor_hold_still(STILL_ASLEEP);
		if (!fusor_empty(EMPTY_TIME))
			pr_warn("%lu pages stay in the balloon\n", fusor_pages_held());
		break;
	case PM_SUSPEND_PREPARE:
		fusor_hold_still(STILL_ASLEEP);
		break;
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
	case PM_POST_SUSPEND:
		clear_bit(STILL_ASLEEP, &fusor_still);
		fusor_balloon_go();
		break;
	}
	return NOTIFY_OK;
}

static struct notifier_block fusor_pm_block = {
	.notifier_call = fusor_pm_event,
};

/* Whether it is a kexec is not told to modules. */
static int fusor_reboot_event(struct notifier_block *nb, unsigned long event, void *unused)
{
	fusor_hold_still(STILL_ENDING);
	if (event == SYS_RESTART)
		fusor_empty(EMPTY_TIME_REBOOT);
	return NOTIFY_OK;
}

static struct notifier_block fusor_reboot_block = {
	.notifier_call = fusor_reboot_event,
};

/* Nothing else calls into the balloon any more, but compaction may hold pages of it for a moment. */
static void fusor_empty_for_good(void)
{
	if (!fusor_empty(EMPTY_TIME))
		pr_warn("Fusor has no frames for %lu pages of the balloon now\n",
			fusor_pages_held());
	while (fusor_pages_held()) {
		fusor_abandon();
		msleep(EMPTY_WAIT_MS);
	}
}

int fusor_balloon_start(void)
{
	int err;

	if (!(fusor_features & FUSOR_FEATURE_BALLOON))
		return 0;
	err = fusor_pages_init();
	if (err)
		return err;
	err = -ENOMEM;
	fusor_queue = alloc_workqueue("fusor-balloon", WQ_UNBOUND | WQ_FREEZABLE, 1);
	if (!fusor_queue)
		goto no_queue;
	err = fusor_pressure_start();
	if (err)
		goto no_pressure;
	err = register_pm_notifier(&fusor_pm_block);
	if (err)
		goto no_pm;
	err = register_reboot_notifier(&fusor_reboot_block);
	if (err)
		goto no_reboot;
	err = fusor_doorbell_start();
	if (err)
		goto no_doorbell;
	fusor_balloon_go();
	return 0;

no_doorbell:
	unregister_reboot_notifier(&fusor_reboot_block);
no_reboot:
	unregister_pm_notifier(&fusor_pm_block);
no_pm:
	fusor_pressure_stop();
no_pressure:
	destroy_workqueue(fusor_queue);
no_queue:
	fusor_pages_exit();
	return err;
}

void fusor_balloon_stop(void)
{
	if (!(fusor_features & FUSOR_FEATURE_BALLOON))
		return;
	set_bit(STILL_ENDING, &fusor_still);
	fusor_doorbell_stop();
	unregister_reboot_notifier(&fusor_reboot_block);
	unregister_pm_notifier(&fusor_pm_block);
	fusor_pressure_stop();
	cancel_delayed_work_sync(&fusor_worker);
	destroy_workqueue(fusor_queue);
	fusor_empty_for_good();
	fusor_pages_exit();
}
