// SPDX-License-Identifier: Apache-2.0
// Tests of real processes, one after the other: they measure time, and count processes.

import Testing

/// The process floor.
@Suite("Processes", .serialized)
enum ProcessTests {}
