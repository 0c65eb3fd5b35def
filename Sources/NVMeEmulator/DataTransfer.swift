// SPDX-License-Identifier: Apache-2.0
// Moving data between a buffer here and what PRP1 and PRP2 describe.
// NVM Express Base Specification 2.0, section 4.1.1 (Physical Region Pages).

internal import CMemory
internal import Glibc
internal import NVMeSpec

/// What to do with each stretch of host memory.
enum Transfer {
    /// Copy from the host.
    case fromHost
    /// Copy to the host.
    case toHost
    /// Compare with the host's.
    case compare
}

extension Controller {
    /// Transfers `byteCount` bytes between `buffer` and the memory a command points to.
    ///
    /// Every page but the first begins at offset zero; a list that is longer than its page is
    /// continued by the page its last entry names. The length bounds the walk: each list page holds
    /// at least one data entry.
    func transfer(
        _ entry: SubmissionEntry, _ buffer: UnsafeMutableRawPointer, _ byteCount: Int,
        _ kind: Transfer
    ) -> Status {
        let pageBytes = 1 << pageShift
        let mask = UInt64(pageBytes) &- 1
        guard entry.prp1 & 3 == 0 else { return .prpOffsetInvalid }
        let first = min(byteCount, pageBytes &- Int(entry.prp1 & mask))
        if let status = unsafe move(entry.prp1, buffer, first, kind) { return status }
        let left = byteCount &- first
        guard left > 0 else { return .success }
        let rest = unsafe buffer + first
        if left <= pageBytes {
            guard entry.prp2 & mask == 0 else { return .prpOffsetInvalid }
            return unsafe move(entry.prp2, rest, left, kind) ?? .success
        }
        return unsafe transferList(entry.prp2, rest, left, kind)
    }

    private func transferList(
        _ list: UInt64, _ buffer: UnsafeMutableRawPointer, _ byteCount: Int, _ kind: Transfer
    ) -> Status {
        let pageBytes = 1 << pageShift
        let mask = UInt64(pageBytes) &- 1
        var list = list
        var done = 0
        guard list & 7 == 0 else { return .prpOffsetInvalid }
        while true {
            let needed = (byteCount &- done &+ pageBytes &- 1) >> pageShift
            let inPage = (pageBytes &- Int(list & mask)) / 8
            let isChained = needed > inPage
            let entries = isChained ? inPage : needed
            guard let table = unsafe listEntries(list, entries) else { return .dataTransferError }
            for index in 0..<(isChained ? entries &- 1 : entries) {
                let address = unsafe nv_load64(table + index &* 8)
                guard address & mask == 0 else { return .prpOffsetInvalid }
                let count = min(pageBytes, byteCount &- done)
                if let status = unsafe move(address, buffer + done, count, kind) { return status }
                done &+= count
            }
            guard isChained else { return .success }
            list = unsafe nv_load64(table + (entries &- 1) &* 8)
            guard list & mask == 0 else { return .prpOffsetInvalid }
        }
    }

    /// The entries of a list within one page: in place, or copied when they are reached by
    /// messages.
    private func listEntries(_ address: UInt64, _ count: Int) -> UnsafeRawPointer? {
        if let table = unsafe memory.direct(address, count &* 8, write: false) {
            return UnsafeRawPointer(table)
        }
        guard unsafe memory.read(address, into: listScratch.base, count &* 8) else { return nil }
        return unsafe UnsafeRawPointer(listScratch.base)
    }

    /// Handles one stretch; nil when all is well.
    @inline(__always)
    private func move(
        _ address: UInt64, _ buffer: UnsafeMutableRawPointer, _ byteCount: Int, _ kind: Transfer
    ) -> Status? {
        switch kind {
        case .fromHost:
            return unsafe memory.read(address, into: buffer, byteCount) ? nil : .dataTransferError
        case .toHost:
            return unsafe memory.write(address, from: buffer, byteCount) ? nil : .dataTransferError
        case .compare:
            guard unsafe memory.read(address, into: scratch.base, byteCount) else {
                return .dataTransferError
            }
            return unsafe memcmp(scratch.base, buffer, byteCount) == 0 ? nil : .compareFailure
        }
    }

    /// Returns a page of admin data to the host.
    func returnPage(_ entry: SubmissionEntry, _ page: inout [UInt8]) -> Status {
        guard !page.isEmpty else { return .success }
        let count = page.count
        return unsafe page.withUnsafeMutableBytes {
            guard let base = $0.baseAddress else { return .success }
            return unsafe transfer(entry, base, count, .toHost)
        }
    }
}

/// A page of a fixed size that is filled by offsets, little-endian.
struct Page {
    var bytes: [UInt8]

    init(byteCount: Int = 4096) { bytes = Array(repeating: 0, count: byteCount) }

    /// Stores the low `width` bytes of a value.
    mutating func set(_ offset: Int, _ width: Int, _ value: UInt64) {
        for index in 0..<width where offset &+ index < bytes.count && index < 8 {
            bytes[offset &+ index] = UInt8(truncatingIfNeeded: value >> (8 * UInt64(index)))
        }
    }

    /// Stores bytes as they are.
    mutating func set(_ offset: Int, _ content: [UInt8]) {
        for (index, byte) in content.enumerated() where offset &+ index < bytes.count {
            bytes[offset &+ index] = byte
        }
    }

    /// Stores text padded with spaces.
    mutating func set(_ offset: Int, _ width: Int, text: String) {
        let content = Array(text.utf8.prefix(width))
        set(offset, content + Array(repeating: 0x20, count: width - content.count))
    }
}
