#!/usr/bin/env python3
"""powercut.py - what is left on the disk when the power goes?  Root, Linux, standard library; `power-cut` runs it.

  powercut.py --work DIR --setup CMD --run CMD --recover CMD --check CMD [options]

A disk image is served by a small FUSE daemon (in here) that logs every block write and every flush of the cache.
A loop device sits on it, a file system on that, mounted at DIR/mnt. So the log holds what reached the disk, in
order: dm-log-writes without device-mapper.
 1. --setup runs, everything is flushed.  2. --run runs to its end, once, recorded.
 3. For each cut of the log an image is built: every write up to the cut (a disk that keeps all that it took), and
    everything up to the last flush with a random part, in pieces of 4 KiB, of what came after it (a disk with a
    cache, which loses and reorders; the part itself is drawn for each cut, from none to all).
 4. The image is mounted where the disk was, the machine gets a new boot id, --recover and --check run.
    --check prints its verdict on its last line: OLD..., NEW..., or BROKEN and why. A mount or a hook that fails
    is BROKEN, too. Cuts that mount as the very same files (names, modes, times, contents) are judged once.
 5. --again N: for N states of each verdict --recover is the run that is recorded and cut, and recovered once more;
    where it had ended, its result must stand.
Hooks: `sh -c`, with CUT_N (the cut), CUT_DONE=1 (--run had ended by then), CUT_RC (how it had ended).
It must run in namespaces of its own (mounts, processes, network: see `power-cut`), so that what hooks leave
running dies and what is mounted goes with it, however it ends.
"""
import argparse, ctypes, errno, fcntl, hashlib, os, random, select, signal, socket, struct, subprocess, sys, time, uuid

BOOT_ID = '/proc/sys/kernel/random/boot_id'
PIECE = 4096
MKFS = {'ext4': ['mkfs.ext4', '-q', '-F', '-E', 'lazy_itable_init=0,lazy_journal_init=0,nodiscard'],
        'xfs': ['mkfs.xfs', '-q', '-f', '-K'], 'btrfs': ['mkfs.btrfs', '-q', '-f', '-K']}
MIB = {'ext4': 64, 'xfs': 300, 'btrfs': 256}                         # the smallest that mkfs makes, or a bit more
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, RELEASEDIR, ACCESS, \
    INTERRUPT, BATCH_FORGET, FSYNCDIR = 1, 2, 3, 4, 14, 15, 16, 17, 18, 20, 25, 26, 27, 29, 34, 36, 42, 30
libc = ctypes.CDLL(None, use_errno=True)


def serve(fuse, image, size, log, control):
    """Serves one file, disk.img, by the raw FUSE protocol; logs W(rite), F(lush) and the marks M of the control."""
    back, out = os.open(image, os.O_RDWR), open(log, 'wb', buffering=0)
    header = struct.Struct('<IIQQIIII')

    def attributes(node):
        is_file = node == 2
        return struct.pack('<6Q10I', node, size if is_file else 4096, 8, 0, 0, 0, 0, 0, 0,
                           0o100600 if is_file else 0o040700, 1, 0, 0, 0, 4096, 0)

    while True:
        ready, _, _ = select.select([fuse, control], [], [])
        if control in ready:
            mark = control.recv(1)
            if not mark:
                os._exit(0)
            out.write(b'M' + struct.pack('<QI', mark[0], 0))
            control.send(b'k')
            continue
        try:
            request = os.read(fuse, 1 << 21)
        except (BlockingIOError, InterruptedError, FileNotFoundError):
            continue
        except OSError:
            os._exit(0)                                              # unmounted
        _, op, unique, node, *_ = header.unpack_from(request)
        body, error, answer = memoryview(request)[40:], 0, b''
        if op == INIT:                                               # big writes; no write-back cache: it would reorder
            answer = struct.pack('<IIIIHHIIHHI7I', 7, 31, 1 << 17, 1 | 1 << 5 | 1 << 22, 64, 48, 1 << 20, 1, 256, 0, 0, *[0] * 7)
        elif op == LOOKUP and bytes(body).rstrip(b'\0') == b'disk.img':
            answer = struct.pack('<4Q2I', 2, 0, 3600, 3600, 0, 0) + attributes(2)
        elif op in (GETATTR, SETATTR):
            answer = struct.pack('<QII', 3600, 0, 0) + attributes(node)
        elif op in (OPEN, OPENDIR):                                  # the file past the page cache
            answer = struct.pack('<QII', 1, 1 if op == OPEN else 0, 0)
        elif op == READ:
            _, at, length = struct.unpack_from('<QQI', body)
            answer = os.pread(back, length, at)
        elif op == WRITE:
            _, at, length = struct.unpack_from('<QQI', body)
            data = body[40:40 + length]
            out.write(b'W' + struct.pack('<QI', at, length) + data)
            os.pwrite(back, data, at)
            answer = struct.pack('<II', length, 0)
        elif op == FSYNC:
            out.write(b'F' + struct.pack('<QI', 0, 0))
        elif op == STATFS:
            answer = struct.pack('<5Q4I24x', 1 << 20, 1 << 19, 1 << 19, 100, 100, 4096, 255, 4096, 0)
        elif op in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        elif op == LOOKUP:
            error = -2
        elif op not in (RELEASE, FLUSH, RELEASEDIR, ACCESS, FSYNCDIR):
            error = -38
        try:
            os.write(fuse, struct.pack('<IiQ', 16 + len(answer), error, unique) + answer)
        except OSError:
            pass


def run(*argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise OSError(f'{" ".join(argv)}: {done.stdout.strip()}')
    return done.stdout.strip()


def unmount(path):
    for _ in range(100):                                             # what was killed lets go of its files a little later
        if subprocess.run(['umount', path], stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.05)
    run('umount', path)


class Lab:
    """The places below --work, the hooks, and what of the machine a cut changes."""

    def __init__(self, options):
        self.options = options
        self.mnt, self.fuse, self.boot = (os.path.join(options.work, n) for n in ('mnt', 'fuse', 'boot_id'))
        os.makedirs(self.mnt, exist_ok=True)
        os.makedirs(self.fuse, exist_ok=True)
        self.reboot()
        run('mount', '--bind', self.boot, BOOT_ID)
        with socket.socket() as s:                                   # a new network's loopback is down
            fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 1 | 64))

    def place(self, name):
        return os.path.join(self.options.work, name)

    def reboot(self):
        """The kernel did not: whoever compares boot ids must see another one all the same."""
        with open(self.boot, 'w') as f:
            f.write(f'{uuid.uuid4()}\n')

    def flush(self):
        """This file system alone: sync() would wait for all of the machine."""
        folder = os.open(self.mnt, os.O_RDONLY)
        if libc.syncfs(folder):
            raise OSError(ctypes.get_errno(), 'flushing')
        os.close(folder)

    def hook(self, command, **env):
        env = {**os.environ, **{key: str(value) for key, value in env.items()}}
        try:
            done = subprocess.run(['sh', '-c', command], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, errors='replace', timeout=self.options.timeout)
            return done.returncode, done.stdout.strip()
        except subprocess.TimeoutExpired:
            return 'timeout', ''

    def end_all(self):
        """Kills what hooks left: this process is the first of its own process namespace, so all others are ours."""
        keep = {os.getpid(), getattr(self, 'daemon', 0)}
        for name in os.listdir('/proc'):
            if name.isdigit() and int(name) not in keep:
                try:
                    os.kill(int(name), signal.SIGKILL)
                    os.waitpid(int(name), 0)
                except (ProcessLookupError, ChildProcessError):
                    pass

    def close(self):
        """Whatever happened: nothing runs and nothing is mounted."""
        self.end_all()
        for path in (self.mnt, self.fuse):
            while os.path.ismount(path):
                unmount(path)

    def record(self, command, start=None, settle=0, **env):
        """One undisturbed run on the image `start`, or on what --setup makes: the image before it, the log from
        then on, the place of its end, its exit code and what it said."""
        o, image, log = self.options, self.place('disk.raw'), self.place('log')
        if start:
            run('cp', '--sparse=always', start, image)
        else:
            with open(image, 'wb') as f:
                f.truncate((o.size or MIB[o.fs]) << 20)
            run(*MKFS[o.fs], image)
        fuse = os.open('/dev/fuse', os.O_RDWR)
        data = f'fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other'
        if libc.mount(b'power-cut', self.fuse.encode(), b'fuse', 6, data.encode()):
            raise OSError(ctypes.get_errno(), 'mounting the recorder')
        control, other = socket.socketpair()
        self.daemon = os.fork()
        if self.daemon == 0:
            # A name space of mounts of its own: else, killed last, it would unmount the file system above it while its
            # end of the recorder still counted as open, and wait for an answer from itself, for ever.
            libc.unshare(0x20000)
            for kind in (signal.SIGTERM, signal.SIGINT):             # it ends when it is unmounted
                signal.signal(kind, signal.SIG_IGN)
            control.close()
            try:
                serve(fuse, image, os.path.getsize(image), log, other)
            finally:
                os._exit(1)
        os.close(fuse)
        other.close()

        def mark(n):
            control.send(bytes([n]))
            control.recv(1)

        loop = run('losetup', '-f', '--show', self.fuse + '/disk.img')
        try:
            run('mount', '-t', o.fs, '-o', o.opts, loop, self.mnt)
        finally:
            run('losetup', '-d', loop)                               # from now on it goes with its last mount
        if not start:
            code, said = self.hook(o.setup)
            if code:
                sys.exit(f'powercut: the setup failed: {said}')
        self.flush()
        mark(1)
        base = self.place('again.raw' if start else 'base.raw')
        run('cp', '--sparse=always', image, base)
        began = time.time()
        code, said = self.hook(command, **env)
        mark(2)
        took = time.time() - began
        time.sleep(settle)                                         # the file system's own commits come now
        self.flush()
        mark(3)
        self.end_all()
        unmount(self.mnt)
        unmount(self.fuse)
        control.close()
        os.waitpid(self.daemon, 0)
        del self.daemon
        entries = read_log(log)
        entries = entries[entries.index((b'M', 1, b'')) + 1:]
        end, last = entries.index((b'M', 2, b'')), entries.index((b'M', 3, b''))
        writes = [len(e[2]) for e in entries[:last] if e[0] == b'W']
        flushes = sum(e[0] == b'F' for e in entries[:last])
        print(f'  recorded: exit {code} after {took:.1f} s; {len(writes)} writes ({sum(writes) >> 10} KiB), '
              f'{sum(e[0] == b"W" for e in entries[:end])} of them before the exit, {flushes} flushes', flush=True)
        return base, entries[:last], end, code, said

    def judge(self, image, seen, **env):
        """The verdict on one image, and whether it is a new one. `seen`: the verdicts so far, by what was found there."""
        o = self.options
        try:
            run('mount', '-t', o.fs, '-o', 'loop,' + o.opts, image, self.mnt)
        except OSError as e:
            return f'BROKEN: {e}', True
        try:
            try:
                key = (fingerprint(self.mnt), env['CUT_DONE'])
            except OSError as e:
                # The file system itself says that it is damaged: no program can answer for that. Counted apart.
                if e.errno != errno.EUCLEAN:
                    raise
                return f'VOLUME: {e}', False
            is_new = key not in seen
            if is_new:
                self.reboot()
                code, said = self.hook(o.recover, **env)
                failed, verdict = self.hook(o.check, **env)
                verdict = (verdict.splitlines() or ['BROKEN: no verdict'])[-1]
                if code or failed or not verdict.startswith(('OLD', 'NEW', 'BROKEN')):
                    verdict = f'BROKEN: recover {code}, check {failed}: {verdict}'
                if verdict.startswith('BROKEN'):
                    verdict += '\n    the recovery said: ' + said[-2000:].replace('\n', '\n    ')
                seen[key] = verdict
            return seen[key], is_new
        finally:
            self.end_all()
            unmount(self.mnt)


def read_log(path):
    entries = []
    with open(path, 'rb') as f:
        while head := f.read(13):
            at, length = struct.unpack('<QI', head[1:])
            entries.append((head[:1], at, f.read(length) if head[:1] == b'W' else b''))
    return entries


def fingerprint(root):
    """All that a program could see of the tree but the times of reading."""
    found = hashlib.sha256()
    for folder, names, files in os.walk(root):
        names.sort()
        for name in ['.'] + sorted(files) + [n for n in names if os.path.islink(os.path.join(folder, n))]:
            path = os.path.join(folder, name)
            s = os.lstat(path)
            found.update(repr((path, s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_nlink)).encode())
            if os.path.islink(path):
                found.update(os.readlink(path).encode())
            elif os.path.isfile(path):
                with open(path, 'rb') as f:
                    found.update(hashlib.sha256(f.read()).digest())
    return found.digest()


def build(base, log, flushed, kept, image):
    """All writes before the place `flushed`, and of the later ones what was kept."""
    run('cp', '--sparse=always', base, image)
    to = os.open(image, os.O_RDWR)
    for _, at, data in [e for e in log[:flushed] if e[0] == b'W'] + kept:
        os.pwrite(to, data, at)
    os.close(to)


def sampled(points, wanted):
    if not wanted or len(points) <= wanted:
        return points
    return [points[round(i * (len(points) - 1) / max(1, wanted - 1))] for i in range(wanted)]


def cut_up(lab, chance, base, log, end, expected=None, **env):
    """Judges every cut of a log; prints what is broken and the counts. `expected`: the word that must stand after
    the end. Returns whether none is broken, and each different state, as `build` takes it, with its verdict."""
    o, counts, seen, states, began = lab.options, {}, {}, [], time.time()
    points = sampled(sorted({0, end, len(log)} | {i + 1 for i, e in enumerate(log) if e[0] == b'W'}), o.cuts)
    for n in points:
        flushed = max((i for i in range(n) if log[i][0] == b'F'), default=0)
        rest = [e for e in log[flushed:n] if e[0] == b'W']
        pieces = [(k, at + i, data[i:i + PIECE]) for k, at, data in rest for i in range(0, len(data), PIECE)]
        parts = [chance.random() for _ in range(o.tries if pieces else 0)]
        for kept in [pieces] + [[piece for piece in pieces if chance.random() < part] for part in parts]:
            build(base, log, flushed, kept, lab.place('cut.raw'))
            now = {'CUT_N': n, 'CUT_DONE': int(n >= end), **env}
            verdict, is_new = lab.judge(lab.place('cut.raw'), seen, **now)
            if n >= end and expected and not verdict.startswith(('BROKEN', 'VOLUME', expected)):
                verdict = f'BROKEN: {expected} stood, and was lost: {verdict}'
            word, when = verdict.split(':')[0] if verdict.startswith(('BROKEN', 'VOLUME')) else verdict, 'before' if n < end else 'after'
            counts[when, word] = counts.get((when, word), 0) + 1
            if is_new:
                states.append((verdict, flushed, kept, now))
            if word == 'BROKEN':
                print(f'  cut {n} of {len(log)}, {when} the exit, {len(kept)} of {len(pieces)} unflushed pieces kept:',
                      verdict if is_new else 'as above', flush=True)
    told = (f'{when} the exit: ' + ', '.join(f'{word} {n}' for (w, word), n in sorted(counts.items()) if w == when)
            for when in ('before', 'after'))
    print(f'  {sum(counts.values())} cuts, {len(seen)} different states, {time.time() - began:.1f} s; ' + '; '.join(told), flush=True)
    return bool(counts) and not any(word == 'BROKEN' for _, word in counts), states


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('work', 'setup', 'run', 'recover', 'check'):
        parser.add_argument('--' + name, required=True)
    parser.add_argument('--fs', default='ext4', choices=MKFS)
    parser.add_argument('--opts', default='defaults', help='mount options')
    parser.add_argument('--cuts', type=int, default=0, help='how many, evenly spread (0: after every write)')
    parser.add_argument('--tries', type=int, default=1, help='random parts for each cut')
    parser.add_argument('--again', type=int, default=0, help='states of each verdict whose recovery is cut, too')
    parser.add_argument('--seed', type=int, default=None, help='of the writes that the cache loses')
    parser.add_argument('--settle', type=float, default=0, help='seconds from the end of --run to the final flush')
    parser.add_argument('--exit', type=int, help='what --run must exit with')
    parser.add_argument('--size', type=int, help='MiB')
    parser.add_argument('--timeout', type=float, default=120, help='seconds for a hook')
    o = parser.parse_args()
    if os.getpid() != 1:
        sys.exit('powercut: run it by scripts/power-cut, in namespaces of its own')
    for kind in (signal.SIGTERM, signal.SIGINT):                     # the first process has no default reaction
        signal.signal(kind, interrupted)
    seed = random.randrange(1 << 32) if o.seed is None else o.seed
    print('  seed', seed)
    lab = Lab(o)
    try:
        return prove(o, random.Random(seed), lab)
    finally:
        lab.close()


def interrupted(*_):
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, signal.SIG_IGN)                          # the way out is gone once
    sys.exit(130)


def prove(o, chance, lab):
    base, log, end, code, said = lab.record(o.run, settle=o.settle)
    if o.exit is not None and code != o.exit:
        sys.exit(f'powercut: the run must exit {o.exit}: {said}')
    good, states = cut_up(lab, chance, base, log, end, CUT_RC=code)
    groups = {}
    for state in states:
        groups.setdefault(state[0], []).append(state)
    chosen = [group[round((i + 0.5) * len(group) / o.again - 0.5)] for verdict, group in groups.items()
              if not verdict.startswith('BROKEN') for i in range(min(o.again, len(group)))]
    for verdict, flushed, kept, env in chosen:
        print(f'  the recovery of cut {env["CUT_N"]} ({verdict}):')
        build(base, log, flushed, kept, lab.place('start.raw'))
        lab.reboot()
        start, log2, end2, code, said = lab.record(o.recover, start=lab.place('start.raw'), **env)
        if code:
            sys.exit(f'powercut: the recovery ended well before and exits {code} now: {said}')
        env = {key: value for key, value in env.items() if key != 'CUT_N'}
        good &= cut_up(lab, chance, start, log2, end2, expected=verdict.split()[0], **env)[0]
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
