#!/usr/bin/env python3
"""power_install.py WORK prepare|setup|recover|check - the install of scripts/power-cut, on the disk mounted at WORK/mnt.

It is crash_install.py's (SCENARIO good, bad or hooks), with its last row in the database's log alone. `recover` is what
happens when the machine is up again: nothing runs; at every other cut `recover --boot` comes first, then the server is
started as a service manager would. Recovery must ask about data exactly when the bad version was left started, or when hooks had
written among the data and somebody may have started the new version since.
`check` is the crash test's, and holds every backup, the receipt and the kept bundle to their hashes by itself.
"""
import contextlib, hashlib, io, json, os, sys
import crash_install as install

site = install.site = install.work / 'mnt/site'
asked = install.work / 'asked'
is_bad = install.is_bad


def setup():
    install.setup()
    # While the server holds the database open the row stays in the log: both files are needed to keep it.
    install.sql("UPDATE notes SET text = 'x'", "UPDATE notes SET text = 'a row'")
    if not (site / 'instance/app.db-wal').stat().st_size:
        sys.exit('the row is not in the log')


def records():
    """The whole records of the journal."""
    journal, found = site / '.updater/journal', []
    for line in journal.read_bytes().split(b'\n') if journal.exists() else []:
        total, _, record = line.partition(b' ')
        if hashlib.sha256(record).hexdigest()[:16].encode() == total:
            found.append(json.loads(record))
    return found


def must_ask(found):
    """The bad version was started, its end is not decided (or decided, but it may have been started since). Or hooks
    have run, and the start file is there."""
    states = {record['state'] for record in found}
    ended = states & {'starting', 'data-restored', 'rolled-back', 'committed'}
    if 'hooking' in states and not ended and (site / 'run.py').exists():
        return True
    undoing = [record['data'] for record in found if record['state'] == 'undoing']
    goes_on = undoing and (undoing[-1] != 'restored' or not (site / 'run.py').exists())
    return is_bad and 'starting' in states and not states & {'data-restored', 'rolled-back', 'committed'} and not goes_on


def told(*arguments):
    done = install.run('recover', '--json', *arguments)
    print('recover', *arguments, done.returncode, done.stdout, done.stderr)
    return done


def recover():
    if mixed := install.startable_mixture():
        sys.exit(f'a mixed tree could be started: {mixed}')
    found = records()
    print('journal:', *[record['state'] for record in found])
    asks = must_ask(found)
    if int(os.environ['CUT_N']) % 2:
        if told('--boot').returncode not in ((0, 4) if asks else (0,)):
            sys.exit('recover --boot failed')
        if not (site / 'run.py').exists():
            sys.exit('recover --boot left nothing that can be started')
        start()
    done = told()
    if (done.returncode == 4 and '"data-undecided"' in done.stdout) != asks:
        sys.exit('recovery did not ask about data' if asks else 'recovery asked about data')
    asked.write_text(' after --data backup' if asks else '')
    if asks:
        done = told('--data', 'backup')
    if done.returncode == 0 and not install.answers():
        start()
    sys.exit(done.returncode)


def start():
    """Starts what stands. The bad version answers 500, so any answer will do; what gives none is found by the check."""
    with contextlib.suppress(SystemExit):
        install.ping, ping = install.answers, install.ping
        install.start()
    install.ping = ping


def wrong_backup():
    for folder in sorted((site / 'backups').glob('*')):
        if not (folder / 'backup.json').exists():
            return f'{folder.name} has no record'
        for line in json.loads((folder / 'backup.json').read_text())['files']:
            saved = folder / line.get('place', line['path'])
            if not saved.is_file() or hashlib.sha256(saved.read_bytes()).hexdigest() != line['sha256']:
                return f'{folder.name} lost {line["path"]}'
    return None


def wrong_receipt(stands_new):
    receipt, kept = site / '.updater/receipt.json', site / '.updater/bundle.zip'
    if not receipt.exists() or not kept.exists():
        return 'the receipt or the kept bundle is missing'
    version, bundle = ('2.0', install.bundle) if stands_new else ('1.0', install.first_bundle)
    lines = {line['path']: line['sha256'] for line in json.loads(receipt.read_text())['files']}
    wanted = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in install.code(version).items()}
    if stands_new and not list((site / 'backups').glob('*/backup.json')):
        return 'the new version stands without a backup'
    return None if lines == wanted and kept.read_bytes() == bundle.read_bytes() else f'the receipt or the kept bundle: {lines}'


def check():
    # The new version did not flush it: a power cut may leave it empty or, on ext4, as zeros. That is not ours.
    added = site / 'uploads/b.txt'
    if is_bad and added.exists() and added.read_bytes() in (b'', b'\0' * len('added')):
        added.write_text('added')
    if os.environ['CUT_DONE'] == '1':
        os.environ['CP_RC'] = os.environ['CUT_RC']
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        install.check()
    verdict = said.getvalue().strip()
    if not verdict.startswith('BROKEN'):
        verdict += asked.read_text()
        if wrong := wrong_backup() or wrong_receipt(verdict == 'NEW'):
            verdict = f'BROKEN: {wrong}'
    print(verdict)


if __name__ == '__main__':
    {'prepare': install.prepare, 'setup': setup, 'recover': recover, 'check': check}[sys.argv[2]]()
