// SPDX-License-Identifier: Apache-2.0
// nvmed-opener: opens NVMe devices for their workers. Arguments, wiring, exit code.

import DeviceOpener
import Glibc
import Linux

let usage = """
    usage: nvmed-opener [--config DIRECTORY]...

    Opens PCI devices for their workers, which need no access to device nodes themselves. Started
    by systemd (nvmed-opener.socket), with its listening socket in LISTEN_FDS under the name
    "listen"; exits when nobody has asked for a minute.

      --config DIRECTORY   a directory of configuration files; several rise in precedence
                           (default: /usr/lib/nvmed /run/nvmed /etc/nvmed)
      --version            print the version
      --help               print this
    """

StandardStream.openMissing()
var arguments = Array(CommandLine.arguments.dropFirst())
var directories: [String] = []
while let argument = arguments.first {
    arguments.removeFirst()
    switch argument {
    case "--help", "-h":
        Program.show(usage)
        exit(0)
    case "--version":
        Program.show("nvmed-opener \(Program.commit)")
        exit(0)
    case "--config" where !arguments.isEmpty:
        directories.append(arguments.removeFirst())
    default:
        Program.complain("nvmed-opener: '\(argument)' is not understood\n\n\(usage)")
        exit(2)
    }
}
exit(OpenerProgram.run(directories: directories))
