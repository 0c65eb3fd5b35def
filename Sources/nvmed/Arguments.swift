// SPDX-License-Identifier: Apache-2.0
// The command line of nvmed.

import Linux
import Supervisor

/// A command line that cannot be followed.
struct ArgumentError: Error, CustomStringConvertible {
    let description: String
}

/// What nvmed is asked to do.
enum Command {
    case help
    case version
    case checkConfiguration(directories: [String])
    case supervise(SupervisorProgram.Options)
    case standalone(SupervisorProgram.Options)

    static let usage = """
        usage: nvmed [OPTIONS]
               nvmed --standalone [OPTIONS]
               nvmed --check-config [--config DIR]

        The supervisor of NVMe devices: starts a worker for each, and opens disks for clients. It
        takes its public socket from systemd (LISTEN_FDS) or makes it.

          --standalone      manage the service without systemd: run a small service manager, with
                            nvmed itself and the workers as its services
          --config DIR      read the configuration from DIR alone; again for more, each above the
                            one before (default: /usr/lib/nvmed, /run/nvmed, /etc/nvmed)
          --runtime DIR     where sockets are (default: /run/nvmed)
          --state DIR       where the state of devices is that are saved over a full stop (default:
                            $STATE_DIRECTORY, or the runtime directory)
          --socket PATH     the public socket (default: Socket= of nvmed.conf, or nvmed.sock in
                            the runtime directory)
          --worker PATH     the worker's program (default: nvmed-worker beside nvmed)
          --end-workers     SIGTERM ends the workers too; --standalone sets it
          --check-config    say what is wrong with the configuration and exit: 0 nothing, 1 errors
          --version         print the version
          --help            print this

        Signals: SIGTERM ends nvmed and leaves the workers running, SIGHUP reads the configuration
        again.
        Environment: NVMED_LOG=plain|prefixed|journal is the form of the log, NVMED_LOG_LEVEL its
        highest level (0 to 7, or debug, info, notice, warning, error).
        """

    /// Reads the arguments after the program's name.
    static func parse(_ arguments: [String]) throws(ArgumentError) -> Command {
        var options = SupervisorProgram.Options()
        var directories: [String] = []
        var mode = "run"
        var rest = arguments[...]
        while let argument = rest.popFirst() {
            switch argument {
            case "--help", "-h": return .help
            case "--version": return .version
            case "--standalone", "--check-config": mode = argument
            case "--end-workers": options.endsWorkers = true
            case "--config": directories.append(try value(argument, &rest))
            case "--runtime": options.runtimeDirectory = try path(argument, &rest)
            case "--state": options.stateDirectory = try path(argument, &rest)
            case "--socket": options.socketPath = try path(argument, &rest)
            case "--worker": options.workerPath = try path(argument, &rest)
            default: throw ArgumentError(description: "\(argument) is not an option")
            }
        }
        if !directories.isEmpty { options.configDirectories = directories }
        switch mode {
        case "--standalone": return .standalone(options)
        case "--check-config": return .checkConfiguration(directories: options.configDirectories)
        default: return .supervise(options)
        }
    }

    private static func path(
        _ option: String, _ rest: inout ArraySlice<String>
    ) throws(ArgumentError) -> String {
        Process.absolute(try value(option, &rest))
    }

    private static func value(
        _ option: String, _ rest: inout ArraySlice<String>
    ) throws(ArgumentError) -> String {
        guard let value = rest.popFirst(), !value.isEmpty else {
            throw ArgumentError(description: "\(option) needs a value")
        }
        return value
    }
}
