// SPDX-License-Identifier: Apache-2.0
// The device configuration as the state area keeps it for a successor: the LoadDriver message
// itself.

internal import Wire

/// A device configuration as bytes.
enum KeptConfiguration {
    /// The bytes of a configuration; nil when it is too long to be a message.
    static func encode(_ config: DeviceConfig) -> [UInt8]? {
        var writer = MessageWriter()
        let envelope = Envelope<WorkerProtocol>(
            requestID: 1, content: .request(.loadDriver(config)))
        guard (try? Codec.encode(envelope, into: &writer)) != nil else { return nil }
        return writer.bytes
    }

    /// The configuration in `bytes`; nil when there is none.
    static func decode(_ bytes: [UInt8]) -> DeviceConfig? {
        let arena = MessageArena()
        return unsafe bytes.withUnsafeBytes { raw in
            let decoded = try? unsafe Codec<WorkerProtocol>.decode(raw, fdCount: 0, arena: arena)
            guard case .request(.loadDriver(let config, _)) = decoded?.envelope.content else {
                return nil
            }
            return config
        }
    }
}

/// What the supervisor said of a session, as the state area keeps it: the OpenSession message
/// itself.
enum KeptOpening {
    /// The bytes of a message; nil when it is too long to be one.
    static func encode(_ opening: OpenSession) -> [UInt8]? {
        var writer = MessageWriter()
        let envelope = Envelope<WorkerProtocol>(
            requestID: 1, content: .request(.openSession(opening)))
        guard (try? Codec.encode(envelope, into: &writer)) != nil else { return nil }
        return writer.bytes
    }

    /// The message in `bytes`; nil when there is none.
    static func decode(_ bytes: [UInt8]) -> OpenSession? {
        let arena = MessageArena()
        return unsafe bytes.withUnsafeBytes { raw in
            let decoded = try? unsafe Codec<WorkerProtocol>.decode(raw, fdCount: 0, arena: arena)
            guard case .request(.openSession(let opening)) = decoded?.envelope.content else {
                return nil
            }
            return opening
        }
    }
}
