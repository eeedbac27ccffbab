"""Results that claims cite: tables that pages store, each with the commit that stored it.

`python nbs/explanations/_claims.py` writes them to `_claims.json`; run it once a page with new
outputs is committed."""
import json, os, re, subprocess
from pathlib import Path
from string import Formatter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from bs4 import BeautifulSoup

from cxr_influence.measures.intervals import judge_interval

HERE = Path(__file__).resolve().parent
NBS, KEPT = HERE.parent, HERE / '_claims.json'
INTERVAL = re.compile(r'\s*([-+]?[\d.]+)(%?) \[([-+]?[\d.]+), ([-+]?[\d.]+)\]\s*')

class Number(float):
    "A number of a stored table, with the interval that stands beside it, if any."
    def __new__(cls, value, low=None, high=None):
        self = super().__new__(cls, value)
        self.low, self.high = low, high
        return self
    @property
    def minus(self): # the same, counted the other way
        if self.low is None: return Number(-self)
        return Number(-self, -self.high, -self.low)
    def __format__(self, spec): # `.2fi`: with its interval
        if not spec.endswith('i'): return super().__format__(spec)
        one = [format(float(value), spec[:-1]) for value in (self, self.low, self.high)]
        return f'{one[0]} [{one[1]}, {one[2]}]'

def number(text):
    "Read a table's cell: `0.3`, `12%`, `0.3 [0.1, 0.4]`."
    if found := INTERVAL.fullmatch(text.replace('−', '-')):
        return Number(found[1], float(found[3]), float(found[4]))
    try: return Number(float(text.rstrip('%')) / (100 if text.endswith('%') else 1))
    except ValueError: return text

def _grid(rows): # cells of an HTML table's rows, each where it stands, and spans filled
    grid = {}
    for i, row in enumerate(rows):
        j = 0
        for cell in row(['th', 'td']):
            while (i, j) in grid: j += 1
            height, width = (int(cell.get(key, 1)) for key in ('rowspan', 'colspan'))
            for place in ((i + a, j + b) for a in range(height) for b in range(width)):
                grid[place] = cell
            j += width
    width = max((j for _, j in grid), default=-1) + 1
    return [[grid.get((i, j)) for j in range(width)] for i in range(len(rows))]

def _label(cells): # of a row or column: its levels, joined
    words = [cell.get_text(' ', strip=True) for cell in cells if cell is not None]
    return ' / '.join(word for word in words if word)

def parse_table(html):
    "[row label, column label -> text] of each row of a table as pandas writes it."
    table = BeautifulSoup(html, 'html.parser').find('table')
    body = _grid(table.tbody('tr'))
    if not body: return []
    first = next((j for j, cell in enumerate(body[0]) if cell.name == 'td'), 0)
    head = _grid(table.thead('tr'))
    head = [row for row in head if _label(row[first:])] # without the names of the index
    names = [_label(column) for column in list(zip(*head))[first:]]
    return [[_label(row[:first]), dict(zip(names, (_label([cell]) for cell in row[first:])))]
            for row in body]

def stored_tables(notebook):
    "Cell id -> the first table among its outputs, of a notebook as JSON."
    tables = {}
    for cell in notebook['cells']:
        pages = [''.join(o.get('data', {}).get('text/html', ''))
                 for o in cell.get('outputs', [])]
        pages = [html for html in pages if '<tbody' in html]
        if pages: tables[cell['id']] = parse_table(pages[0])
    return tables

def git(*arguments): # its answer, of this repository
    return subprocess.run(['git', *arguments], cwd=NBS, capture_output=True, text=True,
                          encoding='utf-8', check=True).stdout

def _versions(page): # (commit, date, path at that time) of a page, the newest first
    lines = git('log', '--first-parent', '-m', '--follow', '--diff-filter=d', '--format=%h %as',
                '--name-only', '--abbrev=12', '--',
                f'{NBS}/{page}').split()
    return list(zip(lines[::3], lines[1::3], lines[2::3]))

def first_stored(rows, versions):
    "The commit that stored these numbers first, and since when they stand unchanged."
    since = None
    for commit, date, path in versions:
        tables = stored_tables(json.loads(git('show', f'{commit}:{path}'))).values()
        if not any(_same_numbers(table, rows) for table in tables): break
        since = commit, date
    return since

def _same_numbers(table, rows): # names of rows and columns may have changed
    values = [[list(texts.values()) for _, texts in one] for one in (table, rows)]
    return values[0] == values[1]

def runs_of(notebook):
    "Experiment and name of the runs that a page reads; of an experiment's page, its own."
    source = '\n'.join(''.join(cell['source']) for cell in notebook['cells'])
    read = re.findall(r"\brun\('(\w+)', '([\w-]+)'", source)
    own = re.findall(r"\bstart_run\('(\w+)'", source)
    return {'/'.join(pair) for pair in read} | {f'{name}/by-hand' for name in own}

def read_sources(tables, history=True):
    "Name -> page, cell, runs, rows and, from git, the commit of each table that is cited."
    found, versions, pages = {}, {}, {}
    for name, (page, cell, *runs) in tables.items():
        runs = runs[0] if runs else {}
        if page not in pages: pages[page] = json.loads((NBS / page).read_text(encoding='utf-8'))
        stored = stored_tables(pages[page])
        if cell not in stored: raise LookupError(f'{page} has no table in cell {cell}: {name}')
        if lost := set(runs.values()) - runs_of(pages[page]):
            raise LookupError(f'{page} reads no run {", ".join(sorted(lost))}: {name}')
        found[name] = dict(page=page, cell=cell, runs=runs, rows=stored[cell])
        if not history: continue
        if page not in versions: versions[page] = _versions(page)
        since = first_stored(stored[cell], versions[page])
        if not since:
            raise LookupError(f'Commit {page} first: its cell {cell} has new numbers.')
        found[name] |= dict(commit=since[0], date=since[1])
    return found

class Table(dict):
    "A kept table: `table[row][column]` is a `Number` or a text."
    def __init__(self, name, kept):
        self.name, self.page, self.runs = name, kept['page'], kept['runs']
        self.cell = kept['cell']
        self.commit, self.date = kept['commit'], kept['date']
        rows = {}
        for label, texts in kept['rows']: rows.setdefault(label, []).append(texts)
        super().__init__(rows)
    def __missing__(self, row): raise LookupError(f'{self.name} has no row {row!r}')
    def __getitem__(self, row):
        rows = super().__getitem__(str(row))
        if len(rows) > 1: raise LookupError(f'{self.name} has {len(rows)} rows {row!r}')
        return Row({column: number(text) for column, text in rows[0].items()})
    @property
    def total(self): # of each column
        rows = [self[row] for row in self]
        return Row({column: sum(row[column] for row in rows) for column in rows[0]})

class Row(dict):
    def __missing__(self, column):
        if str(column) in self: return self[str(column)] # `format` makes 0 of '0'
        raise LookupError(f'no column {column!r}, but {", ".join(self)}')

def kept_tables():
    "Name -> `Table`, of what `_claims.json` keeps."
    kept = json.loads(KEPT.read_text(encoding='utf-8'))
    return {name: Table(name, entry) for name, entry in kept.items()}

def at(tables, place): # 'found[influence][at 10%]' -> its number
    return Formatter().get_field(place, (), tables)[0]

def headings(page, cell): # of a page, down to a cell: the page's title first
    cells = json.loads((NBS / page).read_text(encoding='utf-8'))['cells']
    end = next(i for i, one in enumerate(cells) if one['id'] == cell)
    text = '\n'.join(''.join(c['source']) for c in cells[:end] if c['cell_type'] == 'markdown')
    return re.findall(r'^##? (.+)$', text, re.M)

def link(page, cell): # to the section of a cell, from this folder
    title, *sections = headings(page, cell)
    name, anchor = title.split(':')[0], ''
    if sections and re.fullmatch(r"[\w ,?']+", sections[-1]):
        anchor = '#' + re.sub(r'[^\w -]', '', sections[-1].lower()).replace(' ', '-')
    return f'[{name}]({Path(os.path.relpath(NBS / page, HERE)).as_posix()}{anchor})'

def words(value): # of a number, three digits
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'

def judge(claim, tables):
    "A claim's number, interval, control, verdict and source."
    value, table = at(tables, claim.value), tables[claim.value.split('[')[0]]
    than = at(tables, claim.than) if isinstance(claim.than, str) else claim.than
    runs = [run for part, run in table.runs.items() if part in claim.value]
    runs = runs or table.runs.values()
    low, high = [at(tables, end) for end in claim.ends] or (value.low, value.high)
    if claim.exact: low = high = value
    verdict = judge_interval(*(np.nan if end is None else end for end in (low, high)), than,
                             claim.above)
    if verdict == 'no interval':
        so = 'as claimed' if (value > than) == claim.above else 'not as claimed'
        verdict = f'{so}, no interval'
    return dict(claim=claim.text.format(than=words(than)), value=float(value), low=low,
                high=high, than=float(than), verdict=verdict, table=table.name,
                page=link(table.page, table.cell), runs=', '.join(runs),
                commit=table.commit[:8],
                question=claim.question, exact=claim.exact)

def judge_all(claims, tables):
    "A row per claim, as from `judge`."
    return pd.DataFrame([judge(claim, tables) for claim in claims])

def list_claims(rows): # Markdown
    "Claims as a table: number, control, verdict, and where they come from."
    lines = ['| claim | number | compared with | verdict | page, run, commit |',
             '|' + ' --- |' * 5]
    for row in rows.itertuples():
        shown = words(row.value)
        if not row.exact and not pd.isna(row.low):
            shown += f' [{words(row.low)}, {words(row.high)}]'
        source = f'{row.page}, {f"`{row.runs}`, " if row.runs else ""}{row.commit}'
        lines.append(f'| {row.claim} | {shown} | {words(row.than)} | **{row.verdict}** | '
                     f'{source} |')
    return '\n'.join(lines)

COLORS = {'holds': '#0072B2', 'undecided': '#999999', 'does not hold': '#D55E00'}

def plot_claims(panels): # (title, rows) of each
    "Numbers with 95 % intervals, one panel per scale; a tick is what each is compared with."
    counts = [len(rows) for _, rows in panels]
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, .3 * sum(counts) + len(panels)),
                                height_ratios=[n + 1 for n in counts], layout='constrained')
    for ax, (title, rows) in zip(axes, panels):
        for i, row in enumerate(rows[::-1].itertuples()):
            color = COLORS[row.verdict]
            ax.plot([row.low, row.high], [i, i], color=color, lw=2)
            ax.plot(row.value, i, 'o', color=color, ms=6)
            ax.plot(row.than, i, '|', color='k', ms=13, mew=1.5)
        ax.set_yticks(range(len(rows)), rows.label[::-1], fontsize=8)
        ax.set_ylim(-.7, len(rows) - .3)
        ax.set_xlabel(title, fontsize=9)
        ax.grid(axis='x', alpha=.3)
    handles = [plt.Line2D([], [], color=c, marker='o', label=name) for name, c in COLORS.items()
               if any((rows.verdict == name).any() for _, rows in panels)]
    handles += [plt.Line2D([], [], color='k', marker='|', ls='', ms=10, label='compared with')]
    figure.legend(handles=handles, loc='outside upper center', ncols=4, fontsize=8)
    return figure

def list_items(items, tables): # Markdown
    "What was decided or tried, with the numbers filled in."
    return '\n'.join(f'* **{name.rstrip(".")}.** {text.format(**tables)}'
                     for name, text in items.items())

def page_text(page):
    "The words of a page's markdown cells, in one line."
    cells = json.loads((NBS / page).read_text(encoding='utf-8'))['cells']
    text = ' '.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    return ' '.join(text.split())

def wrong_sentences(text, sentences, tables):
    "The sentences, numbers filled in from the tables, that a text does not have."
    filled = [' '.join(sentence.format(**tables).split()) for sentence in sentences]
    return [sentence for sentence in filled if sentence not in text]

def uncited_numbers(text, sentences, tables):
    "Decimal numbers of a text that stand in none of the sentences."
    for sentence in sentences:
        text = text.replace(' '.join(sentence.format(**tables).split()), ' ')
    return re.findall(r'(?<![\w.])[-−]?\d+\.\d+(?![\w.])', re.sub(r'\]\([^)]*\)', ']', text))

if __name__ == '__main__':
    from _claims_list import TABLES
    text = json.dumps(read_sources(TABLES), indent=1, ensure_ascii=False)
    KEPT.write_text(text + '\n', encoding='utf-8')
