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
