// SPDX-License-Identifier: Apache-2.0
// One disk, end to end, through real processes: data, policy, sessions.

import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

extension ProcessTests {
    @Suite("End to end", .timeLimit(.minutes(5)))
    struct EndToEndTests {
        @Test("what is written and flushed is read back, on both devices", arguments: ["a", "b"])
        func roundTrip(_ device: String) throws {
            let service = try RunningService()
            let backend = try service.connect()
            let disk = try backend.openDisk("disk-\(device)")
            let pattern = DataPattern(seed: 7)
            let buffer = try IOBuffer(byteCount: 1 << 20)
            pattern.fill(buffer, offset: 0, count: 1 << 20, diskByteOffset: 4096)

            try disk.write(from: buffer, byteOffset: 4096, byteCount: 1 << 20)
            try disk.flush()
            let back = try IOBuffer(byteCount: 1 << 20)
            try disk.read(into: back, byteOffset: 4096, byteCount: 1 << 20)
            try disk.compare(with: buffer, byteOffset: 4096, byteCount: 65536)

            #expect(
                pattern.firstMismatch(back, offset: 0, count: 1 << 20, diskByteOffset: 4096) == nil)
            #expect(disk.byteCount == RunningService.diskByteCount)
            #expect(disk.info.blockByteCount == (device == "a" ? 512 : 4096))
            #expect(disk.info.serial == "SERIAL-\(device)")
        }
    }
}

extension ProcessTests {
    @Suite("Policy and administration", .timeLimit(.minutes(5)))
    struct AdministrationTests {
        @Test("a second exclusive open is refused, a reader and a reopen are not")
        func exclusive() throws {
            let service = try RunningService()
            let (first, second) = (try service.connect(), try service.connect())
            let disk = try first.openDisk("disk-a", access: .readWrite)

            let refused = clientFailure { _ = try second.openDisk("disk-a", access: .readWrite) }
            let reader = try second.openDisk("disk-a", access: .readOnly)
            disk.close()
            let again = try second.openDisk("disk-a", access: .readWrite)

            #expect(refused?.wireError?.code == .busy)
            #expect(refused?.isRetriable == true)
            #expect(reader.info.readOnly)
            #expect(!again.info.readOnly)
        }

        @Test("a read-only session and a read-only disk take no writes")
        func readOnly() throws {
            let service = try RunningService(files: [
                "frozen.disk": "[Disk]\nDevice=b\nNamespace=1\nAccess=read-only\n"
            ])
            let backend = try service.connect()
            let buffer = try IOBuffer(byteCount: 4096)

            let frozen = clientFailure { _ = try backend.openDisk("frozen", access: .readWrite) }
            let disk = try backend.openDisk("frozen")
            let write = clientFailure {
                try disk.write(from: buffer, byteOffset: 0, byteCount: 4096)
            }
            try disk.read(into: buffer, byteOffset: 0, byteCount: 4096)

            #expect(frozen?.wireError?.code == .readOnly)
            #expect(write?.wireError?.code == .readOnly)
        }

        @Test("what is not there is refused by name, and nothing is disturbed")
        func unknown() throws {
            let service = try RunningService(files: [
                "absent.disk": "[Disk]\nDevice=a\nNamespace=7\n",
                "nowhere.disk": "[Disk]\nUUID=12345678-1234-1234-1234-123456789abc\n",
            ])
            let backend = try service.connect()

            for name in ["none", "absent", "nowhere"] {
                let error = clientFailure { _ = try backend.openDisk(name) }
                #expect(error?.wireError?.code == .notFound)
                #expect(error?.wireError?.message.contains(name) == true)
            }
            let device = clientFailure { _ = try backend.device("none") }
            let session = clientFailure { try backend.closeSession(12345, reason: "") }
            _ = try backend.openDisk("disk-a")

            #expect(device?.wireError?.code == .notFound)
            #expect(session?.wireError?.code == .notFound)
        }

        @Test("a revoked session ends with the reason, and its disk is free")
        func revoked() throws {
            let service = try RunningService()
            let backend = try service.connect()
            let disk = try backend.openDisk("disk-a")
            let session = try #require(try backend.listSessions().first)
            let buffer = try IOBuffer(byteCount: 4096)

            try backend.closeSession(session.sessionID, reason: "maintenance")
            let error = clientFailure {
                try disk.read(into: buffer, byteOffset: 0, byteCount: 4096)
            }
            let again = try service.connect().openDisk("disk-a", access: .readWrite)

            #expect(session.disk == "disk-a")
            #expect(error?.wireError?.code == .sessionRevoked)
            #expect(error?.wireError?.message.contains("maintenance") == true)
            #expect(again.ended == nil)
        }

        @Test("a caller whom the policy does not name is refused", .enabled(if: Process.uid == 0))
        func policy() throws {
            let service = try RunningService(files: [
                "nvmed.conf": "[Supervisor]\nSocketMode=0666\n",
                "theirs.disk": "[Disk]\nDevice=a\nNamespace=1\nUser=65533\n",
            ])
            let theirs = try Stranger.open("theirs", as: 65533, in: service)
            let stranger = try Stranger.open("theirs", as: 65534, in: service)
            let byDefault = try Stranger.open("disk-a", as: 65533, in: service)

            #expect(theirs == "opened")
            #expect(stranger == "9")
            #expect(byDefault == "9")
        }

        @Test("the configuration is read again: new disks appear, mistakes are told by place")
        func reloads() throws {
            let service = try RunningService()
            let backend = try service.connect()
            let kept = try backend.openDisk("disk-a")
            let buffer = try IOBuffer(byteCount: 4096)

            try service.configure("more.disk", "[Disk]\nDevice=b\nNamespace=1\nAccess=read-only\n")
            _ = try backend.reload()
            _ = try backend.openDisk("more")
            try service.configure("bad.disk", "[Disk]\nDevice=b\nNamespace=zero\n")
            let error = clientFailure { _ = try backend.reload() }
            try kept.read(into: buffer, byteOffset: 0, byteCount: 4096)

            #expect(error?.wireError?.code == .invalidArgument)
            #expect(error?.wireError?.message.contains("bad.disk:3") == true)
            #expect(error?.wireError?.message.contains("Namespace=") == true)
        }

        @Test("a device whose controller is missing says why, and can be retried")
        func missingController() throws {
            let service = try RunningService(files: [
                "ghost.device": "[Device]\nTransport=vfio-user\nSocket=/nonexistent/x\nPool=32M\n",
                "ghost.disk": "[Disk]\nDevice=ghost\nNamespace=1\n",
            ])
            let backend = try service.connect()

            let error = clientFailure { _ = try backend.openDisk("ghost") }
            let info = try backend.device("ghost")
            try backend.retryDevice("ghost")
            _ = try backend.openDisk("disk-a")

            #expect(error?.wireError?.code == .deviceFailed)
            #expect(error?.wireError?.message.contains("/nonexistent/x") == true)
            #expect(info.state == .failed)
            #expect(info.attempts >= 1)
        }

        @Test("inspection shows the supervisor and the workers that run")
        func inspects() throws {
            let service = try RunningService()
            let backend = try service.connect()
            _ = try backend.openDisk("disk-a")

            let paths = try backend.inspect().map(\.path)

            #expect(paths.contains("device/a/state"))
            #expect(paths.contains { $0.hasPrefix("device/a/worker/") })
            #expect(!paths.contains { $0.hasPrefix("device/b/worker/") })
        }

        @Test("shutdown ends everything in order and leaves nothing behind")
        func shutdown() throws {
            let service = try RunningService()
            let backend = try service.connect()
            let disks = [try backend.openDisk("disk-a"), try backend.openDisk("disk-b")]
            let pids = [
                try service.workerPID("a"), try service.workerPID("b"),
                try service.supervisorPID(),
            ]

            try backend.shutdown()
            let code = try service.waitForEnd(timeoutMilliseconds: 20_000)

            #expect(code == 0)
            #expect(disks.count == 2)
            #expect(!pids.contains(where: Processes.exists))
            #expect(try Files.list(service.directory.path + "/run", limit: 100) == [])
        }
    }
}
