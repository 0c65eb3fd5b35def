// SPDX-License-Identifier: Apache-2.0
// Work that may sleep in the kernel, in a thread of its own.

internal import CLinux

/// Threads beside the control thread, for system calls that nothing can hurry.
public enum BackgroundThread {
    private final class Body {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    /// Runs `body` in a thread of its own, which takes no signals and ends with it. Whoever starts
    /// threads bounds how many there are.
    public static func start(_ body: @escaping @Sendable () -> Void) throws(SystemCallError) {
        let argument = unsafe Unmanaged.passRetained(Body(body)).toOpaque()
        let result = unsafe nv_run_in_background(
            { argument in
                if let argument = unsafe argument {
                    unsafe Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
                }
                return nil
            }, argument)
        guard result < 0 else { return }
        unsafe Unmanaged<Body>.fromOpaque(argument).release()
        throw SystemCallError("pthread_create", errno: 0 &- result)
    }
}
