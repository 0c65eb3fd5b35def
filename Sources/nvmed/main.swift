// SPDX-License-Identifier: Apache-2.0
// nvmed: the supervisor. Arguments, wiring, exit code.

import DiskConfig
import Glibc
import Linux
import Supervisor

/// Says what is wrong or odd about the configuration; 1 when something is wrong.
func check(_ directories: [String]) -> Int32 {
    let configuration = ConfigurationFiles.read(directories)
    for problem in configuration.problems { Program.complain("\(problem)") }
    guard !configuration.hasErrors else { return 1 }
    Program.show(
        "nvmed: \(configuration.devices.count) devices, \(configuration.disks.count) disks, "
            + "\(configuration.problems.count) warnings")
    return 0
}

StandardStream.openMissing()
do {
    switch try Command.parse(Array(CommandLine.arguments.dropFirst())) {
    case .help: Program.show(Command.usage)
    case .version: Program.show("nvmed \(Program.commit)")
    case .checkConfiguration(let directories): exit(check(directories))
    case .supervise(let options): exit(SupervisorProgram.run(options))
    case .standalone(let options): exit(SupervisorProgram.runStandalone(options))
    }
} catch {
    Program.complain("nvmed: \(error)\n\n\(Command.usage)")
    exit(2)
}
