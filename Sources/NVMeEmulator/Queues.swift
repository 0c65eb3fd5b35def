// SPDX-License-Identifier: Apache-2.0
// The state of submission and completion queues. NVM Express Base Specification 2.0, section 3.3.

internal import NVMeSpec

/// One submission queue as the controller has it.
@safe
struct SubmissionQueue {
    var isActive = false
    /// A tail beyond the queue was written: nothing is fetched until the queue is created anew.
    var isBroken = false
    var entryCount: UInt32 = 0
    var address: UInt64 = 0
    /// The entries, where one mapped region holds them all; nil goes through the address space.
    var entries: UnsafeMutableRawPointer?
    /// Where the host's tail is read: a doorbell or a shadow doorbell.
    var source: UnsafeMutableRawPointer?
    /// Where the host learns when it has to ring; nil without shadow doorbells.
    var eventIndex: UnsafeMutableRawPointer?
    /// The value last stored there.
    var armedAt: UInt32 = 0
    var head: UInt32 = 0
    var tail: UInt32 = 0
    var completionQueue: UInt16 = 0
}

/// One completion queue as the controller has it.
@safe
struct CompletionQueue {
    var isActive = false
    var isBroken = false
    var entryCount: UInt32 = 0
    var address: UInt64 = 0
    var entries: UnsafeMutableRawPointer?
    /// Where the host's head is read.
    var source: UnsafeMutableRawPointer?
    var eventIndex: UnsafeMutableRawPointer?
    var head: UInt32 = 0
    var tail: UInt32 = 0
    var phase: UInt16 = 1
    var vector: UInt16 = 0
    var interruptsEnabled = false
    /// How many submission queues complete here.
    var users: UInt32 = 0

    // Interrupt suppression (Controller+Interrupts.swift).

    /// Something was posted in this pass.
    var isDirty = false
    /// The host had taken everything when the first entry of this pass was posted: it may be
    /// asleep.
    var hadCaughtUp = false
    /// Entries were posted after the last interrupt, and the host was not seen to take them.
    var owesInterrupt = false
    /// When the debt began.
    var owedSinceNanoseconds: UInt64 = 0
    /// The host took entries faster than an interrupt could have woken it: it polls.
    var hostPolls = false
    /// How many interrupts are raised at once before the host is believed to poll again.
    var distrust: UInt32 = 0
    /// What `distrust` begins with after the next disappointment; doubles each time.
    var nextDistrust: UInt32 = 16
    /// When an interrupt was raised whose effect is still being watched; 0 when none is.
    var raisedNanoseconds: UInt64 = 0

    /// Entries that can be posted before the queue is full.
    @inline(__always)
    var room: UInt32 {
        let used = tail >= head ? tail &- head : tail &+ entryCount &- head
        return entryCount &- 1 &- used
    }
}

/// A command that was taken but not completed: delayed, or hanging until it is aborted.
struct HeldCommand {
    var submissionQueue: UInt16
    var commandID: UInt16
    /// When to complete; nil means never.
    var dueNanoseconds: UInt64?
    var status: UInt16
    var dword0: UInt32
    var entry: UInt8
    /// The command, to be executed when its time has come; nil: it has been executed.
    var postponed: SubmissionEntry?
}
