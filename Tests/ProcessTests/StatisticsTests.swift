// SPDX-License-Identifier: Apache-2.0
// Statistics through all processes: the library's reader, nvmectl top, and who may look.

import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

extension ProcessTests {
    @Suite("Statistics", .timeLimit(.minutes(5)))
    struct StatisticsTests {
        @Test("an operator sees what every disk does, with the reader and with nvmectl top")
        func top() throws {
            let service = try RunningService(files: [
                "n.device": "[Device]\nTransport=null\nSize=64M\n",
                "disk-n.disk": "[Disk]\nDevice=n\nNamespace=1\n",
            ])
            let backend = try service.connect()
            let disk = try backend.openDisk("disk-n")
            let buffer = try IOBuffer(byteCount: 4096)
            for _ in 0..<100 { try disk.write(from: buffer, byteOffset: 0, byteCount: 4096) }

            let reader = try StatisticsReader(try backend.openStatistics("n"))
            let snapshot = try reader.snapshot()
            let table = try Programs.run(
                Programs.path("nvmectl"),
                ["top", "--once", "--interval", "0.1", "--socket", service.socket])
            let json = try Programs.run(
                Programs.path("nvmectl"),
                [
                    "top", "--once", "--interval", "0.1", "--socket", service.socket, "--output",
                    "json", "--by", "namespace", "--device", "n",
                ])

            #expect(snapshot.namespace(1).writes.count == 100)
            #expect(snapshot.namespace(1).bytesWritten == 409_600)
            #expect(snapshot.pid == (try service.workerPID("n")))
            #expect(table.status == 0, "\(table.output)")
            #expect(table.output.contains("disk-n"))
            #expect(table.output.contains("P99.9"))
            #expect(json.status == 0, "\(json.output)")
            #expect(json.output.contains("\"what\":\"namespace 1\""))
            #expect(json.output.contains("\"writes\":100"))
        }

        @Test("a device without a worker has none, and says what to do")
        func absent() throws {
            let service = try RunningService(files: [
                "n.device": "[Device]\nTransport=null\n"
            ])
            let backend = try service.connect()

            let unknown = clientFailure { _ = try backend.openStatistics("none") }

            #expect(unknown?.wireError?.code == .notFound)
        }
    }
}
