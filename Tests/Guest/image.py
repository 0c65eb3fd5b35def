# SPDX-License-Identifier: Apache-2.0
"""Makes the machine's kernel and root, once for each recipe, which is the text of this program.

The root is an initramfs, so the whole machine lives in memory and every boot starts afresh. What is
tested is not part of it: that is a second, small archive made for each run (`payload`).
"""
import contextlib, fcntl, glob, hashlib, io, os, re, shutil, stat, subprocess, sys, tempfile, time

import cpio

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
RECIPE = ("image.py", "cpio.py")
KERNEL = "linux-image-6.12-cloud-amd64"

# What is in the machine beside Debian's essential packages, and why.
PACKAGES = {
    "systemd": "what is tested", "systemd-sysv": "reboot, poweroff", "udev": "rules for devices",
    "dbus": "the bus that units are stopped over", "kmod": "modules", "procps": "ps, pgrep",
    "dmsetup": "something that is built on a device", "fio": "load with verification", "nvme-cli": "the other opinion on identify data",
    "python3": "the agent; clients in another language",
    "libsystemd0": "needed by nvmed", "libprotobuf-c1": "needed by nvmed", "libstdc++6": "needed by nvmed",
    "e2fsprogs": "file systems to mount", "dmsetup": "something that holds a device",
    "mount": "mount, swapon, losetup", "pciutils": "lspci, setpci", "strace": "what a process does",
}

# Modules and what they need; the drivers of NVMe and ext4 are built in.
MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "vfio", "vfio_pci", "vfio_iommu_type1",
           "ublk_drv", "loop", "dm_mod", "overlay", "autofs4", "configfs", "nvme", "nvme_core",
           "ext4", "dm_crypt", "md_mod", "raid1", "fuse", "iommufd")

LEFT_OUT = re.compile(
    r"(dev|proc|sys|run|tmp|var/cache|var/lib/apt|usr/share/(doc|man|info|locale|lintian|bug|zoneinfo|"
    r"i18n|bash-completion|zsh|perl|perl5|gdb|pixmaps|menu|applications)|usr/lib/python3[.0-9]*/"
    r"(test|idlelib|lib2to3|ensurepip|pydoc_data|distutils|unittest|tkinter)|"
    r"usr/lib/udev/hwdb.d|etc/udev/hwdb.bin|usr/lib/x86_64-linux-gnu/(gconv|perl)|usr/lib/locale/(?!C)|"
    r"usr/share/fio)/.|usr/lib/udev/hwdb.bin|usr/share/misc/pci.ids|usr/bin/(localedef|perl5.36.0)$|"
    r"usr/lib/x86_64-linux-gnu/libperl.so|usr/lib/systemd/systemd-(networkd|resolved)$|"
    r"usr/lib/binfmt.d/|var/lib/dpkg/info/.*\.symbols$")

# Nothing of these is needed, and each costs time in a machine that is emulated.
MASKED = ("getty.target", "getty@tty1.service", "serial-getty@ttyS0.service", "systemd-timesyncd.service",
          "systemd-firstboot.service", "systemd-hwdb-update.service", "systemd-networkd.service",
          "systemd-network-generator.service", "systemd-machine-id-commit.service",
          "e2scrub_reap.service", "e2scrub_all.timer", "apt-daily.timer", "apt-daily-upgrade.timer",
          "dpkg-db-backup.timer", "fstrim.timer", "man-db.timer", "systemd-pstore.service",
          "ldconfig.service", "systemd-remount-fs.service", "nvmefc-boot-connections.service",
          "nvmf-autoconnect.service", "systemd-update-utmp.service",
          "systemd-update-utmp-runlevel.service", "systemd-boot-system-token.service",
          "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount",
          "modprobe@drm.service", "modprobe@loop.service", "modprobe@dm_mod.service", "uuidd.socket",
          "systemd-logind.service", "systemd-user-sessions.service", "sys-kernel-tracing.mount",
          "sys-kernel-debug.mount", "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service",
          "systemd-tmpfiles-clean.timer", "systemd-random-seed.service", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount")

AGENT_UNIT = """[Unit]
Description=Does what the host of this machine asks for
DefaultDependencies=no
After=systemd-tmpfiles-setup-dev.service
Conflicts=shutdown.target
[Service]
ExecStart=/usr/bin/python3 -I -S /usr/lib/guest-agent.py
KillMode=process
OOMScoreAdjust=-1000
LimitNOFILE=65536
LimitMEMLOCK=infinity
"""


def say(text):
    print(text, flush=True)


@contextlib.contextmanager
def phase(name):
    start = time.monotonic()
    yield
    say(f"guest: {name}: {time.monotonic() - start:.1f} s")


def cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = hashlib.sha256()
    for name in RECIPE:
        with open(os.path.join(HERE, name), "rb") as file:
            digest.update(file.read())
    return os.path.join(base, "nvmed-guest"), digest.hexdigest()[:16]


def run(command, **options):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if result.returncode:
        sys.exit(f"guest: {' '.join(command)} failed:\n{result.stdout[-8000:]}")
    return result.stdout


def image():
    """Paths of kernel and initramfs; made now if this recipe was never made."""
    base, key = cache_directory()
    directory = os.path.join(base, key)
    os.makedirs(base, exist_ok=True)
    with open(os.path.join(base, key + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(directory):
            work = tempfile.mkdtemp(prefix=".making.", dir=base)
            try:
                make(work)
                os.rename(work, directory)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return os.path.join(directory, "vmlinuz"), os.path.join(directory, "root.cpio")


def make(work):
    say("guest: making the machine; that is done once for each recipe")
    os.chmod(work, 0o755)
    apt = tempfile.mkdtemp(prefix="nvg-apt.")
    try:
        with phase("package lists"):
            environment = private_apt(apt)
        with phase("kernel"):
            version = make_kernel(work, environment)
        with phase("root file system"):
            make_root(work, apt)
        with phase("initramfs"):
            make_initramfs(work, version)
    finally:
        shutil.rmtree(apt, ignore_errors=True)
    shutil.rmtree(os.path.join(work, "kernel"))
    os.unlink(os.path.join(work, "root.tar"))


def private_apt(directory):
    """An environment for apt with sources and lists of its own, in `directory`."""
    environment = dict(os.environ, APT_CONFIG=directory + "/apt.conf")
    run([os.path.join(ROOT, ".ci/debian-sources"), directory])
    run(["chmod", "-R", "a+rX", directory])
    run(["apt-get", "-qq", "update"], env=environment)
    return environment


def make_kernel(work, environment):
    shown = run(["apt-cache", "show", "--no-all-versions", KERNEL], env=environment)
    package = re.search(r"linux-image-6\.12\.[^ ,]*-cloud-amd64", shown)[0]
    run(["apt-get", "-qq", "download", package], cwd=work, env=environment)
    [archive] = glob.glob(os.path.join(work, "*.deb"))
    tree = os.path.join(work, "kernel")
    run(["dpkg-deb", "-x", archive, tree])
    os.unlink(archive)
    version = package.removeprefix("linux-image-")
    shutil.copy(os.path.join(tree, "boot/vmlinuz-" + version), os.path.join(work, "vmlinuz"))
    return version


def make_root(work, apt):
    with open(os.path.join(apt, "sources.list")) as file:
        sources = [line for line in file if "-backports" not in line]
    command = ["mmdebstrap", "--quiet", "--variant=essential", "--format=tar",
               "--include=" + ",".join(PACKAGES), "--aptopt=" + os.path.join(apt, "settings"),
               "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
               "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=force-unsafe-io",
               "--customize-hook=chroot \"$1\" systemctl mask " + " ".join(MASKED),
               "--customize-hook=chroot \"$1\" systemctl set-default multi-user.target",
               "--customize-hook=chroot \"$1\" ldconfig",
               suite(), os.path.join(work, "root.tar"), "-"]
    run(command, input="".join(sources), env=dict(os.environ, APT_CONFIG="/dev/null", TMPDIR="/tmp"))


def suite():
    with open("/etc/os-release") as file:
        return re.search(r"VERSION_CODENAME=(\w+)", file.read())[1]


def wanted_modules(tree, version):
    """Paths of MODULES and of what they need, relative to the module directory."""
    directory = os.path.join(tree, "lib/modules", version)
    depmod = shutil.which("depmod", path=os.environ["PATH"] + ":/sbin:/usr/sbin")
    run([depmod, "-b", tree, version])
    needs, paths = {}, {}
    with open(os.path.join(directory, "modules.dep")) as file:
        for line in file:
            path, rest = line.split(":")
            needs[path] = rest.split()
            paths[os.path.basename(path).split(".")[0].replace("-", "_")] = path
    chosen = set()
    for name in MODULES:
        if name in paths:
            chosen.update([paths[name], *needs[paths[name]]])
    return directory, sorted(chosen)


def make_initramfs(work, version):
    tree = os.path.join(work, "kernel")
    directory, modules = wanted_modules(tree, version)
    small = os.path.join(work, "kernel/small")
    target = os.path.join(small, "lib/modules", version)
    for path in modules:
        os.makedirs(os.path.dirname(os.path.join(target, path)), exist_ok=True)
        shutil.copy(os.path.join(directory, path), os.path.join(target, path))
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(os.path.join(directory, name), target)
    run([shutil.which("depmod", path=os.environ["PATH"] + ":/sbin:/usr/sbin"), "-b", small, version])
    # Not compressed: to read it is cheaper for an emulated processor than to unpack it.
    with open(os.path.join(work, "root.cpio"), "wb") as file:
        archive = cpio.Archive(file)
        for name in ("dev", "proc", "sys", "run", "tmp", "mnt", "var/cache", "var/lib/apt"):
            archive.add(name, stat.S_IFDIR | (0o1777 if name == "tmp" else 0o755))
        archive.add_tar(os.path.join(work, "root.tar"), lambda name: not LEFT_OUT.match(name))
        for parent, _, names in os.walk(small):
            for name in names:
                full = os.path.join(parent, name)
                archive.add_file("usr/" + os.path.relpath(full, small), full)
        add_configuration(archive)
        archive.end()


def add_configuration(archive):
    def text(name, content):
        archive.add(name, stat.S_IFREG | 0o644, content.encode())
    text("etc/hostname", "guest\n")
    text("etc/fstab", "")
    text("etc/machine-id", "6e766d65640000000000000000000001\n")
    text("etc/systemd/system/guest-agent.service", AGENT_UNIT)
    archive.add_link("etc/systemd/system/sysinit.target.wants/guest-agent.service",
                     "../guest-agent.service")
    # Everything is in memory anyway, and a failure's journal is pulled whole.
    text("etc/systemd/journald.conf.d/guest.conf",
         "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nRuntimeMaxUse=128M\n")
    text("etc/systemd/system.conf.d/guest.conf",
         "[Manager]\nDefaultTimeoutStartSec=300s\nDefaultTimeoutStopSec=60s\nRuntimeWatchdogSec=off\n")


def payload(path, deb, directory):
    """Writes the archive of what changes: the agent, and the package that is tested or the programs."""
    with open(path, "wb") as file:
        archive = cpio.Archive(file)
        archive.add("root", stat.S_IFDIR | 0o700)
        archive.add_file("init", os.path.join(HERE, "init"), 0o755)
        archive.add_file("usr/lib/guest-agent.py", os.path.join(HERE, "agent.py"))
        if deb:
            archive.add_file("root/nvmed.deb", deb)
        else:
            for name in ("nvmed", "nvmectl", "nvmed-worker", "nvmed-opener", "nvmed-emulator"):
                place = "usr/bin/" if name in ("nvmed", "nvmectl") else "usr/libexec/nvmed/"
                if os.path.exists(os.path.join(directory, name)):
                    archive.add_file(place + name, os.path.join(directory, name), 0o755)
        archive.end()


if __name__ == "__main__":
    print(*image(), sep="\n")
