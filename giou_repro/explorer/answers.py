"""What Python answers the explorer: losses that explore.js does not have, as a user's own, at the boxes that are shown.

A question is a dict: pred and target (xyxy), encoding, rate, names (the losses), ways (those of them whose path is
wanted). Its answer: the question, and for each loss its value, its gradient by the prediction's corners and its way (a
box before and after each of 200 steps), or error, what its function raised. A number that is not finite is None.
"""

import importlib.util
import json
import math
import uuid

import torch

from giou_repro import boxes
from giou_repro.registry import LOSSES
from giou_repro.simulation import step

STEPS = 200
WIRE = """
const key = KEY, frame = FRAME;
export default {
  initialize({ model }) {
    const frames = new Set();
    const ask = ({ data, source }) => {
      if (data?.explorer !== key || !data.question) return;
      frames.add(source);
      model.send(data.question);
    };
    const tell = (answer) => {
      for (const frame of frames) frame.postMessage({ explorer: key, ...answer }, "*");
    };
    window.addEventListener("message", ask);
    model.on("msg:custom", tell);
    return () => window.removeEventListener("message", ask);
  },
  render({ el }) { el.innerHTML = frame; },
};
"""


def answer(question: dict) -> dict:
    """The answer to a question, see above."""
    found, pred, target = {}, question["pred"], question["target"]
    for name in question["names"]:
        try:
            found[name] = _measured(name, pred, target)
            if name in question["ways"]:
                found[name]["way"] = _finite(way(name, pred, target, question["encoding"], question["rate"]))
        except Exception as error:  # a user's function may raise anything
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    return {"question": question, "losses": found}


def way(name, pred, target, encoding, rate) -> list:
    """The boxes, xyxy, of 200 steps of the simulation, the start first."""
    state, goal = (
        tuple(boxes.convert(torch.tensor([box], dtype=torch.float64), "xyxy", encoding).unbind(-1))
        for box in (pred, target)
    )
    engine, memory, path = step.engine(name, "exact", (), encoding, True, "plain", "cpu"), (), [state]
    for clock in step.clock(STEPS, rate, "paper")[:-1]:
        state, memory, _ = engine.step(state, memory, goal, clock)
        path.append(state)
    states = torch.stack([torch.cat(columns) for columns in path])
    return boxes.convert(states, encoding, "xyxy").tolist()


def widget(explorer):
    """An anywidget that answers the explorer's page, wherever in the notebook it is shown; None without anywidget.

    It need not be shown itself: its state is lost in a notebook that is opened again, the page is not. Sets the
    explorer's option `wire`, by which page and widget know each other.
    """
    if importlib.util.find_spec("anywidget") is None:
        return None
    import anywidget

    explorer.options["wire"] = uuid.uuid4().hex
    module = WIRE.replace("KEY", json.dumps(explorer.options["wire"])).replace("FRAME", json.dumps(explorer.frame))
    wire = type("Wire", (anywidget.AnyWidget,), {"_esm": module})()
    wire.on_msg(lambda _, question, buffers: wire.send(answer(question)))
    return wire


def _measured(name, pred, target):
    box, goal = torch.tensor([pred, target], dtype=torch.float64).unbind()
    box = box.clone().requires_grad_()
    value = LOSSES[name](box, goal)
    (gradient,) = torch.autograd.grad(value, box)
    return dict(value=_finite(value.item()), gradient=_finite(gradient.tolist()))


def _finite(numbers):
    if isinstance(numbers, list):
        return [_finite(number) for number in numbers]
    return numbers if math.isfinite(numbers) else None
