// SPDX-License-Identifier: BSD-2-Clause
#pragma once

#include "vmx/vcpu.h"

enum vcpu_result vcpu_exit_io(struct vcpu *v);
