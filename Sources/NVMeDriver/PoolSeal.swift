// SPDX-License-Identifier: Apache-2.0
// The page of the DMA pool that says which saved state belongs to it: written when the queues are
// quiet, destroyed before anything goes on. It decides whether a saved state may be restored; the
// file with the state does not.

internal import CMemory
internal import DMA
internal import Linux
public import SavedState
internal import VFIO

/// What is on the page: a magic number, the token (two words), and a checksum of them.
///
/// The magic word is written last and destroyed first, so that whatever dies in between leaves a
/// page that says nothing.
enum PoolSeal {
    /// The page.
    static let byteCount = 4096
    /// "NVMEDTK1" read as a little-endian number.
    static let magic: UInt64 = 0x314B_5444_454D_564E
    private static let checksumKind: UInt32 = 0x544F_4B45

    /// Writes a token on the page at `page`.
    static func write(_ token: SaveToken, at page: UnsafeMutableRawPointer) {
        unsafe nv_store64(page, 0)
        nv_dma_wmb()
        let words = token.words
        unsafe nv_store64(page + 8, words.first)
        unsafe nv_store64(page + 16, words.second)
        unsafe nv_store64(page + 24, checksum(token))
        nv_dma_wmb()
        unsafe nv_store64(page, magic)
        nv_full_fence()
    }

    /// Destroys what is on the page; whether there was a token.
    @discardableResult
    static func destroy(at page: UnsafeMutableRawPointer) -> Bool {
        let known = unsafe read(at: page) != nil
        unsafe nv_store64(page, 0)
        nv_dma_wmb()
        for word in 1..<4 { unsafe nv_store64(page + word * 8, 0) }
        nv_full_fence()
        return known
    }

    /// The token on the page; nil: there is none, or it is damaged.
    static func read(at page: UnsafeMutableRawPointer) -> SaveToken? {
        guard unsafe nv_load64(page) == magic else { return nil }
        let token = unsafe SaveToken(first: nv_load64(page + 8), second: nv_load64(page + 16))
        guard let token, unsafe nv_load64(page + 24) == checksum(token) else { return nil }
        return token
    }

    private static func checksum(_ token: SaveToken) -> UInt64 {
        var crc = checksumKind
        let words = token.words
        for word in [magic, words.first, words.second] { crc = nv_crc32c_64(crc, word) }
        return UInt64(crc) | 1 << 32
    }
}

extension NVMeController {
    private var sealPage: UnsafeMutableRawPointer? {
        guard let plan else { return nil }
        return unsafe pool?.deviceReadsAddress(plan.token)
    }

    /// Writes a token into the pool: the state that is told next is this pool's. Nothing may be
    /// submitted or reaped any more. False when there is no pool.
    public func sealPool(_ token: SaveToken) -> Bool {
        guard let page = unsafe sealPage else { return false }
        unsafe PoolSeal.write(token, at: page)
        return true
    }

    /// Destroys the pool's token: no saved state can be restored with it any more. To be called
    /// before anything goes on. Returns whether there was one.
    @discardableResult
    public func unsealPool() -> Bool {
        guard let page = unsafe sealPage else { return false }
        return unsafe PoolSeal.destroy(at: page)
    }

    /// The token in the pool; nil: there is none, or it is damaged.
    public var poolSeal: SaveToken? {
        guard let page = unsafe sealPage else { return nil }
        return unsafe PoolSeal.read(at: page)
    }
}
