"""Run a command such that every name it asks for and every address it turns to is noted.

Python tells of its own sockets in every process of the command, by an audit hook that PYTHONPATH
brings in. What libraries do in C++ is seen by the kernel alone: strace notes it where it is
installed, and where the system lets us the command has a network of its own, with the loopback
interface and nothing else.
"""

import functools
import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys

LOG = "RETCLIP_TEST_AUDIT_LOG"
# Python's own events, docs.python.org/3/library/audit_events.html: those that name a host
HOOK = f"""
import json, os, sys
log = os.open(os.environ[{LOG!r}], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
PLACES = {{"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getnameinfo": 0,
          "socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0}}

def note(event, values):
    if event not in PLACES:
        return
    host = values[PLACES[event]]
    if event.endswith(("connect", "sendto", "sendmsg", "getnameinfo")):
        # a path: a socket of this machine's own
        host = host[0] if isinstance(host, tuple) else None
    if host is not None:
        host = host.decode() if isinstance(host, bytes) else host
        os.write(log, json.dumps(host).encode() + b"\\n")

sys.addaudithook(note)
"""
# a new network's loopback interface is down: SIOCSIFFLAGS with IFF_UP
WITH_LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))
os.execvp(sys.argv[1], sys.argv[1:])
"""
# the kernel stops at these calls alone, which costs little
TRACER = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg"]
TRACED = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')


class WatchedNetwork:
    """Notes of what was run by `command` in `environment`, kept in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self._audit, self._trace = folder / "audit.log", folder / "trace.log"
        (folder / "sitecustomize.py").write_text(HOOK)
        self._audit.touch()

    @property
    def environment(self):
        """What a command's environment needs besides."""
        paths = filter(None, [str(self.folder), os.environ.get("PYTHONPATH")])
        return {"PYTHONPATH": os.pathsep.join(paths), LOG: str(self._audit)}

    def command(self, words):
        """Return the command that runs `words` watched."""
        if can_trace():
            words = [*TRACER, "-o", str(self._trace), *words]
        return [*own_network(), *words]

    def hosts_in_python(self):
        """Return the hosts that Python was told of, as it was told."""
        return {json.loads(line) for line in self._audit.read_text().splitlines()}

    def addresses_in_kernel(self):
        """Return the addresses that the kernel was told of."""
        return {one or other for one, other in TRACED.findall(self._trace.read_text())}


def is_here(host):
    """Whether a host is this machine."""
    if host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


@functools.cache
def own_network():
    """Return the words that give a command a network with a loopback alone; [] if we may not."""
    if shutil.which("unshare") is None:
        return []
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    words = ["unshare", *user, "--net", sys.executable, "-c", WITH_LOOPBACK]
    return words if _works([*words, "true"]) else []


@functools.cache
def can_trace():
    """Whether strace is there and may be used."""
    return shutil.which("strace") is not None and _works([*TRACER, "true"])


def _works(command):
    return subprocess.run(command, capture_output=True).returncode == 0
