// SPDX-License-Identifier: Apache-2.0
// Encoding and decoding for the tests, through the same functions as the channels.

import Wire

/// The bytes of a message.
func encoded<P: WireProtocol>(
    _ envelope: Envelope<P>, payload: [UInt8] = [], fdCount: Int? = nil
) throws -> [UInt8] {
    var writer = MessageWriter()
    try Codec.encode(
        envelope, payloadByteCount: payload.count,
        fdCount: fdCount ?? P.fdCount(of: envelope.content), into: &writer)
    return writer.bytes + payload
}

/// What bytes say, with their payload.
func decoded<P: WireProtocol>(
    _ bytes: [UInt8], as: P.Type, fdCount: Int = 0, arena: MessageArena = MessageArena()
) throws(Rejection) -> (envelope: Envelope<P>, payload: [UInt8]) {
    var result: Result<(Envelope<P>, [UInt8]), Rejection>?
    // SAFETY: the buffer is used inside the closure only.
    unsafe bytes.withUnsafeBytes { message in
        do throws(Rejection) {
            let (envelope, range) = try unsafe Codec<P>.decode(
                message, fdCount: fdCount, arena: arena)
            result = .success((envelope, unsafe Array(message[range])))
        } catch { result = .failure(error) }
    }
    guard let result else { throw Rejection.none }
    return try result.get()
}

/// The rejection of bytes, or nil when they are accepted.
func rejection<P: WireProtocol>(
    _ bytes: [UInt8], as: P.Type, fdCount: Int = 0
) -> Rejection? {
    do throws(Rejection) {
        _ = try decoded(bytes, as: P.self, fdCount: fdCount)
        return nil
    } catch { return error }
}

extension Rejection {
    /// Stands for a closure that was not called.
    static var none: Rejection {
        Rejection(requestID: 0, error: WireError(.internalError, "no result"))
    }
}

/// The bytes of a hex dump; everything from "#" to the end of a line is a note.
func bytes(_ dump: String) -> [UInt8] {
    dump.split(separator: "\n").flatMap { line in
        line.prefix { $0 != "#" }.split(separator: " ").compactMap { UInt8($0, radix: 16) }
    }
}

/// Numbers that a seed determines (splitmix64).
struct SeededNumbers: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
