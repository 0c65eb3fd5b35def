// SPDX-License-Identifier: Apache-2.0
// The identities of the supervisor's log messages, by which operators search.

internal import Systemd

/// Message ids of the supervisor.
enum Messages {
    /// A device changed its state.
    static let deviceState = MessageID("5a0e8f1cc6b14a6f9b7c7d1e2f30a101")
    /// A device is ready.
    static let deviceReady = MessageID("5a0e8f1cc6b14a6f9b7c7d1e2f30a102")
    /// A device or its worker is being restored.
    static let deviceRecovering = MessageID("5a0e8f1cc6b14a6f9b7c7d1e2f30a103")
    /// A device failed.
    static let deviceFailed = MessageID("5a0e8f1cc6b14a6f9b7c7d1e2f30a104")
    /// A device reports a critical warning.
    static let health = MessageID("5a0e8f1cc6b14a6f9b7c7d1e2f30a105")
    /// A session was opened.
    static let sessionOpened = MessageID("5a0e8f1cc6b14a6f9b7c7d1e2f30a106")
    /// A session ended.
    static let sessionEnded = MessageID("5a0e8f1cc6b14a6f9b7c7d1e2f30a107")
    /// A client was refused or lost its connection.
    static let clientRefused = MessageID("5a0e8f1cc6b14a6f9b7c7d1e2f30a108")
    /// Too many clients, or no descriptors left.
    static let exhausted = MessageID("5a0e8f1cc6b14a6f9b7c7d1e2f30a109")
    /// The configuration was read.
    static let configuration = MessageID("5a0e8f1cc6b14a6f9b7c7d1e2f30a10a")
}
