# SPDX-License-Identifier: Apache-2.0
"""A machine as tests see it: commands run in it, files go in and out, its hardware changes.

A test is a function `test_…(guest)` of a module `test_*.py`; the first sentence of its docstring is
its line in the report. It fails by raising; `check` says what was expected. Machines are shared: a
test puts back what it changed, or is marked `@own_machine`.
"""
import base64, concurrent.futures, contextlib, ctypes, itertools, json, os, queue, re, shlex, shutil
import signal, socket, subprocess, tempfile, threading, time

import cpio, machine

BOOT_SECONDS = 240
COMMAND_SECONDS = 90
CHUNK_BYTES = 256 << 10


class Failure(Exception):
    """What a test expected did not happen."""


def check(condition, text):
    if not condition:
        raise Failure(text)


def own_machine(test):
    """Marks a test that gets a machine to itself; the next test gets a new one too."""
    test.own_machine = True
    return test


def makes_machines(test):
    """Marks a test that makes its own machines from the one it gets, which is not booted."""
    test.own_machine = test.makes_machines = True
    return test


def needs(*features):
    """Marks a test that runs only where the kernel has these: "iommufd", "noiommu" (KERNEL=full), "trace" (the usual one)."""
    def mark(test):
        test.needs = features
        return test
    return mark


def thorough(test):
    """Marks a test of minutes, which GUEST_QUICK=1 leaves out."""
    test.thorough = True
    return test


def boots_with(append):
    """Marks a test whose machine has this on its kernel's command line; tests with the same one share it."""
    def mark(test):
        test.append = append
        return test
    return mark


def seconds_limit(seconds):
    """Marks a test that may take longer than the usual bound."""
    def mark(test):
        test.seconds_limit = seconds
        return test
    return mark


class Result:
    """What a command in the machine said."""

    def __init__(self, command, answer):
        self.command, self.status = command, answer["status"]
        self.stdout, self.stderr = answer.get("stdout", ""), answer.get("stderr", "")
        self.late = answer.get("timeout", False)

    @property
    def ok(self):
        return self.status == 0

    @property
    def text(self):
        return self.stdout.strip()

    @property
    def json(self):
        return json.loads(self.stdout)

    def __str__(self):
        ended = "ran out of time" if self.late else f"ended with {self.status}"
        return f"{self.command!r} {ended}\n{self.stdout[-6000:]}{self.stderr[-6000:]}"


class Agent:
    """The agent's port: requests and answers are paired by id; any number may be under way."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.ids = itertools.count(1)
        self.waiting = {}
        self.lock = threading.Lock()
        self.closed = None
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        pending = b""
        try:
            while data := self.socket.recv(1 << 20):
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    with contextlib.suppress(ValueError):
                        self.deliver(json.loads(line))
        except OSError:
            pass
        self.fail("the machine is gone")

    def deliver(self, answer):
        with self.lock:
            future = self.waiting.pop(answer["id"], None)
        if future:
            future.set_result(answer)

    def fail(self, reason):
        with self.lock:
            self.closed = reason
            waiting, self.waiting = self.waiting, {}
        for future in waiting.values():
            future.set_exception(Failure(reason))

    def send(self, **request):
        future = concurrent.futures.Future()
        future.id = next(self.ids)
        with self.lock:
            if self.closed:
                raise Failure(self.closed)
            self.waiting[future.id] = future
            self.socket.sendall(json.dumps(request | {"id": future.id}).encode() + b"\n")
        return future

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Monitor:
    """QMP, QEMU's control socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.answers, self.events = queue.Queue(), []
        self.changed = threading.Condition()
        self.lock = threading.Lock()
        threading.Thread(target=self.read, daemon=True).start()
        self.answers.get(timeout=30)
        self.execute("qmp_capabilities")

    def read(self):
        with contextlib.suppress(OSError, ValueError):
            for line in self.socket.makefile("rb"):
                message = json.loads(line)
                if "event" in message:
                    with self.changed:
                        self.events.append(message)
                        self.changed.notify_all()
                else:
                    self.answers.put(message)
        self.answers.put({"error": {"desc": "the machine is gone"}})

    def execute(self, command, **arguments):
        with self.lock:
            self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            answer = self.answers.get(timeout=30)
        check("return" in answer, f"QMP {command} {arguments}: {answer.get('error', {}).get('desc')}")
        return answer["return"]

    def wait_event(self, name, seconds=60, since=0, **fields):
        """The first event of this name, after the `since` first events, whose data has these fields."""
        def found():
            for event in self.events[since:]:
                data = event.get("data", {})
                if event["event"] == name and all(data.get(key) == value for key, value in fields.items()):
                    return event
        with self.changed:
            check(self.changed.wait_for(found, seconds), f"no {name} {fields} within {seconds} s")
            return found()


class Guest:
    """One machine. `boot` may be called again after `power_kill`: the drives are the same."""

    def __init__(self, kernel, initramfs, results, controllers=None, append="", memory=None, features=()):
        self.kernel, self.initramfs, self.results = kernel, initramfs, results
        self.controllers = machine.standard() if controllers is None else controllers
        self.append, self.features = append, features
        self.memory = memory or machine.MEMORY_MEBIBYTES
        self.directory = tempfile.mkdtemp(prefix="nvg.", dir="/tmp")
        self.process = None
        self.installed = False
        self.boots = 0

    # Life

    def boot(self):
        start = time.monotonic()
        for name in ("qmp", "agent", "shell"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.directory, name))
        self.boots += 1
        self.installed = False
        self.output = open(os.path.join(self.directory, "qemu.log"), "w")
        self.process = subprocess.Popen(
            machine.command(self.directory, self.kernel, self.initramfs, self.controllers, self.append,
                            self.memory),
            stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output, start_new_session=True,
            preexec_fn=die_with_parent)
        try:
            self.monitor = Monitor(self.wait_socket("qmp"))
            self.agent = Agent(self.wait_socket("agent"))
            self.run("systemctl is-system-running --wait", timeout=BOOT_SECONDS)
        except BaseException as error:
            self.kill()
            raise Failure(f"the machine did not start: {error}\n{self.console()[-3000:]}") from error
        self.boot_seconds = time.monotonic() - start
        return self

    def wait_socket(self, name):
        path = os.path.join(self.directory, name)
        deadline = time.monotonic() + 30
        while not os.path.exists(path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                with open(self.output.name) as file:
                    raise Failure(f"QEMU: {file.read()}")
            time.sleep(0.02)
        return path

    def power_kill(self):
        """Pulls the plug: QEMU dies at once, nothing is written back by the machine."""
        self.kill()

    def kill(self):
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.process = None
        for name in ("agent", "monitor"):
            if hasattr(self, name):
                with contextlib.suppress(OSError):
                    getattr(self, name).socket.shutdown(socket.SHUT_RDWR)
        self.output.close()

    def power_off(self, seconds=120):
        """An orderly shutdown, waited for."""
        self.agent.send(command="systemctl poweroff", timeout=30)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"the machine was not off after {seconds} s:\n{self.console()[-3000:]}") from None
        self.kill()

    def reboot(self):
        """Boots once more with the package and with what is in /etc now: the root is in memory only."""
        self.expect("tar -C / -cf /run/etc.tar etc", 60)
        kept = os.path.join(self.directory, "etc.tar")
        with open(kept, "wb") as file:
            file.write(self.pull("/run/etc.tar"))
        files = os.path.join(self.directory, "package.tar")
        with open(files, "wb") as file:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", os.environ["NVMED_DEB"]], stdout=file, check=True)
        initramfs = os.path.join(self.directory, "initramfs")
        shutil.copy(self.initramfs, initramfs)
        with open(initramfs, "ab") as file:
            archive = cpio.Archive(file)
            for tar in (files, kept):
                archive.add_tar(tar, lambda name: True)
            archive.end()
        self.power_off()
        self.initramfs = initramfs
        self.boot()
        self.installed = True

    def close(self):
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def console(self):
        with contextlib.suppress(FileNotFoundError):
            with open(os.path.join(self.directory, "console.log"), errors="replace") as file:
                return file.read()
        return ""

    # Commands and files

    def start(self, command, timeout=COMMAND_SECONDS, stdin=None):
        """Starts a command; `.result()` of what it returns is its Result, `stop` ends it."""
        data = None if stdin is None else base64.b64encode(stdin if isinstance(stdin, bytes)
                                                          else stdin.encode()).decode()
        future = self.agent.send(command=command, timeout=timeout, stdin=data)
        return Running(self, command, future, timeout)

    def run(self, command, timeout=COMMAND_SECONDS, stdin=None):
        """Runs a shell command and returns its Result, whatever its status."""
        return self.start(command, timeout, stdin).result()

    def expect(self, command, timeout=COMMAND_SECONDS, stdin=None, status=0):
        """Runs a shell command that has to end with `status`; returns its Result."""
        result = self.run(command, timeout, stdin)
        if result.status != status:
            raise Failure(f"expected status {status}: {result}")
        return result

    def wait_for(self, condition, timeout=60):
        """Waits until a shell command succeeds; it is repeated in the machine, not over the port."""
        loop = f"until {{ {condition}\n}} >/tmp/wait.$$ 2>&1; do read -rt 0.2 <> <(:) || :; done; " \
               "cat /tmp/wait.$$; rm -f /tmp/wait.$$"
        result = self.run(loop, timeout)
        if not result.ok:
            last = self.run(condition, 30)
            raise Failure(f"did not come true within {timeout} s: {last}")
        return result

    def wait_growth(self, path, size, seconds=60):
        """Waits until a file of the host that the machine writes has this size."""
        deadline = time.monotonic() + seconds
        while os.path.getsize(path) < size:
            check(self.alive and time.monotonic() < deadline, f"{path} did not reach {size} bytes in {seconds} s")
            time.sleep(0.05)

    def push(self, source, target, mode=0o644):
        """Copies a file of the host, or bytes, into the machine."""
        if isinstance(source, str):
            with open(source, "rb") as file:
                source = file.read()
        for offset in range(0, max(1, len(source)), CHUNK_BYTES):
            part = base64.b64encode(source[offset:offset + CHUNK_BYTES]).decode()
            answer = self.agent.send(push=target, data=part, mode=mode, append=offset > 0).result(60)
            check(answer["status"] == 0, f"push {target}: {answer.get('stderr')}")

    def write(self, target, text, mode=0o644):
        self.push(text.encode(), target, mode)

    def pull(self, source):
        """The bytes of a file of the machine."""
        parts, offset = [], 0
        while True:
            answer = self.agent.send(pull=source, offset=offset).result(60)
            check(answer["status"] == 0, f"pull {source}: {answer.get('stderr')}")
            data = base64.b64decode(answer["data"])
            if not data:
                return b"".join(parts)
            parts.append(data)
            offset += len(data)

    # What is tested

    def install(self):
        """Installs the package, once a boot. Without a package the bare programs are in place."""
        if not self.installed and self.run("test -e /root/nvmed.deb").ok:
            self.expect("dpkg -i /root/nvmed.deb", timeout=120)
        self.installed = True
        return self

    def serve(self, serial, name, namespaces=(1,), settings="", disk_settings=""):
        """Has nvmed serve a controller: device `name`, disks `name` + namespace. Idempotent."""
        self.install()
        address = self.address(serial)
        self.write(f"/etc/nvmed/{name}.device", f"[Device]\nTransport=pci\nAddress={address}\n{settings}")
        for nsid in namespaces:
            self.write(f"/etc/nvmed/{name}{nsid}.disk",
                       f"[Disk]\nDevice={name}\nNamespace={nsid}\nAccess=read-write\n{disk_settings}")
        self.expect(f"nvmectl device bind {address}")
        self.reload()
        return self

    def reload(self):
        """Has nvmed read its configuration; starts it if it does not run."""
        self.expect("nvmectl reload", timeout=60)

    def give_back(self, name):
        """Ends what `serve` did: the kernel's driver has the controller again, with its disks."""
        found = self.expect(f"sed -n s/^Address=//p /etc/nvmed/{name}.device").text
        self.expect(f"nvmectl device unbind {found}", timeout=90)
        self.expect(f"rm -f /etc/nvmed/{name}.device /etc/nvmed/{name}[0-9]*.disk")
        self.reload()
        self.wait_for(f"ls /sys/bus/pci/devices/{found}/nvme/nvme*/nvme*n*")

    def journal(self, unit=None, since=None, output="short-monotonic"):
        options = "".join(f" -u {shlex.quote(one)}" for one in ([unit] if isinstance(unit, str) else unit or []))
        since = f" --after-cursor={shlex.quote(since)}" if since else ""
        return self.expect(f"journalctl --no-pager -o {output}{options}{since}", 60).stdout

    def journal_cursor(self):
        """Where the journal is now, for `journal(since=…)`."""
        return self.expect("journalctl -n 0 --show-cursor").text.splitlines()[-1].removeprefix("-- cursor: ")

    # Hardware

    def qmp(self, command, **arguments):
        return self.monitor.execute(command, **arguments)

    def address(self, serial):
        """The PCI address of the controller with this serial number, whoever drives it."""
        if not hasattr(self, "addresses") or self.addresses_boot != self.boots:
            self.addresses, self.addresses_boot = {}, self.boots
        if serial not in self.addresses:
            found = self.run("cd /sys/class/nvme && for n in *; do "
                             "echo $(cat $n/serial $n/address); done").stdout
            self.addresses |= dict(line.split() for line in found.splitlines() if len(line.split()) == 2)
        check(serial in self.addresses, f"no controller {serial}: {self.addresses}")
        return self.addresses[serial]

    def throttle(self, drive, operations=0, bytes=0):
        """Limits a throttled drive to so many operations and bytes a second; 0 is no limit."""
        limits = {"iops-total": operations, "bps-total": bytes}
        self.qmp("qom-set", path="/objects/throttle-" + drive, property="limits", value=limits)

    def unplug(self, device, seconds=60):
        """Asks for the removal of a device and waits until QEMU says that it is gone."""
        before = len(self.monitor.events)
        self.qmp("device_del", id=device)
        self.monitor.wait_event("DEVICE_DELETED", seconds, since=before, device=device)

    def plug(self, **device):
        """Adds a device: `driver`, `id`, `bus` and its properties."""
        self.qmp("device_add", **device)

    def add_drive(self, drive):
        """Adds a Drive that no device shows yet."""
        arguments = drive.arguments(self.directory)
        for option, value in zip(arguments[::2], arguments[1::2]):
            self.qmp({"-object": "object-add", "-blockdev": "blockdev-add"}[option], **json.loads(value))

    def bind(self, address, driver):
        """Gives the device at a PCI address to a driver by hand, without nvmed's help."""
        self.expect(f"""set -e; cd /sys/bus/pci/devices/{address}
            modprobe {driver} || :
            echo {driver} >driver_override
            [ ! -e driver ] || echo {address} >driver/unbind
            echo {address} >/sys/bus/pci/drivers_probe
            test "$(basename $(readlink driver))" = {driver}
            echo >driver_override""")

    def disks(self, serial):
        """The kernel's block devices of a controller that its own driver has: {nsid: "/dev/…"}."""
        listing = self.expect(f"""cd /sys/class/block; for n in $(ls | grep -E '^nvme[0-9]+n[0-9]+$'); do
            [ "$(tr -d ' ' <$n/device/serial)" != {serial} ] || echo $(cat $n/nsid) /dev/$n; done""").stdout
        return {int(line.split()[0]): line.split()[1] for line in listing.splitlines()}

    # Failure

    def keep(self, name):
        """Keeps console and journal of a failure; returns the directory."""
        target = os.path.join(self.results, name)
        os.makedirs(target, exist_ok=True)
        for file in ("console.log", "qemu.log"):
            with contextlib.suppress(OSError):
                shutil.copy(os.path.join(self.directory, file), target)
        if self.alive:
            commands = {
                "journal.txt": "journalctl --no-pager -o short-monotonic",
                "journal-nvmed.json": "journalctl --no-pager -o json -u 'nvmed*'",
                "units.txt": "systemctl --no-pager --failed; systemctl --no-pager status 'nvmed*'; ps axf",
                "dmesg.txt": "dmesg",
            }
            for file, command in commands.items():
                with contextlib.suppress(Exception), open(os.path.join(target, file), "w") as output:
                    output.write(self.run(command, 60).stdout)
        return target


class Running:
    """A command under way."""

    def __init__(self, guest, command, future, timeout):
        self.guest, self.command, self.future, self.timeout = guest, command, future, timeout

    @property
    def done(self):
        return self.future.done()

    def result(self):
        try:
            # The agent ends it in time; the rest is for a machine that is busy or dead.
            return Result(self.command, self.future.result(self.timeout + 60))
        except concurrent.futures.TimeoutError:
            raise Failure(f"no answer from the machine: {self.command}") from None

    def stop(self, number=signal.SIGTERM):
        """Sends a signal to the command and its children."""
        self.guest.agent.send(to=self.future.id, signal=int(number)).result(30)
        return self


def die_with_parent():
    """No machine outlives the run, however it ends."""
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
