// SPDX-License-Identifier: Apache-2.0
// Workers that are killed under load, while clients go on: nothing is lost, doubled or answered
// with an error, and the controller is not touched.

import Glibc
import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

extension ProcessTests {
    @Suite("Adoption", .timeLimit(.minutes(5)))
    struct AdoptionTests {
        /// Writes and reads places of a disk, and knows what each must hold.
        private final class Load {
            static let slotByteCount = 4096
            let service: RunningService
            let disk: Disk
            let buffer: IOBuffer
            let depth: Int
            let blocks: UInt32
            private var random: SplitMix64
            private var seeds: [UInt64]
            private(set) var busy: [UInt64: (slot: Int, place: Int, seed: UInt64?)] = [:]
            private var touched: Set<Int> = []
            private(set) var differences: [Int] = []
            private(set) var failures: [String] = []
            private(set) var unknown: [UInt64] = []
            private(set) var completed = 0

            init(_ service: RunningService, depth: Int) throws {
                self.service = service
                self.depth = depth
                disk = try service.connect().openDisk("disk-a")
                buffer = try IOBuffer(byteCount: depth * Self.slotByteCount)
                blocks = UInt32(Self.slotByteCount / disk.blockByteCount)
                random = SplitMix64(state: seed())
                seeds = [UInt64](repeating: 0, count: 2048)
            }

            /// What the next request in a slot is; nil: a read.
            func next(_ slot: Int) -> (place: Int, seed: UInt64?) {
                var place = Int(random.next() % UInt64(seeds.count))
                while touched.contains(place) { place = (place + 1) % seeds.count }
                touched.insert(place)
                let isWrite = seeds[place] == 0 || random.next() % 2 == 0
                guard isWrite else { return (place, nil) }
                let new = random.next() | 1
                DataPattern(seed: new).fill(
                    buffer, offset: slot * Self.slotByteCount, count: Self.slotByteCount,
                    diskByteOffset: UInt64(place * Self.slotByteCount))
                return (place, new)
            }

            func lba(_ place: Int) -> UInt64 { UInt64(place) * UInt64(blocks) }

            func began(_ id: UInt64, _ slot: Int, _ request: (place: Int, seed: UInt64?)) {
                busy[id] = (slot, request.place, request.seed)
            }

            /// A request has ended; its slot, which is free again.
            func ended(_ id: UInt64, _ failure: String?) -> Int? {
                guard let (slot, place, seed) = busy.removeValue(forKey: id) else {
                    unknown.append(id)
                    return nil
                }
                completed += 1
                touched.remove(place)
                if let failure { failures.append(failure) }
                if let seed {
                    seeds[place] = seed
                } else if DataPattern(seed: seeds[place]).firstMismatch(
                    buffer, offset: slot * Self.slotByteCount, count: Self.slotByteCount,
                    diskByteOffset: UInt64(place * Self.slotByteCount)) != nil
                {
                    differences.append(place)
                }
                return slot
            }

            /// Kills the worker; its successor is started by the manager.
            func killWorker() throws {
                let worker = try service.workerPID("a")
                #expect(kill(worker, SIGKILL) == 0)
            }

            func expectNothingLost() {
                #expect(differences.isEmpty)
                #expect(failures.isEmpty)
                #expect(unknown.isEmpty)
                #expect(disk.ended == nil)
            }
        }

        /// What the controller has counted of resets, queues and bring-ups.
        private static func untouched(_ service: RunningService) throws -> [String] {
            let text = try service.emulators["a"]?.command("stats") ?? ""
            return text.split(separator: ",").map(String.init).filter { member in
                ["Reset", "resets", "enables", "created", "Created"].contains {
                    member.contains($0)
                }
            }
        }

        @Test("a ring goes on over the deaths of its worker, without an error or a reset")
        func ring() throws {
            // Given
            let service = try RunningService()
            let load = try Load(service, depth: 32)
            let region = try load.disk.registerMemory(load.buffer)
            let ring = try load.disk.openRing(entries: 64)
            let before = try Self.untouched(service)
            var room = [RingCompletion](repeating: RingCompletion(), count: 64)
            func begin(_ slot: Int) {
                let request = load.next(slot)
                let data = RingData.region(region, offset: UInt64(slot * Load.slotByteCount))
                load.began(UInt64(slot), slot, request)
                let lba = load.lba(request.place)
                let taken =
                    request.seed == nil
                    ? ring.prepareRead(
                        lba: lba, blockCount: load.blocks, data: data, tag: UInt64(slot))
                    : ring.prepareWrite(
                        lba: lba, blockCount: load.blocks, data: data, tag: UInt64(slot))
                #expect(taken)
            }
            // When
            var kills = 0
            for slot in 0..<load.depth { begin(slot) }
            ring.submit()
            while !load.busy.isEmpty {
                if load.completed >= kills * 400, kills < 10 {
                    kills += 1
                    try load.killWorker()
                }
                let count = ring.reap(into: &room)
                if count == 0 {
                    let outcome = try ring.wait(
                        deadlineNanoseconds: Deadline.after(milliseconds: 30_000))
                    guard outcome != .timedOut else {
                        throw SetUpError("nothing completes: \(service.log())")
                    }
                }
                for completion in room[..<count] {
                    let failure = completion.isDone ? nil : "\(completion)"
                    guard let slot = load.ended(completion.tag, failure) else { continue }
                    if load.completed < 4400 { begin(slot) }
                }
                ring.submit()
            }
            // Then
            load.expectNothingLost()
            #expect(kills == 10)
            #expect(try Self.untouched(service) == before)
        }

        @Test("messages are answered over the deaths of the worker", arguments: [false, true])
        func messages(isRegistered: Bool) throws {
            // Given
            let service = try RunningService()
            let load = try Load(service, depth: 32)
            if isRegistered { _ = try load.disk.registerMemory(load.buffer) }
            let before = try Self.untouched(service)
            func begin(_ slot: Int) throws {
                let request = load.next(slot)
                let lba = load.lba(request.place)
                let offset = slot * Load.slotByteCount
                let id =
                    try request.seed == nil
                    ? load.disk.submit(
                        .read(
                            lba: lba, blockCount: load.blocks, into: load.buffer,
                            bufferOffset: offset))
                    : load.disk.submit(
                        .write(
                            lba: lba, blockCount: load.blocks, from: load.buffer,
                            bufferOffset: offset,
                            fua: false))
                load.began(id, slot, request)
            }
            // When
            var kills = 0
            for slot in 0..<load.depth { try begin(slot) }
            while !load.busy.isEmpty {
                if load.completed >= kills * 400, kills < 10 {
                    kills += 1
                    try load.killWorker()
                }
                let completion = try load.disk.nextCompletion(
                    deadlineNanoseconds: Deadline.after(milliseconds: 30_000))
                guard let completion else { break }
                let failure = completion.error.map { "\($0)" }
                guard let slot = load.ended(completion.id, failure) else { continue }
                if load.completed < 4400 { try begin(slot) }
            }
            // Then
            load.expectNothingLost()
            #expect(kills == 10)
            #expect(try Self.untouched(service) == before)
        }
    }
}
