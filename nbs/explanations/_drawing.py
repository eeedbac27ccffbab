"""The project's two drawings, as SVG made from the package's own structure and from the tables of runs.

Boxes are light and opaque with dark text, lines are of a middle tone, so that both are readable on a light and on a
dark page. Run this file to write them into nbs/images: `python nbs/explanations/_drawing.py`."""
import ast, textwrap
from html import escape
from pathlib import Path

NBS = Path(__file__).resolve().parents[1]
FONT = 'font-family="system-ui,-apple-system,Segoe UI,Helvetica,Arial,sans-serif"'
INK, SOFT, LINE, EDGE = '#16202b', '#435261', '#7b8c9d', '#9fb0c0'
FILLS = ['#e3eefa', '#efe7fa', '#e2f3ee', '#fdf0d9', '#fbe4e1', '#e6edd9', '#dfe6ee', '#f6e4ef']
STROKES = ['#3d83cf', '#9a78d8', '#2a9d7c', '#c08a2e', '#d0695a', '#7b9a3f', '#708499', '#b5588f']

def modules(nbs:Path = NBS) -> dict: # (wing, page) -> the source that the notebook exports
    "Find the pages of every wing, in reading order."
    package = nbs.parent/'cxr_influence'
    names = [tuple(part.partition('_')[2] for part in (page.parent.name, page.stem))
             for page in sorted(nbs.glob('[0-9]_*/*.ipynb'))]
    files = {name: package/name[0]/f'{name[1]}.py' for name in names}
    return {name: file.read_text(encoding='utf-8') for name, file in files.items() if file.is_file()}

def imported(name:tuple, source:str): # -> (wing, page) of each module that it imports from
    "List a module's imports from the package."
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom): continue
        here = ['cxr_influence', *name][:3 - node.level] if node.level else []
        parts = tuple([*here, *(node.module or '').split('.')])
        if parts[:1] == ('cxr_influence',) and len(parts) > 2: yield parts[1:3]

def arrows(found:dict) -> dict: # (used wing, using wing) -> imports
    "Count the imports between wings."
    counts = {}
    for name, source in found.items():
        for used in imported(name, source):
            if used in found and used[0] != name[0]:
                counts[used[0], name[0]] = counts.get((used[0], name[0]), 0) + 1
    return counts

def text(x, y, words, size=15, fill=INK, weight=400, anchor='start') -> str:
    return (f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
            f'text-anchor="{anchor}">{escape(str(words))}</text>')

def box(x, y, width, height, fill, stroke) -> str:
    return (f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="9" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.5"/>')

def svg(width, height, title, description, parts) -> str:
    "An SVG with a title and a description for those who cannot see it; it shrinks with its page."
    name = title.split()[-1].lower()
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'style="max-width:100%;height:auto" role="img" aria-labelledby="{name}-title {name}-words" {FONT}>'
            f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-words">{escape(description)}</desc>'
            + ''.join(parts) + '</svg>\n')

def arrow(path:str, tip:tuple, toward:tuple, colour:str, width:float) -> str: # a line with a head at `tip`
    (x, y), (dx, dy) = tip, toward
    side = 3 + width
    head = [(x, y), (x - 8*dx + side*dy, y - 8*dy + side*dx), (x - 8*dx - side*dy, y - 8*dy - side*dx)]
    points = ' '.join(f'{a:.1f},{b:.1f}' for a, b in head)
    return (f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:.1f}"/>'
            f'<polygon points="{points}" fill="{colour}"/>')

def architecture(nbs:Path = NBS) -> str: # SVG
    "Draw the wings from top to bottom, and an arrow from each to those that import from it."
    found = modules(nbs)
    counts, wings = arrows(found), list(dict.fromkeys(wing for wing, _ in found))
    left, wide, gap, y, boxes = 16, 470, 30, 16, {}
    for wing in wings:
        pages = ' · '.join(page.replace('_', ' ') for name, page in found if name == wing)
        lines = textwrap.wrap(pages, 66)
        boxes[wing] = y, 44 + 18*len(lines), lines
        y += boxes[wing][1] + gap
    parts = [*_wing_arrows(wings, counts, boxes, left, wide)]
    for number, (wing, (top, high, lines)) in enumerate(boxes.items()):
        parts += [box(left, top, wide, high, FILLS[number % 7], STROKES[number % 7]),
                  text(left + 14, top + 25, wing.capitalize(), 17, weight=650)]
        parts += [text(left + 14, top + 47 + 18*k, line, 13, SOFT) for k, line in enumerate(lines)]
    said = '; '.join(f'{end} imports from {", ".join(a for a, b in counts if b == end)}'
                     for end in wings if any(b == end for _, b in counts))
    return svg(left + wide + 190, y - gap + 16, f'{len(wings)} wings, {len(counts)} arrows, none upward',
               f'Boxes from top to bottom, an arrow for each import: {said}.', parts)

def _wing_arrows(wings, counts, boxes, left, wide):
    "Straight arrows between neighbours, arcs on the right for the others: they leave low and arrive high."
    place = {wing: number for number, wing in enumerate(wings)}
    ends = sorted(counts, key=lambda pair: place[pair[1]] - place[pair[0]])
    out = {wing: [pair for pair in ends if pair[0] == wing and place[pair[1]] - place[wing] > 1] for wing in wings}
    into = {wing: [pair for pair in ends if pair[1] == wing and place[wing] - place[pair[0]] > 1] for wing in wings}
    for pair in ends:
        start, end = pair
        width, colour = 1.5 + min(counts[pair], 24)/9, STROKES[place[start] % 7]
        bottom, top = boxes[start][0] + boxes[start][1], boxes[end][0]
        if place[end] - place[start] == 1:
            x = left + 60
            yield arrow(f'M{x} {bottom} V{top - 6}', (x, top), (0, 1), colour, width)
            continue
        def share(pairs, low, high): return low + (high - low)*(pairs.index(pair) + 1)/(len(pairs) + 1)
        y0 = share(out[start][::-1], boxes[start][0] + boxes[start][1]*.45, bottom)
        y1 = share(into[end], boxes[end][0], boxes[end][0] + boxes[end][1]*.55)
        x, bulge = left + wide, 26*(place[end] - place[start]) + 3*place[start]
        path = f'M{x} {y0:.1f} C{x + bulge*1.25:.1f} {y0:.1f} {x + bulge*1.25:.1f} {y1:.1f} {x + 6} {y1:.1f}'
        yield arrow(path, (x, y1), (-1, 0), colour, width)

def _lungs(x, y) -> str: # a radiograph, 120 wide
    return (f'<g transform="translate({x} {y})"><rect width="120" height="112" rx="6" fill="#10161c"/>'
            '<path d="M60 10 C78 12 100 20 104 34 L108 112 H12 L16 34 C20 20 42 12 60 10Z" fill="#6f7a84"/>'
            '<path d="M54 24 C40 26 26 48 26 80 C26 92 30 96 40 92 C50 88 54 84 54 70Z" fill="#1b2229"/>'
            '<path d="M66 24 C80 26 94 48 94 80 C94 92 90 96 82 90 C74 84 70 72 66 62Z" fill="#1b2229"/>'
            '<path d="M54 56 C70 58 84 74 80 92 C70 98 58 96 52 88Z" fill="#aeb8c1"/></g>')

def _losses(x, y) -> str: # a falling loss with its checkpoints
    points = [(0, 12), (20, 46), (42, 66), (66, 78), (92, 84), (116, 86)]
    line = ' '.join(f'{x + a},{y + b}' for a, b in points)
    dots = ''.join(f'<circle cx="{x + a}" cy="{y + b}" r="5" fill="#b7791f"/>' for a, b in points[1:])
    return (f'<path d="M{x} {y} V{y + 104} H{x + 120}" fill="none" stroke="{SOFT}" stroke-width="1.5"/>'
            f'<polyline points="{line}" fill="none" stroke="#b7791f" stroke-width="2.5"/>{dots}')

def _histogram(x, y) -> str: # influence around zero
    bars = [(4, '#c05746'), (12, '#c05746'), (28, '#c05746'), (62, '#2b6cb0'), (92, '#2b6cb0'), (70, '#2b6cb0'),
            (40, '#2b6cb0'), (22, '#2b6cb0'), (10, '#2b6cb0'), (5, '#2b6cb0')]
    parts = [f'<rect x="{x + 12*k}" y="{y + 104 - high}" width="10" height="{high}" fill="{fill}"/>'
             for k, (high, fill) in enumerate(bars)]
    zero = f'<path d="M{x + 35} {y + 2} V{y + 108}" stroke="{INK}" stroke-width="1.5"/>'
    return ''.join(parts) + zero + f'<path d="M{x - 4} {y + 104} H{x + 124}" stroke="{SOFT}" stroke-width="1.5"/>'

def _intervals(x, y) -> str: # differences to random, with intervals
    rows = [(74, 96, '#2b6cb0'), (48, 88, LINE), (20, 42, '#c05746'), (42, 72, LINE)]
    parts = [f'<path d="M{x + low} {y + 16 + 24*k} H{x + high}" stroke="{fill}" stroke-width="3"/>'
             f'<circle cx="{x + (low + high)/2}" cy="{y + 16 + 24*k}" r="5" fill="{fill}"/>'
             for k, (low, high, fill) in enumerate(rows)]
    zero = f'<path d="M{x + 60} {y + 2} V{y + 106}" stroke="{INK}" stroke-width="1.5" stroke-dasharray="4 3"/>'
    return zero + ''.join(parts)

STEPS = [('Radiographs', 'and their labels', _lungs), ('Train', 'and keep checkpoints', _losses),
         ('Influence', 'of every image', _histogram), ('Retrain', 'without some, or on some', _intervals)]

def visual_abstract(results:list = ()) -> str: # SVG; `results`: a line of text for each step, from the tables of runs
    "Draw the four steps of a study; with results, what came of each stands below it."
    wide, gap, high = 206, 34, 208 + 24*bool(results)
    parts = []
    for number, (title, more, draw) in enumerate(STEPS):
        x = 12 + number*(wide + gap)
        parts += [box(x, 12, wide, high, FILLS[[0, 3, 1, 5][number]], STROKES[[0, 3, 1, 5][number]]),
                  text(x + wide/2, 42, title, 19, weight=650, anchor='middle'),
                  text(x + wide/2, 63, more, 14, SOFT, anchor='middle'), draw(x + wide/2 - 60, 82)]
        if results: parts.append(text(x + wide/2, 224, results[number], 14, weight=600, anchor='middle'))
        if number: parts.append(arrow(f'M{x - gap + 3} {12 + high/2} H{x - 8}', (x - 3, 12 + high/2), (1, 0), LINE, 3))
    said = '; '.join(f'{a} {b}' + (f': {results[k]}' if results else '') for k, (a, b, _) in enumerate(STEPS))
    return svg(12 + 4*wide + 3*gap + 12, high + 24, 'From radiographs to influence to subsets',
               f'Four steps from left to right: {said}.', parts)

if __name__ == '__main__':
    for name, drawing in [('architecture', architecture()), ('visual_abstract', visual_abstract())]:
        (NBS/'images'/f'{name}.svg').write_text(drawing, encoding='utf-8')
