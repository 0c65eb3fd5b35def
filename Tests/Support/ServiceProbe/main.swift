// SPDX-License-Identifier: Apache-2.0
// A program for the tests of Systemd and ServiceManager: does what its first argument says.

import Glibc

SwiftProbe.main(CommandLine.arguments)
