// SPDX-License-Identifier: Apache-2.0
// nvmectl device: the devices and their state.

import ArgumentParser
import NVMeClient
import Wire

struct DeviceCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "device",
        abstract: "Shows devices, binds them, and brings failed ones up again.",
        subcommands: [
            List.self, Show.self, Retry.self, Bind.self, Unbind.self, Rebind.self,
        ])

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Lists the devices.")
        @Flag(help: "List the NVMe controllers of this machine and their drivers instead.")
        var pci = false
        @OptionGroup var machine: MachineOptions
        @OptionGroup var global: GlobalOptions

        func run() throws {
            if pci { return try PCIListing(machine, global).run() }
            try global.perform(.service) {
                let devices = try global.connect().listDevices(deadlineNanoseconds: global.deadline)
                global.show([("devices", .array(devices.map(DeviceCommand.json)))]) {
                    Text.table(
                        [
                            "NAME", "STATE", "MODEL", "SERIAL", "NAMESPACES", "PID", "RESTARTS",
                            "GENERATION", "ADOPTED", "LAST PAUSE", "REASON",
                        ],
                        devices.map {
                            [
                                $0.name, "\($0.state)", $0.model, $0.serial,
                                "\($0.namespaces.count)", $0.workerPID.map { "\($0)" } ?? "-",
                                "\($0.restarts)", Text.generation($0.continuity),
                                Text.adoptions($0.continuity), Text.pause($0.continuity),
                                $0.reason,
                            ]
                        })
                }
            }
        }
    }

    struct Show: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Shows one device.")
        @Argument(help: "The configured name.") var name: String
        @OptionGroup var global: GlobalOptions

        func run() throws {
            try global.perform(.device(name)) {
                let device = try global.connect().device(name, deadlineNanoseconds: global.deadline)
                global.show([("device", DeviceCommand.json(device))]) { DeviceCommand.text(device) }
            }
        }
    }

    struct Retry: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Brings a failed device up again. Returns when it was started.")
        @Argument(help: "The configured name.") var name: String
        @OptionGroup var global: GlobalOptions

        func run() throws {
            try global.perform(.device(name)) {
                try global.connect().retryDevice(name, deadlineNanoseconds: global.deadline)
                global.show([("device", .object([("name", .string(name))]))]) {
                    "device \(name) is brought up if it is not; see: nvmectl device show \(name)"
                }
            }
        }
    }

    static func text(_ device: DeviceInfo) -> String {
        let worker: [(String, String)] = [
            ("name", device.name), ("state", "\(device.state)"), ("reason", device.reason),
            ("since", Text.ago(device.sinceNanoseconds)),
            ("attempts", device.attempts > 0 ? "\(device.attempts)" : ""),
            ("transport", device.transport), ("model", device.model), ("serial", device.serial),
            ("firmware", device.firmware),
            ("worker", device.workerPID.map { "pid \($0)" } ?? ""),
            ("restarts", "\(device.restarts)"), ("sessions", "\(device.sessionCount)"),
        ]
        let continuity: [(String, String)] = device.continuity.map(lines) ?? []
        let health: [(String, String)] = device.health.map(lines) ?? []
        let lines = Text.list(
            worker + continuity + [("reset because", device.resetReason)] + health)
        guard !device.namespaces.isEmpty else { return lines }
        let table = Text.table(
            ["NAMESPACE", "SIZE", "BLOCK", "NGUID", "EUI64", "UUID", "NOT SERVED"],
            device.namespaces.map { row($0) })
        return "\(lines)\n\n\(table)"
    }

    private static func row(_ namespace: NamespaceInfo) -> [String] {
        let size = namespace.blockCount.multipliedReportingOverflow(
            by: UInt64(namespace.blockByteCount))
        let isServed = namespace.refusal == nil
        return [
            "\(namespace.nsid)", isServed ? Text.size(size.partialValue) : "-",
            isServed ? "\(namespace.blockByteCount)" : "-", Text.hex(namespace.identity.nguid),
            Text.hex(namespace.identity.eui64), Text.hex(namespace.identity.uuid),
            namespace.refusal ?? "",
        ]
    }

    static func json(_ device: DeviceInfo) -> JSON {
        let head: [(String, JSON)] = [
            ("name", .string(device.name)), ("state", .string("\(device.state)")),
            ("reason", .text(device.reason)), ("attempts", .number(UInt64(device.attempts))),
            ("since_ns", .number(device.sinceNanoseconds)),
            ("transport", .text(device.transport)), ("model", .text(device.model)),
            ("serial", .text(device.serial)), ("firmware", .text(device.firmware)),
            ("pid", device.workerPID.map { .signed(Int64($0)) } ?? .null),
            ("restarts", .number(device.restarts)),
            ("sessions", .number(UInt64(device.sessionCount))),
            ("health", device.health.map(json) ?? .null),
            ("namespaces", .array(device.namespaces.map(json))),
            ("reset_reason", .text(device.resetReason)),
        ]
        return .object(head + JSON.continuity(device.continuity))
    }

    private static func lines(_ continuity: Continuity) -> [(String, String)] {
        [
            ("generation", "\(continuity.generation)"),
            ("adopted", "\(continuity.adoptions) times"), ("resets", "\(continuity.resets)"),
            ("last pause", Text.pause(continuity)),
        ]
    }

    private static func lines(_ health: Health) -> [(String, String)] {
        [
            (
                "warnings",
                health.criticalWarning == 0 ? "none" : health.warnings.joined(separator: ", ")
            ),
            (
                "temperature",
                health.temperatureKelvin > 0 ? "\(Int64(health.temperatureKelvin) - 273) °C" : ""
            ),
            ("spare", "\(health.availableSparePercent) %"), ("used", "\(health.usedPercent) %"),
            ("media errors", "\(health.mediaErrors)"),
            ("unsafe shutdowns", "\(health.unsafeShutdowns)"),
            ("power-on hours", "\(health.powerOnHours)"),
        ]
    }

    private static func json(_ health: Health) -> JSON {
        .object([
            ("critical_warning", .number(UInt64(health.criticalWarning))),
            ("warnings", .array(health.warnings.map { .string($0) })),
            ("temperature_kelvin", .number(UInt64(health.temperatureKelvin))),
            ("spare_percent", .number(UInt64(health.availableSparePercent))),
            ("used_percent", .number(UInt64(health.usedPercent))),
            ("media_errors", .number(health.mediaErrors)),
            ("unsafe_shutdowns", .number(health.unsafeShutdowns)),
            ("power_on_hours", .number(health.powerOnHours)),
        ])
    }

    private static func json(_ namespace: NamespaceInfo) -> JSON {
        .object([
            ("nsid", .number(UInt64(namespace.nsid))),
            ("block_bytes", .number(UInt64(namespace.blockByteCount))),
            ("blocks", .number(namespace.blockCount)),
            ("nguid", .text(Text.hex(namespace.identity.nguid))),
            ("eui64", .text(Text.hex(namespace.identity.eui64))),
            ("uuid", .text(Text.hex(namespace.identity.uuid))),
            ("write_protected", .bool(namespace.writeProtected)),
            ("refusal", .text(namespace.refusal ?? "")),
        ])
    }
}
