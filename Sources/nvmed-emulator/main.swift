// SPDX-License-Identifier: Apache-2.0
// nvmed-emulator: an NVMe controller in software behind the vfio-user protocol.

import Glibc
import Linux
import NVMeEmulator

/// Writes a line to the standard error.
func say(_ text: String) { Program.complain("nvmed-emulator: \(text)") }

/// Listens, announces itself and serves.
func serve(_ arguments: Arguments) throws {
    let sockets = try ListeningSockets(arguments)
    let emulator = try Emulator(
        options: arguments.options, listener: sockets.listener, control: sockets.control,
        report: { say($0) })
    say("\(arguments.options.serial) ready\(arguments.socketPath.map { " at \($0)" } ?? "")")
    try notifyServiceManager("READY=1")
    try emulator.run()
    // Whoever was told READY=1 may be gone by now; that is no reason to fail.
    try? notifyServiceManager("STOPPING=1")
    if arguments.showsStatistics { Program.show(emulator.statistics) }
    for path in [arguments.socketPath, arguments.controlPath] {
        if let path { Program.removeFile(path) }
    }
}

StandardStream.openMissing()
do {
    switch try Arguments.parse(Array(CommandLine.arguments.dropFirst())) {
    case .help: Program.show(Arguments.help)
    case .version: Program.show("nvmed-emulator \(Program.commit)")
    case .run(let arguments): try serve(arguments)
    }
} catch let error as OptionError {
    say("\(error)")
    exit(2)
} catch {
    say("\(error)")
    exit(1)
}
