"""The published site: its configuration, literature and workflows; then, built once, every page opened in Chromium.

SITE=folder takes a site that is built already, such as _docs, or one that the real Quarto made."""
import functools, http.server, importlib.util, json, os, re, shutil, statistics, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, unquote

import pytest, yaml

from conftest import ci

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT.parent/'shared/quarto-schema'
CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('google-chrome')
CONFIG = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
PAGES = sorted(p for p in ROOT.glob('nbs/**/*.ipynb') if not any(part[0] in '._' for part in p.relative_to(ROOT).parts))
enrich = ci('enrich')
PAPERS = enrich.literature(ROOT/'nbs/references.bib')

# --- Quarto's own schema --------------------------------------------------------------------------------------------------

class Schema:
    "Quarto's schema notation, as far as this site needs it: what does a value do that no documented option does?"
    def __init__(self, folder):
        read = lambda name: yaml.safe_load((folder/name).read_text(encoding='utf-8'))
        self.named = {one['id']: one for one in read('definitions.yml')}
        self.project = {one['name']: one['schema'] for one in read('project.yml')}
        self.document = {one['name']: one['schema'] for file in sorted([*folder.glob('document-*.yml'), *folder.glob('cell-*.yml')])
                         for one in read(file.name) or [] if file.name.startswith('document') or 'contexts' in one or 'tags' in one}

    def faults(self, value, schema, where):
        if schema is None: schema = 'null'
        if isinstance(schema, str):
            kinds = {'string': (str,), 'path': (str,), 'boolean': (bool,), 'number': (int, float), 'object': (dict,), 'null': (type(None),)}
            return [] if schema == 'any' or schema not in kinds or isinstance(value, kinds[schema]) else [f'{where}: {value!r} is no {schema}']
        if isinstance(schema, list): return [] if value in schema else [f'{where}: {value!r} is none of {schema}']
        for kind in 'schema', 'ref', 'enum', 'anyOf', 'allOf', 'arrayOf', 'maybeArrayOf', 'object', 'record', 'string', 'path', 'boolean', 'number':
            if kind in schema: return getattr(self, f'_{kind}', self._plain)(value, schema[kind], where, kind)
        return []

    def _plain(self, value, schema, where, kind): return self.faults(value, kind, where)
    def _schema(self, value, schema, where, kind): return self.faults(value, schema, where)
    def _ref(self, value, name, where, kind): return self.faults(value, {k: v for k, v in self.named[name].items() if k != 'id'}, where) if name in self.named else []
    def _allOf(self, value, schemas, where, kind): return [fault for one in schemas for fault in self.faults(value, one, where)]
    def _record(self, value, schema, where, kind): return self.faults(value, 'object', where)
    def _anyOf(self, value, schemas, where, kind): return min((self.faults(value, one, where) for one in schemas), key=len)
    def _enum(self, value, schema, where, kind): return self.faults(value, schema['values'] if isinstance(schema, dict) else schema, where)
    def _arrayOf(self, value, schema, where, kind):
        if not isinstance(value, list): return [f'{where}: {value!r} is no list']
        return [fault for n, one in enumerate(value) for fault in self.faults(one, schema, f'{where}[{n}]')]
    def _maybeArrayOf(self, value, schema, where, kind):
        return self._arrayOf(value, schema, where, kind) if isinstance(value, list) else self.faults(value, schema, where)
    def _known(self, schema):
        "An object's properties and those of what it is made from; and whether it takes no others."
        properties, closed = dict(schema.get('properties', {})), schema.get('closed', False)
        above = schema.get('super', [])
        for one in above if isinstance(above, list) else [above]:
            one = self.named[one['resolveRef']] if 'resolveRef' in one else one
            properties = self._known(one.get('object', one.get('schema', {}).get('object', {})) if isinstance(one, dict) else {})[0] | properties
        return properties, closed
    def _object(self, value, schema, where, kind):
        if not isinstance(value, dict): return [f'{where}: {value!r} is no object']
        properties, closed = self._known(schema)
        unknown = [f'{where}: unknown key {key}' for key in value if closed and key not in properties]
        missing = [f'{where}: {key} is missing' for key in schema.get('required', []) if isinstance(schema.get('required'), list) and key not in value]
        return unknown + missing + [fault for key in value if key in properties for fault in self.faults(value[key], properties[key], f'{where}.{key}')]

@pytest.fixture(scope='module')
def schema():
    if not SCHEMA.is_dir(): pytest.skip(f"Quarto's schema is not in {SCHEMA}")
    return Schema(SCHEMA)

def test_the_configuration_has_documented_options_only(schema):
    faults = [f'unknown part {part}' for part in CONFIG if part not in {**schema.project, 'format': 0}]
    for part in CONFIG.keys() - {'format'}: faults += schema.faults(CONFIG[part], schema.project[part], part)
    for key, value in CONFIG['format']['html'].items():
        faults += schema.faults(value, schema.document[key], f'format.html.{key}') if key in schema.document else [f'format.html: unknown option {key}']
    assert faults == []

def test_the_schema_sees_a_wrong_option(schema):
    assert schema.faults({'type': 'website', 'rendre': []}, schema.project['project'], 'project') == ['project: unknown key rendre']
    wrong = {**CONFIG['website'], 'page-navigation': 'perhaps'}
    assert schema.faults(wrong, schema.project['website'], 'website') and schema.faults('sideways', schema.document['code-overflow'], 'x')

def test_front_matter_and_cell_options_are_documented(schema):
    cells = {one['name'] for file in SCHEMA.glob('cell-*.yml') for one in yaml.safe_load(file.read_text(encoding='utf-8')) or []}
    ours = {'export', 'exports', 'exporti', 'hide', 'default_exp', 'data', 'slow', 'gpu'} # nbdev's and this project's
    strange = set()
    for page in PAGES:
        for cell in json.loads(page.read_text(encoding='utf-8'))['cells']:
            source = ''.join(cell['source'])
            if cell['cell_type'] == 'code': strange |= {(page.name, w) for w in re.findall(r'^#\|\s*([\w-]+)', source, re.M) if w not in cells | ours}
            if cell['cell_type'] == 'raw': strange |= {(page.name, key) for key in yaml.safe_load(source.strip().strip('-')) if key not in schema.document}
    assert sorted(strange) == []

# --- literature, workflows, placeholders ----------------------------------------------------------------------------------

def test_every_citation_is_in_the_bibliography():
    lost = {}
    for page in PAGES:
        text = '\n'.join(''.join(c['source']) for c in json.loads(page.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown')
        if found := enrich.uncited(text, PAPERS): lost[page.name] = found
    for module in (ROOT/'cxr_influence').glob('*/*.py'):
        if found := enrich.uncited('\n'.join(re.findall(r'"[^"\n]*"', module.read_text(encoding='utf-8'))), PAPERS): lost[module.name] = found
    assert lost == {} and all(re.match(r'https://(arxiv\.org/abs/|doi\.org/)', one['url']) for one in PAPERS.values())

def test_a_citation_becomes_a_link_and_code_stays():
    linked = enrich.cite('as Lin et al. (2017) say (Pruthi et al. 2020, section 3), `Lin et al. 2017`, $x_{2017}$, Nobody et al. 2020', PAPERS)
    assert linked == ('as [Lin et al. (2017)](https://arxiv.org/abs/1708.02002) say ([Pruthi et al. 2020](https://arxiv.org/abs/2002.08484), section 3), '
                      '`Lin et al. 2017`, $x_{2017}$, Nobody et al. 2020')
    assert enrich.uncited('(Nobody et al. 2020)', PAPERS) == ['Nobody et al. 2020']

def test_an_alternative_text_says_what_the_figure_says():
    text = enrich.describe("fig, ax = plt.subplots()\nax.set_title(f'{n} errors found')\nax.set(xlabel='inspected', ylabel='found')", 'First. *What is found*:', '')
    assert text == 'Figure: … errors found. Axes: inspected, found. What is found.'.replace('… ', '')

def test_cells_that_only_import_are_folded():
    nbio = pytest.importorskip('execnb.nbio', reason='no execnb: pip install nbdev')
    cells = [nbio.mk_cell('import os\n'*6), nbio.mk_cell('import os\n'*6 + 'x = 1'), nbio.mk_cell('import os')]
    enrich.fold_imports(cells)
    assert [cell.source.startswith('#| code-fold: true') for cell in cells] == [True, False, False]

def test_a_term_is_linked_once_and_never_inside_code_or_a_link():
    terms = enrich.glossary('| term | also called | meaning |\n| --- | --- | --- |\n| label noise | noisy labels | x |')
    left = set(terms)
    text = '# label noise\n`label noise` [label noise](x.ipynb), label noise and label noise'
    assert enrich.link_terms(text, terms, left, 'g.ipynb') == text.replace(', label noise and', ', [label noise](g.ipynb#label-noise){.term} and')
    assert left == set()

def test_the_owner_is_the_same_everywhere():
    settings = dict(re.findall(r'^(\w+) = (.*)$', (ROOT/'settings.ini').read_text(encoding='utf-8'), re.M))
    owner, name = settings['user'], settings['repo']
    assert 'To publish' in (ROOT/'settings.ini').read_text(encoding='utf-8') # the line that says what to set
    assert CONFIG['website']['site-url'] == f'https://{owner}.github.io/{name}/stable' and CONFIG['website']['repo-url'] == f'https://github.com/{owner}/{name}'
    assert f'https://github.com/{owner}/{name}' in (ROOT/'CITATION.cff').read_text(encoding='utf-8')
    listed = subprocess.check_output(['git', 'grep', '-hoE', r'github\.com/[a-z0-9-]+/cxr_influence'], cwd=ROOT, text=True).split()
    assert set(listed) == {f'github.com/{owner}/{name}'}

def test_workflows_and_citation_follow_their_schemas():
    if not importlib.util.find_spec('check_jsonschema'): pytest.skip('no check-jsonschema: pip install check-jsonschema')
    files = sorted(map(str, (ROOT/'.github/workflows').glob('*.yml')))
    assert len(files) == 3
    for kind, what in ('github-workflows', files), ('citation-file-format', [str(ROOT/'CITATION.cff')]):
        run = subprocess.run([sys.executable, '-m', 'check_jsonschema', '--builtin-schema', f'vendor.{kind}', *what], text=True, capture_output=True)
        assert run.returncode == 0, run.stdout + run.stderr

# --- the built site -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    if given := os.environ.get('SITE'): return Path(given).resolve()
    folder = tmp_path_factory.mktemp('site')
    built = subprocess.run([sys.executable, '.ci/docs.py', folder], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if built.returncode == 77: pytest.skip(built.stdout.strip())
    assert built.returncode == 0, built.stdout
    return folder/'_docs'

def pages_of(site): return sorted(p for p in site.rglob('*.html') if p.parent != site)

def test_every_lesson_and_task_has_its_tags():
    found, places = enrich.tags([p.relative_to(ROOT) for p in PAGES]), {'tutorials', 'howto', 'experiments', 'explanations', 'benchmarks'}
    assert {p.stem for p in PAGES if p.parent.name in places and p.relative_to(ROOT) not in found} == {'glossary'}
    with pytest.raises(SystemExit, match='nbs/tutorials/quickstart.ipynb'): enrich.tags([p.relative_to(ROOT) for p in PAGES if p.stem != 'quickstart'])

def test_pages_are_light(site):
    weight = {p.relative_to(site).as_posix(): p.stat().st_size for p in pages_of(site)}
    assert statistics.median(weight.values()) < 200e3 and max(weight.values()) < 1.5e6
    pictures = {p.name: p.stat().st_size for p in site.rglob('*') if p.suffix in ('.png', '.jpg', '.webp', '.svg')}
    assert max(pictures.values()) < 1.5e6, max(pictures, key=pictures.get)

def test_pages_have_cards_canonical_addresses_and_alternative_texts(site):
    for page in pages_of(site):
        text = page.read_text(encoding='utf-8')
        assert 'rel="canonical"' in text and 'property="og:title"' in text and 'rel="icon"' in text, page
        bare = [tag for tag in re.findall(r'<img\b[^>]*>', text) if not re.search(r'\balt="[^"]+"', tag)]
        assert bare == [], (page, bare[:2])
        if 'reference' not in page.parts and page.stem not in ('references', 'by_task'): # those are no notebooks
            card = re.search(rf'property="og:image" content="{CONFIG["website"]["site-url"]}/([^"]+)"', text)
            assert card and (site/os.path.normpath(card[1])).is_file(), page
    assert (site/'404.html').exists() and (site/'sitemap.xml').exists()

def test_every_public_name_has_an_entry_in_the_reference(site):
    text = '\n'.join(p.read_text(encoding='utf-8') for p in (site/'nbs/reference').glob('*.html'))
    have, missing = set(re.findall(r'id="([\w.]+)"', text)), []
    for module in (ROOT/'cxr_influence').glob('*/*.py'):
        listed = re.search(r'^__all__ = (\[.*?\])', module.read_text(encoding='utf-8'), re.M | re.S)
        defined = set(re.findall(r'^(?:def|class) (\w+)', module.read_text(encoding='utf-8'), re.M))
        missing += [name for name in re.findall(r"'(\w+)'", listed[1]) if name in defined and name not in have] if listed else []
    assert missing == []

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass

@pytest.fixture(scope='module')
def address(site):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

def in_chromium(work, jobs):
    "Do jobs in two browsers side by side, each in a thread of its own: `work(browser, job)`."
    playwright = pytest.importorskip('playwright.sync_api', reason='no Playwright: pip install playwright')
    if not CHROMIUM: pytest.skip('no Chromium: apt-get install chromium')
    def share(part):
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
            try: return [found for job in part for found in work(browser, job)]
            finally: browser.close()
    with ThreadPoolExecutor(2) as pool: return [found for part in pool.map(share, (jobs[::2], jobs[1::2])) for found in part]

LOOK = r'''() => {
  const found = [], inner = [...document.querySelectorAll('main *')];
  const sideways = inner.filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth && /auto|scroll/.test(getComputedStyle(e).overflowX)
    && !e.closest('table') && !e.querySelector('table') && !e.matches('math'));
  if (sideways.length) found.push(`scrolls sideways: ${sideways.length}, ${sideways[0].innerText.slice(0, 60)}`);
  const broken = [...document.images].filter(i => i.complete && !i.naturalWidth && i.loading !== 'lazy');
  if (broken.length) found.push(`broken picture ${broken[0].src}`);
  const here = document.querySelector('#quarto-sidebar .sidebar-link.active, #quarto-sidebar .active');
  const box = here && here.getBoundingClientRect();
  if (!box || !box.height || box.top < 0 || box.bottom > innerHeight) found.push('the active entry is out of view');
  const raw = [...document.querySelectorAll('main p, main li, main td, main h1, main h2, main h3, .description')].map(e => {
    const copy = e.cloneNode(true);
    copy.querySelectorAll('code, pre, math, style').forEach(x => x.remove());
    return copy.textContent; }).filter(t => /\]\(|\*\*|:::|^#+ |`|\[@|\]\{|\| \|/.test(t));
  if (raw.length) found.push(`raw Markdown: ${raw[0].slice(0, 100)}`);
  return found; }'''
NARROW = '''() => document.documentElement.scrollWidth > 390 ? [`at 390 pixels ${document.documentElement.scrollWidth} wide`] : []'''

def axe():
    found = importlib.util.find_spec('axe_playwright_python')
    return found and Path(found.submodule_search_locations[0])/'axe.min.js'

# What all texts of a page share need not be measured a thousand times, it takes minutes: on long pages each block of code becomes one
# text. Contrast, in light and in dark, takes most of axe's time, and most of a page's texts look alike: of those with the same colours
# and font, on the same layers down to the page's own, one is measured.
STRUCTURE = '''async () => {
  const code = [...document.querySelectorAll('main pre code')];
  if (code.length > 25) code.forEach(block => block.replaceChildren(block.textContent));
  return (await axe.run(document, {resultTypes: ['violations'], rules: {'color-contrast': {enabled: false}}})).violations; }'''
COLOURS = r'''async () => {
  const chains = new Map(), kinds = new Map();
  const layer = s => [s.backgroundColor, s.backgroundImage, s.opacity, s.position, s.zIndex, s.filter, s.mixBlendMode].join();
  const chain = e => {
    if (e && !chains.has(e)) chains.set(e, `${layer(getComputedStyle(e))}|${chain(e.parentElement)}`);
    return e ? chains.get(e) : ''; };
  for (const e of document.querySelectorAll('body, body *')) {
    const field = e.matches('input, select, textarea');
    if (!e.checkVisibility() || !field && ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const s = getComputedStyle(e), kind = [field, s.color, s.fontSize, s.fontWeight, s.textShadow, s.webkitTextFillColor, chain(e)].join();
    if (!kinds.has(kind)) kinds.set(kind, e);
  }
  const include = [...kinds.values()], exclude = include.flatMap(e => [...e.children]).filter(e => !include.includes(e));
  const {violations, passes} = await axe.run({include, exclude}, {resultTypes: ['violations', 'passes'], runOnly: ['color-contrast']});
  const measured = [...violations, ...passes].reduce((n, v) => n + v.nodes.length, 0);
  return measured > include.length / 2 ? violations : [{id: `of ${include.length} kinds of text only ${measured} were measured`, impact: 'serious', nodes: [{html: ''}]}]; }'''
DARK = "mode => !document.querySelector('.quarto-dark') === (mode === 'light')" # the page's own scripts see to it

def serious(violations):
    return [f'{v["id"]}: {len(v["nodes"])}, {v["nodes"][0]["html"][:140]}' for v in violations if v['impact'] in ('serious', 'critical')]

@pytest.fixture(scope='module')
def visits(site, address):
    "Each page opened once: what is wrong with it at first sight, and what axe says. Where TURN is `k/n`, every nth page."
    script = axe() and axe().read_text(encoding='utf-8')
    mine, turns = map(int, os.environ.get('TURN', '0/1').split('/'))
    pages, modes = [p.relative_to(site).as_posix() for p in pages_of(site)][mine::turns], ['light', 'dark']
    def work(browser, path):
        read = modes if pages.index(path)//2 % 2 else modes[::-1]
        page, faults, barriers = browser.new_page(viewport={'width': 1280, 'height': 800}, color_scheme=read[0]), [], []
        page.on('console', lambda message: faults.append(f'{path}: console: {message.text}') if message.type == 'error' else None)
        page.on('pageerror', lambda error: faults.append(f'{path}: error: {error}'))
        page.on('request', lambda request: faults.append(f'{path} asks {request.url}') if not request.url.startswith((address, 'data:')) else None)
        page.goto(address + path, wait_until='load')
        faults += [f'{path}: {fault}' for fault in page.evaluate(LOOK)]
        page.set_viewport_size({'width': 390, 'height': 844})
        faults += [f'{path}: {fault}' for fault in page.evaluate(NARROW)]
        seen = [*faults] # not what axe does
        if script:
            page.set_viewport_size({'width': 1280, 'height': 800})
            page.add_style_tag(content='* {transition: none !important}')
            page.evaluate(script)
            for mode in read:
                page.emulate_media(color_scheme=mode, reduced_motion='reduce')
                page.wait_for_function(DARK, arg=mode)
                page.wait_for_timeout(100) # what else the page's own scripts do
                for rules in [STRUCTURE, COLOURS] if mode == read[0] else [COLOURS]: barriers += [f'{path}, {mode}: {fault}' for fault in serious(page.evaluate(rules))]
        page.close()
        return [(seen, barriers)]
    return in_chromium(work, pages)

def test_every_page_opens_well(visits):
    assert [fault for faults, _ in visits for fault in faults] == []

def test_every_address_on_every_page_leads_somewhere(site):
    def anchors(text): return {*re.findall(r'\b(?:id|name)="([^"]+)"', text), *(f'category={tag}' for tag in re.findall(r'data-category="([^"]+)"', text))}
    targets = {p.resolve(): anchors(p.read_text(encoding='utf-8')) for p in site.rglob('*.html')}
    lost = []
    for page in pages_of(site):
        for link in re.findall(r'\b(?:href|src)="([^"]*)"', page.read_text(encoding='utf-8')):
            path, _, anchor = link.partition('#')
            if re.match(r'[a-z]+:|//', path): continue
            file = ((page.parent/path.split('?')[0]) if path else page).resolve()
            if not file.exists() or (anchor and file in targets and unquote(anchor) not in targets[file]): lost.append(f'{page.name}: {link}')
    assert lost == []

def test_axe_finds_nothing_serious_in_light_or_dark(visits):
    if not axe(): pytest.skip('no axe-core: pip install axe-playwright-python')
    found = [barrier for _, barriers in visits for barrier in barriers]
    assert not found, '\n'.join(found)

def test_a_tag_leads_to_the_pages_of_its_task(site, address):
    if not (site/'site_libs/smalldocs.js').exists(): pytest.skip("the list is Quarto's own here")
    def work(browser, tag):
        page = browser.new_page(viewport={'width': 1280, 'height': 800})
        page.goto(f'{address}nbs/explanations/by_task.html')
        def shown(): return {Path(link.get_attribute('href')).stem for link in page.locator('.quarto-listing-table tbody a:visible').all()}
        every = shown()
        page.locator(f'main a[href="#category={quote(tag)}"]').click()
        page.wait_for_timeout(300)
        left, wanted = shown(), {Path(name).name for name in enrich.TAGS[tag].split()}
        page.close()
        return [] if left == wanted < every else [(tag, left ^ wanted)]
    assert in_chromium(work, ['find label errors', 'use your own data']) == []

FIRST = {'self-influence': '#self_influence|layerwise|04_scoring', 'focal loss': '01_losses', 'label noise': '05_label_errors|label_errors',
         'install': 'index', 'cite': 'cite', 'own data set': 'other_datasets'}

def test_searching_finds_the_right_page_first(site, address):
    if not (site/'site_libs/smalldocs.js').exists(): pytest.skip("the search is Quarto's own here")
    def work(browser, asked):
        page = browser.new_page(viewport={'width': 1280, 'height': 800})
        page.goto(address + 'nbs/index.html')
        page.fill('.smalldocs-search input', asked)
        page.wait_for_selector('.smalldocs-search-results.show .search-result', timeout=20000)
        page.wait_for_timeout(500)
        first = page.locator('.search-result').first.get_attribute('href')
        page.close()
        return [] if re.search(FIRST[asked], first) else [f'{asked}: {first}']
    assert in_chromium(work, list(FIRST)) == []
