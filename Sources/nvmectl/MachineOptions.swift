// SPDX-License-Identifier: Apache-2.0
// The machine and the configuration that commands on PCI devices work with.

import ArgumentParser
import DiskConfig
import Linux
import PCI

/// Options of commands that need no service.
struct MachineOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "A directory of configuration files; several rise in precedence. (default: "
                + ConfigLoader.standardDirectories.joined(separator: " ") + ")",
            valueName: "directory"))
    var config: [String] = []

    @Option(
        help: ArgumentHelp(
            "Look at the sys, proc and dev of this directory, for tests.", valueName: "directory",
            visibility: .hidden))
    var root: String?

    var host: PCIHost { PCIHost(root: root ?? "") }

    /// What the files say. Those with errors are left out.
    var configuration: Configuration {
        ConfigLoader.configuration(
            config.isEmpty ? ConfigLoader.standardDirectories : config,
            access: ConfigFileAccess(
                isMissing: { (error: SystemCallError) in error.errno == Errno.noEntry },
                list: Files.list, read: Files.read),
            lookup: NameLookup(
                user: { Accounts.user(named: $0) }, group: { Accounts.group(named: $0) }))
    }
}

/// A PCI device as an operator names it: by address, or by the name of its file.
struct PCITarget {
    let address: PCIAddress
    /// How it is configured, if it is.
    let device: ConfiguredDevice?

    init(
        _ text: String, _ configuration: Configuration, _ output: OutputFormat
    ) throws(Failure) {
        if let device = configuration.devices.first(where: { $0.name == text }) {
            guard case .pci(let place) = device.transport, let address = PCIAddress(place) else {
                throw Failure(
                    .usage, .device(text), "it is no PCI device (\(device.location))", output,
                    code: "invalid-argument")
            }
            self.address = address
            self.device = device
            return
        }
        guard let address = PCIAddress(text) else {
            throw Failure(
                .notFound, .device(text),
                "it is neither a PCI address like 0000:01:00.0 nor the name of a .device file",
                output, code: "not-found", hint: "See: nvmectl device list --pci")
        }
        self.address = address
        device = configuration.device(atPCIAddress: address.description)
    }
}

extension Failure {
    /// A failure of binding.
    init(_ error: PCIError, _ address: PCIAddress, _ output: OutputFormat) {
        let exitCode: ProgramStatus
        let code: String
        switch error {
        case .absent: (exitCode, code) = (.notFound, "not-found")
        case .inUse: (exitCode, code) = (.retry, "busy")
        case .refused: (exitCode, code) = (.failure, "refused")
        case .failed: (exitCode, code) = (.failure, "failure")
        case .waiting: (exitCode, code) = (.retry, "waiting")
        case .unreadable: (exitCode, code) = (.failure, "failure")
        }
        let prefix = "\(address): "
        let text = error.description
        self.init(
            exitCode, .device(address.description),
            text.hasPrefix(prefix) ? String(text.dropFirst(prefix.count)) : text, output,
            code: code, hint: error.hint)
    }
}
