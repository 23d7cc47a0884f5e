#!/usr/bin/env python3
"""crash_install.py WORK prepare|command|setup|recover|check|stop - the small installs of scripts/crash-test.

SCENARIO says what is cut off, and what may stand afterwards:
  good          an update                                        old or new
  bad           an update whose new version rewrites the row, alters one upload, adds another and answers 500,
                so that the rollback and its data are what is cut off                  old
  hooks         an update with a hook after the swap that writes in a folder of its own and among the data
                                                                                       old or new, both with it
  hooks-bad     the same, whose version fails as in `bad`                              old
  restore       restore ID --data, after the users changed row and upload              old or new, data with it
  restore-far   the same, where instance/ and uploads/ are links to another volume (the folder ELSEWHERE)
                                                                                       old or new, data with it
  restore-far-hook  the same, whose hook fails, so that the rollback is what is cut off            old
  restore-far-slow  the same, whose version is started and does not come up in time                old
  repair        verify --repair of a damaged and a missing file                        old or new
  prune         backups prune, three whole backups                                     every one whole or gone
  recover-code  recover of an update that was killed in the swap                       old
  recover-data  recover of a bad update that was killed while its version ran          old

Every install holds what users write: an upload below `app/`, a file at the top, a shipped seed that the server wrote,
and a program file that somebody edited, which gives way to the backup's `aside/`. The bad version alters them.

`check` prints OLD, NEW or BROKEN first: the tree by hash, mode and owner, the row of the database, the server
by ping, every backup by hash, what the updater left lying about, and whether a second recover finds nothing.
"""
import hashlib, json, os, re, shutil, signal, socket, sqlite3, subprocess, sys, time, urllib.request, zipfile
from pathlib import Path
from types import SimpleNamespace

work = Path(sys.argv[1]).resolve()
site, kept, bundle, port_file = work / 'site', work / 'kept', work / 'bundle.zip', work / 'port'
first_bundle = work / 'first.zip'
OWN = ('.updater', 'backups', 'instance', '__pycache__')
scenario = os.environ.get('SCENARIO', 'good')
is_recover = scenario.startswith('recover')
DAMAGE = """SQL = "UPDATE notes SET text = 'rewritten'"
WRITE = "uploads/a.txt=altered"
WRITE = "uploads/b.txt=added"
WRITE = "app/static/uploads/p.png=altered"
WRITE = "app/seed.json=altered"
REMOVE = "users.json"
ANSWER = 500
"""
is_restore = scenario.startswith('restore')
# Where data lies that the install has on another volume.
far = Path(os.environ['ELSEWHERE']).resolve() if scenario.startswith('restore-far') else None
kept_far = work / 'kept-far'
has_hooks = scenario.startswith('hooks')
is_bad = scenario in ('bad', 'hooks-bad', 'recover-data')
HOOK = """
[[hooks.after_swap]]
run = ["sh", "-c", "rm -r cache/old && mkdir cache/new && echo 'of 2.0' >cache/made.txt && cp cache/made.txt cache/new/ && echo hook >uploads/hook.txt && echo hook >>uploads/a.txt"]
changes = ["cache", "uploads"]
"""
# What the hook makes of what lay there before.
BEFORE_HOOK = {'cache/made.txt': 'of 1.0\n', 'cache/old/part.txt': 'a part\n'}
AFTER_HOOK = {'cache/made.txt': 'of 2.0\n', 'cache/new/made.txt': 'of 2.0\n', 'uploads/hook.txt': 'hook\n',
              'uploads/a.txt': 'an upload\nhook\n'}
BY_HAND = '# edited by hand\n'
# What random parts of names are folded to '#'.
NORM = r'[0-9a-fA-F]{8,}|[0-9]{4,}|-[0-9a-f]{4}(?=\.)|(?<=updater-check-)\w+|(?<=\.)\d+(?=\.tmp)'


def code(version, damage=False):
    files = {'run.py': f'PORT = 8080\nVERSION = "{version}"\nREQUIRE = "app/core.py"\n',
             'app/__init__.py': '# package\n', 'app/core.py': f'# core of {version}\n',
             'app/edited.py': f'# part of {version}\n', 'app/seed.json': f'["{version}"]\n'}
    files |= {'app/old.py': '# old\n'} if version == '1.0' else {'app/new/new.py': '# new\n'}
    if damage:
        files['run.py'] += DAMAGE
    if scenario == 'restore-far-slow' and version == '1.0':
        files['run.py'] += 'DELAY_MS = 3000\n'
    return files


def installed(version, damage=False):
    """The program as it lies there: version 1.0 was edited, and its seed was written."""
    files = code(version, damage) | {'app/seed.json': 'written here\n'}
    return files | ({'app/edited.py': BY_HAND} if version == '1.0' else {})


def data(upload='an upload\n'):
    return {'app/static/uploads/p.png': 'a picture\n', 'users.json': '[]\n', 'uploads/a.txt': upload, '.env': 'SECRET=1\n', 'config/c.json': '{}\n',
            'updater.toml': settings(upload)}


def settings(upload='later\n'):
    """The slow version has time until the users have written."""
    is_short = scenario == 'restore-far-slow' and upload == 'later\n'
    hook = '[[hooks.after_swap]]\nrun = ["false"]\n' if scenario == 'restore-far-hook' and upload == 'later\n' else ''
    return f'[server]\nsoak = "50ms"\nhealth_timeout = "{"1s" if is_short else "10s"}"\n' + (HOOK if has_hooks else hook)


def port():
    return int(port_file.read_text())


def ping():
    try:
        with urllib.request.urlopen(f'http://127.0.0.1:{port()}/api/sync/ping', timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def answers():
    """Something serves, well or not."""
    try:
        urllib.request.urlopen(f'http://127.0.0.1:{port()}/api/sync/ping', timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def until(what, seconds=20):
    deadline = time.time() + seconds
    while time.time() < deadline:
        if seen := what():
            return seen
        time.sleep(0.02)
    return None


def updater(*arguments):
    return [os.environ['UPDATER'], '--root', str(site), *arguments]


def run(*arguments):
    return subprocess.run(updater(*arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True)


def need(*arguments):
    done = run(*arguments)
    if done.returncode:
        sys.exit(f'{arguments} ended with {done.returncode}: {done.stdout}{done.stderr}')


def make_bundle(version, damage=False, to=None):
    with zipfile.ZipFile(to or bundle, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, text in code(version, damage).items():
            z.writestr(f'site-{version}/{name}', text)


def make_site():
    stop()
    shutil.rmtree(site, ignore_errors=True)
    if far:
        empty(far)
        site.mkdir()
        for name in ('instance', 'uploads'):
            (far / name).mkdir()
            (site / name).symlink_to(far / name)
    for name, text in (installed('1.0') | data() | (BEFORE_HOOK if has_hooks else {})).items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
        (site / name).chmod(0o644)
    (site / 'instance').mkdir(exist_ok=True)
    sql('PRAGMA journal_mode=WAL', 'CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT)',
        "INSERT INTO notes VALUES(1, 'a row')")
    make_bundle('1.0', to=first_bundle)
    need('adopt', str(first_bundle))


def empty(folder):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sql(*lines):
    db = sqlite3.connect(site / 'instance/app.db')
    for line in lines:
        db.execute(line)
    db.commit()
    db.close()


def prepare():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port_file.write_text(str(s.getsockname()[1]))
    make_bundle('2.0', damage=is_bad)
    if scenario in ('good', 'bad') or has_hooks:
        return
    make_site()
    start()
    if scenario == 'recover-code':
        cut_in_the_swap()
    elif scenario == 'recover-data':
        cut_while_the_new_version_runs()
    else:
        need('apply', str(bundle))
        (work / 'backup').write_text(next((site / 'backups').iterdir()).name)
        if is_restore:
            sql("UPDATE notes SET text = 'later'")
            (site / 'uploads/a.txt').write_text('later\n')
        if scenario in ('restore-far-hook', 'restore-far-slow'):
            (site / 'updater.toml').write_text(settings())
        if scenario == 'repair':
            (site / 'app/core.py').write_text('damaged\n')
            (site / 'app/new/new.py').unlink()
        if scenario == 'prune':
            for version in ('3.0', '4.0'):
                make_bundle(version)
                need('apply', str(bundle))
    stop()
    shutil.copytree(site, kept, symlinks=True)
    if far:
        shutil.copytree(far, kept_far)


def cut_in_the_swap():
    """Kills an update at its fifth rename of the swap: the old files are away, one new one is there."""
    sys.path.insert(0, str(Path(__file__).parent))
    import crashpoints
    settings = SimpleNamespace(root=[str(site)], norm=re.compile(NORM), errno=None, sticky=False, at='before', kill='proc',
                               by='sig', cpu=None, log=str(work / 'prepare.log'), timeout=60, fast=False,
                               detach_exec=re.compile('standin'), command=updater('apply', str(bundle)))
    crashpoints.libc.prctl(36, 1, 0, 0, 0)
    counted = crashpoints.Run(settings).go()
    moved = [e for e in counted.events if e['call'].startswith('rename')]
    moves = [e for e in moved if any(place in ''.join(e['paths']) for place in ('/trash/', '/staging/tree/'))]
    if len(moves) < 6:
        sys.exit('the swap was not found')
    make_site()
    start()
    if not crashpoints.Run(settings, moves[4]).go().fired:
        sys.exit('the swap was not cut')


def cut_while_the_new_version_runs():
    child = subprocess.Popen(updater('apply', str(bundle)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    journal = site / '.updater/journal'
    if not until(lambda: journal.exists() and b'"starting"' in journal.read_bytes() and answers()):
        sys.exit('the new version was not started')
    child.kill()
    child.wait()


def command():
    arguments = {scenario: ['restore', '--data', (work / 'backup').read_text()]} if is_restore else {}
    arguments |= {'repair': ['verify', '--repair'], 'prune': ['backups', 'prune', '--keep', '1'],
                  'recover-code': ['recover'], 'recover-data': ['recover']}
    print('\n'.join(updater(*arguments.get(scenario, ['apply', str(bundle)]))))


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


def start():
    log = open(site / 'instance/server.log', 'w')
    subprocess.Popen([os.environ['STANDIN'], 'run.py'], cwd=site, env={**os.environ, 'PORT': str(port())},
                     stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    if not until(ping):
        sys.exit('the server does not start')


def setup():
    stop()
    if not kept.exists():
        make_site()
    else:
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(kept, site, symlinks=True)
        if far:
            empty(far)
            shutil.copytree(kept_far, far, dirs_exist_ok=True)
    if not is_recover:
        start()


def startable_mixture():
    """The code files, if somebody could start a tree that is of neither version before anything recovers."""
    now = {name: facts[0] for name, facts in tree().items() if name.endswith('.py') or name.startswith('cache/')}
    versions = ('3.0', '4.0') if scenario == 'prune' else ('1.0', '2.0')
    whole = [installed(version, damage) for version in versions for damage in (False, True)]
    whole = [{name: text for name, text in files.items() if name.endswith('.py')} for files in whole]
    if has_hooks:
        cached = [{name: text for name, text in files.items() if name.startswith('cache/')} for files in (BEFORE_HOOK, AFTER_HOOK)]
        whole = [files | cached['2.0' in files['run.py']] for files in whole]
    hashed = [{name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()} for files in whole]
    # A repair begins with a damaged tree.
    is_odd = 'run.py' in now and now not in hashed and scenario != 'repair'
    return sorted(now) if is_odd else None


def recover():
    if mixed := startable_mixture():
        print('BROKEN: a mixed tree could be started:', *mixed)
        sys.exit(99)
    sys.exit(subprocess.run(updater('recover'), stdin=subprocess.DEVNULL).returncode)


def recover_again():
    """What a second recover does that it should not; the first one has settled everything."""
    done = run('recover', '--json')
    events = [json.loads(line) for line in done.stdout.splitlines()]
    idle = [e for e in events if e['event'] == 'stage' and e['state'] == 'skipped']
    return None if done.returncode == 0 and idle else done.stdout + done.stderr


def tree():
    found = {}
    walk = os.walk(site, followlinks=True)
    for path in (Path(folder) / name for folder, _, names in walk for name in names):
        name = path.relative_to(site)
        if path.is_file() and name.parts[0] not in OWN and '__pycache__' not in name.parts:
            facts = path.stat()
            found[str(name)] = (hashlib.sha256(path.read_bytes()).hexdigest(), facts.st_mode & 0o7777, facts.st_uid)
    return found


def expected():
    """What may stand: word -> (files, text of the row, version that serves)."""
    old, new = (installed('1.0') | data(), 'a row', '1.0'), (installed('2.0') | data(), 'a row', '2.0')
    if has_hooks:
        old = (old[0] | BEFORE_HOOK, *old[1:])
        new = (new[0] | AFTER_HOOK, *new[1:])
    damaged = {**installed('2.0'), **data(), 'app/core.py': 'damaged\n'}
    damaged.pop('app/new/new.py')
    return {'good': {'OLD': old, 'NEW': new}, 'hooks': {'OLD': old, 'NEW': new},
            **{name: {'OLD': (installed('2.0') | data('later\n'), 'later', '2.0'), 'NEW': old} for name in ('restore', 'restore-far')},
            **{name: {'OLD': (installed('2.0') | data('later\n'), 'later', '2.0')} for name in ('restore-far-hook', 'restore-far-slow')},
            'repair': {'OLD': (damaged, 'a row', '2.0'), 'NEW': new},
            'prune': {'OLD': (installed('4.0') | data(), 'a row', '4.0')}}.get(scenario, {'OLD': old})


def replaced():
    """What the restored upload took the place of."""
    return [path.read_text() for path in (site / 'backups').glob('*/after/uploads/a.txt')]


def check():
    def hashed(files):
        return {name: (hashlib.sha256(text.encode()).hexdigest(), 0o644, os.getuid()) for name, text in files.items()}
    if os.environ.get('CP_RECOVER_RC', '0') != '0':
        return print('BROKEN: recover ended with', os.environ['CP_RECOVER_RC'])
    if is_recover and os.environ.get('CP_MODE') == 'count' and (site / '.updater/journal').exists():
        return print('interrupted')
    if again := recover_again():
        return print('BROKEN: a second recover did something:', repr(again))
    now = tree()
    added = is_bad and now.pop('uploads/b.txt', None)
    if added and (site / 'uploads/b.txt').read_text() != 'added':
        return print('BROKEN: the added upload')
    word = next((word for word, (files, *_) in expected().items() if now == hashed(files)), None)
    if not word:
        return print('BROKEN tree:', *sorted(now))
    _, row, version = expected()[word]
    known = {'lock', 'events', 'log', 'receipt.json', 'bundle.zip', 'status.json', 'last.json', 'failures.json'}
    stray = sorted({path.name for path in (site / '.updater').glob('*')} - known)
    if stray:
        return print('BROKEN: left in .updater:', *stray)
    if far and (strange := sorted(str(path) for path in far.rglob('.updater-*'))):
        return print('BROKEN: left on the other volume:', *strange)
    if far and word == 'NEW' and (gone := replaced()) != ['later\n']:
        return print('BROKEN: in after/ lies', *gone)
    backups = sorted(path.name for path in (site / 'backups').iterdir()) if (site / 'backups').exists() else []
    whole = json.loads(run('backups', '--check', '--json').stdout)['backups']
    if sorted(b['id'] for b in whole if b['whole']) != backups:
        return print('BROKEN backups:', *backups, json.dumps(whole))
    aside = [path.read_text() for path in (site / 'backups').glob('*/aside/app/edited.py')]
    gave_way = word == 'NEW' if scenario in ('good', 'hooks') else None
    if gave_way is not None and aside != ([BY_HAND] if gave_way else []):
        return print('BROKEN: what was edited lies aside', len(aside), 'times on the tree', word)
    if scenario == 'prune':
        if not backups:
            return print('BROKEN: no backup is left')
        word = 'NEW' if len(backups) == 1 else 'OLD'
    if os.environ.get('CP_RC') == '0' and word == 'OLD' and not is_recover:
        return print('BROKEN: success was reported, and the old state stands')
    # A clone: SQLite would write beside the live one.
    clone = work / 'clone'
    shutil.rmtree(clone, ignore_errors=True)
    clone.mkdir()
    for name in ('app.db', 'app.db-wal'):
        if (site / 'instance' / name).exists():
            shutil.copy(site / 'instance' / name, clone / name)
    with sqlite3.connect(clone / 'app.db') as db:
        rows = db.execute('SELECT * FROM notes').fetchall()
    db.close()
    if rows != [(1, row)]:
        return print('BROKEN database:', rows)
    answer = until(ping)
    if not answer or answer['version'] != version:
        return print('BROKEN server:', answer, 'on the tree', word)
    print(word)


if __name__ == '__main__':
    {'prepare': prepare, 'command': command, 'setup': setup, 'recover': recover, 'check': check, 'stop': stop}[sys.argv[2]]()
