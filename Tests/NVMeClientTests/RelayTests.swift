// SPDX-License-Identifier: Apache-2.0
// The relay of README.md: it runs, and README shows what runs.

import Linux
import NVMeClient
import Testing
import Wire

@Suite("The example relay")
struct RelayTests {
    @Test("it serves more requests than its ring holds, and every one is done once")
    func serves() throws {
        // Given
        let service = try FakeService()
        defer { service.join() }
        let disk = try NVMeBackend.connect(service.socketPath).openDisk("vol0")
        defer { disk.close() }
        let memory = try IOBuffer(byteCount: 600 * 512)
        DataPattern(seed: 9).fill(memory, offset: 0, count: 300 * 512, diskByteOffset: 0)
        var asked: UInt64 = 0
        var done: [RingCompletion] = []
        // When: 300 writes, then their reads behind them in memory
        for isWrite in [true, false] {
            let end = asked + 300
            try relay(disk: disk, guestMemory: memory) {
                guard asked < end else { return nil }
                defer { asked += 1 }
                return GuestRequest(
                    id: asked, isWrite: isWrite, lba: asked % 300, blockCount: 1,
                    address: asked * 512)
            } done: {
                done.append($0)
            }
        }
        // Then
        #expect(done.map(\.tag).sorted() == (0..<600).map { UInt64($0) })
        #expect(done.allSatisfy { $0.isDone })
        let difference = memory.firstDifference(
            offset: 0, count: 300 * 512, from: memory, otherOffset: 300 * 512)
        #expect(difference == nil)
    }

    @Test("README shows the lines that were compiled")
    func readme() throws {
        // Given
        let here = #filePath
        let root = here.split(separator: "/", omittingEmptySubsequences: false).dropLast(3)
            .joined(separator: "/")
        let source = try text("\(root)/Tests/NVMeClientTests/RelayExample.swift")
        let readme = try text("\(root)/README.md")
        // When
        let lines = source.split(separator: "\n", omittingEmptySubsequences: false)
        let begin = try #require(lines.firstIndex(of: "// README: begin"))
        let end = try #require(lines.firstIndex(of: "// README: end"))
        let example = lines[(begin + 1)..<end].joined(separator: "\n")
        // Then
        #expect(readme.contains("```swift\n\(example)\n```"))
    }

    private func text(_ path: String) throws -> String {
        String(decoding: try Files.read(path, limit: 1 << 20), as: UTF8.self)
    }
}
