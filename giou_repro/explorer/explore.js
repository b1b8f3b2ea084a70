// Drag a box, see the value of every loss and its gradient, and let a loss pull the box in.
// One module without dependencies. Boxes are [x1, y1, x2, y2]; the formulae are those of losses.py and diou_code.py.

// ---- numbers with their derivatives by the four coordinates of the prediction

const dual = (v, d = [0, 0, 0, 0]) => ({ v, d });
const lift = (x) => (typeof x === "number" ? dual(x) : x);
const scaled = ({ d: [a, b, c, e] }, slope, v) => dual(v, [slope * a, slope * b, slope * c, slope * e]);
const mixed = ({ d: a }, p, { d: b }, q, v) =>
  dual(v, [p * a[0] + q * b[0], p * a[1] + q * b[1], p * a[2] + q * b[2], p * a[3] + q * b[3]]);
const binary = (rule) => (a, b) => rule(lift(a), lift(b));
const add = binary((a, b) => mixed(a, 1, b, 1, a.v + b.v));
const sub = binary((a, b) => mixed(a, 1, b, -1, a.v - b.v));
const mul = binary((a, b) => mixed(a, b.v, b, a.v, a.v * b.v));
const div = binary((a, b) => mixed(a, 1 / b.v, b, -a.v / (b.v * b.v), a.v / b.v));
const half = (x, y) => (x < y ? 1 : x > y ? 0 : 0.5); // at a tie each has half of the derivative, as in torch
const min = binary((a, b) => mixed(a, half(a.v, b.v), b, half(b.v, a.v), Math.min(a.v, b.v)));
const max = binary((a, b) => mixed(a, half(b.v, a.v), b, half(a.v, b.v), Math.max(a.v, b.v)));
const relu = (a) => (a.v > 0 ? a : dual(0));
const abs = (a) => scaled(a, Math.sign(a.v), Math.abs(a.v));
const square = (a) => mul(a, a);
const atan = (a) => scaled(a, 1 / (1 + a.v * a.v), Math.atan(a.v));
const log = (a) => scaled(a, 1 / a.v, Math.log(a.v));
const sum = (terms) => terms.reduce(add);

// ---- the losses

function interval(a1, a2, b1, b2) {
  [a1, a2, b1, b2] = [min(a1, a2), max(a1, a2), min(b1, b2), max(b1, b2)];
  const first = sub(a2, a1), second = sub(b2, b1), common = sub(min(a2, b2), max(a1, b1));
  const around = sub(add(first, second), common);
  return { common: div(relu(common), around), first: div(first, around), second: div(second, around), around };
}

function overlap(p, t) {
  const x = interval(p[0], p[2], t[0], t[2]), y = interval(p[1], p[3], t[1], t[3]);
  const intersection = mul(x.common, y.common);
  const union = sub(add(mul(x.first, y.first), mul(x.second, y.second)), intersection);
  return { iou: div(intersection, union), union, w: x.around, h: y.around };
}

function centreDistance(p, t, o) {
  const dx = div(sub(add(p[0], p[2]), add(t[0], t[2])), 2), dy = div(sub(add(p[1], p[3]), add(t[1], t[3])), 2);
  return div(add(square(dx), square(dy)), add(square(o.w), square(o.h)));
}

const aspectAngle = (b) => atan(div(abs(sub(b[2], b[0])), abs(sub(b[3], b[1]))));
const differences = (p, t) => p.map((x, k) => sub(x, t[k]));

const OVERLAP_LOSSES = {
  iou: (p, t) => sub(1, overlap(p, t).iou),
  iou_log: (p, t) => { const { iou } = overlap(p, t); return sub(0, log(iou.v < 1e-7 ? lift(1e-7) : iou)); },
  giou: (p, t) => { const o = overlap(p, t); return add(sub(1, o.iou), sub(1, o.union)); },
  diou: (p, t) => { const o = overlap(p, t); return add(sub(1, o.iou), centreDistance(p, t, o)); },
  ciou: (p, t) => {
    const o = overlap(p, t);
    const v = mul(4 / Math.PI ** 2, square(sub(aspectAngle(t), aspectAngle(p))));
    const alpha = v.v / (Math.max(1 - o.iou.v, 0) + v.v + 1e-7); // constant in the gradient
    return sum([sub(1, o.iou), centreDistance(p, t, o), mul(alpha, v)]);
  },
};
const COORDINATE_LOSSES = {
  l1: (p, t) => sum(differences(p, t).map(abs)),
  l2: (p, t) => sum(differences(p, t).map(square)),
  smooth_l1: (p, t) => sum(differences(p, t).map((d) => (Math.abs(d.v) < 1 ? div(square(d), 2) : sub(abs(d), 0.5)))),
};

const toCentre = ([x1, y1, x2, y2]) => [div(add(x1, x2), 2), div(add(y1, y2), 2), sub(x2, x1), sub(y2, y1)];
const toCorners = ([x, y, w, h]) => [sub(x, div(w, 2)), sub(y, div(h, 2)), add(x, div(w, 2)), add(y, div(h, 2))];
const plain = (duals) => duals.map((x) => lift(x).v);
export const encode = (box, encoding) => (encoding === "xyxy" ? box : plain(toCentre(box)));
export const decode = (state, encoding) => (encoding === "xyxy" ? state : plain(toCorners(state)));

/** Value of a loss and its gradient by the four coordinates of `state`; state and target in `encoding`. */
export function evaluate(name, state, target, encoding = "xyxy") {
  const variables = state.map((v, k) => dual(v, [0, 1, 2, 3].map((j) => +(j === k))));
  const constants = target.map((v) => dual(v));
  const boxes = encoding === "xyxy" ? (b) => b : toCorners;
  const loss = OVERLAP_LOSSES[name]
    ? OVERLAP_LOSSES[name](boxes(variables), boxes(constants))
    : COORDINATE_LOSSES[name](variables, constants);
  return { value: loss.v, gradient: loss.d };
}

const sorted = ([a, b, c, d]) => [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];
export function iouOf(p, t) {
  [p, t] = [sorted(p), sorted(t)];
  const shared = (k) => Math.max(0, Math.min(p[k + 2], t[k + 2]) - Math.max(p[k], t[k]));
  const area = (b) => (b[2] - b[0]) * (b[3] - b[1]), both = shared(0) * shared(1);
  return both / (area(p) + area(t) - both) || 0;
}

// ---- the directions of the DIoU authors' code; state and target as x, y, w, h

const edges = ([x, y, w, h]) => [y - h / 2, y + h / 2, x - w / 2, x + w / 2]; // top, bottom, left, right
const fromEdges = ([t, b, l, r]) => [l + r, t + b, r - l, b - t]; // w and h are twice the chain rule

function areas(box, target, repaired) {
  const [t, b, l, r] = edges(box), [t_, b_, l_, r_] = edges(target);
  const iw = Math.min(r, r_) - Math.max(l, l_), ih = Math.min(b, b_) - Math.max(t, t_);
  let di = [-iw * (t > t_), iw * (b < b_), -ih * (l > l_), ih * (r < r_)];
  if (repaired && (iw <= 0 || ih <= 0)) di = [0, 0, 0, 0];
  const i = iw * ih, w = r - l, h = b - t;
  const u = h * w + (b_ - t_) * (r_ - l_) - i;
  return { iw, ih, i, u, di, du: [-w, w, -h, h].map((d, k) => d - di[k]) };
}

function iouByEdges(box, target) {
  const { iw, ih, i, u, di, du } = areas(box, target), [t, b, l, r] = edges(box);
  const valid = iw > 0 && ih > 0 && u > 0;
  const e = di.map((d, k) => (valid ? (u * d - i * du[k]) / (u * u) : 0));
  return [t >= b ? e[1] : e[0], e[1], l >= r ? e[3] : e[2], e[3]];
}

function enclosing(box, target) {
  const [t, b, l, r] = edges(box), [t_, b_, l_, r_] = edges(target);
  return { cw: Math.max(r, r_) - Math.min(l, l_), ch: Math.max(b, b_) - Math.min(t, t_),
    before: [l < l_, t < t_], after: [r > r_, b > b_] };
}

function giouDirection(box, target, repaired) {
  const { cw, ch, before, after } = enclosing(box, target), { u, du } = areas(box, target, repaired), c = cw * ch;
  const dc = [-cw * before[1], cw * after[1], -ch * before[0], ch * after[0]];
  return fromEdges(iouByEdges(box, target).map((e, k) => e + (c * du[k] - u * dc[k]) / (c * c)));
}

function diouDirection(box, target) {
  const e = fromEdges(iouByEdges(box, target)), { cw, ch, before, after } = enclosing(box, target);
  const dx = target[0] - box[0], dy = target[1] - box[1], s = dx * dx + dy * dy, d = cw * cw + ch * ch;
  const side = before.map((low, k) => +after[k] - +low), size = before.map((low, k) => (+after[k] + +low) / 2);
  const own = before.map((low, k) => (low && after[k] ? -1 : size[k]));
  return [
    e[0] + (2 * dx * d - 2 * (cw + ch) * side[0] * s) / d ** 2,
    e[1] + (2 * dy * d - 2 * (cw + ch) * side[1] * s) / d ** 2,
    e[2] + (2 * (cw * own[0] + ch * size[0]) * s) / d ** 2,
    e[3] + (2 * (cw * size[1] + ch * own[1]) * s) / d ** 2,
  ];
}

function ciouDirection(box, target) {
  const [dx, dy, dw, dh] = diouDirection(box, target), [, , w, h] = box, [, , w_, h_] = target;
  const q = Math.atan(w_ / h_) - Math.atan(w / h), v = (4 * q * q) / Math.PI ** 2;
  const pull = (v / (1 - publishedIou(box, target) + v + 1e-7)) * (8 / Math.PI ** 2) * q;
  return [dx, dy, dw + pull * h, dh - pull * w];
}

function publishedIou(box, target) {
  const { iw, ih, i, u } = areas(box, target);
  return iw > 0 && ih > 0 ? i / u : 0;
}

const PUBLISHED = {
  iou: (box, target) => fromEdges(iouByEdges(box, target)),
  giou: giouDirection, diou: diouDirection, ciou: ciouDirection,
};

/** One step of the simulation: state moved by rate · (2 − IoU) · direction; all boxes in `encoding`.
 *  gradients: "exact", "published" (x, y, w, h only), or "repaired": published, without the derivative of an
 *  intersection that is not there. */
export function step(name, state, target, { encoding, gradients, rate }) {
  const published = gradients !== "exact" && PUBLISHED[name] && encoding === "cxcywh";
  const direction = published
    ? PUBLISHED[name](state, target, gradients === "repaired")
    : evaluate(name, state, target, encoding).gradient.map((x) => -x);
  const iou = published ? publishedIou(state, target) : iouOf(decode(state, encoding), decode(target, encoding));
  return state.map((x, k) => x + rate * (2 - iou) * direction[k]);
}

// ---- the picture

const WIDTH = 8, STEPS = 200; // of the plane, in units of a box's side; of a descent
const RAMP = [[253, 232, 167], [246, 167, 92], [212, 82, 110], [118, 42, 131], [45, 17, 82]]; // light to dark
const figure1 = (degrees, turn = (degrees * Math.PI) / 180) => // the paper's, a ninth as large
  [[-1, -1, 10 + 7 * Math.cos(turn), 20 + 7 * Math.sin(turn)], [0, 0, 10, 20]]
    .map((box) => box.map((x, k) => 3 - 2 * (k % 2) + x / 9));
const PRESETS = {
  "figure 1, IoU .26": figure1(188.6),
  ".49": figure1(-44),
  ".65": figure1(90),
  contained: [[3, 1.4, 3.8, 2.2], [2.5, 1, 5, 3.5]],
  level: [[5, 2, 6, 3], [2.5, 2, 3.5, 3]],
  diagonal: [[4.5, 3.5, 5.5, 4.5], [2.5, 1.5, 3.5, 2.5]],
  "far apart": [[6.8, 4.3, 7.4, 4.9], [0.5, 0.4, 1.5, 1.4]],
};
const CSS = `
.giou { font: 14px system-ui, sans-serif; color: var(--ink); background: var(--paper); display: flex; flex-wrap: wrap;
  gap: 12px; padding: 8px; --ink: light-dark(#222, #ddd); --paper: light-dark(#fff, #16181c);
  --line: light-dark(#bbb, #555); --gap: light-dark(#c5512d, #e08a5f); }
.giou > * { flex: 1 1 340px; min-width: 0; }
.giou svg { width: 100%; display: block; touch-action: none; border: 1px solid var(--line); }
.giou svg.curves { touch-action: auto; }
.giou table { border-collapse: collapse; width: 100%; } .giou td, .giou th { padding: 2px 4px; text-align: right; }
.giou td:nth-child(2), .giou td:first-child, .giou th:nth-child(2) { text-align: left; } .giou td.bar { width: 34%; }
.giou td.bar div { height: 10px; } .giou button, .giou select { font: inherit; margin: 2px; }
.giou .box:focus { outline: none; } .giou .box:focus rect { stroke-dasharray: .1 .04; }
.giou label { white-space: nowrap; margin-right: 8px; } .giou p { margin: 4px 0; } .giou .stale { opacity: .5; }
.giou code { overflow-wrap: anywhere; } .giou image { image-rendering: pixelated; }`;

const svg = (parent, tag, attributes = {}) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(node, attributes);
  return parent.appendChild(node);
};
const html = (parent, tag, attributes = {}, text = "") => {
  const node = document.createElement(tag);
  set(node, attributes);
  node.textContent = text;
  return parent.appendChild(node);
};
const set = (node, attributes) => { for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v); };
const middle = (box) => [0, 1].map((k) => (box[k] + box[k + 2]) / 2);
const rectangle = (box) => {
  const [x, y, x2, y2] = sorted(box);
  return { x, y, width: x2 - x, height: y2 - y };
};
const offset = (p, t) => p.reduce((total, x, k) => total + Math.abs(x - t[k]), 0);
const distance = (p, t) => Math.hypot(...p.map((x, k) => x - t[k]));

/** The address of a picture of side × side bytes: 0 is nothing, 1 the light end of RAMP and 255 the dark one. */
function painted(bytes, side) {
  const canvas = document.createElement("canvas"), pixels = new ImageData(side, side);
  canvas.width = canvas.height = side;
  bytes.forEach((byte, n) => {
    const at = (Math.max(0, byte - 1) / 254) * (RAMP.length - 1), k = Math.min(Math.floor(at), RAMP.length - 2);
    const rgb = RAMP[k].map((low, c) => low + (at - k) * (RAMP[k + 1][c] - low));
    pixels.data.set([...rgb, byte ? 160 : 0], 4 * n);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.toDataURL();
}

/** Put the explorer into `element`. options: losses [{name, label, color, top}], view (what KEPT lists), and, where
 *  there are any: answer (Python's, of losses that are not here), wire (by which to ask for more), surface. */
export function mount(element, { losses, view, answer, wire, surface }) {
  const lighter = (color) => `light-dark(${color}, color-mix(in srgb, ${color}, white 45%))`; // in the dark
  losses = losses.map((loss) => ({ ...loss, color: lighter(loss.color) }));
  const state = { ...view, ...readAddress(view), at: 0 }, height = surface ? 8 : 5.2;
  const named = losses.map(({ name, label }) => [name, label]);
  const choices = { first: named, second: [["", "none"], ...named],
    gradients: [["exact", "exact"], ["published", "published"], ["repaired", "published, GIoU repaired"]],
    encoding: [["cxcywh", "centre and size"], ["xyxy", "corners"]] };
  for (const key in choices) if (!choices[key].some(([value]) => value === state[key])) state[key] = view[key];
  const distant = named.map(([name]) => name).filter((name) => !OVERLAP_LOSSES[name] && !COORDINATE_LOSSES[name]);
  html(document.head, "style", {}, CSS);
  const root = html(element, "div", { class: "giou" });
  const left = html(root, "div"), right = html(root, "div");
  const scene = svg(left, "svg", { viewBox: `0 0 ${WIDTH} ${height}` });
  const ground = svg(scene, "image");
  const area = svg(scene, "rect", { fill: "var(--gap)", "fill-opacity": 0.3, stroke: "var(--gap)",
    "stroke-width": 0.02, "stroke-dasharray": ".12 .08" });
  const cuts = [0, 1].map(() => svg(scene, "rect", { fill: "var(--paper)" }));
  const common = svg(scene, "rect", { fill: "#0072B2", "fill-opacity": 0.3 });
  const trails = [0, 1].map(() => svg(scene, "polyline", { fill: "none", "stroke-width": 0.025 }));
  const dashed = { fill: "none", "stroke-width": 0.035, "stroke-dasharray": ".08 .04" };
  const ghosts = [0, 1].map(() => svg(scene, "rect", dashed));
  const outlines = Object.fromEntries(["target", "pred"].map((which) => {
    const what = which === "pred" ? "prediction" : "target";
    const group = svg(scene, "g", { class: "box", tabindex: 0, role: "application" });
    group.addEventListener("keydown", (event) => onKey(event, which));
    group.dataset.help = `${what}: arrow keys move it, with shift they move its lower right corner`;
    return [which, svg(group, "rect", { fill: "transparent", "stroke-width": 0.04,
      stroke: which === "pred" ? "var(--ink)" : "#2CA02C" })];
  }));
  const arrows = svg(scene, "g", { "pointer-events": "none" });

  const presets = html(left, "p");
  for (const [name, boxes] of Object.entries(PRESETS)) {
    html(presets, "button", {}, name).onclick = () => change({ pred: [...boxes[0]], target: [...boxes[1]] });
  }
  const lock = checkbox(left, "keep the ℓ2 distance");
  const spoken = html(left, "p", { "aria-live": "polite" });

  const table = html(right, "table");
  const head = html(table, "tr");
  const columns = ["", "loss", "", "value", "gradient", ...(surface ? ["final error"] : [])];
  for (const text of columns) html(head, "th", { scope: "col" }, text);
  const rows = losses.map(({ name, label, color, top }) => {
    const row = html(table, "tr");
    const shown = html(html(row, "td"), "input", { type: "checkbox", "aria-label": `arrows of ${label}` });
    shown.checked = true;
    shown.onchange = () => draw();
    html(row, "td", {}, label);
    const bar = html(html(row, "td", { class: "bar" }), "div", { style: `background: ${color}` });
    const [value, gradient, end] = [0, 1, 2].map((k) => (k < 2 || surface) && html(row, "td"));
    return { name, color, top, row, shown, bar, value, gradient, end };
  });
  const note = html(right, "p", { role: "status" });
  html(right, "p", {}, "Arrows: where each loss pulls each edge (length: logarithm of the gradient); a dot: no " +
    "gradient. Bars end at 2; those of ℓ1, ℓ2, smooth ℓ1 and −ln IoU at 16.");

  const controls = html(right, "p");
  select(controls, "let go under", "first");
  select(controls, "beside", "second");
  select(controls, "gradients", "gradients");
  select(controls, "regressing", "encoding");
  const rate = range(controls, "step size", 0.01, 0.4, 0.01, state.rate, (value) => change({ rate: value }));
  const play = html(controls, "button", {}, "▶ let go");
  const scrub = range(controls, "step", 0, STEPS, 1, state.at, (value) => { stop(); state.at = value; draw(); });
  const curves = svg(right, "svg", { viewBox: "0 0 200 60", class: "curves", role: "img" });
  set(curves, { "aria-label": "IoU and error against step" });
  const lines = [0, 1].map(() => svg(curves, "polyline", { fill: "none", "stroke-width": 1.2 }));
  const thin = { fill: "none", "stroke-width": 0.6, "stroke-dasharray": "2 1" };
  const errors = [0, 1].map(() => svg(curves, "polyline", thin));
  const now = svg(curves, "line", { y1: 0, y2: 60, stroke: "var(--ink)", "stroke-width": 0.4 });
  const legend = html(right, "p");
  const share = html(right, "details");
  html(share, "summary", {}, "this view in Python");
  const inPython = html(share, "code");

  let ways = [], timer = null, pending = false, asked = -1e9, writing = null;

  function checkbox(parent, text) {
    const label = html(parent, "label");
    const box = html(label, "input", { type: "checkbox" });
    label.append(` ${text}`);
    return box;
  }
  function select(parent, text, key) {
    const label = html(parent, "label", {}, `${text} `), node = html(label, "select");
    for (const [value, shown] of choices[key]) html(node, "option", { value }, shown);
    node.value = state[key];
    node.onchange = () => change({ [key]: node.value });
  }
  function range(parent, text, low, high, by, value, onInput) {
    const label = html(parent, "label", {}, `${text} `);
    const node = html(label, "input", { type: "range", min: low, max: high, step: by, value });
    const number = html(label, "output", {}, String(value));
    node.oninput = () => { number.textContent = node.value; onInput(+node.value); };
    return { set: (x) => { node.value = x; number.textContent = x; } };
  }

  function change(changes) {
    stop();
    Object.assign(state, changes, { at: 0 });
    const kept = KEPT.map((key) => `${key}=${JSON.stringify(state[key])}`);
    inPython.textContent = `explore(${JSON.stringify(named.map(([name]) => name))}, ${kept.join(", ")})`;
    clearTimeout(writing);
    writing = setTimeout(() => writeAddress(state), 100); // browsers refuse many in a short time
    ask();
    walk();
  }
  function walk() {
    ways = [state.first, state.second].filter(Boolean).map(descent).filter(Boolean);
    const goal = encode(state.target, "cxcywh"), error = (box) => offset(encode(box, "cxcywh"), goal);
    for (const way of ways) {
      way.ious = way.boxes.map((box) => iouOf(box, state.target));
      way.errors = way.boxes.map(error);
    }
    draw();
  }

  // what explore.js does not have, Python answers, one question at a time, while a kernel lives
  function question() {
    const { pred, target, encoding, rate } = state, chosen = drag ? [] : [state.first, state.second];
    return { pred, target, encoding, rate, names: distant, ways: distant.filter((name) => chosen.includes(name)) };
  }
  const isAnswered = () => answer && JSON.stringify(answer.question) === JSON.stringify(question());
  const isAwaited = () => performance.now() - asked < PATIENCE;
  function ask() {
    if (!distant.length || isAnswered() || isAwaited()) return;
    asked = performance.now();
    window.parent.postMessage({ explorer: wire, question: question() }, "*");
    setTimeout(walk, PATIENCE + 10);
  }
  window.addEventListener("message", ({ data }) => {
    if (!wire || data?.explorer !== wire || !data.losses) return;
    [answer, asked] = [data, -1e9];
    ask();
    walk();
  });
  /** Of a loss at the boxes shown: value, gradient, stale (of boxes a moment ago), error; {} where none is known. */
  function measured(name) {
    if (!distant.includes(name)) return evaluate(name, state.pred, state.target);
    const found = answer?.losses[name];
    const now = found && ["pred", "target"].every((key) => `${answer.question[key]}` === `${state[key]}`);
    return found && (now || isAwaited()) ? { ...found, stale: !now } : {};
  }
  function descent(name) {
    const { label, color } = losses.find((loss) => loss.name === name);
    if (distant.includes(name)) {
      const boxes = isAnswered() && answer.losses[name].way;
      return boxes && { boxes, label, color };
    }
    const goal = encode(state.target, state.encoding), path = [encode(state.pred, state.encoding)];
    for (let k = 0; k < STEPS; k++) { // the paper's schedule
      const decay = k < 0.8 * STEPS ? 1 : k < 0.9 * STEPS ? 0.1 : 0.01;
      path.push(step(name, path[k], goal, { ...state, rate: state.rate * decay }));
    }
    return { boxes: path.map((box) => decode(box, state.encoding)), label, color };
  }

  // dragging: what is near the pointer (within `reach`) moves, an edge, a corner or the whole box
  let drag = null;
  const point = (event) => {
    const frame = scene.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    return [(x / frame.width) * WIDTH, (y / frame.height) * height];
  };
  const parts = (box, [x, y], reach) => {
    const [x1, y1, x2, y2] = box;
    if (x < x1 - reach || x > x2 + reach || y < y1 - reach || y > y2 + reach) return null;
    const near = [Math.abs(x - x1), Math.abs(y - y1), Math.abs(x - x2), Math.abs(y - y2)].map((d) => d < reach);
    if (near[0] && near[2]) near[0] = false;
    if (near[1] && near[3]) near[1] = false;
    return near.some(Boolean) ? near : [true, true, true, true];
  };
  scene.addEventListener("pointerdown", (event) => {
    const at = point(event), reach = event.pointerType === "touch" ? 0.32 : 0.16;
    const misses = ["pred", "target"].every((which) => !parts(state[which], at, reach));
    if (surface && misses) move("pred", state.pred.map((v, k) => v + at[k % 2] - middle(state.pred)[k % 2]));
    for (const which of ["pred", "target"]) {
      const moving = parts(state[which], at, reach);
      if (moving) {
        drag = { which, moving, at, box: [...state[which]] };
        scene.setPointerCapture(event.pointerId);
        event.preventDefault();
        return;
      }
    }
  });
  scene.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [x, y] = point(event), by = [x - drag.at[0], y - drag.at[1]];
    move(drag.which, drag.box.map((v, k) => v + (drag.moving[k] ? by[k % 2] : 0)));
  });
  for (const end of ["pointerup", "pointercancel"]) scene.addEventListener(end, () => { drag = null; ask(); });

  function onKey(event, which) {
    const by = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, -0.05], ArrowDown: [0, 0.05] }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab would move to another cell
    move(which, state[which].map((v, k) => v + (event.shiftKey && k < 2 ? 0 : by[k % 2])));
  }
  function move(which, box) {
    if (lock.checked && which === "pred") {
      const wanted = distance(state.pred, state.target), is = distance(box, state.target);
      if (is > 0) box = box.map((v, k) => state.target[k] + ((v - state.target[k]) * wanted) / is);
    }
    Object.assign(state, { [which]: sorted(box) });
    if (!pending) requestAnimationFrame(() => { pending = false; change({}); });
    pending = true;
  }

  play.onclick = () => {
    if (timer) return stop();
    if (state.at >= STEPS) state.at = 0;
    play.textContent = "❚❚ pause";
    const tick = () => {
      state.at += 1;
      draw();
      timer = state.at < STEPS ? setTimeout(tick, 40) : stop();
    };
    timer = setTimeout(tick, 40);
  };
  function stop() {
    clearTimeout(timer);
    timer = null;
    play.textContent = "▶ let go";
    return null;
  }

  function draw() {
    const { pred, target } = state;
    for (const which of ["pred", "target"]) {
      const group = outlines[which].parentNode, at = state[which].map((x) => x.toFixed(2)).join(", ");
      set(group, { "aria-label": `${group.dataset.help}; now at ${at}` });
    }
    set(outlines.pred, rectangle(pred));
    set(outlines.target, rectangle(target));
    set(area, rectangle([0, 1, 2, 3].map((k) => (k < 2 ? Math.min : Math.max)(pred[k], target[k]))));
    set(cuts[0], rectangle(pred));
    set(cuts[1], rectangle(target));
    const shared = [0, 1, 2, 3].map((k) => (k < 2 ? Math.max : Math.min)(pred[k], target[k]));
    const meet = shared[0] < shared[2] && shared[1] < shared[3];
    set(common, meet ? rectangle(shared) : { width: 0, height: 0 });
    arrows.replaceChildren();
    const visible = rows.filter((row) => row.shown.checked), problems = [];
    for (const row of rows) {
      const { value, gradient, stale, error } = measured(row.name), known = Number.isFinite(value);
      row.value.textContent = known ? value.toFixed(3) : "–";
      row.gradient.textContent = known ? Math.hypot(...gradient).toFixed(3) : "–";
      row.bar.style.width = `${known ? Math.max(0, Math.min(100, (value / row.top) * 100)) : 0}%`;
      row.row.className = stale ? "stale" : "";
      if (error) problems.push(`${row.name}: ${error}`);
      const place = (visible.indexOf(row) + 1) / (visible.length + 1);
      if (known && row.shown.checked) gradient.forEach((slope, k) => arrow(pred, k, -slope, place, row.color));
    }
    const silent = distant.length && !isAnswered() && !isAwaited() && !drag;
    if (silent) problems.push(`${distant.join(", ")}: computed by Python, and no kernel answers here`);
    note.textContent = problems.join("; ");
    for (const k of [0, 1]) {
      const way = ways[k];
      const show = way ? "inline" : "none";
      const stroke = way ? way.color : "none";
      for (const node of [trails[k], ghosts[k], lines[k], errors[k]]) set(node, { display: show, stroke });
      if (!way) continue;
      set(ghosts[k], rectangle(way.boxes[state.at]));
      const centres = way.boxes.slice(0, state.at + 1).map((b) => `${(b[0] + b[2]) / 2},${(b[1] + b[3]) / 2}`);
      set(trails[k], { points: centres.join(" ") });
      const curve = (values) => values.map((value, n) => `${n},${58 - 56 * Math.min(1, value)}`).join(" ");
      set(lines[k], { points: curve(way.ious) });
      set(errors[k], { points: curve(way.errors.map((error) => error / (way.errors[0] || 1))) });
    }
    set(now, { x1: state.at, x2: state.at });
    scrub.set(state.at);
    rate.set(state.rate);
    const reading = (way) => `${way.label} ${way.ious[state.at].toFixed(2)} (error ${way.errors[state.at].toFixed(2)})`;
    legend.textContent = `IoU at step ${state.at}: ${ways.map(reading).join(", ")}. ` +
      "Dashed: the summed error of x, y, w and h, in units of that of the start.";
    const giou = 1 - evaluate("giou", pred, target).value;
    spoken.textContent = `IoU ${iouOf(pred, target).toFixed(3)}, GIoU ${giou.toFixed(3)}, ` +
      `ℓ2 distance ${distance(pred, target).toFixed(2)}${surface ? drawSurface() : ""}`;
  }

  // where the simulation of 03 leaves its errors: a picture under the boxes, and the losses in order at the step size
  function drawSurface() {
    const { pred, target, first, gradients, encoding } = state, { side, low, high, sizes } = surface;
    const cells = encoding === "cxcywh" && surface.cells[gradients]?.[first], origin = middle(target).map((x) => x - 3);
    set(ground, { display: cells ? "inline" : "none", x: origin[0], y: origin[1], width: 6, height: 6 });
    const nearest = sizes.reduce((a, b) => (Math.abs(b - state.rate) < Math.abs(a - state.rate) ? b : a));
    const [size, ends] = gradients === "exact" ? [nearest, surface.ends[encoding][sizes.indexOf(nearest)]]
      : [surface.size, gradients === "published" && encoding === "cxcywh" ? surface.published : {}];
    const end = (row) => ends[row.name] ?? Infinity;
    for (const row of rows) row.end.textContent = Number.isFinite(end(row)) ? end(row).toPrecision(2) : "–";
    const sorted = [...rows].sort((a, b) => end(a) - end(b) || rows.indexOf(a) - rows.indexOf(b));
    if (sorted.some(({ row }, n) => table.children[n + 1] !== row)) table.append(...sorted.map(({ row }) => row));
    const order = `. Final error: mean of the simulation at step size ${size}`;
    if (!cells) return order;
    const { label } = losses.find(({ name }) => name === first);
    const bytes = Uint8Array.from(atob(cells), (c) => c.charCodeAt(0)), key = gradients + first;
    if (ground.dataset.key !== key) set(ground, { href: painted(bytes, side), "data-key": key });
    const [column, line] = middle(pred).map((x, k) => Math.floor(((x - origin[k]) / 6) * side));
    const here = column >= 0 && column < side && line >= 0 && line < side ? bytes[line * side + column] : 0;
    const error = (byte) => (low * (high / low) ** ((byte - 1) / 254)).toPrecision(2);
    return `${order}. Ground: by the box's centre, with ${label} at step size ${surface.size}, ${error(1)} light, ` +
      `${error(255)} dark${here ? `; from here ${error(here)}` : ""}`;
  }
  function arrow([x1, y1, x2, y2], k, pull, place, color) {
    const along = k % 2 === 0, edge = [x1, y1, x2, y2][k];
    const start = along ? [edge, y1 + (y2 - y1) * place] : [x1 + (x2 - x1) * place, edge];
    if (Math.abs(pull) < 1e-12) return svg(arrows, "circle", { cx: start[0], cy: start[1], r: 0.035, fill: color });
    const length = Math.sign(pull) * Math.min(1, Math.max(0.12, 0.5 + 0.2 * Math.log10(Math.abs(pull))));
    const end = along ? [start[0] + length, start[1]] : [start[0], start[1] + length];
    const back = Math.sign(length) * 0.09;
    const wings = along
      ? [[end[0] - back, end[1] - 0.05], [end[0] - back, end[1] + 0.05]]
      : [[end[0] - 0.05, end[1] - back], [end[0] + 0.05, end[1] - back]];
    const d = `M${start}L${end}M${wings[0]}L${end}L${wings[1]}`;
    svg(arrows, "path", { d, fill: "none", stroke: color, "stroke-width": 0.03 });
    return null;
  }

  change({});
  const frame = window.frameElement; // in a notebook or page: as tall as what it holds, dark where its text is light
  if (!frame) return;
  new ResizeObserver(() => { frame.style.height = `${root.offsetHeight + 4}px`; }).observe(root);
  const scheme = () => {
    const [r, g, b] = frame.ownerDocument.defaultView.getComputedStyle(frame).color.match(/[\d.]+/g);
    document.documentElement.style.colorScheme = +r + +g + +b > 384 ? "dark" : "light";
  };
  new MutationObserver(scheme).observe(frame.ownerDocument.body, { attributes: true });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", scheme);
  scheme();
}

const PATIENCE = 2500; // ms that an answer may take
// the view is in the address of the page, but for that of JupyterLab
const KEPT = ["pred", "target", "first", "second", "gradients", "encoding", "rate"];
function page() {
  const host = window.frameElement ? window.parent : window;
  return host.location.protocol === "about:" || host.document.getElementById("jupyter-config-data") ? null : host;
}
/** What the address says in place of `view`, as far as it is of the same kind. */
function readAddress(view) {
  try {
    const given = JSON.parse(decodeURIComponent(page().location.hash.slice(1)));
    const fits = (key) => (Array.isArray(view[key]) ? given[key].length === 4 && given[key].every(Number.isFinite)
      : typeof given[key] === typeof view[key]);
    return Object.fromEntries(KEPT.filter((key) => key in given && fits(key)).map((key) => [key, given[key]]));
  } catch {
    return {}; // another anchor, or none
  }
}
function writeAddress(state) {
  const kept = JSON.stringify(Object.fromEntries(KEPT.map((key) => [key, state[key]])));
  page()?.history.replaceState(null, "", `#${encodeURIComponent(kept)}`);
}
