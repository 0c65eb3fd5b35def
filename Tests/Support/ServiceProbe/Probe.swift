// SPDX-License-Identifier: Apache-2.0
// The modes of the probe that need one process of their own.

import Glibc
import Linux
import ServiceManager
import Systemd

/// The modes by name.
enum SwiftProbe {
    static func main(_ arguments: [String]) {
        do {
            switch arguments.dropFirst().first {
            case "threads": exit(try threads())
            case "signal": exit(try signal())
            case "service": exit(try run { try ProbeService($0) })
            case "supervisor": exit(try run { try ProbeSupervisor($0) })
            case "manager": exit(manager(arguments))
            case "notify": exit(try notify())
            case "barrier": exit(try barrier())
            case "listen-fds", "listen-fds-other": exit(try listenFDs())
            case "vfio-user": exit(try useDevice(arguments))
            case "fail": exit(1)
            case "signal-wait":
                while true { pause() }
            default:
                print("ServiceProbe: unknown mode")
                exit(64)
            }
        } catch {
            print("ServiceProbe: \(error)")
            exit(70)
        }
    }

    /// Sends one of each notification.
    static func notify() throws -> Int32 {
        let loop = try EventLoop.main()
        let notifier = Notifier()
        return try Control.assumeIsolated {
            try notifier.ready(status: "one\n\u{1}line")
            try notifier.watchdog()
            try notifier.triggerWatchdog()
            let store = FDStore()
            let event = try EventFD()
            try store.store("pool", event.fd)
            try store.store("s-1", event.fd, poll: true)
            try store.remove("pool")
            try notifier.stopping()
            loop.task {
                let done = try? await notifier.barrier(timeoutNanoseconds: 10_000_000_000)
                print("barrier: \(done ?? false)")
                loop.exit(0)
            }
            return try loop.run()
        }
    }

    /// Waits for barriers that nobody answers.
    static func barrier() throws -> Int32 {
        let loop = try EventLoop.main()
        loop.task {
            for isAsync in [false, true] {
                do {
                    if isAsync {
                        try await Notifier().barrier(timeoutNanoseconds: 1_000_000)
                    } else {
                        try Notifier().barrier(timeoutMicroseconds: 1000)
                    }
                    print("answered")
                } catch let error as SystemCallError {
                    print(unsafe String(cString: strerror(error.errno)))
                } catch {
                    print("\(error)")
                }
            }
            loop.exit(0)
        }
        return try loop.run()
    }

    /// Takes what was handed over and says what it is.
    static func listenFDs() throws -> Int32 {
        var fds = try ListenFDs.receive()
        print(fds.names.joined(separator: ","))
        if fds.isEmpty { return 0 }
        for name in ["pool", "listen"] {
            guard let fd = fds.take(name) else { return 1 }
            let flags = fcntl(fd.raw, F_GETFD)
            print(name, fd.raw, flags & FD_CLOEXEC != 0 ? "cloexec" : "inherited")
            if name == "pool" { print(fds.names.joined(separator: ",")) }
        }
        print(unsafe getenv("LISTEN_FDS") == nil ? "unset" : "set")
        print("again:", try ListenFDs.receive().names.count)
        return 0
    }

    /// Runs the loop with an object that lives as long.
    static func run(_ make: @Control (EventLoop) throws -> some AnyObject) throws -> Int32 {
        let loop = try EventLoop.main()
        return try Control.assumeIsolated {
            let service = try make(loop)
            defer { withExtendedLifetime(service) {} }
            return try loop.run()
        }
    }

    /// `manager <directory>`: a manager with a supervisor and workers, all of them this program.
    static func manager(_ arguments: [String]) -> Int32 {
        guard arguments.count == 3 else { return 64 }
        var supervisor = ServiceTemplate(
            name: "nvmed", path: arguments[0], arguments: ["supervisor"], socket: "nvmed.sock")
        supervisor.isPlain = true
        supervisor.restart = .onFailure
        let worker = ServiceTemplate(
            name: "nvmed-worker", path: arguments[0], arguments: ["service", "%i"],
            socket: "worker-%i.sock")
        return ServiceManagerMain.run(
            ServiceManagerMain.Options(
                runtimeDirectory: arguments[2], templates: [supervisor, worker]))
    }

    /// How many threads this process has.
    static func threadCount() throws -> String {
        let fd = try OwnedFD.open("/proc/self/status", flags: O_RDONLY)
        var text = [UInt8](repeating: 0, count: 4096)
        let count = unsafe read(fd.raw, &text, text.count)
        let lines = String(decoding: text[0..<max(count, 0)], as: UTF8.self).split(separator: "\n")
        return String(lines.first { $0.hasPrefix("Threads:") } ?? "Threads: ?")
            .replacing("\t", with: " ")
    }

    /// Uses actors, tasks, timers, deadlines and descriptors, then prints the thread count.
    static func threads() throws -> Int32 {
        let loop = try EventLoop.main()
        loop.task {
            do {
                var sum = 0
                let counter = Counter()
                for _ in 0..<1000 { sum = await counter.add(1) }
                let children = (0..<100).map { index in
                    Task { @Control in
                        try await loop.sleep(nanoseconds: 1000)
                        return index
                    }
                }
                for child in children { sum += try await child.value }
                await Task.detached {}.value
                let event = try EventFD()
                let timer = try loop.after(nanoseconds: 1_000_000) {
                    loop.exit(99)  // Proven wrong by disarming.
                }
                timer.disarm()
                try event.signal()
                try await loop.readable(event.fd)
                let late: Void? = try? await loop.withTimeout(nanoseconds: 1_000_000, "never") {
                    try await loop.sleep(nanoseconds: 3_600_000_000_000)
                }
                guard late == nil, sum == 1000 + 4950 else { return loop.exit(3) }
                print(try threadCount())
                loop.exit(7)
            } catch {
                print("\(error)")
                loop.exit(2)
            }
        }
        return try loop.run()
    }

    /// Exits with 5 when SIGTERM arrives.
    static func signal() throws -> Int32 {
        let loop = try EventLoop.main()
        return try Control.assumeIsolated {
            let source = try loop.onSignal(SIGTERM) { loop.exit(5) }
            defer { source.cancel() }
            raise(SIGTERM)
            return try loop.run()
        }
    }
}

/// A class of the control plane that hops.
@Control
final class Counter {
    private var total = 0
    func add(_ value: Int) async -> Int {
        await Task.yield()
        total += value
        return total
    }
}
