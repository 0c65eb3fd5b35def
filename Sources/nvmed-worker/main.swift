// SPDX-License-Identifier: Apache-2.0
// nvmed-worker: the process that drives one NVMe device. Arguments, wiring, exit code.

import Glibc
import Linux
import Worker

let usage = """
    usage: nvmed-worker DEVICE

    Drives one NVMe device for nvmed. Started by systemd (nvmed-worker@.service) or by
    nvmed --standalone, with its listening socket in LISTEN_FDS under the name "listen".

      DEVICE      the device's configured name
      --version   print the version
      --help      print this
    """

/// The name of a device becomes part of unit and socket names, so that it must be a file name.
func isName(_ text: String) -> Bool {
    (1...255).contains(text.utf8.count) && !text.hasPrefix("-") && !text.hasPrefix(".")
        && text.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f && $0 != UInt8(ascii: "/") }
}

StandardStream.openMissing()
let arguments = Array(CommandLine.arguments.dropFirst())
switch arguments {
case ["--help"], ["-h"]:
    Program.show(usage)
case ["--version"]:
    Program.show("nvmed-worker \(Program.commit)")
default:
    guard arguments.count == 1, let device = arguments.first, isName(device) else {
        Program.complain("nvmed-worker: one device name is expected\n\n\(usage)")
        exit(2)
    }
    exit(WorkerProgram.run(device: device))
}
