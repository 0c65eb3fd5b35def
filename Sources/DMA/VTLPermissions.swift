// SPDX-License-Identifier: Apache-2.0
// Who may touch a page in which virtual trust level (Hypervisor Top-Level Functional
// Specification, 15.9 "Memory access protections"): memory of this level is opened to the lower
// ones for as long as a buffer is shared with them, and closed again.

/// What lower trust levels may do with a page.
public enum VTLAccess: Sendable, Equatable {
    /// Nothing.
    case none
    /// Everything.
    case all
}

/// Why permissions were not changed.
public struct VTLPermissionError: Error, Sendable, Equatable, CustomStringConvertible {
    /// What went wrong, in English.
    public var reason: String
    /// How many pages, from the first on, have been changed all the same.
    public var changedCount: Int

    /// An error after which so many pages are changed.
    public init(_ reason: String, changedCount: Int = 0) {
        self.reason = reason
        self.changedCount = changedCount
    }

    /// The error in words.
    public var description: String {
        "the access of lower trust levels was not changed: \(reason)"
    }
}

/// Changes what lower trust levels may do. One owner, one thread.
public protocol VTLPermissions: AnyObject {
    /// Sets the access of `pageCount` pages of 4096 bytes from a page number of guest physical
    /// memory on.
    func setAccess(
        _ access: VTLAccess, firstPage: UInt64, pageCount: Int
    ) throws(VTLPermissionError)
}

/// Records what was asked for, and refuses where it is told to: for tests.
public final class RecordingVTLPermissions: VTLPermissions {
    /// A change that was asked for.
    public struct Change: Sendable, Equatable {
        /// What was to be allowed.
        public var access: VTLAccess
        /// Where.
        public var pages: Range<UInt64>
    }

    /// All that was asked for.
    public private(set) var changes: [Change] = []
    /// The pages that lower levels may touch.
    public private(set) var open: Set<UInt64> = []
    /// Pages of which the permissions cannot be changed to these any more.
    public var stuck: [UInt64: VTLAccess] = [:]

    /// Nothing is open.
    public init() {}

    /// Notes the change and does it page by page, up to one that is stuck.
    public func setAccess(
        _ access: VTLAccess, firstPage: UInt64, pageCount: Int
    ) throws(VTLPermissionError) {
        let pages = firstPage..<(firstPage + UInt64(max(0, pageCount)))
        changes.append(Change(access: access, pages: pages))
        for (index, page) in pages.enumerated() {
            guard stuck[page] != access else {
                throw VTLPermissionError("page \(page) is stuck", changedCount: index)
            }
            if access == .all { open.insert(page) } else { open.remove(page) }
        }
    }
}

/// Memory that lower trust levels may touch, as long as the guard is there.
///
/// What has been opened must be closed: `close` says whether it was. Memory of which it is not is
/// never to be used again, because a lower level goes on reading and writing it.
struct VTLGuard {
    private let permissions: any VTLPermissions
    private let ranges: [Range<UInt64>]

    /// What became of an attempt to open memory that failed.
    struct Failure: Error {
        var error: VTLPermissionError
        /// Nothing is open any more; else the memory is lost.
        var isRolledBack: Bool
    }

    /// Opens memory, given as ranges of page numbers: all of it or nothing.
    init(_ permissions: any VTLPermissions, opening ranges: [Range<UInt64>]) throws(Failure) {
        self.permissions = permissions
        self.ranges = ranges
        for (index, range) in ranges.enumerated() {
            do throws(VTLPermissionError) {
                try permissions.setAccess(.all, firstPage: range.lowerBound, pageCount: range.count)
            } catch {
                // One more than is said to be changed: the one that failed may be half done.
                let changed = min(UInt64(max(0, error.changedCount)) + 1, UInt64(range.count))
                let opened =
                    ranges.prefix(index) + [range.lowerBound..<(range.lowerBound + changed)]
                throw Failure(error: error, isRolledBack: Self.close(opened, permissions) == nil)
            }
        }
    }

    /// Closes the memory. The error: it is lost.
    consuming func close() -> VTLPermissionError? { Self.close(ranges[...], permissions) }

    /// Closes as much as can be closed, whatever fails.
    private static func close(
        _ ranges: ArraySlice<Range<UInt64>>, _ permissions: any VTLPermissions
    ) -> VTLPermissionError? {
        var first: VTLPermissionError?
        for range in ranges {
            do throws(VTLPermissionError) {
                try permissions.setAccess(
                    .none, firstPage: range.lowerBound, pageCount: range.count)
            } catch { first = first ?? error }
        }
        return first
    }
}
