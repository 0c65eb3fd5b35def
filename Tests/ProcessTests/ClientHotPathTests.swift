// SPDX-License-Identifier: Apache-2.0
// The client's side of a ring, proven on the release build: no calls, no allocation as I/O grows.

import TestSupport
import Testing

extension ProcessTests {
    @Suite("The hot path of clients", .timeLimit(.minutes(5)))
    struct ClientHotPathTests {
        /// From an entry to its publication, and from a completion to its owner, in a buffer
        /// (Sr; that for an array checks who else has it). Mangled names:
        /// they need no demangler.
        static let hot = [
            "10NVMeClient8DiskRingC11prepareRead", "10NVMeClient8DiskRingC12prepareWrite",
            "10NVMeClient8DiskRingC14prepareCompare", "10NVMeClient8DiskRingC12prepareFlush",
            "10NVMeClient8DiskRingC18prepareWriteZeroes",
            "10NVMeClient8DiskRingC17prepareDeallocate",
            "10NVMeClient8DiskRingC13prepareVerify", "10NVMeClient8DiskRingC6submit",
            "10NVMeClient8DiskRingC4reap4intoSiSr",
        ]
        /// The system call that wakes a worker.
        static let cold = "10NVMeClient8DiskRingC4kick"

        @Test("preparing, submitting and reaping call nothing but the kick")
        func noCalls() throws {
            let result = try Programs.run(
                Programs.root + "/.ci/hotpath-calls",
                ["-allow", Self.cold, Programs.path("nvmed-bench")] + Self.hot)
            #expect(result.status == 0, "\(result.output)")
        }

        /// What longer numbers in the report and another number of sleeps may add; a single
        /// allocation an I/O would be ten thousand.
        static let slack = 50

        @Test("ten thousand more requests through a ring make no more allocations")
        func allocationsStayFlat() throws {
            // Given: valgrind 3.19 cannot read the debug information of Swift 6
            let service = try RunningService()
            let program = service.directory.path + "/bench"
            let copy = try Programs.run(
                "/usr/bin/objcopy", ["--strip-debug", Programs.path("nvmed-bench"), program])
            #expect(copy.status == 0, "\(copy.output)")
            // When
            let small = try allocations(program, service, count: 2000)
            let large = try allocations(program, service, count: 12_000)
            // Then
            #expect(small > 0)
            #expect(abs(large - small) < Self.slack, "\(small), \(large)")
        }

        private func allocations(
            _ program: String, _ service: RunningService, count: Int
        ) throws -> Int {
            let result = try Programs.run(
                "/usr/bin/valgrind",
                [
                    "--tool=memcheck", program, "ring", "--socket", service.socket, "--disk",
                    "disk-b", "--depth", "8", "--count", "\(count)", "--seconds", "100",
                ])
            let line = try #require(
                result.output.split(separator: "\n").first { $0.contains("total heap usage") },
                "\(result.output)")
            let digits = line.split(separator: ":")[1].prefix { $0 != "a" }
            return try #require(Int(String(digits.filter(\.isNumber))))
        }
    }
}
