// SPDX-License-Identifier: Apache-2.0
// What a worker counts, as another process reads it.

import Linux
import NVMeClient
import Testing
import Wire

extension WorkerProcessTests {
    @Suite("The statistics of a worker")
    struct WorkerStatistics {
        @Test("count what a session does, and keep it when the session is over")
        func counted() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let answer = try supervisor.answer(to: supervisor.send(.openStatistics))
            let reader = try StatisticsReader(try #require(answer.held).fd)
            let client = try supervisor.open()
            for index in 0..<20 as Range<UInt64> {
                try client.write(index * 8, pattern(4096, seed: index))
            }
            _ = try client.read(0, 8)
            #expect(try client.ask(.flush) == .done)

            let open = try reader.snapshot()
            let path = "statistics/sessions/\(client.id)"
            let writes = try supervisor.inspect("\(path)/writes")
            let latency = try supervisor.inspect("\(path)/writes_p99_ns")
            try supervisor.wait(until: "sessions/\(client.id)/inflight", is: "0")
            _ = try supervisor.ask(.closeSession(sessionID: client.id, reason: ""))
            _ = try supervisor.sessionEnd()
            let over = try reader.snapshot()

            let subject = try #require(open.blocks.first { $0.subject.kind == .session }).subject
            #expect(subject.sessionID == client.id)
            #expect(subject.disk == "disk1")
            #expect(open.namespace(1).writes.count == 20)
            #expect(open.namespace(1).bytesWritten == 20 * 4096)
            #expect(open.namespace(1).reads.count == 1)
            #expect(open.namespace(1).flushes == 1)
            #expect(open.namespace(1).errors == 0)
            #expect(open.namespace(1).writes.percentile(0.5) ?? 0 > 0)
            #expect(open.queue(1).doorbells > 0)
            #expect(over.namespace(1) == open.namespace(1))
            #expect(writes == "20")
            #expect(latency != nil)
            #expect(try supervisor.inspect("statistics/namespaces/1/writes") == "20")
            #expect(open.pid == rig.worker?.pid)
        }
    }
}
