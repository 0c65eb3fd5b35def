# SPDX-License-Identifier: Apache-2.0
"""The worker that dies at named points: its build, the names, and the plan that tells it where."""
import mmap, os, re, struct, subprocess, sys, tempfile

from stack import ROOT

SCRATCH = os.path.join(ROOT, ".build-crash")
WORKER = os.path.join(SCRATCH, "release/nvmed-worker")
SOURCE = os.path.join(ROOT, "Sources/NVMeDriver/CrashPoint.swift")


def is_servicing(point):
    """Reached only when everything is stopped and started: .ci/servicing has these."""
    return point.startswith(("save", "thaw", "restore"))


def points():
    """Names and numbers of all points."""
    return {name: int(number) for name, number in
            re.findall(r"^ *case (\w+) = (\d+)$", open(SOURCE).read(), re.MULTILINE)}


def places():
    found = {name: [] for name in points()}
    for directory, _, names in os.walk(os.path.join(ROOT, "Sources")):
        for name in names:
            if name.endswith(".swift"):
                text = open(os.path.join(directory, name)).read()
                for call in re.findall(r"CrashPoint\.hit\(([^()]*)\)", text):
                    for point in re.findall(r"(?<!\w)\.(\w+)", call):
                        found.setdefault(point, []).append(name)
    return found


def show_points():
    nowhere = 0
    for point, names in places().items():
        print(f"{point}: {' '.join(sorted(set(names))) or 'NOWHERE'}")
        nowhere += not names
    if nowhere:
        sys.exit(f"crash: {nowhere} points are nowhere")


def build():
    os.makedirs(os.path.join(ROOT, ".build"), exist_ok=True)
    log = os.path.join(ROOT, ".build/crash-build.log")
    with open(log, "w") as output:
        done = subprocess.run(
            ["swift", "build", "--configuration", "release", "--static-swift-stdlib", "--product",
             "nvmed-worker", "-Xswiftc", "-DNVMED_CRASH_POINTS", "--scratch-path", SCRATCH,
             "--package-path", ROOT], stdout=output, stderr=output)
    if done.returncode:
        sys.exit(open(log).read())
    print(WORKER)


def build_if_stale():
    """Builds the worker if a source is newer."""
    newest = max(os.path.getmtime(os.path.join(directory, name))
                 for directory, _, names in os.walk(os.path.join(ROOT, "Sources")) for name in names)
    if not os.path.exists(WORKER) or os.path.getmtime(WORKER) < newest:
        build()


class Plan:
    """The memory that the worker's crash points look at: Sources/NVMeDriver/CrashPlan.swift."""
    STEPS = 16

    def __init__(self):
        self.file = tempfile.NamedTemporaryFile(prefix="nvp.", dir="/tmp")
        self.file.truncate(4096)
        self.memory = mmap.mmap(self.file.fileno(), 4096)

    def word(self, offset):
        return struct.unpack_from("<I", self.memory, offset)[0]

    def disarm(self):
        struct.pack_into("<I", self.memory, 0, self.STEPS)

    def arm(self, *steps):
        """Each {point, count} or {point, count, 1: stop instead}, one after another."""
        self.disarm()
        for index in range(self.STEPS):
            point, count, action = (*steps[index], 0)[:3] if index < len(steps) else (-1, 0, 0)
            struct.pack_into("<IIII", self.memory, 64 + 16 * index, point + 1, count, action, 0)
        struct.pack_into("<I", self.memory, 0, 0)

    @property
    def fired(self):
        return self.word(0)

    def reached(self):
        return {name for name, number in points().items() if self.word(1024 + 4 * number)}

    def forget(self):
        self.memory[1024:2048] = bytes(1024)
