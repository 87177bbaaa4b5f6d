// SPDX-License-Identifier: BSD-2-Clause
// The guest's devices: what a plain PC has and CPUID, MADT and FADT do not tell.
DefinitionBlock ("", "DSDT", 2, "FUSOR", "FUSORVM", 0x00000001)
{
    // SLP_TYP for power-off, as devices/power_control.c takes it.
    Name (\_S5, Package () { 0x05, 0x00, 0x00, 0x00 })

    Scope (\_SB)
    {
        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501")) // 16550A
            Name (_UID, 1)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x03F8, 0x03F8, 0x00, 0x08)
                IRQNoFlags () { 4 }
            })
        }

        Device (RTC)
        {
            Name (_HID, EisaId ("PNP0B00"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x0070, 0x0070, 0x00, 0x02)
                IRQNoFlags () { 8 }
            })
        }

        Device (PIC)
        {
            Name (_HID, EisaId ("PNP0000"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x0020, 0x0020, 0x00, 0x02)
                IO (Decode16, 0x00A0, 0x00A0, 0x00, 0x02)
                IO (Decode16, 0x04D0, 0x04D0, 0x00, 0x02)
                IRQNoFlags () { 2 }
            })
        }

        Device (PIT)
        {
            Name (_HID, EisaId ("PNP0100"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x0040, 0x0040, 0x00, 0x04)
                IRQNoFlags () { 0 }
            })
        }

        Device (APIC)
        {
            Name (_HID, EisaId ("PNP0003"))
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xFEC00000, 0x00001000)
                Memory32Fixed (ReadWrite, 0xFEE00000, 0x00001000)
            })
        }

        // What Fusor's guest driver binds to.
        Device (FUSR)
        {
            Name (_HID, "FUSR0001")
            Name (_UID, 0)
            // The doorbell: rises when the balloon's target changes or memory is short, falls when
            // the driver asks for the target.
            Name (_CRS, ResourceTemplate ()
            {
                IRQ (Edge, ActiveHigh, Exclusive) { 10 }
            })
        }
    }
}
