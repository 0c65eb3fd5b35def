// SPDX-License-Identifier: Apache-2.0
// The commands and the options that all of them have.

import ArgumentParser
import Linux
import NVMeClient

/// The root of all commands.
struct Nvmectl: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "nvmectl",
        abstract: "Shows and uses the devices and disks of nvmed.",
        discussion: """
            Sizes and offsets are bytes, or have a unit: K, M, G, T (1024 each), or b for \
            blocks of the disk (8b).

            EXIT CODES:
              0   success
              1   failure of another kind
              2   wrong usage
              3   no such disk, device or session
              4   permission denied
              5   the device failed, is gone, or its medium is bad
              6   data differs
              7   no connection to nvmed
              8   done for some devices, others are started cold
              75  try again: busy, starting, restarted, or too slow
            """,
        version: "nvmectl \(Program.commit)",
        subcommands: [
            DeviceCommand.self, DiskCommand.self, SessionCommand.self, IOCommand.self,
            InspectCommand.self, TopCommand.self, BenchCommand.self, ReloadCommand.self,
            ShutdownCommand.self, ServicingCommand.self,
        ])
}

/// How results are shown.
enum OutputFormat: String, ExpressibleByArgument, CaseIterable {
    /// For people.
    case text
    /// One JSON object with a version.
    case json
}

/// The options of every command.
struct GlobalOptions: ParsableArguments {
    static let defaultSocket = "/run/nvmed/nvmed.sock"

    @Option(
        help: ArgumentHelp(
            "The socket of nvmed. (default: $NVMED_SOCKET, or \(defaultSocket))",
            valueName: "path"))
    var socket: String?

    @Option(help: ArgumentHelp("text or json.", valueName: "format"))
    var output: OutputFormat = .text

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp("Give up on an answer after so many seconds.", valueName: "seconds"))
    var timeout = 60

    func validate() throws {
        guard (0...Int(UInt32.max)).contains(timeout) else {
            throw ValidationError("--timeout is from 0 to \(UInt32.max) seconds.")
        }
    }

    var socketPath: String {
        socket ?? Program.environment("NVMED_SOCKET") ?? Self.defaultSocket
    }

    var deadline: UInt64 { Deadline.after(milliseconds: UInt64(clamping: timeout) * 1000) }

    func connect() throws(ClientError) -> NVMeBackend { try NVMeBackend.connect(socketPath) }

    /// Runs a command's work and turns its errors into failures about `subject`.
    func perform(_ subject: Failure.Subject, _ work: () throws -> Void) throws {
        do { try work() } catch let error as ClientError {
            throw Failure(error, subject, output)
        } catch let error as SystemCallError {
            throw Failure(.failure, subject, "\(error)", output)
        }
    }

    /// Shows a result: JSON with a version, or text.
    func show(_ json: [(String, JSON)], text: () -> String) {
        switch output {
        case .json: Program.show(JSON.object([("version", 1)] + json).text)
        case .text:
            let text = text()
            if !text.isEmpty { Program.show(text) }
        }
    }
}
