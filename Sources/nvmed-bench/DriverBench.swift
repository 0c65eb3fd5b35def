// SPDX-License-Identifier: Apache-2.0
// The driver in this process: on a device that completes at once, and on the emulator.

import Glibc
import Linux
import NVMeDriver
import NullDevice
import VFIO

/// A controller brought up for a benchmark, with a client region.
@safe
final class DriverRig {
    static let blockShift: UInt8 = 9
    static let regionByteCount = 16 << 20
    let controller: NVMeController
    let region: UInt32
    let namespace: NamespaceInfo

    init(device: any DeviceBacking) throws {
        var options = ControllerOptions(deviceName: "bench")
        options.bouncePoolByteCount = 1 << 20
        controller = try NVMeController(
            device: device, options: options,
            state: try StateArea.create(layout: options.stateLayout))
        try controller.start()
        let memory = try MemFD.create(name: "bench", byteCount: Self.regionByteCount)
        region = try controller.registerMemory(
            memory, byteCount: Self.regionByteCount, session: 1, readOnly: false)
        guard let first = controller.namespaces.values.first(where: { $0.refusal == nil }) else {
            die("the device has no usable namespace")
        }
        namespace = first
    }

    func request(_ operation: UInt8, token: UInt64, lba: UInt64) -> IORequest {
        var request = IORequest(
            operation: operation, namespaceID: namespace.namespaceID, session: 1, token: token)
        request.blockShift = namespace.blockShift
        request.blockCount = 4096 >> UInt32(namespace.blockShift)
        request.maxBlocksPerCommand = namespace.maxTransferBlocks
        request.region = region
        request.offset = token * 4096
        request.lba = lba
        return request
    }

    /// `count` lists of `segments` pages each, scattered over the region; never freed.
    func segmentLists(count: Int, segments: Int) -> UnsafeMutablePointer<DataSegment> {
        let lists = UnsafeMutablePointer<DataSegment>.allocate(capacity: max(1, count * segments))
        let pages = Self.regionByteCount / 4096
        for index in 0..<(count * segments) {
            // 13 has no factor in common with the number of pages: no two neighbours are adjacent.
            let offset = UInt64(index * 13 % pages * 4096)
            unsafe (lists + index).initialize(
                to: DataSegment(region: region, offset: offset, byteCount: 4096))
        }
        return unsafe lists
    }
}

/// Runs `count` aligned 4 KiB reads at a depth of `depth` on the null device: for callgrind and
/// allocation counts. With `segments`, each read has a list of so many scattered pages.
func runInstructions(count: Int, depth: Int, segments: Int) throws {
    let device = try NullController(name: "bench")
    let rig = try DriverRig(device: device)
    let engine = unsafe rig.controller.engine(0)
    let requests = (0..<depth).map {
        rig.request(IOOperation.read, token: UInt64($0), lba: UInt64($0) * 8)
    }
    let lists = unsafe rig.segmentLists(count: depth, segments: segments)
    var completions = [IOCompletion](repeating: IOCompletion(), count: depth)
    var done = 0
    var result = SubmitResult.accepted
    unsafe requests.withUnsafeBufferPointer { batch in
        unsafe completions.withUnsafeMutableBufferPointer { out in
            guard let out = out.baseAddress else { return }
            while done < count {
                if segments == 0 {
                    _ = unsafe engine.pointee.submit(batch: batch, result: &result)
                } else {
                    unsafe submit(batch, lists, segments, to: engine)
                }
                unsafe engine.pointee.ring()
                guard (try? rig.controller.writePendingDoorbells(0)) != nil else { return }
                let reaped = unsafe engine.pointee.reap(into: out, capacity: depth)
                unsafe engine.pointee.retire()
                guard reaped == depth else { die("reaped \(reaped) of \(depth)") }
                done += reaped
            }
        }
    }
    print("completed \(done)")
}

/// Submits a batch of reads with their segment lists.
private func submit(
    _ batch: UnsafeBufferPointer<IORequest>, _ lists: UnsafeMutablePointer<DataSegment>,
    _ segments: Int, to engine: UnsafeMutablePointer<Engine>
) {
    var index = 0
    while index < batch.count {
        var request = unsafe batch[index]
        request.blockCount = UInt32(segments * 4096) >> UInt32(request.blockShift)
        let result = unsafe engine.pointee.submit(
            request, segments: lists + index * segments, count: segments)
        guard result == .accepted else { die("a segment list was not taken") }
        index += 1
    }
}

/// What a run on the emulator gave.
struct DriverResult {
    var p50Nanoseconds: UInt64
    var p99Nanoseconds: UInt64
    var iops: Double
}

/// Random 4 KiB reads at a depth for a time, polled; without a socket, on the null device.
func runDriver(socket: String, depth: Int, seconds: Double, operation: UInt8) throws -> DriverResult
{
    let device: any DeviceBacking =
        socket.isEmpty
        ? try NullController(name: "bench") : try VFIOUserDevice(path: socket, name: "bench")
    let rig = try DriverRig(device: device)
    let engine = unsafe rig.controller.engine(0)
    let blocks = rig.namespace.blockCount
    let perIO = UInt64(4096 >> UInt32(rig.namespace.blockShift))
    var random: UInt64 = 0x1234_5678
    var started = [UInt64](repeating: 0, count: depth)
    var latencies = Latencies(capacity: 1 << 20)
    var completions = [IOCompletion](repeating: IOCompletion(), count: depth)
    func submit(_ token: Int) {
        random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        let lba = (random >> 16) % (blocks / perIO) * perIO
        guard
            unsafe engine.pointee.submit(rig.request(operation, token: UInt64(token), lba: lba))
                == .accepted
        else { die("the engine took no request") }
    }
    let begin = MonotonicClock.nowNanoseconds
    let end = begin + UInt64(seconds * 1e9)
    var now = begin
    for token in 0..<depth {
        submit(token)
        started[token] = now
    }
    unsafe engine.pointee.ring()
    try rig.controller.writePendingDoorbells(0)
    var done = 0
    var inFlight = depth
    while inFlight > 0 {
        let reaped = unsafe completions.withUnsafeMutableBufferPointer { buffer in
            unsafe buffer.baseAddress.map { unsafe engine.pointee.reap(into: $0, capacity: depth) }
                ?? 0
        }
        if reaped == 0 {
            guard unsafe engine.pointee.fault == .none else {
                die("\(unsafe engine.pointee.fault)")
            }
            continue
        }
        unsafe engine.pointee.retire()
        if unsafe engine.pointee.hasPendingDoorbells { try rig.controller.writePendingDoorbells(0) }
        // At depth one every latency is measured; at depth the batch shares a time stamp, which
        // costs less than an I/O.
        now = MonotonicClock.nowNanoseconds
        for index in 0..<reaped {
            guard completions[index].status == 0 else { die("status \(completions[index].status)") }
            let token = Int(completions[index].token)
            latencies.add(now - started[token])
            if now < end {
                submit(token)
                started[token] = now
            } else {
                inFlight -= 1
            }
        }
        done += reaped
        unsafe engine.pointee.ring()
        if unsafe engine.pointee.hasPendingDoorbells { try rig.controller.writePendingDoorbells(0) }
    }
    let elapsed = Double(MonotonicClock.nowNanoseconds - begin) / 1e9
    try rig.controller.stop()
    return DriverResult(
        p50Nanoseconds: latencies.percentile(0.5), p99Nanoseconds: latencies.percentile(0.99),
        iops: Double(done) / elapsed)
}
