// SPDX-License-Identifier: BSD-2-Clause
// The guest's PC: puts the device models together and onto the VM's bus (design section 8).
//
// ISA interrupts go to the PIC and to the IOAPIC at once, as on a board; the guest masks what it
// does not use. IRQ 0 is IOAPIC input 2 (the MADT says so). The PIC's INTR is
// wired to LINT0 of vCPU 0 alone.
#include "devices/platform.h"

#include "devices/mmio.h"
#include "kernel/error.h"
#include "kernel/heap.h"
#include "kernel/init.h"
#include "kernel/time.h"
#include "vm/layout.h"

static void set_irq(struct platform *p, unsigned irq, bool level)
{
    pic_set_irq(&p->pic, irq, level);
    ioapic_set_irq(&p->ioapic, irq == 0 ? 2 : irq, level);
    if (level && pic_pending(&p->pic))
        vcpu_notify(p->vm->vcpus[0]);
}

static void set_pit_irq(void *context, bool level)
{
    set_irq(context, 0, level);
}

static void set_uart_irq(void *context, bool level)
{
    set_irq(context, 4, level);
}

static void set_rtc_irq(void *context, bool level)
{
    set_irq(context, 8, level);
}

static void set_sci(void *context, bool level)
{
    set_irq(context, LAYOUT_SCI, level);
}

static void set_doorbell_irq(struct vm *vm, bool ringing)
{
    set_irq(vm->platform, LAYOUT_DOORBELL, ringing);
}

static void power_request(void *context, enum power_request request)
{
    struct platform *p = context;
    switch (request) {
    case POWER_RESET:
        vm_ask(p->vm, VM_REQUEST_RESET);
        break;
    case POWER_OFF:
        vm_ask(p->vm, VM_REQUEST_OFF);
        break;
    case POWER_DEBUG_EXIT:
        if (p->vm->request == VM_REQUEST_NONE) // what came first counts
            p->vm->exit_code = p->power.debug_code;
        vm_ask(p->vm, VM_REQUEST_EXIT);
        break;
    }
}

// Lowest priority: the receiver whose processor priority is lowest gets it; of several the next one
// after who had the last (SDM vol. 3, 11.6.2.4, leaves the choice open).
static void deliver_lowest(struct platform *p, uint32_t receivers,
                           const struct apic_message *message)
{
    uint32_t count = p->vm->vcpu_count;
    uint32_t best = count, least = UINT32_MAX;
    for (uint32_t k = 1; k <= count; k++) {
        uint32_t i = (p->last_lowest + k) % count;
        if ((receivers >> i & 1) == 0 || !lapic_takes_fixed(&p->lapic[i]))
            continue;
        uint32_t priority = lapic_ppr(&p->lapic[i]);
        if (priority < least) {
            least = priority;
            best = i;
        }
    }
    if (best == count)
        return;
    p->last_lowest = best;
    lapic_deliver(&p->lapic[best], message);
}

// `receivers`: a bit per LAPIC.
static void deliver_to(struct platform *p, uint32_t receivers, const struct apic_message *message)
{
    if (message->delivery == APIC_LOWEST) {
        deliver_lowest(p, receivers, message);
        return;
    }
    for (; receivers != 0; receivers &= receivers - 1)
        lapic_deliver(&p->lapic[__builtin_ctz(receivers)], message);
}

// From the IOAPIC.
static void deliver(void *context, const struct apic_message *message)
{
    struct platform *p = context;
    uint32_t receivers = 0;
    for (unsigned i = 0; i < p->vm->vcpu_count; i++)
        receivers |= (uint32_t)lapic_matches(&p->lapic[i], message) << i;
    deliver_to(p, receivers, message);
}

// From a LAPIC.
static void send(void *context, unsigned from, const struct apic_message *message)
{
    struct platform *p = context;
    uint32_t receivers = 0;
    for (unsigned i = 0; i < p->vm->vcpu_count; i++)
        receivers |= (uint32_t)lapic_receives(&p->lapic[i], from, message) << i;
    deliver_to(p, receivers, message);
}

static void end_of_interrupt(void *context, uint8_t vector)
{
    struct platform *p = context;
    ioapic_eoi(&p->ioapic, vector);
}

static void changed(void *context, unsigned id)
{
    struct platform *p = context;
    struct lapic *l = &p->lapic[id];
    if (l->init_pending && id == 0) {
        // The bootstrap processor does not wait after an INIT but runs the firmware (SDM vol. 3,
        // 9.4.4), which restarts the machine.
        l->init_pending = false;
        vm_ask(p->vm, VM_REQUEST_RESET);
    } else if (l->init_pending || l->startup_pending) {
        vcpu_notify_startup(p->vm->vcpus[id]);
    } else {
        vcpu_notify(p->vm->vcpus[id]);
    }
}

static void posted(void *context, unsigned id)
{
    struct platform *p = context;
    vcpu_notify_posted(p->vm->vcpus[id]);
}

static const struct lapic_ops lapic_ops = {
    .send = send, .eoi = end_of_interrupt, .changed = changed, .posted = posted};

// Every LAPIC has its page at the same address: it is that of the vCPU that looks.
static uint64_t lapic_load(void *device, uint64_t offset, unsigned size)
{
    struct platform *p = device;
    struct lapic *l = p->vm->accessor->lapic;
    (void)size;
    if (!lapic_enabled(l) || lapic_x2apic(l))
        return UINT64_MAX;
    return lapic_mmio_read(l, (uint32_t)offset);
}

static void lapic_store(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct platform *p = device;
    struct lapic *l = p->vm->accessor->lapic;
    (void)size;
    if (lapic_enabled(l) && !lapic_x2apic(l))
        lapic_mmio_write(l, (uint32_t)offset, (uint32_t)value);
}

static int register_all(struct platform *p)
{
    struct bus *bus = &p->vm->bus;
    int status = pic_register(&p->pic, bus);
    if (status == 0)
        status = ioapic_register(&p->ioapic, bus);
    if (status == 0)
        status = bus_add_mmio(bus, gpa(LAYOUT_LAPIC), PAGE_SIZE, lapic_load, lapic_store, p);
    if (status == 0)
        status = pit_register(&p->pit, bus);
    if (status == 0)
        status = rtc_register(&p->rtc, bus);
    if (status == 0)
        status = uart_register(&p->uart, bus, 0x3f8);
    if (status == 0)
        status = power_control_register(&p->power, bus);
    return status;
}

static int create(struct vm *vm)
{
    struct platform *p = heap_alloc(sizeof(*p));
    if (p == NULL)
        return E_NOMEM;
    p->vm = vm;
    pic_init(&p->pic);
    ioapic_init(&p->ioapic, deliver, p);
    for (unsigned i = 0; i < VM_CPUS_MAX; i++)
        lapic_init(&p->lapic[i], i, &vm->clock, &vm->timers[i].queue, &lapic_ops, p);
    struct vtimer_queue *timers = &vm->timers[0].queue;
    pit_init(&p->pit, &vm->clock, timers, set_pit_irq, p);
    p->wall_at_zero = time_wall_seconds();
    rtc_init(&p->rtc, p->wall_at_zero, &vm->clock, timers, set_rtc_irq, p);
    uart_init(&p->uart, set_uart_irq, p);
    power_control_init(&p->power, &vm->clock, set_sci, power_request, p);
    int status = register_all(p);
    if (status != 0) {
        heap_free(p);
        return status;
    }
    vm->platform = p;
    return 0;
}

static void destroy(struct vm *vm)
{
    heap_free(vm->platform);
    vm->platform = NULL;
}

static void reset(struct vm *vm)
{
    struct platform *p = vm->platform;
    pic_init(&p->pic);
    ioapic_init(&p->ioapic, deliver, p);
    for (unsigned i = 0; i < VM_CPUS_MAX; i++)
        lapic_reset(&p->lapic[i]);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        vm->vcpus[i]->lapic = &p->lapic[i];
    lapic_virtual_wire(&p->lapic[0]);
    p->last_lowest = 0;
    pit_reset(&p->pit);
    // The guest's TSC starts at 0 again, but its clock goes on, with what the guest set it to.
    uint64_t wall = time_wall_seconds();
    p->rtc.base_seconds +=
        (wall - p->wall_at_zero) - (uint64_t)((int64_t)p->rtc.origin / (int64_t)vm->clock.hz);
    p->rtc.origin = 0;
    p->wall_at_zero = wall;
    rtc_reset(&p->rtc);
    uart_reset(&p->uart);
    power_control_reset(&p->power);
}

static void settle_eoi(struct vm *vm, struct vcpu *v)
{
    (void)vm;
    struct lapic *l = v->lapic;
    lapic_settle_eoi(l);
    v->eoi_armed = l->eoi_armed;
}

static bool extint_pending(const struct platform *p, const struct vcpu *v)
{
    return v->id == 0 && pic_pending(&p->pic) && lapic_passes_extint(v->lapic);
}

static void sync_apic(struct vm *vm, struct vcpu *v, struct vcpu_apic *apic)
{
    struct lapic *l = v->lapic;
    apic->on = lapic_x2apic(l);
    if (apic->on && l->vapic == NULL)
        lapic_virtual_begin(l, v->vapic, vmx_posts_interrupts());
    else if (!apic->on && l->vapic != NULL)
        lapic_virtual_end(l);
    v->eoi_armed = l->eoi_armed;
    if (!apic->on)
        return;
    apic->changed = lapic_virtual_merge(l);
    apic->reload = l->vapic_reload || !v->apicv;
    l->vapic_reload = false;
    apic->levels = l->tmr;
    apic->nmi = l->nmi_pending;
    apic->extint = extint_pending(vm->platform, v);
    apic->wakes = v->halted && lapic_virtual_wakes(l);
    if (apic->changed || apic->reload)
        apic->requested = lapic_virtual_requested(l);
    if (apic->reload)
        apic->in_service = lapic_virtual_in_service(l);
}

static void virtual_eoi(struct vm *vm, struct vcpu *v, uint8_t vector)
{
    (void)v; // its LAPIC has cleared ISR by itself
    end_of_interrupt(vm->platform, vector);
}

static int interrupt(struct vm *vm, struct vcpu *v, bool accept)
{
    struct platform *p = vm->platform;
    struct lapic *l = v->lapic;
    // Another CPU may have sent one since the exit.
    if (l->eoi_armed)
        settle_eoi(vm, v);
    int vector = l->vapic == NULL ? lapic_pending(l) : -1;
    if (vector >= 0) {
        if (accept) {
            lapic_accept(l, (uint8_t)vector);
            v->eoi_armed = lapic_arm_eoi(l, (uint8_t)vector);
        }
        return vector;
    }
    if (!extint_pending(p, v))
        return -1;
    return accept ? pic_acknowledge(&p->pic) : 0;
}

static void set_eoi_byte(struct vm *vm, struct vcpu *v, uint8_t *byte)
{
    struct lapic *l = v->lapic;
    (void)vm;
    lapic_disarm_eoi(l); // in the old place
    v->eoi_armed = false;
    l->eoi_byte = byte;
}

static void send_ipi(struct vm *vm, uint32_t receivers, uint8_t vector, bool nmi)
{
    const struct apic_message message = {
        .assert_level = true, .vector = vector, .delivery = nmi ? APIC_NMI : APIC_FIXED};
    deliver_to(vm->platform, receivers, &message);
}

static bool take_nmi(struct vm *vm, struct vcpu *v, bool accept)
{
    struct lapic *l = v->lapic;
    (void)vm;
    bool pending = l->nmi_pending;
    if (accept)
        l->nmi_pending = false;
    return pending;
}

static unsigned take_startup(struct vm *vm, struct vcpu *v, uint8_t *vector)
{
    struct lapic *l = v->lapic;
    (void)vm;
    unsigned got = 0;
    if (l->init_pending) {
        lapic_reset_by_init(l);
        got |= VCPU_GOT_INIT;
    }
    if (l->startup_pending) {
        l->startup_pending = false;
        if (v->parked || got != 0) { // else it is ignored (SDM vol. 3, 9.4.4)
            *vector = l->startup_vector;
            got |= VCPU_GOT_STARTUP;
        }
    }
    return got;
}

static int read_msr(struct vm *vm, struct vcpu *v, uint32_t msr, uint64_t *value)
{
    (void)vm;
    return lapic_read_msr(v->lapic, msr, value);
}

static int write_msr(struct vm *vm, struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)vm;
    return lapic_write_msr(v->lapic, msr, value);
}

static uint64_t get_cr8(struct vm *vm, struct vcpu *v)
{
    (void)vm;
    return lapic_get_cr8(v->lapic);
}

static void set_cr8(struct vm *vm, struct vcpu *v, uint64_t value)
{
    (void)vm;
    lapic_set_cr8(v->lapic, value);
}

static void press_power_button(struct vm *vm)
{
    struct platform *p = vm->platform;
    power_control_press_button(&p->power);
}

static size_t read_console(struct vm *vm, uint64_t *cursor, char *buffer, size_t size)
{
    struct platform *p = vm->platform;
    return uart_read_output(&p->uart, cursor, buffer, size);
}

static size_t write_console(struct vm *vm, const char *data, size_t size)
{
    struct platform *p = vm->platform;
    return uart_write_input(&p->uart, data, size);
}

static const struct vm_platform_ops ops = {
    .create = create,
    .destroy = destroy,
    .reset = reset,
    .interrupt = interrupt,
    .sync_apic = sync_apic,
    .virtual_eoi = virtual_eoi,
    .set_eoi_byte = set_eoi_byte,
    .settle_eoi = settle_eoi,
    .send_ipi = send_ipi,
    .take_nmi = take_nmi,
    .take_startup = take_startup,
    .read_msr = read_msr,
    .write_msr = write_msr,
    .get_cr8 = get_cr8,
    .set_cr8 = set_cr8,
    .mmio = mmio_execute,
    .press_power_button = press_power_button,
    .set_doorbell = set_doorbell_irq,
    .read_console = read_console,
    .write_console = write_console,
};

static int register_platform(const struct boot_info *info)
{
    (void)info;
    vm_set_platform(&ops);
    return 0;
}
INIT_HOOK(INIT_DEVICES, register_platform);
