// SPDX-License-Identifier: Apache-2.0
// The command line's entry: arguments in, exit code out.

import ArgumentParser
import Glibc
import Linux

/// Runs the command and gives the exit code.
func run(_ arguments: [String]) -> Int32 {
    do {
        var command = try Nvmectl.parseAsRoot(normalized(arguments))
        try command.run()
        return 0
    } catch let partly as PartlyDone {
        Program.complain(partly.message)
        return ProgramStatus.partly.rawValue
    } catch let failure as Failure {
        failure.show()
        return failure.exitCode.rawValue
    } catch {
        let code = Nvmectl.exitCode(for: error)
        let text = Nvmectl.fullMessage(for: error)
        if code.isSuccess {
            Program.show(text)
            return 0
        }
        Program.complain(text)
        guard code == .validationFailure else { return code.rawValue }
        if asksForJSON(arguments) {
            let failure = Failure(
                .usage, .service, Nvmectl.message(for: error), .json, code: "usage",
                hint: "See: nvmectl --help")
            Program.show(failure.json.text)
        }
        return ProgramStatus.usage.rawValue
    }
}

StandardStream.openMissing()
Signals.ignoreBrokenPipes()
exit(run(Array(CommandLine.arguments.dropFirst())))
