// SPDX-License-Identifier: Apache-2.0
// A worker that is shut down while it has no controller, and what the clients hear.

import Glibc
import Testing
import Wire

extension WorkerProcessTests {
    @Suite("A worker that leaves without its device")
    struct Leaving {
        @Test("the clients of a predecessor hear why their sessions are over")
        func inherited() throws {
            // Given
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            // The worker first: it would see the end of the device, and say so.
            try #require(rig.worker).signal(SIGKILL)
            try #require(rig.worker).wait()
            rig.stopEmulator()
            try rig.startWorker()
            try rig.notify.wait(for: "READY=1")
            // When
            #expect(try rig.connect().ask(.shutdown(doNotReset: false)) == .done)
            let reason = try client.reason()
            // Then
            #expect(reason.code == .shuttingDown)
            #expect(try #require(rig.worker).wait() == 0)
        }
    }
}
