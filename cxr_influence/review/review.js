// The review queue in a browser, written by hand. `review.widget` gives this file to JupyterLab
// as an anywidget, and `review_page` puts it into a page of its own. It requests nothing.

const KEYS = '1234567890cdefghjkmopqtv' // of the findings, in their order
const word = value => value === 1 ? 'present' : value === 0 ? 'absent' : 'unknown'
const percent = share => `${(100 * share).toFixed(share < .1 ? 1 : 0)} %`
const PATIENCE = 6000 // ms without an answer of the kernel

const HELP = [
  ['a', 'agree with the label asked about, save, next image'],
  ['y, x', 'blinded: the finding is present, is absent'],
  ['1 … 9, 0, letters', 'change the label of a finding: the key is on its chip'],
  ['Enter, n', 'save what is changed, next image'],
  ['u', 'unsure about the finding, save, next image'],
  ['s', 'skip: the image comes again last'],
  ['z', 'undo the last answer'],
  ['Shift + drag, right button', 'window (left, right) and level (up, down)'],
  ['w, W, l, L', 'window narrower, wider; level lower, higher'],
  ['wheel, + and −', 'zoom'], ['drag, arrows', 'pan'],
  ['i', 'invert'], ['r', 'reset the view'], ['b', 'boxes on or off'],
  ['Esc', 'back to the image asked about'], ['?', 'this help on or off']]

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value)
    else if (name in node) node[name] = value
    else node.setAttribute(name, value)
  }
  node.append(...children)
  return node
}

// ---------------------------------------------------------------- the radiograph

class Viewer {
  constructor() {
    this.canvas = make('canvas', { className: 'cxr-canvas', tabIndex: 0, role: 'img' })
    this.source = document.createElement('canvas')
    this.boxes = []
    this.boxed = true
    this.reset()
    this.listen()
    new ResizeObserver(() => this.draw()).observe(this.canvas)
    this.canvas.addEventListener('contextrestored', () => this.draw())
  }

  async load(blob, boxes, label) { // the boxes in shares of the image's sides
    const wanted = this.wanted = Symbol()
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: 'none' })
    if (wanted !== this.wanted) return
    Object.assign(this.source, { width: bitmap.width, height: bitmap.height })
    const context = this.source.getContext('2d', { willReadFrequently: true })
    context.drawImage(bitmap, 0, 0)
    const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height)
    this.grey = pixels.data.filter((_, i) => i % 4 === 0)
    this.boxes = boxes
    this.canvas.setAttribute('aria-label', label)
    this.reset()
  }

  clear(label) {
    this.wanted = this.grey = undefined
    this.canvas.setAttribute('aria-label', label)
    this.draw()
  }

  reset() {
    Object.assign(this, { window: 256, level: 128, inverted: false, zoom: 1, x: 0, y: 0 })
    this.stale = true
    this.draw()
  }

  set(change) { // window, level, inverted
    Object.assign(this, change)
    this.window = Math.min(512, Math.max(2, this.window))
    this.level = Math.min(255, Math.max(0, this.level))
    this.stale = true
    this.draw()
  }

  magnify(factor, x = 0, y = 0) { // keeps the point (x, y), in pixels from the centre, in place
    const zoom = Math.min(20, Math.max(.5, this.zoom * factor)), by = zoom / this.zoom
    Object.assign(this, { zoom, x: x - by * (x - this.x), y: y - by * (y - this.y) })
    this.draw()
  }

  pan(dx, dy) {
    this.x += dx
    this.y += dy
    this.draw()
  }

  draw() { // once per frame, however often it is asked for
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined
      this.paint()
    })
  }

  grade() { // grey values to screen values, by window and level
    const low = this.level - this.window / 2
    const table = Uint8ClampedArray.from({ length: 256 }, (_, value) => {
      const grey = 255 * (value - low) / (this.window - 1)
      return this.inverted ? 255 - Math.min(255, Math.max(0, grey)) : grey
    })
    const image = new ImageData(this.source.width, this.source.height)
    const screen = new Uint32Array(image.data.buffer)
    this.grey.forEach((value, i) => { screen[i] = 0xff000000 | table[value] * 0x010101 })
    this.source.getContext('2d').putImageData(image, 0, 0)
    this.stale = false
  }

  paint() {
    const { canvas, source } = this, ratio = window.devicePixelRatio || 1
    canvas.width = Math.round(canvas.clientWidth * ratio)
    canvas.height = Math.round(canvas.clientHeight * ratio)
    canvas.dataset.view = JSON.stringify(
      { window: this.window, level: this.level, inverted: this.inverted, zoom: this.zoom })
    if (!this.grey || !canvas.width) return
    if (this.stale) this.grade()
    const context = canvas.getContext('2d')
    const fit = Math.min(canvas.width / source.width, canvas.height / source.height)
    const scale = fit * this.zoom
    context.translate(canvas.width / 2 + this.x * ratio, canvas.height / 2 + this.y * ratio)
    context.scale(scale, scale)
    context.translate(-source.width / 2, -source.height / 2)
    context.imageSmoothingEnabled = scale < 4
    context.imageSmoothingQuality = 'high'
    context.drawImage(source, 0, 0)
    if (this.boxed) this.boxes.forEach(box => this.paintBox(context, box, ratio / scale))
  }

  paintBox(context, box, pixel) { // `pixel`: of the screen, in those of the image
    const { width, height } = this.source
    const left = box.left * width, top = box.top * height
    Object.assign(context, { strokeStyle: '#ffd400', fillStyle: '#ffd400',
      lineWidth: 2 * pixel, font: `${13 * pixel}px sans-serif` })
    context.strokeRect(left, top, box.width * width, box.height * height)
    context.fillText(box.finding, left, Math.max(13 * pixel, top - 5 * pixel))
  }

  listen() {
    const { canvas } = this
    let grip // where the pointer was last, and what it moves
    canvas.addEventListener('contextmenu', event => event.preventDefault())
    canvas.addEventListener('pointerdown', event => {
      canvas.setPointerCapture(event.pointerId)
      grip = { x: event.clientX, y: event.clientY, grade: event.shiftKey || event.button === 2 }
    })
    canvas.addEventListener('pointermove', event => {
      if (!grip) return
      const dx = event.clientX - grip.x, dy = event.clientY - grip.y
      if (grip.grade) this.set({ window: this.window + dx, level: this.level + dy })
      else this.pan(dx, dy)
      Object.assign(grip, { x: event.clientX, y: event.clientY })
    })
    for (const end of ['pointerup', 'pointercancel'])
      canvas.addEventListener(end, () => { grip = undefined })
    canvas.addEventListener('wheel', event => { // of a page that is only passed: it scrolls
      if (!canvas.closest('.cxr-review').contains(document.activeElement)) return
      event.preventDefault()
      const at = canvas.getBoundingClientRect()
      this.magnify(Math.exp(-event.deltaY / 500), event.clientX - at.left - at.width / 2,
        event.clientY - at.top - at.height / 2)
    }, { passive: false })
  }

  key(key) { // whether it is one of the view's
    const step = 24, { window, level } = this
    const does = {
      w: () => this.set({ window: window - 16 }), W: () => this.set({ window: window + 16 }),
      l: () => this.set({ level: level - 8 }), L: () => this.set({ level: level + 8 }),
      i: () => this.set({ inverted: !this.inverted }), r: () => this.reset(),
      '+': () => this.magnify(1.25), '=': () => this.magnify(1.25),
      '-': () => this.magnify(.8), '−': () => this.magnify(.8),
      ArrowLeft: () => this.pan(step, 0), ArrowRight: () => this.pan(-step, 0),
      ArrowUp: () => this.pan(0, step), ArrowDown: () => this.pan(0, -step),
      b: () => { this.boxed = !this.boxed; this.draw() } }
    does[key]?.()
    return key in does
  }
}

// ---------------------------------------------------------------- the queue beside it

class Review {
  constructor(root, send) {
    Object.assign(this, { root, transmit: send, pictures: new Map(), thumbnails: new Map() })
    this.viewer = new Viewer()
    this.build()
    this.clock = setInterval(() => this.tick(), 1000)
    this.send({ do: 'hello' })
  }

  build() {
    const part = (className, more = {}) => make('div', { className, ...more })
    this.progress = part('cxr-progress')
    this.question = part('cxr-question')
    this.chips = part('cxr-chips', { role: 'group', ariaLabel: 'Findings' })
    this.actions = part('cxr-actions', { role: 'group', ariaLabel: 'Answers' })
    this.related = part('cxr-related')
    this.status = part('cxr-status', { role: 'status', ariaLive: 'polite' })
    this.banner = part('cxr-banner')
    this.help = part('cxr-help', { hidden: true })
    this.help.append(make('table', {}, ...HELP.map(([key, text]) =>
      make('tr', {}, make('th', { scope: 'row', textContent: key }),
        make('td', { textContent: text })))))
    this.tools = part('cxr-tools', { role: 'group', ariaLabel: 'View' })
    for (const [key, text, label] of [['i', 'Invert', 'Invert grey values'],
      ['r', 'Reset', 'Reset the view'], ['+', '+', 'Zoom in'], ['-', '−', 'Zoom out'],
      ['b', 'Boxes', 'Boxes on or off'], ['?', 'Keys', 'Help on the keys']])
      this.tools.append(this.button(text, key === text ? '' : key, label, () => this.key(key)))
    const hint = make('p', { className: 'cxr-hint',
      textContent: 'Click here or press Tab to use the keys.' })
    const stage = make('div', { className: 'cxr-stage' }, this.viewer.canvas, this.banner)
    const side = make('div', { className: 'cxr-side' }, this.progress, this.question,
      this.actions, this.status, this.chips)
    const left = make('div', { className: 'cxr-left' }, stage, this.tools, hint, this.related)
    const { root } = this
    root.classList.add('cxr-review')
    root.tabIndex = -1
    root.dataset.lmSuppressShortcuts = 'true' // JupyterLab's own keys rest while ours count
    root.setAttribute('role', 'group')
    root.setAttribute('aria-label', 'Review queue')
    root.replaceChildren(make('div', { className: 'cxr-body' }, left, side), this.help)
    root.addEventListener('keydown', event => this.keydown(event))
    root.addEventListener('pointerdown', event => {
      if (!event.target.closest('button, input, canvas')) this.focus()
    })
  }

  button(text, key, label, does, more = {}) {
    const node = make('button', { type: 'button', ...more, onclick: event => {
      does()
      if (event.detail) this.focus() // a mouse: the keys work on
    } }, text)
    if (key) node.append(make('kbd', { textContent: key }))
    node.setAttribute('aria-label', key ? `${label}, key ${key}` : label)
    return node
  }

  focus() { this.viewer.canvas.focus({ preventScroll: true }) }

  // -------------------------------------------------------------- messages

  send(message) {
    if (this.busy) return
    this.busy = setTimeout(() => {
      this.busy = undefined
      this.say('The kernel does not answer: nothing is saved of this image. Wait until it is ' +
        'idle and try again, or run the cell again: what was answered before is kept.', true)
    }, PATIENCE)
    this.transmit(message)
  }

  show(state) { // as the other side sends it
    clearTimeout(this.busy)
    this.busy = undefined
    const other = state.image !== this.state?.image
    this.state = state
    if (other) Object.assign(this, { changes: {}, opened: undefined, passed: 0, since: undefined })
    const keep = new Set([state.image, state.next, ...(state.related || []).map(x => x.image)])
    for (const name of this.pictures.keys()) if (!keep.has(name)) this.pictures.delete(name)
    this.render(other)
    this.say(state.error || state.note || '', Boolean(state.error))
  }

  picture(name, large, blob) {
    if (large) this.pictures.set(name, blob)
    else this.thumbnails.set(name, blob)
    if (!this.state) return
    if (large && name === this.shown()) this.stage()
    if (!large) this.renderRelated()
  }

  say(sentence, wrong = false) {
    this.status.textContent = sentence
    this.status.classList.toggle('cxr-error', wrong)
  }

  // -------------------------------------------------------------- what is seen

  shown() { return this.opened || this.state.image }

  stage() {
    const name = this.shown(), blob = this.pictures.get(name)
    this.banner.hidden = !this.opened
    if (this.opened) {
      const one = this.state.related.find(({ image }) => image === name)
      this.banner.textContent = `${one.role} ${name} ${one.text}. Esc goes back.`
    }
    this.root.dataset.loaded = ''
    if (!blob) return this.viewer.clear(`Radiograph ${name} is on its way`)
    this.viewer.load(blob, this.opened ? [] : this.state.boxes || [], `Radiograph ${name}`)
      .then(() => {
        this.root.dataset.loaded = name
        if (!this.opened) this.since ??= performance.now()
      }, () => this.say(`${name} cannot be shown: skip it with s.`, true))
  }

  render(other) {
    const { state, root } = this
    root.dataset.image = state.image || ''
    root.dataset.turn = state.turn
    root.classList.toggle('cxr-done', !state.image)
    this.tick()
    if (!state.image) {
      this.question.replaceChildren(make('strong', { textContent: 'All images are answered.' }))
      for (const part of [this.chips, this.related]) part.replaceChildren()
      this.actions.replaceChildren(this.button('Undo', 'z', 'Undo the last answer', () => this.key('z')))
      return this.viewer.clear('No image is left')
    }
    this.renderQuestion()
    this.renderActions()
    this.renderChips()
    this.renderRelated()
    if (other || this.viewer.boxes.length !== (state.boxes || []).length) this.stage()
  }

  single() { return this.state.asked.length === 1 } // one label is asked about, or all known

  finding(wanted) { return this.state.findings.find(({ name }) => name === wanted) }

  hidden() { return this.state.blinded && !this.state.revealed }

  renderQuestion() {
    const { state } = this, hidden = this.hidden(), one = this.finding(state.asked[0])
    const name = one.name.replaceAll('_', ' '), labels = state.findings.filter(x => x.label === 1)
    const asked = hidden ? (this.single() ? `Is ${name} present?` : 'Which findings are present?') :
      this.single() ? `${name}: labelled ${word(one.label)}` :
        `Labelled ${labels.map(x => x.name.replaceAll('_', ' ')).join(', ') || 'without finding'}`
    const facts = hidden ? [] : [state.doubt, this.single() && one.probability != null &&
      `the network gives it ${percent(one.probability)}`].filter(Boolean)
    this.question.replaceChildren(make('strong', { textContent: asked }),
      make('span', { textContent: facts.join('; ') }),
      make('small', { textContent: [state.image, state.about].filter(Boolean).join(' · ') }))
  }

  renderActions() {
    const blinded = this.single() ? [['y', 'Present', 'The finding is present'],
      ['x', 'Absent', 'The finding is absent']] :
      [['Enter', 'Save, others absent', 'Save; what is not marked is absent']]
    const answers = this.hidden() ? blinded : [['a', 'Agree', 'Agree with what is labelled'],
      ['Enter', 'Save changes', 'Save what is changed']]
    const all = this.state.revealed ? [['Enter', 'Next', 'Next image']] :
      [...answers, ['u', 'Unsure', 'Unsure about the finding'], ['s', 'Skip', 'Skip the image']]
    this.actions.replaceChildren(...[...all, ['z', 'Undo', 'Undo the last answer']].map(
      ([key, text, label]) => this.button(text, key, label, () => this.key(key))))
  }

  renderChips() {
    const { changes, state } = this, focused = this.chips.contains(document.activeElement) &&
      document.activeElement.dataset.finding
    this.chips.replaceChildren(...state.findings.map(({ name, label, probability }, k) => {
      const change = name in changes, key = KEYS[k] || '', hide = this.hidden()
      const now = change ? word(changes[name]) : hide ? '' : word(label)
      const text = change && !hide ? `→ ${now}` : now
      const node = this.button(name.replaceAll('_', ' '), '', `${name}: ${change && !hide ? `${word(label)}, changed to ${now}` : text || 'not answered'}` +
        (key && `, key ${key} changes it`), () => this.toggle(name),
      { className: `cxr-chip cxr-${now}${change ? ' cxr-changed' : ''}` +
        (this.single() && state.asked[0] === name ? ' cxr-asked' : ''), disabled: Boolean(state.revealed) })
      node.dataset.finding = name
      node.setAttribute('aria-pressed', String(change))
      node.prepend(make('kbd', { textContent: key }))
      node.append(make('span', { className: 'cxr-label', textContent: text }), make('span',
        { className: 'cxr-probability',
          textContent: hide || probability == null ? '' : percent(probability) }))
      return node
    }))
    if (focused) this.chips.querySelector(`[data-finding="${CSS.escape(focused)}"]`)?.focus()
  }

  renderRelated() {
    const groups = Map.groupBy ? Map.groupBy(this.state.related || [], ({ role }) => role) :
      (this.state.related || []).reduce((all, one) =>
        all.set(one.role, [...(all.get(one.role) || []), one]), new Map())
    for (const url of this.urls || []) URL.revokeObjectURL(url)
    this.urls = []
    this.related.replaceChildren(...[...groups].map(([role, ones]) => make('section', {},
      make('h4', { textContent: role }), ...ones.map(one => this.thumbnail(one)))))
  }

  thumbnail({ image, role, text }) {
    const blob = this.thumbnails.get(image), label = `${role} ${image} ${text}`
    const picture = make('img', { alt: label, width: 84, height: 84 })
    if (blob) this.urls.push(picture.src = URL.createObjectURL(blob))
    const node = make('button', { type: 'button', className: 'cxr-thumbnail', title: image,
      onclick: event => { this.open(image); if (event.detail) this.focus() } }, picture,
    make('span', { textContent: text }))
    node.setAttribute('aria-label', `Open ${label}`)
    return node
  }

  tick() {
    const { state } = this
    if (!state) return
    this.viewer.draw() // a browser may have dropped what the canvas held
    const seconds = Math.floor(this.seconds()), mean = state.seconds
    const text = [`${state.total - state.left} of ${state.total} answered`,
      state.image && `this image ${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`,
      mean != null && `${mean.toFixed(1)} s per image`]
    this.progress.replaceChildren(make('progress', { max: state.total || 1,
      value: state.total - state.left, ariaLabel: 'Images answered' }),
    make('span', { textContent: text.filter(Boolean).join(' · ') }))
  }

  seconds() { // that the image was in sight
    if (document.hidden && this.since !== undefined) {
      this.passed += performance.now() - this.since
      this.since = undefined
    } else if (!document.hidden && this.root.dataset.loaded === this.state?.image)
      this.since ??= performance.now()
    return ((this.passed || 0) + (this.since === undefined ? 0 : performance.now() - this.since)) / 1000
  }

  // -------------------------------------------------------------- answers

  toggle(name) { // unknown, present, absent; back to the label, which is then no change
    const { label } = this.finding(name)
    const known = label === 0 || label === 1, { changes } = this
    if (known && !this.hidden()) {
      if (name in changes) delete changes[name]
      else changes[name] = 1 - label
    } else if (!(name in changes)) changes[name] = 1
    else if (changes[name] === 1) changes[name] = 0
    else delete changes[name]
    this.renderChips()
  }

  answer(answers) { // finding -> 1, 0, null (unsure); what is asked about and not named is right
    const seconds = Math.round(10 * this.seconds()) / 10
    this.send({ do: 'answer', image: this.state.image, answers, seconds })
  }

  save() { // what is changed
    const { changes, state: { asked } } = this, hidden = this.hidden()
    const ready = this.single() ? asked[0] in changes : hidden || Object.keys(changes).length
    if (ready) this.answer({ ...hidden && this.every(0), ...changes })
    else if (hidden) this.say('Not answered yet: y is present, x is absent, u is unsure.', true)
    else this.say(`${this.single() ? asked[0].replaceAll('_', ' ') : 'No label'} is not ` +
      'changed: a agrees, its key changes it, u is unsure.', true)
  }

  every(value) { return Object.fromEntries(this.state.asked.map(name => [name, value])) }

  agree() {
    const { [this.single() ? this.state.asked[0] : '']: _, ...others } = this.changes
    if (this.single() && this.finding(this.state.asked[0]).label == null)
      return this.say('The label is unknown: press the key of the finding, or u.', true)
    this.answer(others)
  }

  unsure() {
    this.answer({ ...this.changes, ...this.single() ? this.every(null) :
      { ...this.every(null), ...this.changes } })
  }

  open(name) {
    if (this.opened === name) return this.close()
    this.opened = name
    this.stage()
    if (!this.pictures.has(name)) this.send({ do: 'open', image: name })
  }

  close() {
    if (!this.opened) return
    this.opened = undefined
    this.stage()
  }

  keydown(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input')) return
    const own = event.target.closest('button') && ['Enter', ' '].includes(event.key)
    if (own || !this.state || !this.key(event.key)) return
    event.preventDefault()
    event.stopPropagation()
  }

  key(key) { // whether it is one of ours
    const { state } = this, ask = this.hidden() ? undefined : true
    if (key === '?') { this.help.hidden = !this.help.hidden; return true }
    if (key === 'Escape') { this.close(); this.help.hidden = true; return true }
    if (key === 'z') { this.send({ do: 'undo' }); return true }
    if (this.viewer.key(key)) return true
    if (!state.image) return false
    const next = ['Enter', 'n'].includes(key)
    if (state.revealed) {
      if (next) this.send({ do: 'next' })
      return true
    }
    if (next) this.save()
    else if (key === 'a' && ask) this.agree()
    else if (key === 'a') this.say('The label is hidden: there is nothing to agree with yet.', true)
    else if ('yx'.includes(key) && !ask && this.single())
      this.answer({ ...this.changes, ...this.every(key === 'y' ? 1 : 0) })
    else if (key === 'u') this.unsure()
    else if (key === 's') this.send({ do: 'skip', image: state.image })
    else if (KEYS.includes(key) && state.findings[KEYS.indexOf(key)])
      this.toggle(state.findings[KEYS.indexOf(key)].name)
    else return false
    return true
  }

  remove() { clearInterval(this.clock); clearTimeout(this.busy) }
}

// ---------------------------------------------------------------- in JupyterLab

function render({ model, el }) {
  const view = new Review(make('div'), message => model.send(message))
  const receive = (message, buffers) => {
    if (message.kind === 'state') view.show(message)
    if (message.kind !== 'picture') return
    const type = message.large ? 'image/png' : 'image/jpeg'
    view.picture(message.image, message.large, new Blob([buffers[0]], { type }))
  }
  model.on('msg:custom', receive)
  el.append(view.root)
  return () => { model.off('msg:custom', receive); view.remove() }
}

export default { render }

// ---------------------------------------------------------------- in a page of its own

class Page { // what the kernel does there, with the answers in the browser's storage
  constructor(queue) { // `key`, `blinded`, `findings`, `items`, `thumbnails`, `reviewer`
    Object.assign(this, { queue, turn: 0, kept: { rows: [], skipped: [], reviewer: queue.reviewer } })
    try { this.kept = { ...this.kept, ...JSON.parse(localStorage.getItem(queue.key)) } } catch { }
    this.view = new Review(document.getElementById('review'), message =>
      queueMicrotask(() => this.receive(message)))
    for (const [name, text] of Object.entries(queue.thumbnails))
      this.view.picture(name, false, this.blob(text))
  }

  blob(text) { // base64 of a JPEG
    return new Blob([Uint8Array.from(atob(text), one => one.charCodeAt(0))], { type: 'image/jpeg' })
  }

  waiting() {
    const done = new Set(this.kept.rows.map(({ image }) => image)), { skipped } = this.kept
    const left = this.queue.items.filter(({ image }) => !done.has(image))
    const late = skipped.map(name => left.find(({ image }) => image === name)).filter(Boolean)
    return [...left.filter(({ image }) => !skipped.includes(image)), ...late]
  }

  keep() {
    try { localStorage.setItem(this.queue.key, JSON.stringify(this.kept)) } catch (error) {
      this.error = 'This browser keeps no answers: save the CSV before you close the page.'
    }
  }

  receive({ do: what, image, answers, seconds }) {
    this.error = this.note = ''
    const { kept } = this, item = this.queue.items.find(one => one.image === image)
    if (what === 'answer') this.answer(item, answers, seconds)
    if (what === 'skip') kept.skipped = [...kept.skipped.filter(name => name !== image), image]
    if (what === 'next') this.revealed = undefined
    if (what === 'undo') this.undo()
    if (what === 'open') return this.picture(image)
    this.keep()
    this.show()
  }

  answer(item, answers, seconds) {
    const time = new Date().toISOString().replace('Z', '+00:00'), { asked, image } = item
    const names = [...asked, ...Object.keys(answers).filter(name => !asked.includes(name))]
    for (const finding of names) {
      const old = item.findings.find(({ name }) => name === finding).label
      this.kept.rows.push({ image, finding, old, new: finding in answers ? answers[finding] : old,
        seconds, time, shown: asked.includes(finding) ? item.shown : 'noticed' })
    }
    if (this.queue.blinded) this.revealed = item
  }

  undo() {
    const last = this.kept.rows.at(-1)?.image
    this.revealed = undefined
    if (last === undefined) this.note = 'There is nothing to undo.'
    this.kept.rows = this.kept.rows.filter(({ image }) => image !== last)
    this.kept.skipped = this.kept.skipped.filter(name => name !== last)
    this.first = last
  }

  hide(item) {
    const related = item.related.filter(({ role }) => role === 'same patient')
    return { ...item, findings: item.findings.map(({ name }) => ({ name })), boxes: [], doubt: '',
      related: related.map(one => ({ ...one, text: '' })) }
  }

  show() {
    const waiting = this.waiting(), { queue, kept, revealed } = this
    const again = waiting.find(({ image }) => image === this.first)
    const item = revealed || again || waiting[0]
    const spent = new Map(kept.rows.map(({ image, seconds }) => [image, seconds]))
    const mean = spent.size ? [...spent.values()].reduce((a, b) => a + b) / spent.size : null
    const seen = !item ? { image: '' } : queue.blinded && !revealed ? this.hide(item) : item
    if (item) this.view.picture(item.image, true, this.blob(item.picture))
    this.view.show({ ...seen, turn: ++this.turn, blinded: queue.blinded,
      revealed: Boolean(revealed), total: queue.items.length, left: waiting.length, seconds: mean,
      error: this.error, note: this.note })
    if (item) this.view.picture(item.image, true, this.blob(item.picture))
  }

  picture(name) {
    const item = this.queue.items.find(({ image }) => image === name)
    this.view.picture(name, true, this.blob(item ? item.picture : this.queue.thumbnails[name]))
    clearTimeout(this.view.busy)
    this.view.busy = undefined
  }

  csv() {
    const columns = ['image', 'finding', 'old', 'new', 'reviewer', 'seconds', 'time', 'shown']
    const cell = value => /[",\r\n]/.test(value ?? '') ? `"${value.replaceAll('"', '""')}"` : value ?? ''
    const rows = this.kept.rows.map(row => columns.map(name =>
      cell(name === 'reviewer' ? this.kept.reviewer : row[name])).join(','))
    return [columns.join(','), ...rows, ''].join('\n')
  }

  save() {
    if (!this.kept.reviewer) {
      document.getElementById('reviewer').focus()
      return this.view.say('Write your name above first: each answer carries it.', true)
    }
    const url = URL.createObjectURL(new Blob([this.csv()], { type: 'text/csv' }))
    const name = this.kept.reviewer.replace(/[^\w-]+/g, '_')
    make('a', { href: url, download: `review_${name}.csv` }).click()
    setTimeout(() => URL.revokeObjectURL(url), 10000)
  }
}

export function openPage() {
  const page = new Page(JSON.parse(document.getElementById('queue').textContent))
  const name = document.getElementById('reviewer')
  name.value = page.kept.reviewer
  name.addEventListener('input', () => { page.kept.reviewer = name.value.trim(); page.keep() })
  document.getElementById('save').addEventListener('click', () => page.save())
  page.view.focus()
}
