// SPDX-License-Identifier: Apache-2.0
// The process's environment variables.

internal import Glibc

/// The process's environment variables.
enum Environment {
    /// The value of a variable; nil when it is not set.
    static func value(_ name: String) -> String? {
        guard let value = unsafe getenv(name) else { return nil }
        return unsafe String(cString: value)
    }
}
