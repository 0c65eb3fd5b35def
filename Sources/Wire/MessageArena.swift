// SPDX-License-Identifier: Apache-2.0
// Where protobuf-c decodes to: a fixed piece of memory, so that no message can make us allocate.

internal import CProtobufC

/// Memory for decoding one message at a time. Everything decoded in it is copied out before the
/// next.
@safe
public final class MessageArena {
    @safe
    private struct State {
        var base: UnsafeMutableRawPointer
        var usedByteCount: Int
        var byteCount: Int
    }

    private let state: UnsafeMutablePointer<State>

    /// Sets `byteCount` bytes aside; pages that are never used cost nothing.
    public init(byteCount: Int = WireLimits.decodeBudgetByteCount) {
        unsafe state = UnsafeMutablePointer<State>.allocate(capacity: 1)
        let base = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 16)
        unsafe state.initialize(to: State(base: base, usedByteCount: 0, byteCount: byteCount))
    }

    deinit {
        unsafe state.pointee.base.deallocate()
        unsafe state.deallocate()
    }

    /// Runs `body` with an allocator over the whole arena. What it gave is invalid afterwards.
    ///
    /// Freeing does nothing, so a message is never walked again only to be freed.
    func withAllocator<Result>(
        _ body: (UnsafeMutablePointer<ProtobufCAllocator>) throws(WireError) -> Result
    ) throws(WireError) -> Result {
        unsafe state.pointee.usedByteCount = 0
        var allocator = unsafe ProtobufCAllocator(
            alloc: { context, byteCount in
                guard let state = unsafe context?.assumingMemoryBound(to: State.self),
                    byteCount <= WireLimits.decodeBudgetByteCount
                else { return nil }
                // Within the budget, so neither sum can overflow.
                let start = unsafe state.pointee.usedByteCount
                let end = start + ((byteCount + 15) & ~15)
                guard unsafe end <= state.pointee.byteCount else { return nil }
                unsafe state.pointee.usedByteCount = end
                return unsafe state.pointee.base + start
            },
            free: { _, _ in },
            allocator_data: UnsafeMutableRawPointer(state))
        return try unsafe body(&allocator)
    }
}
