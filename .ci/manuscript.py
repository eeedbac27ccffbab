"""The manuscript in report/: with Quarto to HTML (and to PDF where TeX is), else to HTML with nbconvert.

    python .ci/manuscript.py [folder of runs]

Without Quarto, the cells of index.qmd are run as a notebook, citations become author and year, and equations MathML."""
import os, re, shutil, subprocess, sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT, OUT = ROOT/'report', ROOT/'report/_manuscript'

def quarto(runs):
    "Render with Quarto; PDF only where a TeX is found."
    formats = ['html'] + (['pdf'] if any(map(shutil.which, ['lualatex', 'xelatex', 'pdflatex', 'tectonic'])) else [])
    for to in formats:
        done = subprocess.run(['quarto', 'render', REPORT, '--to', to, '-P', f'runs:{runs}'])
        if done.returncode: return done.returncode

def references():
    "The bibliography as key -> (authors and year, full text)."
    found = {}
    for key, body in re.findall(r'@\w+\{(\w+),(.*?)\}\s*(?=@|\Z)', (REPORT/'references.bib').read_text(encoding='utf-8'), re.S):
        field = {name: re.sub(r'\\.|[{}]', '', value) for name, value in re.findall(r'(\w+)=\{((?:[^{}]|\{[^{}]*\})*)\}', body)}
        names = [name.split(',')[0] for name in field['author'].split(' and ')]
        short = names[0] if len(names) == 1 else ' and '.join(names) if len(names) == 2 else f'{names[0]} et al.'
        where = field.get('booktitle') or field.get('journal') or field.get('publisher', '')
        authors = field['author'].replace(' and ', '; ')
        found[key] = f'{short} {field["year"]}', f'{authors} ({field["year"]}). {field["title"]}. *{where}*.'
    return found

def words(text, known, used):
    "Markdown of Quarto as plain Markdown: citations, divs, attributes of headings."
    def cite(match):
        keys = re.findall(r'@(\w+)', match[1])
        used.update(dict.fromkeys(keys))
        return '(' + '; '.join(f'[{known[key][0]}](#ref-{key})' for key in keys) + ')'
    text = re.sub(r'\[(@[^\]]+)\]', cite, text)
    text = re.sub(r'^:::.*\n?', '', text, flags=re.M)
    return re.sub(r'^(#+ .*?) *\{[^}]*\}$', r'\1', text, flags=re.M)

def notebook(runs):
    "The notebook of index.qmd, and its front matter."
    import nbformat, yaml
    _, front, body = (REPORT/'index.qmd').read_text(encoding='utf-8').split('---\n', 2)
    front, known, used, cells = yaml.safe_load(front), references(), {}, []
    for number, part in enumerate(re.split(r'^```\{python\}\n(.*?)^```$', body, flags=re.M | re.S)):
        if number % 2:
            options = yaml.safe_load('\n'.join(line[3:] for line in part.splitlines() if line.startswith('#| '))) or {}
            if 'parameters' in options.get('tags', []): part = f'runs = {str(runs)!r}'
            cells.append(nbformat.v4.new_code_cell(part, metadata={'quarto': options}))
        elif part := words(part, known, used).strip(): cells.append(nbformat.v4.new_markdown_cell(part))
    listed = '\n\n'.join(f'<span id="ref-{key}">{known[key][1]}</span>' for key in sorted(used))
    authors = ', '.join(author['name'] for author in front['author'])
    cells[:0] = [nbformat.v4.new_markdown_cell(f'# {front["title"]}\n\n*{front["subtitle"]}. {authors}.*')]
    return nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_markdown_cell(listed)]), front

def captioned(nb):
    "Give figures their alternative texts, and captions below them."
    import nbformat
    cells = []
    for cell in nb.cells:
        cells.append(cell)
        options = cell.metadata.get('quarto', {})
        shown = [kind for output in cell.get('outputs', []) for kind in output.get('data', {}) if kind.startswith('image/')]
        for output in cell.get('outputs', []):
            for kind in set(shown) & set(output.get('data', {})):
                output.metadata.setdefault(kind, {})['alt'] = options.get('fig-alt', '')
        if shown and 'fig-cap' in options: cells.append(nbformat.v4.new_markdown_cell(f'*Figure.* {options["fig-cap"]}'))
    nb.cells = cells
    return nb

def mathml(text):
    "Equations that browsers draw by themselves."
    from html import unescape
    from latex2mathml.converter import convert
    text = re.sub(r'\$\$(.+?)\$\$', lambda m: convert(unescape(m[1]), display='block'), text, flags=re.S)
    return re.sub(r'(?<![\w$])\$([^$\n<]+?)\$(?!\w)', lambda m: convert(unescape(m[1])), text)

def plain(runs):
    "Render to one HTML file without Quarto."
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from cxr_influence.runs.report import _STYLE
    nb, front = notebook(runs)
    NotebookClient(nb, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(REPORT)}}).execute()
    body, _ = HTMLExporter(template_name='basic', exclude_input=True, exclude_output_prompt=True).from_notebook_node(captioned(nb))
    body = re.sub(r'<a class="anchor-link"[^>]*>.*?</a>', '', mathml(body)).replace('<table', '<div class="scroll" tabindex="0"><table') \
        .replace('</table>', '</table></div>')
    OUT.mkdir(exist_ok=True)
    page = (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(front["title"])}</title><meta name="viewport" '
            f'content="width=device-width,initial-scale=1"><style>{_STYLE}main{{padding-top:2rem;max-width:50rem}}img,svg{{max-width:100%;'
            f'height:auto;background:#fff}}math[display=block]{{margin:1rem 0}}</style></head><body><main>{body}</main></body></html>')
    (OUT/'index.html').write_text(page, encoding='utf-8')

if __name__ == '__main__':
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT/'_runs').resolve()
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    if code := quarto(runs) if shutil.which('quarto') else plain(runs): sys.exit(code)
    print(f'The manuscript is in {OUT}/index.html')
