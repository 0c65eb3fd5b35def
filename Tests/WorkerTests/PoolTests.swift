// SPDX-License-Identifier: Apache-2.0
// Whose a pool's file is: who opens it, and who has its lock when a worker is there, and when none
// is.

import Glibc
import Linux
import TestSupport
import Testing
import Wire

/// Whether somebody has the lock of a file.
private func isLocked(_ path: String) throws -> Bool {
    let fd = try OwnedFD.open(path, flags: O_RDONLY)
    return flock(fd.raw, LOCK_EX | LOCK_NB) != 0
}

/// A device whose pool the opener opens, for a worker that believes that it is somewhere else.
private final class OpenedRig {
    let rig: Rig
    let memory: TemporaryDirectory
    let opener: Child
    /// Where the opener's configuration has the pool.
    var pool: String { "\(memory.path)/pools/dev0" }
    /// Where the worker's has it.
    var elsewhere: String { "\(memory.path)/worker" }

    init() throws {
        rig = try Rig()
        memory = try TemporaryDirectory(in: "/dev/shm")
        let directory = rig.directory
        try TestFiles.write(
            "[Device]\nTransport=vfio-user\nSocket=\(directory)/e\nPool=file\n"
                + "PoolPath=\(memory.path)/pools/dev0\n", to: "\(directory)/dev0.device")
        let socket = "\(directory)/o"
        let listener = try UnixSocket.listen(socket, kind: .sequencedPacket, mode: 0o600)
        opener = try Child(
            programPath("nvmed-opener"), ["--config", directory],
            environment: ["LISTEN_PID=", "LISTEN_FDS=1", "LISTEN_FDNAMES=listen"],
            fds: [listener.raw])
        rig.workerEnvironment = ["NVMED_OPENER=\(socket)"]
        rig.config.poolBacking = .file
        rig.config.poolPath = elsewhere
    }
}

extension WorkerProcessTests {
    @Suite("The file of a worker's pool")
    struct Pools {
        @Test("the pool stays locked while no worker lives, and its successor has the lock")
        func lockOutlivesWorker() throws {
            // Given
            let kept = try KeptRig()
            let client = try kept.rig.startLoaded().open()
            try client.write(0, pattern(512, seed: 1))
            // When
            try #require(kept.rig.worker).signal(SIGKILL)
            try #require(kept.rig.worker).wait()
            try kept.rig.notify.pump()
            let between = try isLocked(kept.poolPath)
            try kept.rig.startWorker()
            try kept.rig.notify.wait(for: "READY=1")
            let supervisor = try kept.rig.connect()
            let data = try client.read(0, 1)
            let resets = try supervisor.device().ready?.continuity?.resets
            let other = try Rig()
            other.config.poolBacking = .file
            other.config.poolPath = kept.poolPath
            let refusal = try other.start().refusal(.loadDriver(other.config))
            // Then
            #expect(between)
            #expect(data == pattern(512, seed: 1))
            #expect(resets == 0)
            #expect(refusal.message.contains("in use by another worker"))
        }

        @Test("a successor of a successor has the lock too, and an orderly end lets go of it")
        func lockEnds() throws {
            // Given
            let kept = try KeptRig()
            _ = try kept.rig.startLoaded()
            for _ in 0..<2 {
                try #require(kept.rig.worker).signal(SIGKILL)
                try #require(kept.rig.worker).wait()
                try kept.rig.startWorker()
                try kept.rig.notify.wait(for: "READY=1")
            }
            let supervisor = try kept.rig.connect()
            _ = try supervisor.device()
            let held = try isLocked(kept.poolPath)
            // When
            _ = try supervisor.ask(.shutdown(doNotReset: false))
            try #require(kept.rig.worker).wait()
            try kept.rig.notify.pump()
            // Then
            #expect(held)
            #expect(try !isLocked(kept.poolPath))
        }

        @Test("a pool that another took, because its lock was lost, is not gone on with")
        func taken() throws {
            // Given
            let kept = try KeptRig()
            _ = try kept.rig.startLoaded()
            try #require(kept.rig.worker).signal(SIGKILL)
            try #require(kept.rig.worker).wait()
            try kept.rig.notify.pump()
            kept.rig.notify.remove("pool-lock")
            let thief = try OwnedFD.open(kept.poolPath, flags: O_RDONLY)
            #expect(flock(thief.raw, LOCK_EX | LOCK_NB) == 0)
            // When
            try kept.rig.startWorker()
            try kept.rig.notify.wait(for: "READY=1")
            let refusal = try kept.rig.connect().refusal(.loadDriver(kept.rig.config))
            // Then
            #expect(refusal.message.contains("in use by another worker"))
        }

        @Test(
            "where there is an opener it opens every pool, also that of a vfio-user device",
            .enabled(if: geteuid() == 0))
        func opener() throws {
            // Given
            let opened = try OpenedRig()
            let client = try opened.rig.startLoaded().open()
            try client.write(0, pattern(512, seed: 2))
            // When
            try #require(opened.rig.worker).signal(SIGKILL)
            try #require(opened.rig.worker).wait()
            try opened.rig.notify.pump()
            let between = try isLocked(opened.pool)
            // The successor needs nobody for the lock.
            try opened.opener.signal(SIGKILL)
            try opened.opener.wait()
            try opened.rig.startWorker()
            try opened.rig.notify.wait(for: "READY=1")
            let supervisor = try opened.rig.connect()
            // Then
            #expect(try client.read(0, 1) == pattern(512, seed: 2))
            #expect(try supervisor.device().ready?.continuity?.resets == 0)
            #expect(between)
            #expect(try isLocked(opened.pool))
            #expect(!Files.exists(opened.elsewhere))
        }
    }
}
