// SPDX-License-Identifier: Apache-2.0
// What may sleep in the kernel, in threads: a bounded number at one time, and one for each device.

internal import Linux
internal import Systemd
internal import Wire

/// Runs requests in threads, first come first served, but never two of one device.
@Control
final class OpenerWork {
    private struct Job {
        var number: UInt64
        var device: String
        var body: @Sendable () -> Void
    }

    private let threads: Int
    /// As many as there are connections, at most: each waits for one answer at a time.
    private var queue: [Job] = []
    private var busy: Set<String> = []
    private var lastNumber: UInt64 = 0

    /// At most so many at one time.
    init(threads: Int) { self.threads = threads }

    /// Runs `body` in a thread, when the device's turn comes. A caller that is cancelled meanwhile
    /// is let go; what a thread has begun it ends, and the device is busy until then.
    func run<Value: Sendable>(
        _ device: String, _ body: @escaping @Sendable () -> Value
    ) async throws(WireError) -> Value {
        let done = OneShot<Value>()
        lastNumber &+= 1
        let number = lastNumber
        queue.append(
            Job(number: number, device: device) { [weak self] in
                let value = body()
                EventLoop.current.perform {
                    done.succeed(value)
                    self?.ended(device)
                }
            })
        startSome()
        defer { queue.removeAll { $0.number == number } }
        do {
            return try await done.value()
        } catch {
            throw WireError(.cancelled, "nobody waits for device \(device) any more")
        }
    }

    private func startSome() {
        while busy.count < threads,
            let index = queue.firstIndex(where: { !busy.contains($0.device) })
        {
            let job = queue.remove(at: index)
            busy.insert(job.device)
            do throws(SystemCallError) {
                try BackgroundThread.start(job.body)
            } catch {
                // Without a thread everybody waits for this one, which is better than nothing.
                job.body()
            }
        }
    }

    private func ended(_ device: String) {
        busy.remove(device)
        startSome()
    }
}
