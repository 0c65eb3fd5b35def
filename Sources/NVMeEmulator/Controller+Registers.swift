// SPDX-License-Identifier: Apache-2.0
// Reading and writing the controller properties and doorbells.
// NVM Express Base Specification 2.0, section 3.1.3; NVMe over PCIe Transport 1.0, section 3.1.2.

internal import NVMeSpec

extension Controller {
    /// The size of BAR0: the properties, one page of doorbells, and room to spare.
    static let registerByteCount: UInt64 = 16384

    /// Reads bytes of BAR0 into `bytes`.
    func readRegisters(offset: UInt64, into bytes: inout [UInt8], count: Int) {
        for index in 0..<count {
            let at = offset &+ UInt64(index)
            let word = register(at & ~7)
            bytes.append(UInt8(truncatingIfNeeded: word >> ((at & 7) &* 8)))
        }
    }

    /// The eight bytes at an offset that is a multiple of eight.
    func register(_ offset: UInt64) -> UInt64 {
        if faults.registerAction({ $0 == .gone }) != nil { isGone = true }
        guard !isGone else { return .max }
        let word = plainRegister(offset)
        return faults.concerns(.register) ? falsified(word, offset) : word
    }

    private func plainRegister(_ offset: UInt64) -> UInt64 {
        switch offset {
        case RegisterOffset.cap: cap.rawValue
        case RegisterOffset.vs:
            UInt64(SpecificationVersion.v2_0.rawValue) | UInt64(interrupts.pinMask) << 32
        case RegisterOffset.intmc: UInt64(interrupts.pinMask) | UInt64(cc.rawValue) << 32
        case 0x18: UInt64(csts.rawValue) << 32
        case 0x20: UInt64(aqa.rawValue) << 32
        case RegisterOffset.asq: asq
        case RegisterOffset.acq: acq
        case RegisterOffset.crto: UInt64(options.readyTimeout)
        default: 0
        }
    }

    /// Applies the rules that replace fields.
    private func falsified(_ word: UInt64, _ offset: UInt64) -> UInt64 {
        var word = word
        for field in RegisterField.allCases {
            guard let (base, low, width) = Self.place(field), base == offset else { continue }
            let action = faults.registerAction {
                if case .field(field, _) = $0 { true } else { false }
            }
            guard case .field(_, let value) = action else { continue }
            let mask: UInt64 = (1 << width &- 1) << low
            word = word & ~mask | (value << low) & mask
        }
        return word
    }

    /// The word, lowest bit and width of a field.
    private static func place(_ field: RegisterField) -> (UInt64, UInt64, UInt64)? {
        switch field {
        case .mqes: (0, 0, 16)
        case .cqr: (0, 16, 1)
        case .to: (0, 24, 8)
        case .dstrd: (0, 32, 4)
        case .css: (0, 37, 8)
        case .mpsmin: (0, 48, 4)
        case .mpsmax: (0, 52, 4)
        case .crms: (0, 59, 2)
        case .vs: (8, 0, 32)
        case .crto: (0x68, 0, 32)
        case .csts: (0x18, 32, 32)
        }
    }

    /// Writes bytes of BAR0. Only aligned 4 and 8 byte writes mean anything; false for others.
    func writeRegisters(offset: UInt64, value: UInt64, byteCount: Int) -> Bool {
        guard !isGone else { return true }
        switch byteCount {
        case 4 where offset & 3 == 0: write32(offset, UInt32(truncatingIfNeeded: value))
        case 8 where offset & 7 == 0:
            write32(offset, UInt32(truncatingIfNeeded: value))
            write32(offset &+ 4, UInt32(truncatingIfNeeded: value >> 32))
        default: return false
        }
        return true
    }

    private func write32(_ offset: UInt64, _ value: UInt32) {
        if offset >= RegisterOffset.doorbells { return ringDoorbell(offset, value) }
        let high = UInt64(value) << 32
        switch offset {
        case RegisterOffset.intms: interrupts.pinMask |= value
        case RegisterOffset.intmc: interrupts.pinMask &= ~value
        case RegisterOffset.cc: configure(value)
        case RegisterOffset.csts where value & 0x10 != 0: csts.nssro = false
        case RegisterOffset.nssr where value == subsystemResetSignature: resetSubsystem()
        // The admin queue registers may change only while the controller is disabled.
        case RegisterOffset.aqa where !cc.en:
            aqa = AdminQueueAttributes(rawValue: value & 0x0FFF_0FFF)
        case RegisterOffset.asq where !cc.en: asq = asq & ~0xFFFF_FFFF | UInt64(value & ~0xFFF)
        case RegisterOffset.asq + 4 where !cc.en: asq = asq & 0xFFFF_FFFF | high
        case RegisterOffset.acq where !cc.en: acq = acq & ~0xFFFF_FFFF | UInt64(value & ~0xFFF)
        case RegisterOffset.acq + 4 where !cc.en: acq = acq & 0xFFFF_FFFF | high
        default: break
        }
    }

    /// Whether a write to this offset only rings a doorbell: it can be done at any moment.
    static func isDoorbell(_ offset: UInt64) -> Bool {
        offset >= RegisterOffset.doorbells
            && offset < RegisterOffset.doorbells + UInt64(doorbellByteCount)
    }

    /// Stores what a message wrote to a doorbell. The queue takes notice in the next pass.
    private func ringDoorbell(_ offset: UInt64, _ value: UInt32) {
        guard Self.isDoorbell(offset) else { return }
        counters.doorbellMessages &+= 1
        let place = Int(truncatingIfNeeded: offset &- RegisterOffset.doorbells)
        let queue = place / 8
        let isCompletion = place & 4 != 0
        guard csts.rdy else { return }
        guard queue < submission.count,
            isCompletion ? completion[queue].isActive : submission[queue].isActive
        else {
            counters.doorbellsInvalid &+= 1
            return report(.invalidDoorbellRegister)
        }
        doorbells.store32(place, value)
    }
}
