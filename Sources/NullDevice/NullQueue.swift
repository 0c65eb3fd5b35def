// SPDX-License-Identifier: Apache-2.0
// A queue pair as the null device sees it (NVM Express Base Specification 1.4, 4.1).

internal import CMemory
internal import NVMeSpec

/// Where the null device is in a submission queue and its completion queue.
@safe
struct NullQueue {
    /// What each queue has for itself, so that threads share no cache line.
    static let strideByteCount = 128

    private var submission: UInt = 0
    private var completion: UInt = 0
    private var submissionMask: UInt32 = 0
    private var completionMask: UInt32 = 0
    private var head: UInt32 = 0
    private var position: UInt32 = 0
    /// The phase tag of the next completion.
    private var phase: UInt64 = 1
    private var queueID: UInt64 = 0

    /// No queue: doorbells are ignored.
    init() {}

    /// A queue pair; entries are powers of two, as the driver has them. Without memory, doorbells
    /// are ignored.
    init(
        queueID: UInt16, submission: UnsafeMutableRawPointer?,
        completion: UnsafeMutableRawPointer?, submissionEntries: UInt32,
        completionEntries: UInt32
    ) {
        self.queueID = UInt64(queueID)
        self.submission = UInt(bitPattern: submission)
        self.completion = UInt(bitPattern: completion)
        submissionMask = Self.mask(submissionEntries)
        completionMask = Self.mask(completionEntries)
    }

    private static func mask(_ entries: UInt32) -> UInt32 {
        entries == 0 ? 0 : (1 << (31 - UInt32(entries.leadingZeroBitCount))) - 1
    }

    mutating func setSubmission(_ memory: UnsafeMutableRawPointer, entries: UInt32) {
        submission = UInt(bitPattern: memory)
        submissionMask = Self.mask(entries)
        head = 0
    }

    /// Completes every command up to a doorbell with success. No command is looked at but for its
    /// id: the driver sends what the controller said it has.
    @inline(never)
    static func serve(_ queue: UnsafeMutablePointer<NullQueue>, upTo doorbell: UInt32) {
        let mask = unsafe queue.pointee.submissionMask
        let completionMask = unsafe queue.pointee.completionMask
        guard let submission = unsafe UnsafeMutableRawPointer(bitPattern: queue.pointee.submission),
            let completion = unsafe UnsafeMutableRawPointer(bitPattern: queue.pointee.completion)
        else { return }
        let tail = doorbell & mask
        let id = unsafe queue.pointee.queueID << 16
        var head = unsafe queue.pointee.head
        var position = unsafe queue.pointee.position
        var phase = unsafe queue.pointee.phase
        while head != tail {
            let command = unsafe UInt64(nv_load16(submission + (Int(head) &* 64 &+ 2)))
            head = (head &+ 1) & mask
            let entry = unsafe completion + Int(position) &* 16
            unsafe nv_store64(entry, 0)
            // The phase bit vouches for the rest of the entry.
            unsafe nv_store_release64(
                entry + 8, UInt64(head) | id | command << 32 | phase << 48)
            position = (position &+ 1) & completionMask
            if position == 0 { phase ^= 1 }
        }
        unsafe queue.pointee.head = head
        unsafe queue.pointee.position = position
        unsafe queue.pointee.phase = phase
    }

    // MARK: The admin queue

    /// The next command below a doorbell, copied.
    mutating func take(upTo doorbell: UInt32) -> SubmissionEntry? {
        guard head != doorbell & submissionMask,
            let base = unsafe UnsafeMutableRawPointer(bitPattern: submission)
        else { return nil }
        let entry = unsafe base + Int(head) * SubmissionEntry.byteCount
        head = (head + 1) & submissionMask
        return unsafe entry.loadUnaligned(as: SubmissionEntry.self)
    }

    /// Posts one completion.
    mutating func post(_ commandID: UInt16, status: Status, result: UInt32) {
        guard let base = unsafe UnsafeMutableRawPointer(bitPattern: completion) else { return }
        let entry = unsafe base + Int(position) * 16
        let code = UInt64(status.rawValue) << 49
        unsafe nv_store64(entry, UInt64(result))
        unsafe nv_store_release64(
            entry + 8,
            UInt64(head) | queueID << 16 | UInt64(commandID) << 32 | phase << 48 | code)
        position = (position + 1) & completionMask
        if position == 0 { phase ^= 1 }
    }
}
