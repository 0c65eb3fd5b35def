// SPDX-License-Identifier: Apache-2.0
// The hot path, proven on the release build: no calls into a runtime, no allocation as I/O grows.

import TestSupport
import Testing

@Suite("The hot path of the release build")
struct HotPathTests {
    /// From taking a batch to the doorbell, and from a completion to its delivery. Mangled names:
    /// they need no demangler.
    static let hot = [
        "10NVMeDriver6EngineV6submit5batch", "10NVMeDriver6EngineV6submit_8segments",
        "10NVMeDriver6EngineV4ring",
        "10NVMeDriver6EngineV4reap", "10NVMeDriver6EngineV6retire",
    ]
    /// What they may call: requests of several commands, without data, or bounced, and command ids
    /// that an Abort names.
    static let cold = [
        "10NVMeDriver6EngineV11submitOther", "10NVMeDriver6EngineV10childEnded",
        "10NVMeDriver6EngineV4pump", "10NVMeDriver6EngineV11submitSplit",
        "10NVMeDriver6EngineV8pumpHalf",
        "10NVMeDriver14RequestRecordsV",
        "10NVMeDriver19PhysicalRegionPagesV5write", "10NVMeDriver9QueuePairV12deferFreeing",
    ]

    @Test("what is hot calls nothing but the less common kinds of requests")
    func noCalls() throws {
        // When
        let allowed = Self.cold.flatMap { ["-allow", $0] }
        let result = try Programs.run(
            Programs.root + "/.ci/hotpath-calls",
            allowed + [Programs.path("nvmed-bench")] + Self.hot)
        // Then
        #expect(result.status == 0, "\(result.output)")
    }

    /// What a data thread's loop may call: the above, and what happens seldom: faults, the first
    /// fruit, wake-ups, sleep, the control thread, the clock, limits, giving way, doorbells that
    /// are not mapped.
    static let coldOfRings = [
        "10NVMeDriver6EngineV(4ring|4reap|6retire)", "10NVMeDriver8RingPortV",
        "10NVMeDriver8RingCodeO", "10NVMeDriver9DataQueueV(4reap|[0-9]+note|14lookForOverdue)",
        "10NVMeDriver10DataThreadC", "nv_monotonic_ns", "nv_give_way",
        "__stack_chk_fail@plt",
    ]

    @Test("a data thread's loop, with every ring inlined, calls only what happens seldom")
    func dataThread() throws {
        // When
        let allowed = (Self.cold + Self.coldOfRings).flatMap { ["-allow", $0] }
        let result = try Programs.run(
            Programs.root + "/.ci/hotpath-calls",
            allowed
                + [
                    Programs.path("nvmed-worker"), "10NVMeDriver10DataThreadC3run",
                    "10NVMeDriver9DataQueueV4reap",
                ])
        // Then
        #expect(result.status == 0, "\(result.output)")
    }

    @Test("the worker carries the same code", arguments: ["nvmed-worker", "nvmed-bench"])
    func everyProgram(name: String) throws {
        // When
        let allowed = Self.cold.flatMap { ["-allow", $0] }
        let result = try Programs.run(
            Programs.root + "/.ci/hotpath-calls",
            allowed + [Programs.path(name), "10NVMeDriver6EngineV4reap"])
        // Then
        #expect(result.status == 0, "\(result.output)")
    }

    @Test("the less common requests call no runtime either: memory is copied, and that is all")
    func coldWithoutRuntime() throws {
        // When
        let result = try Programs.run(
            Programs.root + "/.ci/hotpath-calls",
            [
                "-allow", "10NVMeDriver(6Engine|9QueuePair|14RequestRecords|10RegionView)V",
                "-allow", "10NVMeDriver(11CommandSlot|11SegmentList|19PhysicalRegionPages)V",
                "-allow", "10NVMeDriver25PhysicalRegionPageBuilderV", "-allow", "nv_sigbus_count",
                "-allow", "3DMA13PageAllocatorV", "-allow", "^(memcpy|memmove|memset)@plt",
                Programs.path("nvmed-bench"), Self.cold[0], Self.cold[1], Self.cold[2],
                Self.cold[3], "10NVMeDriver6EngineV13issueSegments",
            ])
        // Then
        #expect(result.status == 0, "\(result.output)")
    }

    @Test(
        "twice the I/O makes not one allocation more, with data in one piece or in 32 pages",
        arguments: ["0", "32"])
    func allocationsStayFlat(segments: String) throws {
        // Given: valgrind 3.19 cannot read the debug information of Swift 6
        let directory = try TemporaryDirectory()
        let program = directory.path + "/bench"
        let copy = try Programs.run(
            "/usr/bin/objcopy", ["--strip-debug", Programs.path("nvmed-bench"), program])
        #expect(copy.status == 0, "\(copy.output)")
        // When
        let small = try Self.allocations(program, segments, count: 32_000)
        let large = try Self.allocations(program, segments, count: 64_000)
        // Then
        #expect(small > 0)
        #expect(small == large)
    }

    private static func allocations(
        _ program: String, _ segments: String, count: Int
    ) throws -> Int {
        let result = try Programs.run(
            "/usr/bin/valgrind",
            [
                "--tool=memcheck", program, "instructions", "--count", "\(count)", "--segments",
                segments,
            ])
        let line = result.output.split(separator: "\n").first { $0.contains("total heap usage") }
        let digits = try requireValue(line).split(separator: ":")[1].prefix { $0 != "a" }
        return try requireValue(Int(String(digits.filter(\.isNumber))))
    }
}
