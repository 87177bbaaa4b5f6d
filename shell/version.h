// SPDX-License-Identifier: BSD-2-Clause
#pragma once

#define FUSOR_VERSION "0.1"
