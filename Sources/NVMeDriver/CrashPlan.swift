// SPDX-License-Identifier: Apache-2.0
// What happens at crash points in the build for tests: nothing of this is in production.
//
//   NVMED_CRASH=name:count       SIGKILL at the count-th time that the point is reached
//   NVMED_CRASH_HOLD=name:count  SIGSTOP there
//   NVMED_CRASH_PLAN=path        a file that tells, and is told; see below
//
// The file is shared memory with the test. It can be armed while the process runs, survives it, and
// what happened once does not happen to the successor:
//
//   0     u32  the step that is next
//   64    16 steps of 16 bytes: {point + 1, or 0: no step; times left; 0 kill, 1 stop; pid it hit}
//   1024  256 u32: how often each point was reached, by any process

#if NVMED_CRASH_POINTS
    internal import CMemory
    internal import Glibc
    internal import Linux

    /// The plan of this process, read when the first point is reached.
    @usableFromInline
    @safe
    struct CrashPlan: @unchecked Sendable {
        static let stepCount: UInt32 = 16
        static let byteCount = 4096
        private let memory: UnsafeMutableRawPointer
        private static let plan = CrashPlan()

        private init() {
            if let path = Program.environment("NVMED_CRASH_PLAN") {
                let fd = unsafe open(path, O_RDWR | O_CLOEXEC)
                let base = unsafe mmap(
                    nil, Self.byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                guard fd >= 0, unsafe base != MAP_FAILED, let base = unsafe base else {
                    Self.refuse("NVMED_CRASH_PLAN=\(path) cannot be mapped")
                }
                close(fd)
                unsafe memory = base
                return
            }
            unsafe memory = .allocate(byteCount: Self.byteCount, alignment: 64)
            unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: Self.byteCount)
            for (name, action) in [("NVMED_CRASH", 0), ("NVMED_CRASH_HOLD", 1)] {
                guard let text = Program.environment(name) else { continue }
                let parts = text.split(separator: ":")
                guard let first = parts.first, let point = CrashPoint(name: String(first)),
                    let count = UInt32(parts.count > 1 ? String(parts[1]) : "1"), count > 0
                else { Self.refuse("\(name)=\(text) names no crash point; name:count is wanted") }
                unsafe nv_store32(memory + 64, UInt32(point.rawValue) + 1)
                unsafe nv_store32(memory + 68, count)
                unsafe nv_store32(memory + 72, UInt32(action))
            }
        }

        private static func refuse(_ text: String) -> Never {
            Program.complain(text)
            _exit(64)
        }

        @usableFromInline
        @inline(never)
        static func hit(_ point: CrashPoint) { plan.hit(point) }

        private func hit(_ point: CrashPoint) {
            // Threads may lose a count to each other; that it is not 0 is what matters.
            let counter = unsafe memory + 1024 + Int(point.rawValue) * 4
            unsafe nv_store32(counter, nv_load32(counter) &+ 1)
            let index = unsafe nv_load_acquire32(memory)
            guard index < Self.stepCount else { return }
            let step = unsafe memory + 64 + Int(index) * 16
            guard unsafe nv_load32(step) == UInt32(point.rawValue) + 1 else { return }
            let left = unsafe nv_load32(step + 4)
            guard left <= 1 else {
                unsafe nv_store32(step + 4, left - 1)
                return
            }
            // Of two threads one is the last.
            guard unsafe nv_exchange32(step, 0) != 0 else { return }
            unsafe nv_store32(step + 12, UInt32(bitPattern: getpid()))
            unsafe nv_store_release32(memory, index + 1)
            kill(getpid(), unsafe nv_load32(step + 8) == 0 ? SIGKILL : SIGSTOP)
        }
    }
#endif
