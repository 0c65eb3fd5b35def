// SPDX-License-Identifier: Apache-2.0
// What a unit file says, as values.

/// How a kind of service is started, watched and stopped.
public struct ServiceTemplate: Sendable {
    /// When a service that ended by itself is started again.
    public enum Restart: Sendable {
        /// Always (Restart=always).
        case always
        /// Unless it exited with 0; of a plain service this ends the manager too.
        case onFailure
    }

    /// The part of the unit's name before `@`.
    public var name: String
    /// The program's file.
    public var path: String
    /// Its arguments; `%i` stands for the instance.
    public var arguments: [String]
    /// Variables beside those of the manager, `NAME=value`.
    public var environment: [String] = []
    /// The listening socket (SOCK_SEQPACKET), an absolute path or in the runtime directory; `%i`
    /// stands for the instance. nil: none.
    public var socket: String?
    /// The mode of the socket file.
    public var socketMode: UInt32 = 0o600
    /// A plain service: one, without instance, started with the manager, and with a control
    /// connection to it.
    public var isPlain = false
    /// The longest silence of a ready service before it is killed; 0: unwatched.
    public var watchdogMilliseconds: UInt64 = 0
    /// How long it may take to be ready: longer than the slowest controller may (CAP.TO is 127.5 s
    /// at most, down and up).
    public var startTimeoutMilliseconds: UInt64 = 300_000
    /// How long it may take to end after SIGTERM, before SIGKILL.
    public var stopTimeoutMilliseconds: UInt64 = 10_000
    /// The most descriptors kept for it (FileDescriptorStoreMax=).
    public var fdStoreMax = 4096
    /// When it is started again.
    public var restart = Restart.always

    /// Names a service and its program.
    public init(name: String, path: String, arguments: [String] = [], socket: String? = nil) {
        self.name = name
        self.path = path
        self.arguments = arguments
        self.socket = socket
    }

    /// Puts the instance in the place of `%i`.
    static func fill(_ text: String, _ instance: String?) -> String {
        text.replacing("%i", with: instance ?? "")
    }
}
