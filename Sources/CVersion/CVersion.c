// SPDX-License-Identifier: Apache-2.0
#include "CVersion.h"

const char *nv_version_commit(void) { return NVMED_COMMIT; }
