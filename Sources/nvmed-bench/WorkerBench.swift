// SPDX-License-Identifier: Apache-2.0
// A worker process: how long from its start to a device that is ready, and how large it is.

import Glibc
import Linux
import Wire

/// What a worker's start gave.
struct WorkerResult {
    var readyNanoseconds: UInt64
    /// Anonymous and file pages that are resident; the pool, which is shared memory, is not among
    /// them.
    var residentKiB: Int
}

/// Starts a worker as a service manager would, loads its device, and ends it.
func runWorker(program: String, deviceSocket: String, directory: String) throws -> WorkerResult {
    let path = directory + "/worker.sock"
    let listener = try UnixSocket.listen(path, kind: .sequencedPacket, mode: 0o600)
    defer { _ = unsafe unlink(path) }
    let begin = MonotonicClock.nowNanoseconds
    let process = try Spawn(
        program, ["bench"],
        environment: [
            "SWIFT_BACKTRACE=enable=no", "NVMED_LOG_LEVEL=3", "LISTEN_FDS=1",
            "LISTEN_FDNAMES=listen", "LISTEN_PID=",
        ]
    ).start(fds: [listener.raw])
    let channel = Channel<WorkerProtocol>(
        try UnixSocket.connect(path, kind: .sequencedPacket), role: .client, buffer: MessageBuffer()
    )
    let id = try channel.send(
        request: .loadDriver(DeviceConfig(name: "bench", transport: .vfioUser(path: deviceSocket))))
    while try !isAnswer(channel, id) {}
    let ready = MonotonicClock.nowNanoseconds - begin
    let resident = try residentKiB(process.pid)
    try process.signal(SIGKILL)
    var status: CInt = 0
    _ = unsafe waitpid(process.pid, &status, 0)
    return WorkerResult(readyNanoseconds: ready, residentKiB: resident)
}

/// Takes a message; whether it is the good answer to the request.
private func isAnswer(_ channel: Channel<WorkerProtocol>, _ id: UInt64) throws -> Bool {
    let deadline = MonotonicClock.nowNanoseconds + 10_000_000_000
    switch try channel.receive(deadlineNanoseconds: deadline) {
    case .message(let message):
        guard message.envelope.requestID == id else { return false }
        if case .failure(let error) = message.envelope.content { die("\(error)") }
        return true
    case .closed: die("the worker ended")
    case .nothing: return false
    case .rejected: return false
    }
}

/// RssAnon and RssFile of a process.
private func residentKiB(_ pid: Int32) throws -> Int {
    let file = try OwnedFD.open("/proc/\(pid)/status", flags: O_RDONLY)
    var text = [UInt8](repeating: 0, count: 8192)
    let count = unsafe read(file.raw, &text, text.count)
    var total = 0
    for line in String(decoding: text[0..<max(0, count)], as: UTF8.self).split(separator: "\n")
    where line.hasPrefix("RssAnon:") || line.hasPrefix("RssFile:") {
        let fields = line.split(whereSeparator: { $0 == " " || $0 == "\t" })
        total += fields.dropFirst().first.flatMap { Int($0) } ?? 0
    }
    return total
}
