// SPDX-License-Identifier: Apache-2.0
// Lists of namespace ids: active (CNS 02h), of one command set (07h), allocated (10h), and the
// Changed Namespace List log page (04h). NVM Express Base Specification 2.0, sections 4.4.2,
// 5.17.2.2 and 5.16.1.5.

/// Up to 1024 namespace ids in rising order.
public struct NamespaceList: Page {
    /// The ids, rising, without 0 and without the broadcast value; at most `maximumCount`.
    public var namespaceIDs: [UInt32] = []

    /// True if there is no more than this list: fewer ids than it could hold.
    public var isLast: Bool { namespaceIDs.count < Self.maximumCount }

    /// An empty list.
    public init() {}

    /// A list as a controller returns it: ids above `after`, the first 1024 of them.
    ///
    /// - Parameters:
    ///   - namespaceIDs: in any order.
    ///   - after: the NSID of the Identify command.
    public init(_ namespaceIDs: some Sequence<UInt32>, after: UInt32 = 0) {
        let rising = namespaceIDs.filter { $0 > after && $0 != .max }.sorted()
        self.namespaceIDs = Array(rising.prefix(Self.maximumCount))
    }

    /// Parses a list; ids that do not rise are refused, so that paging comes to an end.
    public init(parsing bytes: [UInt8]) throws(PageError) {
        try self.init(parsing: bytes, after: 0)
    }

    /// Parses the answer to an Identify whose NSID was `after`; every id has to be above it.
    public init(parsing bytes: [UInt8], after: UInt32) throws(PageError) {
        var codec = PageCodec(reading: bytes, page: Self.pageName)
        var previous = after
        for index in 0..<Self.maximumCount {
            var id: UInt32 = 0
            codec.field(&id, at: index &* 4, "entry \(index)")
            if id == 0 { break }
            if id == .max {
                codec.reject("entry \(index)", UInt64(id), because: "that is the broadcast value")
            }
            if id <= previous {
                codec.reject(
                    "entry \(index)", UInt64(id), because: "it has to be above \(previous)")
            }
            previous = id
            namespaceIDs.append(id)
        }
        if let failure = codec.failure { throw failure }
    }

    /// The list as a controller returns it.
    public func encode() -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Self.pageByteCount)
        for (index, id) in namespaceIDs.prefix(Self.maximumCount).enumerated() {
            bytes.storeLittleEndian(id, at: index &* 4, byteCount: 4)
        }
        return bytes
    }

    /// The name of the page in the specification.
    public static let pageName = "Namespace List"

    /// Bytes of the whole page.
    public static let pageByteCount = 4096

    /// Ids in one list.
    public static let maximumCount = 1024
}

/// The Changed Namespace List log page: what changed since it was last read.
public enum ChangedNamespaceList: Equatable, Sendable {
    /// These namespaces changed; at most 1024.
    case namespaces([UInt32])
    /// More than 1024 changed: look at all of them.
    case tooMany

    /// Parses the page; ids are taken in the order given, up to the first 0.
    public init(parsing bytes: [UInt8]) throws(PageError) {
        var codec = PageCodec(reading: bytes, page: "Changed Namespace List")
        var ids: [UInt32] = []
        for index in 0..<NamespaceList.maximumCount {
            var id: UInt32 = 0
            codec.field(&id, at: index &* 4, "entry \(index)")
            if id == 0 { break }
            ids.append(id)
        }
        if let failure = codec.failure { throw failure }
        self = ids.first == .max ? .tooMany : .namespaces(ids)
    }

    /// The page as a controller returns it: 4096 bytes.
    public func encode() -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: NamespaceList.pageByteCount)
        switch self {
        case .tooMany:
            bytes.storeLittleEndian(UInt32.max, at: 0, byteCount: 4)
        case .namespaces(let ids) where ids.count > NamespaceList.maximumCount:
            bytes.storeLittleEndian(UInt32.max, at: 0, byteCount: 4)
        case .namespaces(let ids):
            for (index, id) in ids.sorted().enumerated() {
                bytes.storeLittleEndian(id, at: index &* 4, byteCount: 4)
            }
        }
        return bytes
    }
}
