// SPDX-License-Identifier: Apache-2.0
// The generated C of Proto/ (see .ci/protos). Only the Swift modules Wire and SavedState import it.
#pragma once

#include "common.pb-c.h"
#include "opener.pb-c.h"
#include "saved.pb-c.h"
#include "session.pb-c.h"
#include "supervisor.pb-c.h"
#include "worker.pb-c.h"
