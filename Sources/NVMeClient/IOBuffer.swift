// SPDX-License-Identifier: Apache-2.0
// Memory for I/O, which a disk may register so that data is not copied through messages.

internal import Linux
internal import Wire

/// Zeroed memory of a fixed size. Backed by a sealed memory file, so that it can be registered.
///
/// It can be passed between threads and tasks: who touches which bytes when is theirs to agree on,
/// as it has to be with the device anyway.
@safe
public final class IOBuffer: Sendable {
    /// Its length in bytes, a multiple of the page size.
    public let byteCount: Int
    let memory: OwnedFD
    private let mapping: Mapping

    /// The largest page size this runs on is assumed, so that a buffer is whole pages everywhere.
    private static var pageByteCount: Int { 4096 }

    /// Bytes of a huge page.
    public static let hugePageByteCount = 2 << 20

    /// Makes a buffer of at least `byteCount` bytes.
    ///
    /// With `hugePages` it is made of pages of 2 MiB, which the system must have set aside: throws
    /// `resourceExhausted` when there are too few, and an ordinary buffer does as well.
    public init(byteCount: Int, hugePages: Bool = false) throws(ClientError) {
        let page = hugePages ? Self.hugePageByteCount : Self.pageByteCount
        guard byteCount > 0, byteCount <= Int.max - page else {
            throw .failed(
                WireError(.invalidArgument, "a buffer of \(byteCount) bytes cannot be made"))
        }
        self.byteCount = (byteCount + page - 1) / page * page
        do {
            memory = try MemFD.create(
                name: "nvmed-client", byteCount: self.byteCount, hugePages: hugePages)
            mapping = try Mapping(memory, byteCount: self.byteCount)
        } catch {
            let advice =
                hugePages
                ? "; \(self.byteCount >> 21) free huge pages of 2 MiB are needed: raise "
                    + "vm.nr_hugepages, or make the buffer without huge pages" : ""
            throw .failed(WireError(.resourceExhausted, "\(error)\(advice)"))
        }
    }

    /// Whether `count` bytes at `offset` lie inside.
    public func contains(offset: Int, count: Int) -> Bool {
        offset >= 0 && count >= 0 && offset <= byteCount && count <= byteCount - offset
    }

    /// The bytes, for code that may be unsafe. Valid while the buffer lives.
    @unsafe
    public var bytes: UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(start: mapping.base, count: byteCount)
    }

    /// Bytes of the buffer; fewer when the range leaves it.
    public func copyOut(offset: Int = 0, count: Int) -> [UInt8] {
        guard contains(offset: offset, count: 0) else { return [] }
        let count = min(max(count, 0), byteCount - offset)
        return unsafe Array(bytes[offset..<offset + count])
    }

    /// Puts bytes into the buffer; what does not fit is left out.
    public func copyIn(_ source: [UInt8], offset: Int = 0) {
        guard contains(offset: offset, count: 0) else { return }
        let count = min(source.count, byteCount - offset)
        unsafe source.withUnsafeBytes { source in
            let part = unsafe UnsafeRawBufferPointer(rebasing: source[0..<count])
            unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + count])
                .copyMemory(from: part)
        }
    }

    /// A part for the library's own use; the caller has checked the range.
    func slice(_ offset: Int, _ count: Int) -> UnsafeMutableRawBufferPointer {
        precondition(contains(offset: offset, count: count), "outside of the buffer")
        return unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + count])
    }
}

extension IOBuffer {
    /// The first byte at which two parts differ, counted from their starts; nil when they are
    /// equal.
    public func firstDifference(
        offset: Int, count: Int, from other: IOBuffer, otherOffset: Int
    ) -> Int? {
        guard contains(offset: offset, count: count),
            other.contains(offset: otherOffset, count: count)
        else { return 0 }
        let a = unsafe slice(offset, count)
        let b = unsafe other.slice(otherOffset, count)
        for index in 0..<count where unsafe a[index] != b[index] { return index }
        return nil
    }

    /// The first byte of a part that is not zero, counted from its start; nil when all are.
    public func firstNonzero(offset: Int, count: Int) -> Int? {
        guard contains(offset: offset, count: count) else { return 0 }
        return unsafe slice(offset, count).firstIndex { $0 != 0 }
    }
}
