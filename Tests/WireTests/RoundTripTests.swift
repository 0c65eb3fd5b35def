// SPDX-License-Identifier: Apache-2.0
// Every message out and in again: our encoder against protobuf-c's decoder.

import Testing
import Wire

@Suite("Messages come back as they went")
struct RoundTripTests {
    @Test("a session message comes back", arguments: Messages.session.indices)
    func session(index: Int) throws {
        let envelope = Envelope(
            requestID: 300, deadlineNanoseconds: 1 << 62, content: Messages.session[index])
        let back = try decoded(
            encoded(envelope), as: SessionProtocol.self,
            fdCount: SessionProtocol.fdCount(of: envelope.content))
        #expect(back.envelope == envelope)
        #expect(back.payload.isEmpty)
    }

    @Test("a worker message comes back", arguments: Messages.worker.indices)
    func worker(index: Int) throws {
        let envelope = Envelope(requestID: 1, content: Messages.worker[index])
        let back = try decoded(
            encoded(envelope), as: WorkerProtocol.self,
            fdCount: WorkerProtocol.fdCount(of: envelope.content))
        #expect(back.envelope == envelope)
    }

    @Test("a supervisor message comes back", arguments: Messages.supervisor.indices)
    func supervisor(index: Int) throws {
        let envelope = Envelope(requestID: .max, content: Messages.supervisor[index])
        let back = try decoded(
            encoded(envelope), as: SupervisorProtocol.self,
            fdCount: SupervisorProtocol.fdCount(of: envelope.content))
        #expect(back.envelope == envelope)
    }

    @Test("an opener message comes back", arguments: Messages.opener.indices)
    func opener(index: Int) throws {
        let envelope = Envelope(requestID: 1, content: Messages.opener[index])
        let back = try decoded(
            encoded(envelope), as: OpenerProtocol.self,
            fdCount: OpenerProtocol.fdCount(of: envelope.content))
        #expect(back.envelope == envelope)
    }

    @Test("a payload comes back whole", arguments: [1, 127, 128, 512, 131_072])
    func payload(byteCount: Int) throws {
        let payload = (0..<byteCount).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        let envelope = Envelope<SessionProtocol>(
            requestID: 5,
            content: .request(.write(lba: 0, blockCount: 1, fua: false, location: .inline)))
        let back = try decoded(encoded(envelope, payload: payload), as: SessionProtocol.self)
        #expect(back.envelope == envelope)
        #expect(back.payload == payload)
    }

    @Test("an error code unknown here is kept")
    func unknownCode() throws {
        let envelope = Envelope<SessionProtocol>(
            requestID: 1, content: .failure(WireError(ErrorCode(rawValue: 999), "new")))
        let back = try decoded(encoded(envelope), as: SessionProtocol.self)
        #expect(back.envelope == envelope)
        #expect(ErrorCode(rawValue: 999).description == "error-999")
        #expect(!ErrorCode(rawValue: 999).isRetriable)
    }

    @Test("each code has its own name")
    func codeNames() {
        #expect(ErrorCode.invalidArgument.description == "invalid-argument")
        #expect(ErrorCode.workerRestarted.description == "worker-restarted")
        #expect(ErrorCode.internalError.description == "internal-error")
        #expect(ErrorCode(rawValue: 0).description == "error-0")
    }

    @Test("an NVMe status may be retried unless it says do not")
    func retriable() {
        #expect(WireError(.nvmeStatus, "", nvmeStatus: 0x0001).isRetriable)
        #expect(!WireError(.nvmeStatus, "", nvmeStatus: 0x4001).isRetriable)
        #expect(WireError(.workerRestarted, "").isRetriable)
        #expect(!WireError(.deviceFailed, "").isRetriable)
    }

    @Test("text for people is cut at a character when it is too long")
    func longText() throws {
        let text = String(repeating: "é", count: WireLimits.textByteCount)
        let envelope = Envelope<SessionProtocol>(
            requestID: 1, content: .failure(WireError(.busy, text)))
        let back = try decoded(encoded(envelope), as: SessionProtocol.self)
        let expected = String(repeating: "é", count: WireLimits.textByteCount / 2)
        #expect(back.envelope.content == .failure(WireError(.busy, expected)))
    }

    @Test("a list that does not fit one message is refused by the sender")
    func tooLarge() {
        let entries = (0..<200).map {
            InspectEntry("path/\($0)", String(repeating: "x", count: 100))
        }
        let envelope = Envelope<WorkerProtocol>(
            requestID: 1, content: .reply(.inspect(Page(entries))))
        #expect(throws: WireError.self) { try encoded(envelope) }
    }
}
