// SPDX-License-Identifier: Apache-2.0
// A disk behind the engine rig, which follows PRP entries, and the memory that they may point at.

import CMemory
import Glibc
import Linux
import NVMeSpec
import TestSupport

@testable import NVMeDriver

/// Memory of a client, twice: as it is, and as it should be.
@safe
final class ModelRegion {
    let index: UInt32
    let iova: UInt64
    let memory: UnsafeMutableRawPointer
    let model: UnsafeMutableRawPointer
    let byteCount: Int

    init(_ rig: EngineRig, iova: UInt64, byteCount: Int, flags: RegionFlags) throws {
        self.iova = iova
        self.byteCount = byteCount
        unsafe memory = try Mapping(anonymous: byteCount).leak()
        unsafe model = try Mapping(anonymous: byteCount).leak()
        index = try requireValue(
            unsafe rig.regions.insert(
                session: EngineRig.session, iova: iova, byteCount: UInt64(byteCount), base: memory,
                flags: flags))
    }

    deinit {
        unsafe Mapping.unmap(memory, byteCount: byteCount)
        unsafe Mapping.unmap(model, byteCount: byteCount)
    }

    /// New contents, the same in both.
    func fill(_ random: inout SplitMix64) {
        for position in stride(from: 0, to: byteCount, by: 8) {
            let value = random.next()
            unsafe nv_store64(memory + position, value)
            unsafe nv_store64(model + position, value)
        }
    }

    var isAsItShouldBe: Bool { unsafe memcmp(memory, model, byteCount) == 0 }
}

/// An engine, its device with a disk of 1 MiB, and three regions: two that the device can reach and
/// one that it cannot.
@safe
final class SegmentRig {
    static let diskByteCount = 1 << 20
    static let regionByteCount = 1 << 20
    let rig: EngineRig
    let regions: [ModelRegion]
    let disk: UnsafeMutableRawPointer
    let diskModel: UnsafeMutableRawPointer
    let shift: UInt8
    /// Commands that the device has done, and what was wrong with them.
    private(set) var commandCount = 0
    private(set) var findings: [String] = []
    /// Block counts of commands that went through bounce pages.
    private(set) var bouncedBlocks: [UInt32] = []

    init(shift: UInt8 = 9, entries: UInt32 = 16) throws {
        self.shift = shift
        rig = try EngineRig(entries: entries)
        unsafe disk = try Mapping(anonymous: Self.diskByteCount).leak()
        unsafe diskModel = try Mapping(anonymous: Self.diskByteCount).leak()
        regions = [
            try ModelRegion(
                rig, iova: 0x1_0000_0000, byteCount: Self.regionByteCount, flags: []),
            try ModelRegion(
                rig, iova: 0x2_0000_0000, byteCount: Self.regionByteCount, flags: []),
            try ModelRegion(rig, iova: 0, byteCount: Self.regionByteCount, flags: .bounced),
        ]
    }

    deinit {
        unsafe Mapping.unmap(disk, byteCount: Self.diskByteCount)
        unsafe Mapping.unmap(diskModel, byteCount: Self.diskByteCount)
    }

    func fillDisk(_ random: inout SplitMix64) {
        for position in stride(from: 0, to: Self.diskByteCount, by: 8) {
            let value = random.next()
            unsafe nv_store64(disk + position, value)
            unsafe nv_store64(diskModel + position, value)
        }
    }

    var memoryIsAsItShouldBe: Bool { regions.allSatisfy { $0.isAsItShouldBe } }

    var diskIsAsItShouldBe: Bool { unsafe memcmp(disk, diskModel, Self.diskByteCount) == 0 }

    func request(
        _ operation: UInt8, lba: UInt64, blocks: UInt32, maxBlocks: UInt32 = 1024, token: UInt64 = 1
    ) -> IORequest {
        var request = rig.request(operation, lba: lba, blocks: blocks, token: token)
        request.blockShift = shift
        request.maxBlocksPerCommand = maxBlocks
        return request
    }

    func region(_ index: UInt32) -> ModelRegion? { regions.first { $0.index == index } }

    /// Does to the model what a request should do. For Compare: whether all is equal.
    @discardableResult
    func applyToModel(_ request: IORequest, _ segments: [DataSegment]) -> Bool {
        var position = Int(request.lba) << Int(shift)
        var isEqual = true
        for segment in segments {
            guard let region = region(segment.region) else { return false }
            let count = Int(segment.byteCount)
            let bytes = unsafe region.model + Int(segment.offset)
            switch request.operation {
            case IOOperation.read: unsafe memcpy(bytes, diskModel + position, count)
            case IOOperation.write: unsafe memcpy(diskModel + position, bytes, count)
            default: isEqual = unsafe memcmp(bytes, diskModel + position, count) == 0 && isEqual
            }
            position += count
        }
        return isEqual
    }

    // MARK: The device

    /// Does a command as a controller would, and posts its completion.
    func serve(_ command: SubmissionEntry) {
        commandCount += 1
        let blocks = (command.cdw12 & 0xFFFF) + 1
        let lba = UInt64(command.cdw10) | UInt64(command.cdw11) << 32
        let byteCount = UInt64(blocks) << UInt64(shift)
        let pages = rig.pages(of: command, byteCount: byteCount)
        if command.prp1 & 3 != 0 { findings.append("PRP1 \(command.prp1) is not dword aligned") }
        if pages.dropFirst().contains(where: { $0 & 4095 != 0 }) {
            findings.append("a PRP entry is not page aligned")
        }
        if command.prp1 & ~0xF_FFFF == EngineRig.bounceIOVA { bouncedBlocks.append(blocks) }
        var position = Int(lba) << Int(shift)
        var left = Int(byteCount)
        var isEqual = true
        for page in pages {
            let count = min(left, Int(4096 - page & 4095))
            guard let bytes = unsafe memory(at: page, count), position >= 0,
                position + count <= Self.diskByteCount
            else {
                findings.append("the device is sent to \(page), \(count) bytes, LBA \(lba)")
                break
            }
            let blocks = unsafe disk + position
            switch command.opcode {
            case IOOperation.read: unsafe memcpy(bytes, blocks, count)
            case IOOperation.write: unsafe memcpy(blocks, bytes, count)
            default: isEqual = unsafe memcmp(bytes, blocks, count) == 0 && isEqual
            }
            position += count
            left -= count
        }
        rig.post(
            commandID: command.commandID,
            status: isEqual ? Status(rawValue: 0) : .compareFailure)
    }

    private func memory(at address: UInt64, _ count: Int) -> UnsafeMutableRawPointer? {
        func within(_ base: UInt64, _ length: Int) -> Int? {
            guard address >= base, address - base <= UInt64(length - count) else { return nil }
            return Int(address - base)
        }
        if let offset = within(EngineRig.bounceIOVA, 1 << 20) {
            return unsafe rig.bounceMemory + offset
        }
        for region in regions where region.iova != 0 {
            if let offset = within(region.iova, region.byteCount) {
                return unsafe region.memory + offset
            }
        }
        return nil
    }

    /// Runs until everything has ended, doing commands in random order. The completions.
    func finish(_ random: inout SplitMix64) -> [IOCompletion] {
        var ended: [IOCompletion] = []
        var waiting: [SubmissionEntry] = []
        // More turns than there can be commands.
        for _ in 0..<100_000 where !rig.isIdle {
            rig.ring()
            waiting += rig.takeCommands()
            if !waiting.isEmpty {
                serve(waiting.remove(at: Int(random.next() % UInt64(waiting.count))))
            }
            ended += rig.reap()
        }
        return ended
    }
}
