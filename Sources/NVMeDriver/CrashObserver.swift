// SPDX-License-Identifier: Apache-2.0
// Unit tests that look at memory as a crash would leave it: nothing of this is in production.

#if DEBUG
    internal import CMemory
    internal import Glibc

    /// One test thread that is told of the crash points which it reaches itself.
    @usableFromInline
    @safe
    enum CrashObserver {
        /// The thread; 0: none. A word of its own, since every thread reads it.
        private nonisolated(unsafe) static let thread: UnsafeMutablePointer<UInt64> = {
            let word = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)
            unsafe word.initialize(to: 0)
            return unsafe word
        }()
        private nonisolated(unsafe) static var body: (CrashPoint) -> Void = { _ in }

        @usableFromInline
        static func hit(_ point: CrashPoint) {
            guard unsafe nv_load64(thread) == UInt64(pthread_self()) else { return }
            unsafe body(point)
        }

        /// Calls `body` at each point that `scenario` reaches on this thread. One at a time.
        static func observe(_ body: @escaping (CrashPoint) -> Void, _ scenario: () throws -> Void)
            rethrows
        {
            unsafe Self.body = body
            unsafe nv_store64(thread, UInt64(pthread_self()))
            defer {
                unsafe nv_store64(thread, 0)
                unsafe Self.body = { _ in }
            }
            try scenario()
        }
    }
#endif
