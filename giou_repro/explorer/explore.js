// Drag a box, see the value of every loss and its gradient, and let a loss pull the box in.
// One module without dependencies. Boxes are [x1, y1, x2, y2]; the formulae are those of losses.py and diou_code.py.

// ---- numbers with their derivatives by the four coordinates of the prediction

const dual = (v, d = [0, 0, 0, 0]) => ({ v, d });
const lift = (x) => (typeof x === "number" ? dual(x) : x);
const scaled = (a, slope, v) => dual(v, a.d.map((x) => slope * x));
const mixed = (a, p, b, q, v) => dual(v, a.d.map((x, k) => p * x + q * b.d[k]));
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

export const iouOf = (p, t) => overlap(p.map((v) => dual(v)), t.map((v) => dual(v))).iou.v;

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
  iou: (box, target) => fromEdges(iouByEdges(box, target)), giou: giouDirection, diou: diouDirection, ciou: ciouDirection,
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

const WIDTH = 8, HEIGHT = 5.2, STEPS = 200; // of the plane, in units of a box's side; and of a descent
const figure1 = (degrees, turn = (degrees * Math.PI) / 180) => // the paper's, a ninth as large
  [[-1, -1, 10 + 7 * Math.cos(turn), 20 + 7 * Math.sin(turn)], [0, 0, 10, 20]].map((box) => box.map((x, k) => 3 - 2 * (k % 2) + x / 9));
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
  gap: 12px; padding: 8px; --ink: #222; --paper: #fff; --line: #bbb; --gap: #c5512d; }
@media (prefers-color-scheme: dark) { .giou { --ink: #ddd; --paper: #16181c; --line: #555; --gap: #e08a5f; } }
.giou > * { flex: 1 1 340px; min-width: 0; }
.giou svg { width: 100%; display: block; touch-action: none; border: 1px solid var(--line); }
.giou svg.curves { touch-action: auto; }
.giou table { border-collapse: collapse; width: 100%; } .giou td, .giou th { padding: 2px 4px; text-align: right; }
.giou td:nth-child(2), .giou td:first-child, .giou th:nth-child(2) { text-align: left; } .giou td.bar { width: 34%; }
.giou td.bar div { height: 10px; } .giou button, .giou select { font: inherit; margin: 2px; }
.giou .box:focus { outline: none; } .giou .box:focus rect { stroke-dasharray: .1 .04; }
.giou label { white-space: nowrap; margin-right: 8px; } .giou p { margin: 4px 0; }`;

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
const sorted = ([a, b, c, d]) => [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];
const rectangle = (box) => {
  const [x, y, x2, y2] = sorted(box);
  return { x, y, width: x2 - x, height: y2 - y };
};
const distance = (p, t) => Math.hypot(...p.map((x, k) => x - t[k]));

/** Put the explorer into `element`. options: losses [{name, label, color}], pred, target. */
export function mount(element, { losses, pred, target }) {
  losses = losses.map((loss) => ({ ...loss, color: loss.color === "#000000" ? "var(--ink)" : loss.color })); // black, in the dark too
  const state = { pred: [...pred], target: [...target], rate: 0.1, gradients: "exact", encoding: "cxcywh",
    first: losses.some(({ name }) => name === "giou") ? "giou" : losses[0].name, second: "", at: 0 };
  Object.assign(state, readAddress());
  html(document.head, "style", {}, CSS);
  const root = html(element, "div", { class: "giou" });
  const left = html(root, "div"), right = html(root, "div");
  const scene = svg(left, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}` });
  const area = svg(scene, "rect", { fill: "var(--gap)", "fill-opacity": 0.3, stroke: "var(--gap)",
    "stroke-width": 0.02, "stroke-dasharray": ".12 .08" });
  const cuts = [0, 1].map(() => svg(scene, "rect", { fill: "var(--paper)" }));
  const common = svg(scene, "rect", { fill: "#0072B2", "fill-opacity": 0.3 });
  const trails = [0, 1].map(() => svg(scene, "polyline", { fill: "none", "stroke-width": 0.025 }));
  const ghosts = [0, 1].map(() => svg(scene, "rect", { fill: "none", "stroke-width": 0.035, "stroke-dasharray": ".08 .04" }));
  const outlines = Object.fromEntries(["target", "pred"].map((which) => {
    const what = which === "pred" ? "prediction" : "target";
    const group = svg(scene, "g", { class: "box", tabindex: 0, role: "group",
      "aria-label": `${what}: arrow keys move it, with shift they move its lower right corner` });
    group.addEventListener("keydown", (event) => onKey(event, which));
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
  for (const text of ["", "loss", "", "value", "gradient"]) html(head, "th", {}, text);
  const rows = losses.map(({ name, label, color }) => {
    const row = html(table, "tr");
    const shown = html(html(row, "td"), "input", { type: "checkbox", "aria-label": `arrows of ${label}` });
    shown.checked = true;
    shown.onchange = () => draw();
    html(row, "td", {}, label);
    const bar = html(html(row, "td", { class: "bar" }), "div", { style: `background: ${color}` });
    return { name, color, shown, bar, value: html(row, "td"), gradient: html(row, "td") };
  });
  html(right, "p", {}, "Arrows: where each loss pulls each edge (length: logarithm of the gradient); a dot: no gradient. " +
    "Bars: overlap losses to 2, coordinate losses to 16.");

  const controls = html(right, "p");
  const names = losses.map(({ name, label }) => [name, label]);
  select(controls, "let go under", "first", names);
  select(controls, "beside", "second", [["", "none"], ...names]);
  select(controls, "gradients", "gradients", [["exact", "exact"], ["published", "published"], ["repaired", "published, GIoU repaired"]]);
  select(controls, "regressing", "encoding", [["cxcywh", "centre and size"], ["xyxy", "corners"]]);
  const rate = range(controls, "rate", 0.01, 0.4, 0.01, state.rate, (value) => change({ rate: value }));
  const play = html(controls, "button", {}, "▶ let go");
  const scrub = range(controls, "step", 0, STEPS, 1, state.at, (value) => { stop(); state.at = value; draw(); });
  const curves = svg(right, "svg", { viewBox: "0 0 200 60", class: "curves", role: "img", "aria-label": "IoU against step" });
  const lines = [0, 1].map(() => svg(curves, "polyline", { fill: "none", "stroke-width": 1.2 }));
  const now = svg(curves, "line", { y1: 0, y2: 60, stroke: "var(--ink)", "stroke-width": 0.4 });
  const legend = html(right, "p");

  let ways = [], timer = null, pending = false;

  function checkbox(parent, text) {
    const label = html(parent, "label");
    const box = html(label, "input", { type: "checkbox" });
    label.append(` ${text}`);
    return box;
  }
  function select(parent, text, key, choices) {
    const label = html(parent, "label", {}, `${text} `), node = html(label, "select");
    for (const [value, shown] of choices) html(node, "option", { value }, shown);
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
    ways = [state.first, state.second].filter(Boolean).map(descent);
    writeAddress(state);
    draw();
  }
  function descent(name) {
    const goal = encode(state.target, state.encoding), path = [encode(state.pred, state.encoding)];
    for (let k = 0; k < STEPS; k++) { // the paper's schedule
      const decay = k < 0.8 * STEPS ? 1 : k < 0.9 * STEPS ? 0.1 : 0.01;
      path.push(step(name, path[k], goal, { ...state, rate: state.rate * decay }));
    }
    return { name, boxes: path.map((box) => decode(box, state.encoding)), color: losses.find((l) => l.name === name).color };
  }

  // dragging: what is near the pointer (within `reach`) moves, an edge, a corner or the whole box
  let drag = null;
  const point = (event) => {
    const frame = scene.getBoundingClientRect();
    return [((event.clientX - frame.left) / frame.width) * WIDTH, ((event.clientY - frame.top) / frame.height) * HEIGHT];
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
  for (const end of ["pointerup", "pointercancel"]) scene.addEventListener(end, () => { drag = null; });

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
    set(outlines.pred, rectangle(pred));
    set(outlines.target, rectangle(target));
    set(area, rectangle([0, 1, 2, 3].map((k) => (k < 2 ? Math.min : Math.max)(pred[k], target[k]))));
    set(cuts[0], rectangle(pred));
    set(cuts[1], rectangle(target));
    const shared = [0, 1, 2, 3].map((k) => (k < 2 ? Math.max : Math.min)(pred[k], target[k]));
    const meet = shared[0] < shared[2] && shared[1] < shared[3];
    set(common, meet ? rectangle(shared) : { width: 0, height: 0 });
    arrows.replaceChildren();
    const visible = rows.filter((row) => row.shown.checked);
    for (const row of rows) {
      const { value, gradient } = evaluate(row.name, pred, target);
      row.value.textContent = value.toFixed(3);
      row.gradient.textContent = Math.hypot(...gradient).toFixed(3);
      row.bar.style.width = `${Math.min(100, (value / (OVERLAP_LOSSES[row.name] ? 2 : 16)) * 100)}%`;
      const place = (visible.indexOf(row) + 1) / (visible.length + 1);
      if (row.shown.checked) gradient.forEach((slope, k) => arrow(pred, k, -slope, place, row.color));
    }
    for (const k of [0, 1]) {
      const way = ways[k];
      const show = way ? "inline" : "none";
      for (const node of [trails[k], ghosts[k], lines[k]]) set(node, { display: show, stroke: way ? way.color : "none" });
      if (!way) continue;
      set(ghosts[k], rectangle(way.boxes[state.at]));
      const centres = way.boxes.slice(0, state.at + 1).map((b) => `${(b[0] + b[2]) / 2},${(b[1] + b[3]) / 2}`);
      set(trails[k], { points: centres.join(" ") });
      const curve = way.boxes.map((box, n) => `${n},${58 - 56 * iouOf(box, target)}`);
      set(lines[k], { points: curve.join(" ") });
    }
    set(now, { x1: state.at, x2: state.at });
    scrub.set(state.at);
    rate.set(state.rate);
    const shown = ways.map((way) => `${way.name} ${iouOf(way.boxes[state.at], target).toFixed(2)}`);
    legend.textContent = `IoU at step ${state.at}: ${shown.join(", ")}`;
    const giou = 1 - evaluate("giou", pred, target).value;
    spoken.textContent = `IoU ${iouOf(pred, target).toFixed(3)}, GIoU ${giou.toFixed(3)}, ` +
      `ℓ2 distance ${distance(pred, target).toFixed(2)}`;
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
    svg(arrows, "path", { d: `M${start}L${end}M${wings[0]}L${end}L${wings[1]}`, fill: "none", stroke: color, "stroke-width": 0.03 });
    return null;
  }

  change({});
  const frame = window.frameElement; // of a notebook: as tall as what it holds
  if (frame) new ResizeObserver(() => { frame.style.height = `${root.offsetHeight + 4}px`; }).observe(root);
}

// the view is in the address where the explorer is a page of its own
const KEPT = ["pred", "target", "rate", "gradients", "encoding", "first", "second"];
const isPage = () => location.protocol !== "about:";
function readAddress() {
  return isPage() && location.hash.length > 1 ? JSON.parse(decodeURIComponent(location.hash.slice(1))) : {};
}
function writeAddress(state) {
  const kept = JSON.stringify(Object.fromEntries(KEPT.map((key) => [key, state[key]])));
  if (isPage()) history.replaceState(null, "", `#${encodeURIComponent(kept)}`);
}
