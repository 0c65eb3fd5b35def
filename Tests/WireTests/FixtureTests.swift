// SPDX-License-Identifier: Apache-2.0
// Messages as bytes, so that the wire format cannot change by accident.

import Testing
import Wire

@Suite("The wire format")
struct FixtureTests {
    @Test("a read request is these bytes")
    func readRequest() throws {
        let fixture = bytes(
            """
            08 01           # 1 version: 1
            10 ac 02        # 2 request_id: 300
            18 e8 07        # 3 deadline_ns: 1000
            aa 01 05        # 21 read, 5 bytes
            08 80 01        #   1 lba: 128
            10 08           #   2 block_count: 8
            """)
        let envelope = Envelope<SessionProtocol>(
            requestID: 300, deadlineNanoseconds: 1000,
            content: .request(.read(lba: 128, blockCount: 8, location: .inline)))
        #expect(try encoded(envelope) == fixture)
        #expect(try decoded(fixture, as: SessionProtocol.self).envelope == envelope)
    }

    @Test("a write with inline data ends with the data")
    func writeRequest() throws {
        let fixture = bytes(
            """
            08 01           # 1 version: 1
            10 02           # 2 request_id: 2
            b2 01 06        # 22 write, 6 bytes
            08 00           #   1 lba: 0
            10 01           #   2 block_count: 1
            18 01           #   3 fua: true
            c2 3e 04        # 1000 payload, 4 bytes
            de ad be ef
            """)
        let envelope = Envelope<SessionProtocol>(
            requestID: 2,
            content: .request(.write(lba: 0, blockCount: 1, fua: true, location: .inline)))
        #expect(try encoded(envelope, payload: [0xde, 0xad, 0xbe, 0xef]) == fixture)
        let back = try decoded(fixture, as: SessionProtocol.self)
        #expect(back.envelope == envelope)
        #expect(back.payload == [0xde, 0xad, 0xbe, 0xef])
    }

    @Test("an opened disk comes with one descriptor")
    func diskOpened() throws {
        let fixture = bytes(
            """
            08 01           # 1 version: 1
            10 07           # 2 request_id: 7
            20 01           # 4 fd_count: 1
            fa 03 02        # 63 disk_opened, 2 bytes
            08 2a           #   1 session_id: 42
            """)
        let envelope = Envelope<SupervisorProtocol>(
            requestID: 7, content: .reply(.diskOpened(sessionID: 42, nil)))
        #expect(try encoded(envelope) == fixture)
        #expect(
            try decoded(fixture, as: SupervisorProtocol.self, fdCount: 1).envelope == envelope)
    }

    @Test("a save names its token, and what was saved comes with one descriptor")
    func save() throws {
        let request = bytes(
            """
            08 01           # 1 version: 1
            10 09           # 2 request_id: 9
            ea 01 15        # 29 save, 21 bytes
            0a 10           #   1 token, 16 bytes
            01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 10
            10 e8 07        #   2 drain_ns: 1000
            """)
        let reply = bytes(
            """
            08 01           # 1 version: 1
            10 09           # 2 request_id: 9
            20 01           # 4 fd_count: 1
            a2 04 0b        # 68 saved, 11 bytes
            08 80 20        #   1 byte_count: 4096
            10 03           #   2 commands_in_flight: 3
            18 02           #   3 queue_count: 2
            20 01           #   4 session_count: 1
            28 00           #   5 drained_ns: 0
            """)
        var saved = DeviceSaved(byteCount: 4096)
        saved.commandsInFlight = 3
        saved.queueCount = 2
        saved.sessionCount = 1
        let asked = Envelope<WorkerProtocol>(
            requestID: 9,
            content: .request(.save(SaveDevice(token: Samples.nguid, drainNanoseconds: 1000))))
        let told = Envelope<WorkerProtocol>(requestID: 9, content: .reply(.saved(saved)))
        #expect(try encoded(asked) == request)
        #expect(try decoded(request, as: WorkerProtocol.self).envelope == asked)
        #expect(try encoded(told) == reply)
        #expect(try decoded(reply, as: WorkerProtocol.self, fdCount: 1).envelope == told)
    }

    @Test("a saved state travels with the request that loads the driver")
    func loadSaved() throws {
        let fixture = bytes(
            """
            08 01           # 1 version: 1
            10 02           # 2 request_id: 2
            20 01           # 4 fd_count: 1
            a2 01 09        # 20 load_driver, 9 bytes
            0a 05           #   1 config, 5 bytes
            0a 01 6e        #     1 name: "n"
            10 03           #     2 transport: null
            10 01           #   2 saved_state: true
            """)
        let envelope = Envelope<WorkerProtocol>(
            requestID: 2,
            content: .request(
                .loadDriver(DeviceConfig(name: "n", transport: .null), savedState: true)))
        #expect(try encoded(envelope) == fixture)
        #expect(try decoded(fixture, as: WorkerProtocol.self, fdCount: 1).envelope == envelope)
    }

    @Test("fields may come in any order and repeated, and unknown ones are passed over")
    func foreignOrder() throws {
        let fixture = bytes(
            """
            b0 09 05        # 150, unknown: 5
            aa 01 05        # 21 read
            10 08           #   2 block_count: 8
            08 80 01        #   1 lba: 128
            10 01           # 2 request_id: 1
            10 ac 02        # 2 request_id: 300, which counts
            08 01           # 1 version: 1
            """)
        let back = try decoded(fixture, as: SessionProtocol.self)
        #expect(back.envelope.requestID == 300)
        #expect(
            back.envelope.content == .request(.read(lba: 128, blockCount: 8, location: .inline)))
    }
}
