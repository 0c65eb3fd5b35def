// SPDX-License-Identifier: Apache-2.0
// nvmectl disk: the disks this caller may open.

import ArgumentParser
import NVMeClient
import Wire

struct DiskCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "disk", abstract: "Shows disks.", subcommands: [List.self, Show.self])

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Lists the disks.")
        @OptionGroup var global: GlobalOptions

        func run() throws {
            try global.perform(.service) {
                let disks = try global.connect().listDisks(deadlineNanoseconds: global.deadline)
                global.show([("disks", .array(disks.map(DiskCommand.json)))]) {
                    Text.table(
                        [
                            "NAME", "DEVICE", "NAMESPACE", "SIZE", "BLOCK", "ACCESS", "SESSIONS",
                            "GENERATION", "ADOPTED", "LAST PAUSE", "PROBLEM",
                        ],
                        disks.map {
                            [
                                $0.name, $0.device.isEmpty ? "-" : $0.device,
                                $0.nsid == 0 ? "-" : "\($0.nsid)", DiskCommand.size($0),
                                $0.blockByteCount == 0 ? "-" : "\($0.blockByteCount)",
                                DiskCommand.access($0.access) + ($0.shared ? ", shared" : ""),
                                "\($0.sessionCount)", Text.generation($0.continuity),
                                Text.adoptions($0.continuity), Text.pause($0.continuity),
                                $0.problem,
                            ]
                        })
                }
            }
        }
    }

    struct Show: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Shows one disk.",
            discussion: "It is opened for reading for a moment, which starts its device.")
        @Argument(help: "The configured name.") var name: String
        @OptionGroup var global: GlobalOptions

        func run() throws {
            try global.perform(.disk(name)) {
                let backend = try global.connect()
                let entry = try backend.disk(name, deadlineNanoseconds: global.deadline)
                let disk = try backend.openDisk(
                    name, access: .readOnly, deadlineNanoseconds: global.deadline)
                defer { disk.close() }
                let info = disk.info
                global.show([("disk", DiskCommand.json(info, entry))]) {
                    DiskCommand.text(info, entry)
                }
            }
        }
    }

    static func access(_ mode: AccessMode) -> String {
        mode == .readOnly ? "read-only" : "read-write"
    }

    static func bytes(_ blockCount: UInt64, _ blockByteCount: UInt32) -> UInt64 {
        let (bytes, overflow) = blockCount.multipliedReportingOverflow(by: UInt64(blockByteCount))
        return overflow ? .max : bytes
    }

    static func size(_ disk: DiskEntry) -> String {
        disk.blockCount == 0 ? "-" : Text.size(bytes(disk.blockCount, disk.blockByteCount))
    }

    static func json(_ disk: DiskEntry) -> JSON {
        let head: [(String, JSON)] = [
            ("name", .string(disk.name)), ("device", .text(disk.device)),
            ("nsid", disk.nsid == 0 ? .null : .number(UInt64(disk.nsid))),
            ("access", .string(access(disk.access))), ("shared", .bool(disk.shared)),
            (
                "block_bytes",
                disk.blockByteCount == 0 ? .null : .number(UInt64(disk.blockByteCount))
            ),
            ("blocks", disk.blockCount == 0 ? .null : .number(disk.blockCount)),
            ("sessions", .number(UInt64(disk.sessionCount))), ("problem", .text(disk.problem)),
        ]
        return .object(head + JSON.continuity(disk.continuity))
    }

    private static func reads(_ info: DiskInfo) -> String {
        switch info.unmapReadsAs {
        case 1: "zeroes"
        case 2: "ones"
        default: "anything"
        }
    }

    static func text(_ info: DiskInfo, _ entry: DiskEntry) -> String {
        let yes = { (value: Bool) in value ? "yes" : "no" }
        return Text.list([
            ("name", info.name), ("device", "\(info.device), namespace \(info.nsid)"),
            (
                "size",
                "\(Text.size(bytes(info.blockCount, info.blockByteCount))), "
                    + "\(info.blockCount) blocks"
            ),
            (
                "block",
                "\(info.blockByteCount) bytes, physical \(info.physicalBlockByteCount), "
                    + "optimal \(info.optimalByteCount)"
            ),
            (
                "transfer",
                "\(Text.size(info.maxTransferByteCount)), inline "
                    + "\(Text.size(UInt64(info.maxInlineByteCount))), "
                    + "\(info.maxSegments) segments, "
                    + "alignment \(info.alignmentByteCount)"
            ),
            ("access", access(entry.access) + (info.writeProtected ? ", write protected" : "")),
            ("shared", yes(info.shared)), ("write cache", yes(info.volatileWriteCache)),
            ("force unit access", yes(info.fua)),
            (
                "unmap",
                info.unmap
                    ? "granularity \(info.unmapGranularityBlockCount), reads as \(reads(info))"
                    : "no"
            ),
            ("write zeroes", yes(info.writeZeroes)), ("compare", yes(info.compare)),
            ("verify", yes(info.verify)),
            (
                "atomic",
                "\(info.atomicBlockCount) blocks, on power failure "
                    + "\(info.atomicPowerFailBlockCount)"
            ),
            ("nguid", Text.hex(info.identity.nguid)), ("eui64", Text.hex(info.identity.eui64)),
            ("uuid", Text.hex(info.identity.uuid)), ("serial", info.serial), ("model", info.model),
            ("firmware", info.firmware),
            ("memory", info.bounced ? "copied through the worker" : "direct"),
            ("generation", "\(info.generation)"),
            ("adopted", entry.continuity.map { "\($0.adoptions) times" } ?? ""),
            ("last pause", entry.continuity?.lastPauseNanoseconds.map(Text.duration) ?? ""),
            ("sessions", "\(entry.sessionCount)"),
        ])
    }

    static func json(_ info: DiskInfo, _ entry: DiskEntry) -> JSON {
        let head: [(String, JSON)] = [
            ("name", .string(info.name)), ("device", .string(info.device)),
            ("nsid", .number(UInt64(info.nsid))), ("access", .string(access(entry.access))),
            ("sessions", .number(UInt64(entry.sessionCount))),
            ("bytes", .number(bytes(info.blockCount, info.blockByteCount))),
            ("blocks", .number(info.blockCount)),
            ("block_bytes", .number(UInt64(info.blockByteCount))),
            ("physical_block_bytes", .number(UInt64(info.physicalBlockByteCount))),
            ("optimal_bytes", .number(UInt64(info.optimalByteCount))),
            ("max_transfer_bytes", .number(info.maxTransferByteCount)),
            ("max_inline_bytes", .number(UInt64(info.maxInlineByteCount))),
            ("max_segments", .number(UInt64(info.maxSegments))),
            ("alignment_bytes", .number(UInt64(info.alignmentByteCount))),
            ("fua", .bool(info.fua)), ("volatile_write_cache", .bool(info.volatileWriteCache)),
            ("unmap", .bool(info.unmap)),
            ("unmap_granularity_blocks", .number(UInt64(info.unmapGranularityBlockCount))),
            ("unmap_reads_as", .string(reads(info))), ("write_zeroes", .bool(info.writeZeroes)),
            ("compare", .bool(info.compare)), ("verify", .bool(info.verify)),
            ("atomic_blocks", .number(UInt64(info.atomicBlockCount))),
            ("atomic_power_fail_blocks", .number(UInt64(info.atomicPowerFailBlockCount))),
            ("write_protected", .bool(info.writeProtected)), ("shared", .bool(info.shared)),
            ("nguid", .text(Text.hex(info.identity.nguid))),
            ("eui64", .text(Text.hex(info.identity.eui64))),
            ("uuid", .text(Text.hex(info.identity.uuid))), ("serial", .text(info.serial)),
            ("model", .text(info.model)), ("firmware", .text(info.firmware)),
            ("bounced", .bool(info.bounced)),
        ]
        // What the session itself was told is the newest.
        var continuity = entry.continuity ?? Continuity(generation: info.generation)
        continuity.generation = max(continuity.generation, info.generation)
        return .object(head + JSON.continuity(continuity))
    }
}
