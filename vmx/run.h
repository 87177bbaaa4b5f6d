// SPDX-License-Identifier: BSD-2-Clause
#pragma once

// For the NMI handler in root mode: makes the coming VM entry exit at once.
void vmx_nmi_before_entry(void);
