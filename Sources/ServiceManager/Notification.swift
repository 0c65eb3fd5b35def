// SPDX-License-Identifier: Apache-2.0
// A message of a service to its manager, as text (sd_notify(3), systemd 252).

/// What one datagram on the notify socket asks for.
struct Notification: Equatable {
    /// The most bytes of a message; longer ones are dropped whole, as systemd does.
    static let byteCountMax = 4096

    var ready = false
    var stopping = false
    var watchdog = false
    var watchdogTrigger = false
    var barrier = false
    var store = false
    var remove = false
    var poll = true
    var name: String?
    var status: String?

    /// Reads the assignments; unknown ones are ignored (MAINPID= too: the manager starts a service
    /// itself and knows). nil when the text is not UTF-8.
    init?(_ bytes: some Collection<UInt8>) {
        guard let text = String(validating: Array(bytes), as: UTF8.self) else { return nil }
        for line in text.split(separator: "\n") {
            switch line {
            case "READY=1": ready = true
            case "STOPPING=1": stopping = true
            case "WATCHDOG=1": watchdog = true
            case "WATCHDOG=trigger": watchdogTrigger = true
            case "BARRIER=1": barrier = true
            case "FDSTORE=1": store = true
            case "FDSTOREREMOVE=1": remove = true
            case "FDPOLL=0": poll = false
            default:
                if line.hasPrefix("FDNAME=") { name = String(line.dropFirst(7)) }
                if line.hasPrefix("STATUS=") { status = String(line.dropFirst(7).prefix(1024)) }
            }
        }
    }
}
