// SPDX-License-Identifier: Apache-2.0
// The state area: records that a crash or a flipped bit cannot turn into something else.

import CMemory
import Linux
import Testing

@testable import NVMeDriver

@Suite("The state area")
struct StateAreaTests {
    static func area() throws -> StateArea {
        try StateArea.create(layout: StateLayout(queueCount: 2, slotsPerQueue: 16))
    }

    static let session = SessionRecord(
        state: .open, id: 7, key: 0x1_03, number: 12, opening: Array(0..<200))

    @Test("a record of which nothing was written is empty")
    func empty() throws {
        // Given
        let memory = try Mapping(anonymous: 4096)
        // When
        let record = unsafe TwinRecord(base: memory.base, wordCount: 3, key: 5)
        // Then
        #expect(record.read() == .empty)
    }

    @Test("a record has what was written last", arguments: 1...5)
    func last(count: UInt64) throws {
        // Given
        let memory = try Mapping(anonymous: 4096)
        let record = unsafe TwinRecord(base: memory.base, wordCount: 3, key: 5)
        // When
        for value in 1...count { record.write([value, value * 2, value * 3]) }
        // Then
        #expect(record.read() == .words([count, count * 2, count * 3]))
    }

    @Test(
        "a write that ends at any of its stores leaves the content before it", arguments: 0..<3)
    func torn(stores: Int) throws {
        // Given
        let memory = try Mapping(anonymous: 4096)
        let record = unsafe TwinRecord(base: memory.base, wordCount: 3, key: 5)
        record.write([1, 2, 3])
        record.write([4, 5, 6])
        // When: the next write goes to copy 1, the words 3…5.
        for store in 0...stores { unsafe nv_store64(memory.base + (3 + store) * 8, 0x99) }
        // Then
        #expect(record.read() == .words([4, 5, 6]))
    }

    @Test("any bit changed in what counts is seen", arguments: 0..<(32 * 8))
    func flipped(bit: Int) throws {
        // Given: the second write is in copy 0, the words 0…2; the selector is word 6.
        let memory = try Mapping(anonymous: 4096)
        let record = unsafe TwinRecord(base: memory.base, wordCount: 3, key: 5)
        record.write([1, 2, 3])
        record.write([4, 5, 6])
        // When
        let byte = bit / 8 < 24 ? bit / 8 : 48 + bit / 8 - 24
        let place = unsafe memory.base + byte
        unsafe nv_store8(place, nv_load8(place) ^ 1 << UInt8(bit % 8))
        // Then
        #expect(record.read() == .damaged)
    }

    @Test("the positions of a ring are those that were written last")
    func positions() throws {
        // Given
        let area = try Self.area()
        // When
        let found1 = area.ringPositions(queue: 1, index: 5)
        var positions = try #require(found1)
        positions.write(head: 1, tail: 0)
        positions.write(head: 0xFFFF_FFFF, tail: 17)
        // Then
        let found2 = area.knownPositions(queue: 1, index: 5)
        let known = try #require(found2)
        #expect(known.head == 0xFFFF_FFFF)
        #expect(known.tail == 17)
        let seen3 = area.knownPositions(queue: 1, index: 4)?.head
        #expect(seen3 == 0)
    }

    @Test("positions of which any byte that counts is changed are not believed", arguments: 8..<24)
    func damagedPositions(byte: Int) throws {
        // Given: the first write is in copy 1.
        let area = try Self.area()
        let found4 = area.ringPositions(queue: 1, index: 0)
        var positions = try #require(found4)
        positions.write(head: 3, tail: 2)
        // When
        let place = unsafe area.address(area.layout.ringOffset(1, 0) + 192 + byte)
        unsafe nv_store8(place, nv_load8(place) ^ 4)
        // Then
        let seen5 = area.knownPositions(queue: 1, index: 0)
        #expect(seen5 == nil)
    }

    @Test("a session, a ring and what is owed are read back as they were written")
    func records() throws {
        // Given
        let area = try Self.area()
        let ring = RingRecord(
            state: .open, session: 0x103, id: 9, submissionEntries: 64, completionEntries: 128,
            number: 44, openRequestID: 5, closeRequestID: 6)
        var owed = OwedRecord(kind: .completion, session: 0x103, requestID: 1 << 40)
        (owed.opcode, owed.status, owed.code, owed.argument) = (2, 0x281, 20, 4096)
        (owed.firstPage, owed.pageCount) = (77, 2)
        // When
        area.setSession(3, Self.session)
        area.setHighestRequest(3, id: 1000)
        area.setRing(queue: 1, index: 2, ring)
        area.setOwed(11, owed)
        // Then
        let seen6 = area.session(3)
        #expect(seen6 == .record(Self.session))
        let seen7 = area.highestRequest(3)
        #expect(seen7 == 1000)
        let seen8 = area.ring(queue: 1, index: 2)
        #expect(seen8 == .record(ring))
        let seen9 = area.owed(11)
        #expect(seen9 == .record(owed))
        let seen10 = area.session(2)
        #expect(seen10 == .free)
    }

    @Test("what was cleared is free")
    func cleared() throws {
        // Given
        let area = try Self.area()
        area.setSession(3, Self.session)
        area.setOwed(0, OwedRecord(kind: .cancel, session: 1, requestID: 2))
        // When
        area.clearSession(3)
        area.clearOwed(0)
        // Then
        let seen11 = area.session(3)
        #expect(seen11 == .free)
        let seen12 = area.owed(0)
        #expect(seen12 == .free)
    }

    @Test("what lay beside a session or a ring that was cleared is not its successor's")
    func reused() throws {
        // Given
        let area = try Self.area()
        var ring = RingRecord(
            state: .open, session: 0x103, id: 9, submissionEntries: 64, completionEntries: 128,
            number: 44, openRequestID: 5)
        area.setSession(3, Self.session)
        area.setHighestRequest(3, id: 1000)
        area.setSessionCounters(3, Array(repeating: 7, count: SessionRecord.counterCount))
        area.setRing(queue: 1, index: 2, ring)
        var positions = try requireValue(area.ringPositions(queue: 1, index: 2))
        positions.write(head: 17, tail: 16)
        // When: they go on, and then are cleared and come again
        ring.closeRequestID = 8
        area.setRing(queue: 1, index: 2, ring)
        area.setSession(3, Self.session)
        let kept = area.knownPositions(queue: 1, index: 2)
        let highest = area.highestRequest(3)
        area.clearSession(3)
        area.clearRing(queue: 1, index: 2)
        area.setSession(3, Self.session)
        area.setRing(queue: 1, index: 2, ring)
        // Then
        let fresh = area.knownPositions(queue: 1, index: 2)
        #expect(kept?.head == 17 && kept?.tail == 16)
        #expect(highest == 1000)
        #expect(fresh?.head == 0 && fresh?.tail == 0)
        let seen20 = area.highestRequest(3)
        #expect(seen20 == 0)
        let seen21 = area.sessionCounters(3)
        #expect(seen21.allSatisfy { $0 == 0 })
    }

    @Test("an opening message that is too long is refused")
    func longOpening() throws {
        // Given
        let area = try Self.area()
        var session = Self.session
        session.opening = Array(repeating: 1, count: SessionRecord.openingByteCountMax + 1)
        // When
        let isKept = area.setSession(3, session)
        // Then
        #expect(!isKept)
        let seen13 = area.session(3)
        #expect(seen13 == .free)
    }

    @Test("pages of the controller and its namespaces are read back, and not when damaged")
    func inventory() throws {
        // Given
        let area = try Self.area()
        let page = (0..<4096).map { UInt8(truncatingIfNeeded: $0 * 7) }
        area.setControllerPage(0, page)
        area.setNamespace(0, id: 1, .pages(identify: page, descriptors: nil))
        area.setNamespace(1, id: 2, .refused("no"))
        area.setNamespace(2, id: 3, .pages(identify: page, descriptors: page))
        // When
        let place = unsafe area.address(area.layout.namespaceOffset(2) + 64 + 5000)
        unsafe nv_store8(place, nv_load8(place) ^ 1)
        // Then
        let seen14 = area.controllerPage(0)
        #expect(seen14 == page)
        let seen15 = area.namespace(0)?.pages
        #expect(seen15 == .pages(identify: page, descriptors: nil))
        let seen16 = area.namespace(1)?.pages
        #expect(seen16 == .refused("no"))
        let seen17 = area.namespace(2)
        #expect(seen17 == nil)
        let seen18 = area.controllerPage(1)
        #expect(seen18 == nil)
    }

    @Test("the order of the pool's pages is read back, and not when a bit of it is damaged")
    func poolPageOrder() throws {
        let area = try Self.area()
        let never = area.poolPageOrder
        #expect(never == nil)
        for order in [[], [3, 2, 1, 0, 1023], Array(0..<1024)] as [[UInt32]] {
            area.setPoolPageOrder(order)
            let seen = area.poolPageOrder
            #expect(seen == order)
        }
        let place = area.layout.controllerPageOffset(2) + 64
        unsafe nv_store8(area.address(place + 7), 0x80)
        let damaged = area.poolPageOrder
        #expect(damaged == nil)
    }

    @Test("a successor finds the header, the configuration and the next number as they were left")
    func successor() throws {
        // Given
        var area = try Self.area()
        area.beginEpoch()
        area.beginEpoch(salvaging: true)
        area.countStart(nowNanoseconds: 50, windowNanoseconds: 100)
        let number = area.nextNumber()
        let isKept = area.setConfiguration([1, 2, 3])
        let copy = try area.fd.duplicate()
        // When: the lock is this process's own.
        let next = try StateArea.adopt(copy)
        // Then
        #expect(isKept)
        let seen19 = next.epoch
        #expect(seen19 == 2)
        let seen20 = next.salvageEpoch
        #expect(seen20 == 1)
        let seen21 = next.fruitlessStarts
        #expect(seen21 == 1)
        let seen22 = next.generation
        #expect(seen22 == 2)
        let seen23 = next.configuration()
        #expect(seen23 == [1, 2, 3])
        var taken = next
        let seen24 = taken.nextNumber()
        #expect(seen24 == number + 1)
    }

    @Test("the mark of a data thread counts for its worker's successor, and for nobody else's")
    func fruitMark() throws {
        // Given
        let area = try Self.area()
        let queue = 1
        let line = unsafe area.address(area.layout.queueIndexOffset(queue))
        let before = try StateArea.adopt(try area.fd.duplicate())
        let mark = UInt32(truncatingIfNeeded: before.generation)
        // When
        unsafe nv_store64(line + 32, SealedWord.seal(mark, key: StateArea.fruitKey(queue)))
        let successor = try StateArea.adopt(try area.fd.duplicate())
        let afterThat = try StateArea.adopt(try area.fd.duplicate())
        // Then
        let seen = (
            before.predecessorWasFruitful, successor.predecessorWasFruitful,
            afterThat.predecessorWasFruitful
        )
        #expect(seen == (false, true, false))
    }

    @Test("failures count until so long after the first, over any number of successors")
    func failures() throws {
        // Given
        var area = try Self.area()
        area.countFailure(nowNanoseconds: 1_000, windowNanoseconds: 100)
        var next = try StateArea.adopt(try area.fd.duplicate())
        // When
        next.countFailure(nowNanoseconds: 1_100, windowNanoseconds: 100)
        next.forgetStarts()
        let second = next.failures
        next.countFailure(nowNanoseconds: 1_101, windowNanoseconds: 100)
        let third = next.failures
        // Then
        #expect(second == 2)
        #expect(third == 1)
    }
}
