#!/usr/bin/env python3
"""worker.py [SOCKET|TICKET NAME]: offer functions on an fbus bus.

NAME upper-cases its input (ASCII), at whatever size; called with arguments it
prints those, one a line. Without NAME the node is that of FBUS_NODE or
FBUS_TICKET, and the functions are those that fbus conformance worker calls:
echo (its input, or its arguments one a line), args (its arguments as JSON),
sleep (for as many seconds as its argument says) and exit (with the status that
its argument says). The sections named below are those of PROTOCOL.md. Needs
Python 3.10 and msgpack (python3-msgpack).

Nothing here takes long, so one loop does all: whatever happens, happens because
a frame came, a signal, or the end of a sleep.
"""
import json, os, random, select, signal, socket, ssl, stat, struct, sys, time
import msgpack

MAX_FRAME, MAX_FIRST, MAX_CREDIT, CHUNK = 1 << 20, 4096, 4 << 20, 65536  # section 8; CHUNK is ours
WINDOW = 256 << 10  # the most input that we hold: granted, or not yet passed on
INSTANCE = os.urandom(8).hex()
sock = None


class T:  # types of frames
    HELLO, ERROR, OFFER, OFFERED, CALL, DATA, EOF, GRANT, CANCEL, END = range(1, 11)


class Lost(Exception):
    """The connection has ended, and another may be made (section 4.2)."""


def warn(*why):
    text = ": ".join(w.decode(errors="replace") if isinstance(w, bytes) else str(w) for w in why)
    print("worker:", "".join(c if c.isprintable() else "?" for c in text), file=sys.stderr, flush=True)  # section 5.5


def die(status, *why):
    warn(*why)
    sys.exit(status)


def send(*frame):
    """Section 2: a length and one msgpack array; bytes go as bin, str as str.

    It may block, never for good: a node reads whatever it waits for itself."""
    body = msgpack.packb(frame, use_bin_type=True)
    try:
        sock.sendall(struct.pack(">I", len(body)) + body)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the node's last words, perhaps an ERROR, are still to be read


def broken(why):
    send(T.ERROR, "protocol", why)  # section 3.3
    die(1, "protocol", why)


def read_exactly(n):
    data = bytearray()
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            raise Lost("the node closed the connection")
        data += part
    return data


def receive(limit=MAX_FRAME):
    """The next frame. raw: str and bin are both bytes (section 2); a map that is
    only skipped becomes a list of pairs, for its keys may be anything."""
    size, = struct.unpack(">I", read_exactly(4))
    if size > limit:
        broken(f"frame of {size} bytes exceeds the limit of {limit}")
    try:
        return msgpack.unpackb(read_exactly(size), raw=True, object_pairs_hook=list, strict_map_key=False)
    except ValueError as err:
        broken(f"not msgpack: {err}")


def optional(elements, i, default):
    return elements[i] if i < len(elements) else default


def refused(code, *why):
    """Section 7: what may be over in a while, and what will not."""
    if code in (b"busy", b"draining", b"internal", b"list_lost"):
        raise Lost(code.decode())
    die(77 if code == b"denied" else 1, code, *why)


def open_node(where):
    """Section 2: a unix socket of this user's or root's, or, where a ticket is
    given, TLS 1.3 over TCP (section 2.1): the ticket is a bundle for any library."""
    if stat.S_ISSOCK(os.stat(where).st_mode):
        s = socket.socket(socket.AF_UNIX)
        s.connect(where)
        uid = struct.unpack("iII", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if uid not in (0, os.geteuid()):
            die(1, f"{where} belongs to user {uid}")
        return s
    with open(where) as file:
        facts = dict(line.strip().split(": ", 1) for line in file if ": " in line)
    context = ssl.create_default_context(cafile=where)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["fbus/1"])
    context.load_cert_chain(where)
    host, port = facts["address"].rsplit(":", 1)
    s = socket.create_connection((host.strip("[]"), int(port)), 10)
    return context.wrap_socket(s, server_hostname=facts["server name"])


def connect(where):
    global sock
    sock = open_node(where)
    send(T.HELLO, 1, 0, "", INSTANCE, socket.gethostname())  # section 3.1
    sock.settimeout(10)
    match receive(MAX_FIRST):
        case [T.HELLO, 1, int(), bytes(), bytes(), bytes(), *_]:
            sock.settimeout(None)
        case [T.HELLO, int(major), *_]:  # section 3.2
            send(T.ERROR, "version", "this worker speaks version 1")
            die(1, "version", f"the node speaks version {major}")
        case [T.ERROR, bytes(code), bytes(message), *_]:
            refused(code, message)
        case _:
            broken("the first frame must be HELLO")


class Call:
    """The acceptor's side of one call (section 5.7): its output, as far as it is
    known, waits in pending until there is credit to send it."""

    def __init__(self, output=b"", change=None, status=0, seconds=0):
        self.pending, self.status = bytearray(output), status
        self.change = change  # makes output of input; None: it reads none
        self.until = time.monotonic() + seconds
        self.eof, self.credit = True, 0
        self.granted = 0  # credit for input that the node has not used yet

    def pump(self):
        """Send what there is credit for, make room for input; true at the end."""
        while self.pending and self.credit:
            data = bytes(self.pending[:min(self.credit, CHUNK)])
            send(T.DATA, self.id, 1, data)
            del self.pending[:len(data)]
            self.credit -= len(data)
        room = WINDOW - self.granted - len(self.pending)
        if not self.eof and room >= WINDOW // 4:  # section 5.3; a few large GRANTs, not many small ones
            send(T.GRANT, self.id, 0, room)
            self.granted += room
        return self.eof and not self.pending and time.monotonic() >= self.until


def decoded(kind, args):
    """Section 6: a str is a string of any bytes, a bin is a JSON document."""
    if kind == 3:
        return json.loads(args)
    values = msgpack.unpackb(args, unicode_errors="surrogateescape", strict_map_key=False)
    if not isinstance(values, {1: list, 2: dict}[kind]):
        raise ValueError("they are of another kind")
    return values


def document(value):
    """The JSON of an argument."""
    return json.loads(value) if isinstance(value, bytes) else value


def word(value):
    """The bytes of an argument, for functions that take words."""
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def lines(change):
    """Makes a function that changes its input, or its arguments, one a line."""
    def function(kind, args):
        if kind == 0:
            return Call(change=change)
        values = decoded(kind, args)
        if not isinstance(values, list):
            raise ValueError("they must be a list")
        return Call(b"".join(change(word(v)) + b"\n" for v in values))
    return function


def show_args(kind, args):
    values = decoded(kind, args) if kind else []
    if isinstance(values, dict):
        values = {key: document(v) for key, v in values.items()}
    elif kind == 1:
        values = [document(v) for v in values]
    return Call(json.dumps(values, ensure_ascii=False).encode(errors="surrogateescape") + b"\n")


def one(kind, args):
    value, = decoded(kind, args)
    return word(value)


def exit_with(kind, args):
    status = int(one(kind, args))
    if not 0 <= status <= 255:
        raise ValueError("a status is 0 to 255")
    return Call(status=status)


CONFORMANCE = {  # what each function is, for people, and what begins a call of it
    "echo": ("its input, or its arguments one a line", lines(bytes)),
    "args": ("its arguments as JSON", show_args),
    "sleep": ("sleeps for SECONDS", lambda kind, args: Call(seconds=float(one(kind, args)))),
    "exit": ("exits with STATUS", exit_with),
}
functions = {}  # name: the above
calls = {}  # the one call of each function, for each has one slot
last = 0  # id of the latest CALL
draining = False


def accept(id, name, kind, args, data, flags, window):
    """Section 5.1."""
    if draining or name in calls or name not in functions:  # more than its slot
        return send(T.END, id, 2, 75, "draining" if draining else "busy", "one call at a time")
    try:  # an input beside the arguments gets no credit and so stays away
        call = functions[name][1](kind, args)
    except (ValueError, TypeError, KeyError) as err:  # not msgpack, not JSON, too few of them
        return send(T.END, id, 2, 65, "bad_input", f"arguments: {err}")
    call.id, call.credit = id, window
    if call.change:
        call.pending += call.change(data)
        call.eof = bool(flags & 1)
    calls[name] = call


def find(id):
    """The open call of an id; None if it has ended: its frame has crossed our END (section 5.6)."""
    if not 0 < id <= last:
        broken(f"call {id} was never opened")
    return next((c for c in calls.values() if c.id == id), None)


def handle(frame):
    global last
    match frame:
        case [T.OFFERED, int(), bytes(code), bytes(message), *_]:  # section 4
            if code:
                refused(code, message)
        case [T.CALL, int(id), bytes(name), 0 | 1 | 2 | 3 as kind, bytes(args), bytes(data), int(flags), *more] \
                if isinstance(window := optional(more, 5, 262144), int):
            if id <= last:
                broken(f"call id {id} after {last}")
            last = id
            accept(id, name.decode(errors="replace"), kind, args, data, flags, window)
        case [T.DATA, int(id), 0, bytes(data), *_]:
            if call := find(id):
                call.granted -= len(data)
                if call.eof or call.granted < 0:
                    broken("input after its end or beyond credit")
                call.pending += call.change(data)
        case [T.EOF, int(id), *_]:
            if call := find(id):
                if call.eof:
                    broken("input ended twice")
                call.eof = True
        case [T.GRANT, int(id), 1 | 2 as stream, int(n), *_]:
            if (call := find(id)) and stream == 1:
                call.credit += n
                if call.credit > MAX_CREDIT:
                    broken("too much credit")
        case [T.CANCEL, int(id), *_]:  # section 5.4: nothing runs on, so END can go at once
            if call := find(id):
                end(call, 2, 143, "cancelled", "cancelled")
        case [T.ERROR, bytes(code), bytes(message), *_]:
            refused(code, message)
        case [int(t), *_] if not 1 <= t <= 10:
            pass  # section 2: from a newer minor version
        case _:
            broken("unexpected frame")


def end(call, *how):
    send(T.END, call.id, *how)  # section 5.5
    for name in [name for name, c in calls.items() if c is call]:
        del calls[name]


def serve(wake):
    """Serves calls until the node is lost, or after TERM until they have ended."""
    global last, draining
    calls.clear()
    last, answers = 0, len(functions)  # to our OFFERs
    for seq, (name, (what, _)) in enumerate(functions.items(), 1):
        send(T.OFFER, seq, name, 1, 1, what, "a list of strings")
    while True:
        for call in list(calls.values()):
            if call.pump():
                end(call, 0, call.status, "exit")
        if draining and not calls and not answers:
            sys.exit(0)
        waits = [c.until - time.monotonic() for c in calls.values()]
        held = isinstance(sock, ssl.SSLSocket) and sock.pending()  # read already: nothing to wait for
        soonest = min([w for w in waits if w > 0], default=None)
        ready, _, _ = select.select([sock, wake], [], [], 0 if held else soonest)
        if wake in ready:  # section 4.2: no new calls, and the others finish
            os.read(wake, 1)
            draining = True
            answers += len(functions)
            for name in functions:
                send(T.OFFER, 99, name, 0)
        if sock in ready or held:
            frame = receive()
            handle(frame)
            if frame[0] == T.OFFERED:
                answers -= 1
                if not answers and not draining:
                    print("offering", *functions, file=sys.stderr, flush=True)


def work(where):
    wake, wake_in = os.pipe()  # the first TERM drains, the second kills
    os.set_blocking(wake_in, False)
    signal.set_wakeup_fd(wake_in)
    signal.signal(signal.SIGTERM, lambda n, _: signal.signal(n, signal.SIG_DFL))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    pause, known = 0.05, False
    while True:
        try:
            connect(where)
            pause, known = 0.05, True
            serve(wake)
        except (Lost, OSError) as err:
            if not known or draining:
                die(1, err)
            warn(err)
        sock.close()
        if select.select([wake], [], [], pause * random.uniform(0.5, 1))[0]:
            sys.exit(0)
        pause = min(2 * pause, 5)


def main():
    where = os.environ.get("FBUS_NODE") or os.environ.get("FBUS_TICKET")
    if len(sys.argv) == 3:
        where, name = sys.argv[1:]
        functions[name] = "upper-cases its input or arguments", lines(bytes.upper)
    elif len(sys.argv) == 1 and where:
        functions.update(CONFORMANCE)
    else:
        die(64, "usage: worker.py SOCKET|TICKET NAME")
    work(where)


main()
