// SPDX-License-Identifier: Apache-2.0
// The commit this package was built from.
#pragma once

const char *_Nonnull nv_version_commit(void);
