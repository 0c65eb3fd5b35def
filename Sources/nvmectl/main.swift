// SPDX-License-Identifier: Apache-2.0
// The command line's entry: arguments in, exit code out.

import ArgumentParser
import Glibc
import Linux

/// Options of the whole program may also stand before the command: `nvmectl --socket S disk list`.
/// They are moved behind it, where the parser looks for them.
func normalized(_ arguments: [String]) -> [String] {
    var front: [String] = []
    var rest = arguments[...]
    while let first = rest.first {
        if ["--socket", "--output", "--timeout"].contains(first), rest.count > 1 {
            front += rest.prefix(2)
            rest = rest.dropFirst(2)
        } else if first.hasPrefix("--socket=") || first.hasPrefix("--output=")
            || first.hasPrefix("--timeout=")
        {
            front.append(first)
            rest = rest.dropFirst()
        } else {
            break
        }
    }
    guard let end = rest.firstIndex(of: "--") else { return rest + front }
    return rest[..<end] + front + rest[end...]
}

/// Runs the command and gives the exit code.
func run(_ arguments: [String]) -> Int32 {
    do {
        var command = try Nvmectl.parseAsRoot(normalized(arguments))
        try command.run()
        return 0
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
        return code == .validationFailure ? ExitStatus.usage.rawValue : code.rawValue
    }
}

Signals.ignoreBrokenPipes()
exit(run(Array(CommandLine.arguments.dropFirst())))
