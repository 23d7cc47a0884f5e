#!/usr/bin/env python3
"""crash_install.py WORK prepare|setup|recover|reboot|check|stop - the install of scripts/crash-test and power-cut.

`check` prints OLD, NEW or BROKEN first: the tree by hash, the row of the database, the backups by their records,
the receipt, the server by ping, what the updater left lying about, and whether a second recover finds nothing to do.
`reboot` is `recover` on a machine that was off: nothing runs, and recovery must ask about data exactly when the
new version had been started and nothing was settled.
SITE: where the install lies (else WORK/site).
SCENARIO=bad: the new version rewrites the row, alters one upload, adds another and answers 500, so that the
rollback and its data are what is killed; then only OLD is right.
"""
import hashlib, json, os, shutil, signal, socket, sqlite3, subprocess, sys, time, urllib.request, zipfile
from pathlib import Path

work = Path(sys.argv[1]).resolve()
site, bundle, port_file = Path(os.environ.get('SITE', work / 'site')), work / 'bundle.zip', work / 'port'
asked = work / 'asked'
OWN = ('.updater', 'backups', 'instance', '__pycache__')
bad = os.environ.get('SCENARIO') == 'bad'
power = 'CUT_N' in os.environ
DAMAGE = """SQL = "UPDATE notes SET text = 'rewritten'"
WRITE = "uploads/a.txt=altered"
WRITE = "uploads/b.txt=added"
ANSWER = 500
"""


def code(version):
    files = {'run.py': f'PORT = 8080\nVERSION = "{version}"\nREQUIRE = "app/core.py"\n',
             'app/__init__.py': '# package\n', 'app/core.py': f'# core of {version}\n'}
    files |= {'app/old.py': '# old\n'} if version == '1.0' else {'app/new/new.py': '# new\n'}
    if bad and version == '2.0':
        files['run.py'] += DAMAGE
    return files


def data():
    return {'uploads/a.txt': 'an upload\n', '.env': 'SECRET=1\n', 'config/c.json': '{}\n',
            'updater.toml': '[server]\nsoak = "50ms"\nhealth_timeout = "10s"\n'}


def port():
    return int(port_file.read_text())


def ping():
    try:
        with urllib.request.urlopen(f'http://127.0.0.1:{port()}/api/sync/ping', timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def prepare():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port_file.write_text(str(s.getsockname()[1]))
    with zipfile.ZipFile(bundle, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, text in code('2.0').items():
            z.writestr(f'site-2.0/{name}', text)


def stop():
    """Ends what stands in the scratch install, by pid."""
    for _ in range(100):
        pids = []
        for entry in Path('/proc').iterdir():
            try:
                if entry.name.isdigit() and Path(os.readlink(entry / 'cwd').removesuffix(' (deleted)')) == site:
                    if (entry / 'stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z':
                        pids.append(int(entry.name))
            except OSError:
                pass
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)


def setup():
    stop()
    shutil.rmtree(site, ignore_errors=True)
    for name, text in (code('1.0') | data()).items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    (site / 'instance').mkdir()
    with sqlite3.connect(site / 'instance/app.db') as db:
        db.execute('PRAGMA journal_mode=WAL')
        db.execute('CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT)')
    db.close()
    start()
    if not wait():
        sys.exit('the server does not start')
    # While the server holds the database open the row stays in the log: both files are needed to keep it.
    with sqlite3.connect(site / 'instance/app.db') as db:
        db.execute("INSERT INTO notes VALUES(1, 'a row')")
    db.close()


def start():
    log = open(site / 'instance/server.log', 'a')
    subprocess.Popen([os.environ['STANDIN'], 'run.py'], cwd=site, env={**os.environ, 'PORT': str(port())},
                     stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def wait():
    deadline = time.time() + 15
    while time.time() < deadline:
        if answer := ping():
            return answer
        time.sleep(0.02)
    return None


def recover():
    done = subprocess.run([os.environ['UPDATER'], '--root', str(site), 'recover'], stdin=subprocess.DEVNULL)
    sys.exit(done.returncode)


def states():
    """The states in the journal, as far as its lines are whole."""
    found = set()
    journal = site / '.updater/journal'
    for line in journal.read_bytes().split(b'\n') if journal.exists() else []:
        total, _, record = line.partition(b' ')
        if hashlib.sha256(record).hexdigest()[:16].encode() == total:
            found.add(json.loads(record)['state'])
    return found


def reboot():
    """Recovers, sometimes as the boot unit does, then starts the server where recovery leaves that to others."""
    was = states()
    must_ask = 'starting' in was and not was & {'data-restored', 'rolled-back', 'committed'}
    command = [os.environ['UPDATER'], '--root', str(site), 'recover', '--json']
    unit = ['--boot'] if int(os.environ['CUT_N']) % 2 else []
    done = subprocess.run(command + unit, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print('journal:', *sorted(was), 'recover', *unit, done.returncode, done.stdout, done.stderr)
    asks = done.returncode == 4 and '"data-undecided"' in done.stdout
    if asks != must_ask:
        sys.exit('recovery asked about data' if asks else 'recovery did not ask about data')
    asked.write_text(' after --data backup' if asks else '')
    if asks:
        done = subprocess.run(command + ['--data', 'backup'], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        print('recover --data backup', done.returncode, done.stdout, done.stderr)
    if done.returncode == 0 and not ping():
        start()
    sys.exit(done.returncode)


def recover_again():
    """What a second recover does that it should not; the first one has settled everything."""
    done = subprocess.run([os.environ['UPDATER'], '--root', str(site), 'recover', '--json'], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    idle = [e for e in events if e['event'] == 'stage' and e['state'] == 'skipped']
    return None if done.returncode == 0 and idle else done.stdout + done.stderr


def tree():
    found = {}
    for path in site.rglob('*'):
        name = path.relative_to(site)
        if path.is_file() and name.parts[0] not in OWN and '__pycache__' not in name.parts:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def backups():
    """What is wrong with the backups: each must have a record, and all that the record names."""
    for folder in sorted((site / 'backups').glob('*')):
        if not (folder / 'backup.json').exists():
            return f'{folder.name} has no record'
        for line in json.loads((folder / 'backup.json').read_text())['files']:
            saved = folder / line['path']
            if not saved.is_file() or hashlib.sha256(saved.read_bytes()).hexdigest() != line['sha256']:
                return f'{folder.name} misses {line["path"]}'


def check():
    def hashed(files):
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    if again := recover_again():
        return print('BROKEN: a second recover did something:', repr(again))
    now = tree()
    added = bad and now.pop('uploads/b.txt', None)
    # The new version did not flush it: a power cut may leave it empty or, on ext4, as zeros. That is not ours.
    lost = ('', '\0' * len('added')) if power else ()
    if added and (text := (site / 'uploads/b.txt').read_text()) not in ('added', *lost):
        return print('BROKEN: the added upload', repr(text))
    verdict = next((word for word, version in (('OLD', '1.0'), ('NEW', '2.0'))
                    if now == hashed(code(version) | data())), None)
    if not verdict:
        return print('BROKEN tree:', *sorted(now))
    if bad and verdict == 'NEW':
        return print('BROKEN: a version that answers 500 stands')
    ended = os.environ.get('CUT_RC') if os.environ.get('CUT_DONE') == '1' else os.environ.get('CP_RC')
    if ended == '0' and verdict == 'OLD':
        return print('BROKEN: success was reported, and the old version stands')
    stray = [name for name in ('journal', 'staging', 'trash') if (site / '.updater' / name).exists()]
    if stray:
        return print('BROKEN: left in .updater:', *stray)
    if wrong := backups():
        return print('BROKEN backup:', wrong)
    if verdict == 'NEW' and not any((site / 'backups').glob('*/backup.json')):
        return print('BROKEN: the new version stands without a backup of the old one')
    receipt = site / '.updater/receipt.json'
    if verdict == 'NEW':
        lines = {line['path']: line['sha256'] for line in json.loads(receipt.read_text())['files']}
        if lines != hashed(code('2.0')) or (site / '.updater/bundle.zip').read_bytes() != bundle.read_bytes():
            return print('BROKEN receipt or kept bundle:', lines)
    if verdict == 'OLD' and receipt.exists():
        return print('BROKEN: a receipt of a version that does not stand')
    # A clone: SQLite would write beside the live one.
    clone = work / 'clone'
    shutil.rmtree(clone, ignore_errors=True)
    clone.mkdir()
    for name in ('app.db', 'app.db-wal'):
        if (site / 'instance' / name).exists():
            shutil.copy(site / 'instance' / name, clone / name)
    with sqlite3.connect(clone / 'app.db') as db:
        rows = db.execute('SELECT * FROM notes').fetchall()
        sound = db.execute('PRAGMA integrity_check').fetchall()
    db.close()
    if sound != [('ok',)] or rows != [(1, 'a row')]:
        return print('BROKEN database:', rows, sound)
    answer, wanted = wait(), {'OLD': '1.0', 'NEW': '2.0'}[verdict]
    if not answer or answer['version'] != wanted:
        return print('BROKEN server:', answer, 'on the tree', verdict)
    print(verdict + (asked.read_text() if power and asked.exists() else ''))


{'prepare': prepare, 'setup': setup, 'recover': recover, 'reboot': reboot, 'check': check, 'stop': stop}[sys.argv[2]]()
