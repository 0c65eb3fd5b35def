// SPDX-License-Identifier: Apache-2.0
// Plain threads for tests.

import Glibc

/// Threads that run a body each.
final class TestThreads {
    private final class Work: Sendable {
        let index: Int
        let body: @Sendable (Int) -> Void
        init(index: Int, body: @escaping @Sendable (Int) -> Void) {
            self.index = index
            self.body = body
        }
    }

    private var threads: [pthread_t] = []

    init(count: Int, _ body: @escaping @Sendable (Int) -> Void) {
        for index in 0..<count {
            var thread = pthread_t()
            let work = unsafe Unmanaged.passRetained(Work(index: index, body: body))
            let result = unsafe pthread_create(
                &thread, nil,
                { argument in
                    guard let argument = unsafe argument else { return nil }
                    let work = unsafe Unmanaged<Work>.fromOpaque(argument).takeRetainedValue()
                    work.body(work.index)
                    return nil
                }, unsafe work.toOpaque())
            if result == 0 { threads.append(thread) }
        }
    }

    func join() {
        for thread in threads { pthread_join(thread, nil) }
        threads = []
    }
}
