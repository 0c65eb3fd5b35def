// SPDX-License-Identifier: Apache-2.0
// nvmectl device bind, unbind, rebind, list --pci: which driver has a PCI device.

import ArgumentParser
import DiskConfig
import Linux
import NVMeClient
import PCI
import Systemd

extension DeviceCommand {
    struct Bind: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Takes a PCI device from the kernel's driver for nvmed.",
            discussion: """
                Refused while anybody uses the device: a mount, swap, LVM, RAID, a loop device, a \
                process. Nothing is changed then.
                """)
        @Argument(help: "The PCI address, or the configured name.") var device: String
        @Flag(help: "Bind what is no NVMe controller, too.") var force = false
        @Flag(help: "Bind without an IOMMU; the device can then write to all of memory.")
        var noIOMMU = false
        @Flag(help: "Check everything and change nothing.") var dryRun = false
        @Flag(
            help: "Bind only what a .device file names and leaves to nvmed; else succeed silently.")
        var ifConfigured = false
        @OptionGroup var machine: MachineOptions
        @OptionGroup var global: GlobalOptions

        func run() throws {
            let target = try PCITarget(device, machine.configuration, global.output)
            if ifConfigured, target.device?.usesVFIO != true { return }
            if target.device?.usesVFIO == false, !force {
                throw Failure(
                    .usage, .device(target.address.description),
                    "nvme_vfio=off in \(target.device?.location.description ?? "") leaves it to "
                        + "the kernel", global.output, code: "invalid-argument",
                    hint: "Change that, or use --force.")
            }
            try machine.demandRoot(target, global.output)
            var options = PCIBinder.Options()
            options.force = force
            options.noIOMMU = noIOMMU || target.device?.iommu == .noiommu
            options.dryRun = dryRun
            try machine.perform(target, global.output) { () throws(PCIError) in
                let outcome = try PCIBinder(machine.host).bind(target.address, options)
                if ifConfigured, !outcome.changed { return }
                if !dryRun { machine.asking(target, global).announce(isEvent: ifConfigured) }
                machine.show(outcome, target, global, dryRun)
            }
        }
    }

    struct Unbind: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Gives a PCI device back to the kernel's driver.",
            discussion: "Its sessions end, and its worker shuts the controller down first.")
        @Argument(help: "The PCI address, or the configured name.") var device: String
        @Flag(help: "Have the kernel wait for whoever still has the device open.") var force = false
        @Flag(help: "Only say who has it open.") var dryRun = false
        @OptionGroup var machine: MachineOptions
        @OptionGroup var global: GlobalOptions

        func run() throws {
            let target = try PCITarget(device, machine.configuration, global.output)
            try machine.demandRoot(target, global.output)
            var options = PCIBinder.Options()
            options.force = force
            options.dryRun = dryRun
            try machine.perform(target, global.output) { () throws(PCIError) in
                let outcome = try PCIBinder(machine.host).unbind(target.address, options) {
                    machine.asking(target, global).letGo()
                }
                machine.show(outcome, target, global, dryRun)
            }
        }
    }

    struct Rebind: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Gives a PCI device back to the kernel and takes it again.",
            discussion: "The kernel's driver resets the controller meanwhile.")
        @Argument(help: "The PCI address, or the configured name.") var device: String
        @Flag(help: "As of bind and unbind.") var force = false
        @Flag(help: "Bind without an IOMMU; the device can then write to all of memory.")
        var noIOMMU = false
        @OptionGroup var machine: MachineOptions
        @OptionGroup var global: GlobalOptions

        func run() throws {
            let target = try PCITarget(device, machine.configuration, global.output)
            try machine.demandRoot(target, global.output)
            var options = PCIBinder.Options()
            options.force = force
            options.noIOMMU = noIOMMU || target.device?.iommu == .noiommu
            try machine.perform(target, global.output) { () throws(PCIError) in
                let binder = PCIBinder(machine.host)
                let asking = machine.asking(target, global)
                _ = try binder.unbind(target.address, options) { asking.letGo() }
                let outcome = try binder.bind(target.address, options)
                asking.announce(isEvent: false)
                machine.show(outcome, target, global, false)
            }
        }
    }
}

extension MachineOptions {
    /// Changing drivers is root's, except in a tree of a test.
    func demandRoot(_ target: PCITarget, _ output: OutputFormat) throws(Failure) {
        guard root == nil, Process.uid != 0 else { return }
        throw Failure(
            .permission, .device(target.address.description), "only root may change drivers",
            output, code: "permission-denied", hint: "Use root, for example with sudo.")
    }

    /// The journal: whoever looks there later wants to know who changed a driver, and what udev's
    /// program was refused. Nothing for a tree of a test.
    func log(_ target: PCITarget) -> Log? {
        guard root == nil else { return nil }
        return Log(
            device: target.device?.name ?? target.address.description,
            fields: ["NVME_ADDRESS": target.address.description],
            sink: LogSink(levelMax: .info, format: .journal, output: { _ in }))
    }

    func asking(_ target: PCITarget, _ global: GlobalOptions) -> ServiceAsking {
        ServiceAsking(target: target, global: global, host: host)
    }

    func perform(
        _ target: PCITarget, _ output: OutputFormat, _ work: () throws(PCIError) -> Void
    ) throws(Failure) {
        do {
            try work()
        } catch {
            log(target)?.error("its driver was not changed: \(error)", id: .bindingRefused)
            throw Failure(error, target.address, output)
        }
    }

    func show(
        _ outcome: PCIBinder.Outcome, _ target: PCITarget, _ global: GlobalOptions, _ dryRun: Bool
    ) {
        if outcome.changed, !dryRun {
            log(target)?.notice(
                "is with the driver \(outcome.driver ?? "(none)"), was with "
                    + "\(outcome.formerDriver ?? "(none)")", id: .bound)
        }
        let name = target.device.map { "\(target.address) (\($0.name))" } ?? "\(target.address)"
        global.show([
            (
                "device",
                .object([
                    ("address", .string(target.address.description)),
                    ("name", .text(target.device?.name ?? "")),
                    ("former_driver", .text(outcome.formerDriver ?? "")),
                    ("driver", .text(outcome.driver ?? "")), ("changed", .bool(outcome.changed)),
                    ("dry_run", .bool(dryRun)),
                    ("notes", .array(outcome.notes.map { .string($0) })),
                ])
            )
        ]) {
            let driver = outcome.driver.map { "bound to \($0)" } ?? "without a driver"
            let former = outcome.formerDriver ?? "no driver"
            var line = "\(name) is \(driver)"
            if outcome.changed { line += dryRun ? ", which would change" : " (was \(former))" }
            return ([line] + outcome.notes).map(Text.printable).joined(separator: "\n")
        }
    }
}

/// The NVMe controllers of the machine.
struct PCIListing {
    private struct Row {
        var function: PCIFunction
        var controller: KernelController?
        var device: ConfiguredDevice?
        var users: [String]
    }

    private let machine: MachineOptions
    private let global: GlobalOptions

    init(_ machine: MachineOptions, _ global: GlobalOptions) {
        self.machine = machine
        self.global = global
    }

    func run() throws {
        let host = machine.host
        let configuration = machine.configuration
        let rows: [Row]
        do throws(PCIError) {
            rows = try host.nvmeFunctions().map { function throws(PCIError) in
                var users = try host.users(function.address).map(\.description)
                users += try host.vfioHolders(function).map { "\($0) has it open" }
                return Row(
                    function: function, controller: host.controller(function.address),
                    device: configuration.device(atPCIAddress: function.address.description),
                    users: users)
            }
        } catch {
            throw Failure(.failure, .service, error.description, global.output)
        }
        global.show([("controllers", .array(rows.map(json)))]) {
            Text.table(
                ["ADDRESS", "DRIVER", "GROUP", "DEVICE", "KERNEL", "MODEL", "SERIAL", "IN USE"],
                rows.map {
                    [
                        $0.function.address.description, $0.function.driver ?? "-",
                        $0.function.iommuGroup ?? "-", $0.device?.name ?? "-",
                        $0.controller?.name ?? "-", $0.controller?.model ?? "-",
                        $0.controller?.serial ?? "-", $0.users.joined(separator: "; "),
                    ]
                })
        }
    }

    private func json(_ row: Row) -> JSON {
        .object([
            ("address", .string(row.function.address.description)),
            ("vendor", .number(UInt64(row.function.vendor))),
            ("device_id", .number(UInt64(row.function.device))),
            ("driver", .text(row.function.driver ?? "")),
            ("iommu_group", .text(row.function.iommuGroup ?? "")),
            ("name", .text(row.device?.name ?? "")),
            ("nvme_vfio", row.device.map { .bool($0.usesVFIO) } ?? .null),
            ("kernel_name", .text(row.controller?.name ?? "")),
            ("model", .text(row.controller?.model ?? "")),
            ("serial", .text(row.controller?.serial ?? "")),
            ("users", .array(row.users.map { .string($0) })),
        ])
    }
}
