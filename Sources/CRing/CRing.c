// SPDX-License-Identifier: Apache-2.0
// The package manager wants a source file.
#include "CRing.h"
