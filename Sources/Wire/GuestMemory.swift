// SPDX-License-Identifier: Apache-2.0
// Guest memory as messages name it: a device node and the ranges of it that are memory.

internal import CProtobufC
internal import CWire

/// Memory of the guest in VTL2 as the configuration names it (`GuestMemory=`).
public struct GuestMemoryPlace: Sendable, Hashable {
    /// The path of the device node whose offsets are physical addresses.
    public var path: String
    /// The physical addresses that are memory, the first and the last of each range.
    public var ranges: [ClosedRange<UInt64>]
    /// Names guest memory; ranges beyond `WireLimits.guestRangeCount` are left out.
    public init(path: String, ranges: [ClosedRange<UInt64>]) {
        self.path = path
        self.ranges = Array(ranges.prefix(WireLimits.guestRangeCount))
    }
}

/// Guest memory as the opener found it.
public struct GuestMemoryFound: Sendable, Hashable {
    /// The number of the device node: st_rdev.
    public var deviceNumber: UInt64
    /// The physical addresses that are memory, the first and the last of each range.
    public var ranges: [ClosedRange<UInt64>]
    /// Describes guest memory; ranges beyond `WireLimits.guestRangeCount` are left out.
    public init(deviceNumber: UInt64, ranges: [ClosedRange<UInt64>]) {
        self.deviceNumber = deviceNumber
        self.ranges = Array(ranges.prefix(WireLimits.guestRangeCount))
    }
}

extension GuestMemoryPlace {
    func write(into writer: inout MessageWriter) {
        writer.text(1, path)
        AddressRanges.write(ranges, field: 2, into: &writer)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__GuestMemory>) throws(WireError) {
        let c = unsafe pointer.pointee
        self.init(
            path: try unsafe Field.bytesText(c.path, "config.guest_memory.path"),
            ranges: try unsafe AddressRanges.read(
                c.ranges, c.n_ranges, "config.guest_memory.ranges"))
        guard path.hasPrefix("/") else {
            throw WireError(
                .invalidArgument, "the path of the guest memory's node is not absolute",
                field: "config.guest_memory.path")
        }
    }
}

extension GuestMemoryFound {
    func write(into writer: inout MessageWriter) {
        writer.number(1, deviceNumber)
        AddressRanges.write(ranges, field: 2, into: &writer)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__GuestMemoryFound>) throws(WireError) {
        let c = unsafe pointer.pointee
        self.init(
            deviceNumber: try unsafe Field.need(
                c.has_device_number, c.device_number, "guest_memory_found.device_number"),
            ranges: try unsafe AddressRanges.read(
                c.ranges, c.n_ranges, "guest_memory_found.ranges"))
    }
}

/// Lists of ranges.
private enum AddressRanges {
    static func write(
        _ ranges: [ClosedRange<UInt64>], field: UInt32, into writer: inout MessageWriter
    ) {
        for range in ranges {
            writer.message(field) {
                $0.number(1, range.lowerBound)
                $0.number(2, range.upperBound)
            }
        }
    }

    static func read(
        _ pointers: UnsafeMutablePointer<UnsafeMutablePointer<Nvmed__V1__AddressRange>?>?,
        _ count: Int, _ field: String
    ) throws(WireError) -> [ClosedRange<UInt64>] {
        try unsafe Field.list(pointers, count, limit: WireLimits.guestRangeCount, field) {
            c throws(WireError) in
            let first = try unsafe Field.need(c.pointee.has_first, c.pointee.first, field)
            let last = try unsafe Field.need(c.pointee.has_last, c.pointee.last, field)
            guard first <= last else {
                throw WireError(
                    .invalidArgument, "\(field): a range ends before it begins", field: field)
            }
            return first...last
        }
    }
}
