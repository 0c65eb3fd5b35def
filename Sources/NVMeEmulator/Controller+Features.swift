// SPDX-License-Identifier: Apache-2.0
// Get and Set Features. NVM Express Base Specification 2.0, sections 5.15 and 5.27.

internal import NVMeSpec

extension Controller {
    static let supportedFeatures: [FeatureID] = [
        .arbitration, .powerManagement, .temperatureThreshold, .errorRecovery,
        .volatileWriteCache, .numberOfQueues, .interruptCoalescing,
        .interruptVectorConfiguration, .writeAtomicityNormal, .asynchronousEventConfiguration,
        .ioCommandSetProfile,
    ]

    /// Values after a reset.
    func resetFeatures() {
        features.removeAll()
        for id in Self.supportedFeatures { features[id.rawValue] = defaultFeature(id) }
    }

    private func defaultFeature(_ id: FeatureID) -> UInt32 {
        switch id {
        case .volatileWriteCache: 1
        case .temperatureThreshold: 343
        case .numberOfQueues: grantedQueues
        default: 0
        }
    }

    /// Dword 0 of Number of Queues: what there is, zero-based, in both halves.
    private var grantedQueues: UInt32 {
        let count = UInt32(options.ioQueueCount) &- 1
        return count | count << 16
    }

    func getFeatures(_ entry: SubmissionEntry) -> Outcome {
        let id = entry.featureID
        guard Self.supportedFeatures.contains(id) else { return .done(.invalidField, 0) }
        switch entry.featureSelect {
        // Nothing can be saved, so the saved value is the default.
        case .default, .saved: return .done(.success, defaultFeature(id))
        case .supportedCapabilities: return .done(.success, isChangeable(id) ? 4 : 0)
        case .current: break
        default: return .done(.invalidField, 0)
        }
        if id == .interruptVectorConfiguration {
            let vector = entry.cdw11 & 0xFFFF
            guard vector < UInt32(options.vectorCount) else { return .done(.invalidField, 0) }
            return .done(.success, vector)
        }
        if id == .temperatureThreshold, (entry.cdw11 >> 16) & 0xF != 0 {
            // Only the composite temperature has a sensor; under-temperature never triggers.
            return .done(.invalidField, 0)
        }
        return .done(.success, features[id.rawValue] ?? 0)
    }

    private func isChangeable(_ id: FeatureID) -> Bool { id != .numberOfQueues }

    func setFeatures(_ entry: SubmissionEntry) -> Outcome {
        let id = entry.featureID
        guard Self.supportedFeatures.contains(id) else { return .done(.invalidField, 0) }
        guard !entry.featureSave else { return .done(.featureNotSaveable, 0) }
        let value = entry.cdw11
        switch id {
        case .numberOfQueues: return setNumberOfQueues(value)
        case .powerManagement where value & 0x1F != 0: return .done(.invalidField, 0)
        case .temperatureThreshold where (value >> 16) & 0xF != 0:
            return .done(.invalidField, 0)
        case .interruptVectorConfiguration
        where value & 0xFFFF >= UInt32(options.vectorCount):
            return .done(.invalidField, 0)
        case .ioCommandSetProfile where value & 0x1FF != 0:
            return .done(.ioCommandSetCombinationRejected, 0)
        default: break
        }
        features[id.rawValue] = value
        return .done(.success, 0)
    }

    private func setNumberOfQueues(_ value: UInt32) -> Outcome {
        guard value & 0xFFFF != 0xFFFF, value >> 16 != 0xFFFF else {
            return .done(.invalidField, 0)
        }
        guard activeQueues.isEmpty, !hasCompletionQueues else {
            return .done(.commandSequenceError, 0)
        }
        return .done(.success, grantedQueues)
    }

    private var hasCompletionQueues: Bool {
        for index in 1..<completion.count where completion[index].isActive { return true }
        return false
    }
}
