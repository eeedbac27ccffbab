"""Look for known vulnerabilities in the installed packages with pip-audit.

Fails only where this repository can act: a package that settings.ini names has a vulnerability, and a version without
it is published. The rest is listed and skipped (77), so that an advisory of today does not block work that has nothing to
do with it: vulnerabilities without a fix, those of packages that others bring along, and a machine without network."""
import json, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

ROOT, SKIPPED, SECONDS = Path(__file__).resolve().parents[1], 77, 180

def normal(name): return re.sub(r'[-_.]+', '-', name).lower()

def named():
    "The packages that settings.ini names."
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    lists = [value for key, value in config['DEFAULT'].items() if key.endswith('requirements')]
    return {normal(re.match(r'[\w.-]+', word)[0]) for value in lists for word in value.split()}

def audit():
    "What pip-audit reports of this environment, as JSON; None and why, where it cannot be had."
    command = [sys.executable, '-m', 'pip_audit', '--local', '--skip-editable', '--format', 'json', '--progress-spinner', 'off', '--timeout', '10']
    try: done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, text=True, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired: return None, f'pip-audit had no answer in {SECONDS} s'
    try: return json.loads(done.stdout)['dependencies'], ''
    except (ValueError, KeyError): return None, (done.stderr.strip() or 'pip-audit printed nothing').splitlines()[-1]

def verdict(packages, ours):
    "An exit code and the lines to print."
    audited = [package for package in packages if 'vulns' in package]
    if not audited: return SKIPPED, [f'Skipped: the package index that is reached has no vulnerability data of any of {len(packages)} packages.']
    found = {(package['name'], package['version'], v['id'], ', '.join(v['fix_versions'])) for package in audited for v in package['vulns']}
    line = lambda name, version, label, fixes: f'{name} {version}: {label}, ' + (f'fixed in {fixes}' if fixes else 'no fix published')
    to_raise = {one for one in found if one[3] and normal(one[0]) in ours}
    lines = [f'{len(audited)} of {len(packages)} packages audited']
    lines += [f'Raise its bound in settings.ini: {line(*one)}' for one in sorted(to_raise)]
    lines += [f'Known: {line(*one)}' for one in sorted(found - to_raise)]
    return 1 if to_raise else SKIPPED if found else 0, lines

def main():
    packages, why = audit()
    code, lines = (SKIPPED, [f'Skipped, without vulnerability data: {why}']) if packages is None else verdict(packages, named())
    print(*lines, sep='\n')
    return code

if __name__ == '__main__': sys.exit(main())
