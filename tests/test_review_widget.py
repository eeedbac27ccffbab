"The review widget: its messages without a browser; and in Chromium JupyterLab's queue and the page, worked by keyboard."
import base64, io, json, os, re, secrets, shutil, signal, time
from pathlib import Path

import numpy as np, pandas as pd, pytest
from PIL import Image

from cxr_influence.data.batches import load_data
from cxr_influence.data.files import InputError
from cxr_influence.phantom.dataset import make_phantom
from cxr_influence.review import queue as queue_module, widget as module
from cxr_influence.review.queue import Review, read_review, review_queue
from cxr_influence.review.widget import review, review_page
from driven import SHOTS, Lab, browser, loaded, one_cell, press, shoot # noqa: F401: browser is a fixture

@pytest.fixture(scope='module')
def twenty(tmp_path_factory):
    "A folder with a phantom of some twenty training images."
    folder = tmp_path_factory.mktemp('review')
    make_phantom(folder/'phantom', n=40, size=512 if SHOTS else 256, seed=secrets.randbelow(2**31), duplicates=.1)
    return folder

CELL = '''import os, sys
from pathlib import Path
import numpy as np, pandas as pd
from cxr_influence.data.batches import load_data
from cxr_influence.review.widget import review
Path('pid').write_text(str(os.getpid()))
data = load_data('phantom', 64, stores='stores')
rng = np.random.default_rng(0)
scores = pd.Series(rng.uniform(size=len(data.train)), data.train.index)
probabilities = pd.DataFrame(rng.uniform(size=(len(data), 14)), data.frame.index, data.findings)
review(scores, data, 'review.csv', 'Ada', n=20, probabilities=probabilities)'''

@pytest.fixture
def lab(twenty, browser):
    one_cell(twenty/'queue.ipynb', CELL)
    started = Lab(twenty, browser)
    try: yield started
    finally: started.close()

@pytest.fixture(scope='module')
def many(twenty):
    "The folder's data, with a queue of eight images and random scores and probabilities."
    data, rng = load_data(twenty/'phantom', 64, stores=twenty/'stores'), np.random.default_rng()
    scores = pd.Series(rng.uniform(size=len(data.train)), data.train.index)
    probabilities = pd.DataFrame(rng.uniform(size=(len(data), 14)), data.frame.index, data.findings)
    return review_queue(scores, data, 8, controls=.25, probabilities=probabilities)

# ---------------------------------------------------------------- without a browser

def talk(widget, *messages):
    "What the browser gets for its messages, as (message, bytes)."
    got = []
    widget.send = lambda message, content=(): got.append((json.loads(json.dumps(message)), b''.join(content)))
    for message in messages: widget._receive(widget, message, [])
    return got

def states(got): return [message for message, _ in got if message['kind'] == 'state']
def large(got): return {message['image']: content for message, content in got if message.get('large')}
def pixels(content): return np.asarray(Image.open(io.BytesIO(content)))
def agree(image, **more): return {'do': 'answer', 'image': image, 'answers': {}, 'seconds': 2.5, **more}

def test_pictures_are_the_originals_current_and_next(many, tmp_path):
    "Pixels are those of the files; however far a reviewer goes, one picture more is sent per image."
    widget, names = review(many, path=tmp_path/'review.csv'), list(many.table.index)
    files = {path.name: path for path in Path(many.data.root).rglob('*.png')}
    got = talk(widget, {'do': 'hello'})
    assert list(large(got)) == names[:2] and states(got)[0]['left'] == 8
    for number in range(3):
        sent = large(talk(widget, agree(names[number])))
        assert list(sent) == [names[number + 2]]
        got += [({'large': True, 'image': name}, content) for name, content in sent.items()]
    for name, content in large(got).items(): assert (pixels(content) == np.asarray(Image.open(files[name]))).all()
    beside = states(talk(widget, {'do': 'hello'}))[0]['related']
    stranger = next(name for name in files if name not in [one['image'] for one in beside] + names[3:5])
    assert stranger not in large(talk(widget, {'do': 'open', 'image': stranger}))
    for one in beside: assert one['image'] in large(talk(widget, {'do': 'open', 'image': one['image']})) or one['image'] in names[3:5]

def test_deep_pixels_are_those_of_the_data_set(twenty, tmp_path):
    "Files of 12 bits in 16 reach the screen by the range of the data set."
    shutil.copytree(twenty/'phantom', tmp_path/'deep')
    was = {}
    for path in (tmp_path/'deep/images').glob('*.png'):
        was[path.name] = np.asarray(Image.open(path))
        Image.fromarray(was[path.name].astype('uint16')*16).save(path)
    data = load_data(tmp_path/'deep', 64, stores=tmp_path/'stores')
    widget = review(pd.Series(1., data.train.index), data, tmp_path/'review.csv', n=3)
    for name, content in large(talk(widget, {'do': 'hello'})).items():
        assert np.abs(pixels(content).astype(int) - was[name]).max() <= 2

def test_blinded_sends_no_label_score_or_probability(many, tmp_path):
    "Not in messages, traits or the gallery before the answer; all of them after it."
    pairs = pd.DataFrame({'image': many.table.index[0], 'rank': [1, -1], 'training_image': many.table.index[[3, 4]], 'score': 1.})
    widget, names = review(many, path=tmp_path/'review.csv', blinded=True, pairs=pairs), list(many.table.index)
    for number in range(3):
        got = talk(widget, {'do': 'hello'})
        [state] = states(got)
        assert state['image'] == names[number] and not state['revealed']
        assert all(set(one) == {'name'} for one in state['findings'])
        assert not state['doubt'] and not state['boxes'] and 'score' not in state and 'shown' not in state
        assert all(one['role'] == 'same patient' and not one['text'] for one in state['related'])
        [after] = states(talk(widget, agree(names[number], answers={many.table.finding[names[number]]: 1})))
        assert after['image'] == names[number] and after['revealed']
        assert {'label', 'probability'} < set(after['findings'][0])
        if not number: assert {'proponent', 'opponent'} <= {one['role'] for one in after['related']}
        assert states(talk(widget, {'do': 'next'}))[0]['image'] == names[number + 1]
    gallery = widget._repr_mimebundle_()[0]['text/html']
    assert 'labelled' not in gallery and not re.search('proba|score|doubt', re.sub('base64,[^"]+', '', gallery))

def test_saved_notebooks_stay_small(many, tmp_path):
    "The state of the widget is its code alone; the gallery is small and describes every picture."
    widget = review(many, path=tmp_path/'review.csv')
    before = json.dumps(widget.get_state())
    talk(widget, {'do': 'hello'}, agree(many.table.index[0]))
    assert json.dumps(widget.get_state()) == before and len(before) < 50_000
    gallery = widget._repr_mimebundle_()[0]['text/html']
    assert len(gallery) < 100_000 and gallery.count('<img') == gallery.count('alt="Radiograph') == 8
    assert not re.search(r'(src|href)="(?!data:)', gallery)

def test_every_label_is_asked_about_without_probabilities(twenty, many, tmp_path):
    "Scores of images name no finding: agreeing answers for every label."
    data = many.data
    widget = review(pd.Series(np.arange(len(data.train)), data.train.index), data, tmp_path/'review.csv', n=2)
    [state] = states(talk(widget, {'do': 'hello'}))
    assert state['asked'] == data.findings and state['doubt'].startswith('among the')
    talk(widget, agree(state['image'], answers={'Mass': None}))
    done = widget.session.review.answers().set_index('finding')
    assert len(done) == 14 and done.new.isna().sum() == 1 and (done.new == done.old).drop('Mass').all()

def test_undo_skip_twice_and_resume(many, tmp_path):
    "Messages that come late change nothing; a new widget continues where the file ends."
    path, names = tmp_path/'review.csv', list(many.table.index)
    widget = review(many, path=path, reviewer='Ada')
    talk(widget, agree(names[0]))
    late = states(talk(widget, agree(names[0])))[0]
    assert late['left'] == 7 and 'answered before' in late['note']
    assert states(talk(widget, {'do': 'skip', 'image': names[1]}))[0]['image'] == names[2]
    assert states(talk(widget, {'do': 'skip', 'image': names[1]}))[0]['image'] == names[2]
    talk(widget, agree(names[2]))
    assert states(talk(widget, {'do': 'undo'}))[0]['image'] == names[2]
    assert states(talk(widget, {'do': 'undo'}))[0]['image'] == names[0]
    assert 'nothing to undo' in states(talk(widget, {'do': 'undo'}))[0]['note']
    for name in [names[0], *names[2:]]: talk(widget, agree(widget.session.image))
    assert widget.session.image == names[1] # the skipped one is last
    again = review(many, path=path, reviewer='Ada')
    assert again.session.image == names[1] and states(talk(again, agree(names[1])))[0]['image'] == ''
    assert len(read_review(path)) == 8 and review(many, path=path, reviewer='Grace').session.image == names[0]

def test_errors_are_sentences_and_lose_nothing(many, tmp_path, monkeypatch):
    "A full disk, a file that another program changed, a radiograph that is gone: the image stays, and the next try counts."
    path, names = tmp_path/'review.csv', list(many.table.index)
    widget = review(many, path=path, reviewer='Ada')
    talk(widget, agree(names[0]))
    kept = path.read_bytes()
    with monkeypatch.context() as patch:
        def full(*_, **__): raise InputError('review.csv cannot be written (No space left on device): free some space.')
        patch.setattr(queue_module, '_write_whole', full)
        state = states(talk(widget, agree(names[1])))[0]
        assert 'No space left' in state['error'] and state['image'] == names[1] and path.read_bytes() == kept
        def bug(*_, **__): raise RuntimeError('a bug')
        patch.setattr(queue_module, '_write_whole', bug)
        with pytest.raises(RuntimeError): talk(widget, agree(names[1]))
        assert widget.session.error == 'RuntimeError: a bug' and widget.session.image == names[1]
    path.write_bytes(b'something,else')
    assert 'review.csv, row 1' in states(talk(widget, agree(names[1])))[-1]['error']
    path.write_bytes(kept)
    assert states(talk(widget, agree(names[1])))[0]['image'] == names[2] and len(read_review(path)) == 2
    gone = Path(widget.session.items.paths[names[4]])
    content = gone.read_bytes()
    gone.unlink()
    try:
        talk(widget, agree(names[2]))
        got = talk(widget, agree(names[3]))
        assert names[4] in states(got)[-1]['error'] and states(got)[-1]['image'] == names[4]
        assert states(talk(widget, {'do': 'skip', 'image': names[4]}))[0]['image'] == names[5]
    finally: gone.write_bytes(content)

def test_boxes_and_neighbours(twenty, many, tmp_path):
    "Boxes are shares of the image's sides; proponents and opponents come in the order of their ranks."
    shutil.copytree(twenty/'phantom', tmp_path/'boxed')
    name, names = many.table.index[0], list(many.table.index)
    left, top, width, height = np.random.default_rng().uniform(1, 500, 4).round(1)
    (tmp_path/'boxed/BBox_List_2017.csv').write_text('Image Index,Finding Label,Bbox [x,y,w,h]\n'
                                                     f'{name},Mass,{left},{top},{width},{height}\n')
    data = load_data(tmp_path/'boxed', 64, stores=tmp_path/'stores')
    others = data.train.index[data.train.patient != data.train.patient[name]][:10]
    pairs = pd.DataFrame({'image': name, 'rank': [2, 1, 3, 4, -1], 'training_image': [others[2], name, *others[3:6]], 'score': 0.})
    widget = review(many._replace(data=data), path=tmp_path/'review.csv', pairs=pairs)
    [state] = states(talk(widget, {'do': 'hello'}))
    [box] = state['boxes']
    assert box['finding'] == 'Mass'
    np.testing.assert_allclose([box[side] for side in ['left', 'top', 'width', 'height']], np.array([left, top, width, height])/1024)
    roles = {role: [one['image'] for one in state['related'] if one['role'] == role] for role in ['proponent', 'opponent', 'same patient']}
    assert roles['proponent'] == list(others[2:5]) and roles['opponent'] == [others[5]]
    same = data.frame.index[data.frame.patient == data.frame.patient[name]]
    assert roles['same patient'] == [one for one in same if one != name][:6]
    for one in state['related']:
        assert one['text'] == ('present' if data.frame.loc[one['image'], state['asked'][0]] == 1 else 'absent')
    assert state['boxes'] and not module._hide(state)['boxes']

def test_page_is_one_file(many, tmp_path):
    "It names no other place, a hostile reviewer stays text, and its pictures are of the size that was asked for."
    evil = '</script><script>alert(1)</script>'
    text = review_page(many, tmp_path/'review.html', reviewer=evil, size=100).read_text(encoding='utf-8')
    assert text.count('</script>') == 2 and 'alert(1)' in text and not re.search(r'https?:|//cdn|(src|href)="', re.sub('base64,[^"]+', '', text))
    facts = json.loads(re.search(r'id="queue">(.*?)</script>', text, re.S)[1])
    assert facts['reviewer'] == evil and [item['image'] for item in facts['items']] == list(many.table.index)
    for item in facts['items']: assert max(pixels(base64.b64decode(item['picture'])).shape) == 100
    with pytest.raises(InputError, match='cannot be written'): review_page(many, tmp_path/'review.html/more.html')

def test_refusals_come_before_the_work(many, tmp_path):
    lost = many.data.with_frame(many.data.frame)
    lost.frame.attrs.pop('root', None)
    with pytest.raises(InputError, match='names no folder'): review(many._replace(data=lost), path=tmp_path/'review.csv')
    with pytest.raises(InputError, match='leave out data, n'): review(many, many.data, n=3)
    with pytest.raises(InputError, match='pairs lacks'): review(many, path=tmp_path/'review.csv', pairs=pd.DataFrame({'image': []}))
    assert not list(tmp_path.iterdir())

# ---------------------------------------------------------------- in Chromium

def picture(lab, view):
    "Keep pictures of the queue, light and dark; that of the light one is nbs/images/review_widget.webp."
    if not SHOTS: return
    for name in ['Dark', 'Light']:
        lab.theme(name)
        lab.page.locator(f'body[data-jp-theme-light={str(name == "Light").lower()}]').wait_for(state='attached', timeout=20_000)
        lab.page.wait_for_function('() => !document.getElementById("jupyterlab-splash")')
        time.sleep(1.5) # it fades
        loaded(view)
        shoot(lab.page, f'lab_{name.lower()}')
    image = Image.open(io.BytesIO(view.screenshot()))
    image.save(Path(SHOTS)/'review_widget.webp', quality=75)

def answered(folder): return read_review(folder/'review.csv') if (folder/'review.csv').exists() else pd.DataFrame({'image': []})

@pytest.mark.long
def test_lab_by_keyboard(lab, twenty):
    "Ten images; the kernel killed in the middle; the answers are those of the keys."
    lab.open()
    view = lab.run()
    frame, seen = load_data(twenty/'phantom', 64, stores=twenty/'stores').frame, [loaded(view)]
    view.locator('canvas').click()
    picture(lab, view)
    for key in ['i', 'w', 'w', 'l', '+', 'ArrowLeft']: lab.page.keyboard.press(key)
    lab.page.wait_for_function('view => JSON.parse(view.querySelector("canvas").dataset.view).zoom > 1', arg=view.element_handle())
    graded = json.loads(view.locator('canvas').get_attribute('data-view'))
    assert graded['inverted'] and graded['window'] == 224 and graded['level'] == 120
    lab.page.keyboard.press('r')
    for keys in [['a'], ['u'], ['a']]: seen += [press(view, *keys)]
    asked = view.locator('.cxr-asked').get_attribute('data-finding')
    seen += [press(view, '1234567890cdefghjkmopqtv'[list(frame.columns[-14:]).index(asked)], 'Enter')] # relabelled
    press(view, 'a')
    assert press(view, 'z') == seen[4] # taken back
    skipped = seen[4]
    del seen[4]
    seen += [press(view, 's')]
    done = answered(twenty).set_index('image')
    assert list(done.index) == seen[:4] and set(done.reviewer) == {'Ada'} and (done.seconds >= 0).all()
    assert list(done.new.isna()) == [False, True, False, False]
    assert (done.new == done.old)[seen[:3]].to_list() == [True, False, True] and done.new[seen[3]] == 1 - done.old[seen[3]]
    assert done.finding[seen[3]] == asked
    notebook = lab.saved()
    assert 'widgets' not in notebook.metadata and 60_000 > len(json.dumps(notebook)) > 10_000
    assert '<img' in notebook.cells[0].outputs[-1].data['text/html']
    view.locator('canvas').click()
    os.kill(int((twenty/'pid').read_text()), signal.SIGKILL)
    lab.page.keyboard.press('a') # nobody takes it
    lab.page.get_by_text('The kernel does not answer').wait_for(timeout=20_000)
    lab.page.get_by_role('button', name='Ok').first.click(timeout=30_000) # Lab reports that the kernel died
    assert list(answered(twenty).image) == seen[:4]
    lab.page.wait_for_function('() => !document.querySelector(".jp-Dialog")')
    lab.idle()
    again = lab.run()
    assert loaded(again, 60_000) == skipped # only answers are in the file: it is in its place again
    again.locator('canvas').click()
    for _ in range(6): press(again, 'a')
    assert answered(twenty).image.nunique() == 10

def open_file(browser, path):
    "A page of a file, and the requests that it makes."
    page, asked = browser.new_page(viewport={'width': 900, 'height': 900}, accept_downloads=True), []
    page.on('request', lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    return page, page.locator('.cxr-review'), asked

def test_page_by_keyboard(browser, many, tmp_path):
    "Answers of the page come back as its CSV, also after it was closed; nothing is requested from elsewhere."
    path = review_page(many, tmp_path/'review.html')
    page, view, asked = open_file(browser, path)
    names, first = list(many.table.index), many.table.iloc[0]
    assert loaded(view) == names[0]
    shoot(page, 'page_light')
    assert press(view, 'a') == names[1] and press(view, 'u') == names[2] and press(view, 's') == names[3]
    other = next(name for name in many.data.findings if name != many.table.finding[names[3]])
    press(view, '1234567890cdefghjkmopqtv'[many.data.findings.index(other)], 'a')
    page.reload()
    assert loaded(view) == names[4] # it resumes
    assert press(view, 'a', 'z') == names[4]
    page.get_by_role('button', name='Save answers').click()
    assert 'your name' in view.locator('.cxr-status').inner_text()
    page.keyboard.type('Grace, "MD"')
    with page.expect_download() as saved: page.get_by_role('button', name='Save answers').click()
    saved.value.save_as(tmp_path/'back.csv')
    back = read_review(tmp_path/'back.csv').set_index(['image', 'finding'])
    assert set(back.reviewer) == {'Grace, "MD"'} and len(back) == 4
    right = back.new == back.old
    assert right[names[0], first.finding] and right[names[3], many.table.finding[names[3]]]
    assert np.isnan(back.new[names[1], many.table.finding[names[1]]])
    noticed = back.loc[names[3], other]
    assert noticed.shown == 'noticed' and noticed.new == 1 - noticed.old
    assert (back.shown.drop((names[3], other)).droplevel(1) == many.table.shown[[names[0], names[1], names[3]]]).all()
    assert list(Review(many, tmp_path/'back.csv', 'Grace, "MD"').waiting) == [names[2], *names[4:]]
    assert all(url.startswith(('file:', 'data:', 'blob:')) for url in asked)

def test_blinded_page(browser, many, tmp_path):
    "Label, probability and score are not on the screen until an image is answered, and then they are."
    page, view, _ = open_file(browser, review_page(many, tmp_path/'review.html', 'Grace', blinded=True))
    first = loaded(view)
    hidden = view.inner_text()
    assert not re.search('labelled|in doubt|%|absent|unknown', hidden.replace('Absent', '')), hidden
    page.keyboard.press('a')
    assert 'label is hidden' in view.locator('.cxr-status').inner_text()
    assert press(view, 'y') == first and 'labelled' in view.inner_text()
    page.emulate_media(color_scheme='dark')
    shoot(page, 'page_blinded_dark')
    assert press(view, 'Enter') != first and 'labelled' not in view.inner_text()
