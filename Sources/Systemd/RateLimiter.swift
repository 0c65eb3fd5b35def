// SPDX-License-Identifier: Apache-2.0
// How many messages of one kind are written, and how many were not.

/// Counts messages by event and device, in bounded memory.
struct RateLimiter {
    /// What is counted apart.
    struct Key: Hashable {
        /// The event; nil: messages that have none.
        var event: LogEvent?
        /// The device; nil: messages about none.
        var device: String?

        init(_ event: LogEvent?, _ device: String?) {
            self.event = event
            self.device = device
        }

        var burst: Int { event?.burst ?? LogSink.anonymousBurst }
    }

    /// Kinds that are counted apart; further ones share one count. A host has some dozen devices.
    static let kindsMax = 1024

    private struct Bucket {
        var begin: UInt64
        var count = 0
        var suppressed = 0
    }

    private var buckets: [Key: Bucket] = [:]
    /// When the next interval of a bucket that suppressed messages is over.
    private var nextEnd = UInt64.max

    /// Whether to write a message.
    mutating func admit(_ wanted: Key, at now: UInt64) -> Bool {
        if buckets[wanted] == nil, buckets.count >= Self.kindsMax {
            buckets = buckets.filter { !Self.isOver($0.value, now) || $0.value.suppressed > 0 }
        }
        let isKnown = buckets[wanted] != nil || buckets.count < Self.kindsMax
        let key = isKnown ? wanted : Key(nil, nil)
        var bucket = buckets[key] ?? Bucket(begin: now)
        if Self.isOver(bucket, now), bucket.suppressed == 0 { bucket = Bucket(begin: now) }
        let isAdmitted = bucket.count < key.burst
        if isAdmitted {
            bucket.count += 1
        } else {
            bucket.suppressed += 1
            nextEnd = min(nextEnd, bucket.begin &+ LogSink.intervalNanoseconds)
        }
        buckets[key] = bucket
        return isAdmitted
    }

    /// The kinds whose interval is over and that suppressed messages in it, and how many.
    mutating func takeOver(at now: UInt64) -> [(Key, Int)] {
        guard now >= nextEnd else { return [] }
        var over: [(Key, Int)] = []
        nextEnd = .max
        for (key, bucket) in buckets where bucket.suppressed > 0 {
            if Self.isOver(bucket, now) {
                over.append((key, bucket.suppressed))
                buckets[key] = nil
            } else {
                nextEnd = min(nextEnd, bucket.begin &+ LogSink.intervalNanoseconds)
            }
        }
        return over.sorted { ($0.0.event?.rawValue ?? "") < ($1.0.event?.rawValue ?? "") }
    }

    private static func isOver(_ bucket: Bucket, _ now: UInt64) -> Bool {
        now &- bucket.begin >= LogSink.intervalNanoseconds
    }
}
