# SPDX-License-Identifier: Apache-2.0
"""Runs inside the machine: does what the host asks for over virtio-serial ports, one JSON object a line.

{"id", "command", "timeout", "stdin"}     -> {"id", "status", "stdout", "stderr", "timeout", "cut"}
{"id", "push", "data", "mode", "append"}  -> {"id", "status"}
{"id", "pull", "offset", "length"}        -> {"id", "status", "data", "size"}
{"id", "signal", "to"}                    -> {"id", "status"}   signal to the command with id `to`

Commands run concurrently, each in a session of its own. Data are base64. A status is that of the
command, or minus the number of the signal that ended it.
"""
import base64, glob, json, os, select, signal, subprocess, threading, time, traceback

OUTPUT_LIMIT_BYTES = 4 << 20     # of one stream of one command; what is more is counted, not kept
PULL_LIMIT_BYTES = 1 << 20       # of one answer
PORTS = "/sys/class/virtio-ports/*/name"


class Port:
    """One virtio-serial port: reads requests, starts a thread for each, writes answers whole."""

    def __init__(self, device):
        self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        self.writing = threading.Lock()
        self.running = {}

    def answer(self, **fields):
        data = json.dumps(fields).encode() + b"\n"
        with self.writing:
            while data:
                data = data[os.write(self.fd, data[:1 << 16]):]

    def serve(self):
        pending = bytearray()
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while True:
            poll.poll()
            data = os.read(self.fd, 1 << 16)
            if not data:
                # Nobody has the other side open, and the port has no event for that changing.
                time.sleep(0.25)
                continue
            pending += data
            while (end := pending.find(b"\n")) >= 0:
                line = bytes(pending[:end])
                del pending[:end + 1]
                threading.Thread(target=self.handle, args=(line,), daemon=True).start()

    def handle(self, line):
        try:
            request = json.loads(line)
        except ValueError:
            return
        try:
            fields = self.act(request)
        except Exception:
            fields = {"status": 255, "stdout": "", "stderr": traceback.format_exc()}
        self.answer(id=request.get("id"), **fields)

    def act(self, request):
        if "command" in request:
            return self.run(request)
        if "push" in request:
            return push(request)
        if "pull" in request:
            return pull(request)
        os.killpg(self.running[request["to"]].pid, request["signal"])
        return {"status": 0}

    def run(self, request):
        standard_input = request.get("stdin")
        process = subprocess.Popen(
            ["bash", "-c", request["command"]], start_new_session=True,
            stdin=subprocess.DEVNULL if standard_input is None else subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.running[request["id"]] = process
        outputs = [bytearray(), bytearray()]
        cut = [0, 0]

        def collect(index, pipe):
            while data := pipe.read1(1 << 16):
                room = max(0, OUTPUT_LIMIT_BYTES - len(outputs[index]))
                outputs[index] += data[:room]
                cut[index] += max(0, len(data) - room)

        threads = [threading.Thread(target=collect, args=pair, daemon=True)
                   for pair in ((0, process.stdout), (1, process.stderr))]
        for thread in threads:
            thread.start()
        if standard_input is not None:
            try:
                process.stdin.write(base64.b64decode(standard_input))
                process.stdin.close()
            except BrokenPipeError:
                pass
        late = not ended(process, request.get("timeout", 60))
        if late:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # What a command leaves in the background may hold the pipes open for ever.
        for thread in threads:
            thread.join(1)
        del self.running[request["id"]]
        stdout, stderr = (bytes(output).decode(errors="replace") for output in outputs)
        return {"status": process.returncode, "stdout": stdout, "stderr": stderr,
                "timeout": late, "cut": sum(cut)}


def ended(process, seconds):
    """Whether a process ends in this time. Popen.wait would look twenty times a second."""
    fd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(fd)


def push(request):
    os.makedirs(os.path.dirname(request["push"]) or ".", exist_ok=True)
    with open(request["push"], "ab" if request.get("append") else "wb") as file:
        file.write(base64.b64decode(request["data"]))
        os.fchmod(file.fileno(), request.get("mode", 0o644))
    return {"status": 0}


def pull(request):
    with open(request["pull"], "rb") as file:
        file.seek(request.get("offset", 0))
        data = file.read(min(request.get("length", PULL_LIMIT_BYTES), PULL_LIMIT_BYTES))
    return {"status": 0, "data": base64.b64encode(data).decode()}


def main():
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LANG="C.UTF-8")
    os.chdir("/root")
    threads = []
    for name in sorted(glob.glob(PORTS)):
        with open(name) as file:
            if not file.read().startswith("nvmed."):
                continue
        port = Port("/dev/" + name.split("/")[-2])
        threads.append(threading.Thread(target=port.serve))
        threads[-1].start()
    for thread in threads:
        thread.join()


main()
