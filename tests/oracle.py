"""Every loss again, straight from its paper, one pair of boxes at a time, in exact rational arithmetic.

Coordinates become `Fraction`s, so that algebraic losses are exact; what needs a root, a logarithm or an angle goes
through mpmath with 60 digits. Written without a look at giou_repro: corners, areas and distances as the papers have
them.
"""

from fractions import Fraction

from mpmath import mp, mpf

mp.dps = 60


def _mpf(value):
    return mpf(value.numerator) / mpf(value.denominator) if isinstance(value, Fraction) else mpf(value)


class Pair:
    """A prediction, its corners sorted, and a target: (x1, y1, x2, y2) each, finite floats."""

    def __init__(self, pred, target):
        self.raw = [Fraction(v) for v in pred], [Fraction(v) for v in target]
        p, t = ([min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])] for b in self.raw)
        self.p, self.t = p, t
        self.w, self.h, self.wt, self.ht = p[2] - p[0], p[3] - p[1], t[2] - t[0], t[3] - t[1]
        self.cw, self.ch = max(p[2], t[2]) - min(p[0], t[0]), max(p[3], t[3]) - min(p[1], t[1])
        self.dx, self.dy = (p[0] + p[2] - t[0] - t[2]) / 2, (p[1] + p[3] - t[1] - t[3]) / 2

    def areas(self, p=None, t=None):
        """Intersection, union, enclosing box; an axis along which both are one point counts as 1 long."""
        p, t = p or self.p, t or self.t
        inter, a, b, hull = Fraction(1), Fraction(1), Fraction(1), Fraction(1)
        for low, high in ((0, 2), (1, 3)):
            whole = max(p[high], t[high]) - min(p[low], t[low])
            if whole == 0:
                continue
            inter *= max(Fraction(0), min(p[high], t[high]) - max(p[low], t[low]))
            a, b, hull = a * (p[high] - p[low]), b * (t[high] - t[low]), hull * whole
        return inter, a + b - inter, hull

    def iou(self):
        inter, union, _ = self.areas()
        return inter / union if union else Fraction(0)

    def empty(self):
        _, union, hull = self.areas()
        return (hull - union) / hull

    def centre(self):
        diagonal = self.cw**2 + self.ch**2
        return (self.dx**2 + self.dy**2) / diagonal if diagonal else Fraction(0)


def share(part, whole):
    return part / whole if whole else Fraction(0)


def coordinates(pair):
    return [abs(a - b) for a, b in zip(*pair.raw, strict=True)]


def smooth(d):
    return d * d / 2 if d < 1 else d - Fraction(1, 2)


def balanced(d, alpha=Fraction(1, 2), gamma=Fraction(3, 2)):
    b = mp.exp(_mpf(gamma / alpha)) - 1
    d, alpha, gamma = _mpf(d), _mpf(alpha), _mpf(gamma)
    return alpha / b * (b * d + 1) * mp.log(b * d + 1) - alpha * d if d < 1 else gamma * d + gamma / b - alpha


def ciou(pair):
    angles = [mp.atan2(_mpf(w), _mpf(h)) for w, h in ((pair.wt, pair.ht), (pair.w, pair.h))]
    v = 4 / mp.pi**2 * (angles[0] - angles[1]) ** 2
    loss = _mpf(1 - pair.iou())
    return loss + _mpf(pair.centre()) + v * v / (loss + v + mpf("1e-7"))


def eiou(pair):
    return (
        1 - pair.iou() + pair.centre() + share(pair.w - pair.wt, pair.cw) ** 2 + share(pair.h - pair.ht, pair.ch) ** 2
    )


def siou(pair, theta=4):
    sigma = mp.sqrt(_mpf(pair.dx**2 + pair.dy**2))
    cost = 1 - 2 * mp.sin(mp.asin(_mpf(abs(pair.dy)) / sigma) - mp.pi / 4) ** 2 if sigma else mpf(0)
    gamma = 2 - cost
    distance = sum(1 - mp.exp(-gamma * _mpf(share(d, c)) ** 2) for d, c in ((pair.dx, pair.cw), (pair.dy, pair.ch)))
    shapes = ((pair.w, pair.wt), (pair.h, pair.ht))
    shape = sum((1 - mp.exp(-_mpf(share(abs(a - b), max(a, b))))) ** theta for a, b in shapes)
    return _mpf(1 - pair.iou()) + (distance + shape) / 2


def mpdiou(pair, image_size=None):
    width, height = image_size or (pair.cw, pair.ch)
    corners = sum((a - b) ** 2 for a, b in zip(pair.p, pair.t, strict=True))
    return 1 - pair.iou() + share(corners, Fraction(width) ** 2 + Fraction(height) ** 2)


def inner(pair, ratio=Fraction(3, 4)):
    scaled = []
    for x1, y1, x2, y2 in (pair.p, pair.t):
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, ratio * (x2 - x1) / 2, ratio * (y2 - y1) / 2
        scaled.append([x - w, y - h, x + w, y + h])
    intersection, union, _ = pair.areas(*scaled)
    return intersection / union if union else Fraction(0)


def piou(pair):
    sides = ((0, 2, pair.wt), (1, 3, pair.ht))
    distances = [(abs(pair.p[low] - pair.t[low]) + abs(pair.p[high] - pair.t[high]), side) for low, high, side in sides]
    if any(distance and not side for distance, side in distances):
        return 2 - pair.iou(), mpf("inf")
    p = _mpf(sum(share(distance, side) for distance, side in distances) / 4)
    return _mpf(1 - pair.iou()) + 1 - mp.exp(-p * p), p


def piou_v2(pair):
    value, p = piou(pair)
    x = mpf("1.3") * mp.exp(-p)
    return 3 * x * mp.exp(-x * x) * _mpf(value)


def shape_iou(pair, scale=0):
    weight = mpf(1)
    if scale:
        wt, ht = (_mpf(side) ** scale for side in (pair.wt, pair.ht))
        weight = 2 * wt / (wt + ht)
    across = 2 - weight
    diagonal = pair.cw**2 + pair.ch**2
    distance = (across * _mpf(pair.dx) ** 2 + weight * _mpf(pair.dy) ** 2) / _mpf(diagonal) if diagonal else 0
    sides = ((across, pair.w, pair.wt), (weight, pair.h, pair.ht))
    changes = (eta * _mpf(share(abs(a - b), max(a, b))) for eta, a, b in sides)
    return _mpf(1 - pair.iou()) + distance + sum((1 - mp.exp(-change)) ** 4 for change in changes) / 2


def bounded_iou(pair, beta=Fraction(1, 5)):
    total = Fraction(0)
    for offset, a, b in ((abs(pair.dx), pair.w, pair.wt), (abs(pair.dy), pair.h, pair.ht)):
        moved = max(0, (b - 2 * offset) / (b + 2 * offset)) if b + offset else 1
        resized = min(a / b, b / a) if a and b else int(a == b)
        total += sum(d * d / (2 * beta) if d < beta else d - beta / 2 for d in (1 - moved, 1 - resized))
    return total


def nwd(pair):
    squared = pair.dx**2 + pair.dy**2 + (pair.w - pair.wt) ** 2 / 4 + (pair.h - pair.ht) ** 2 / 4
    return 1 - mp.exp(-mp.sqrt(_mpf(squared)) / mpf("12.8"))


def mgiou(pair):
    giou = []
    for low, high in ((0, 2), (1, 3)):
        a, b, hull = (pair.p[high] - pair.p[low], pair.t[high] - pair.t[low], [pair.cw, pair.ch][low])
        common = max(Fraction(0), min(pair.p[high], pair.t[high]) - max(pair.p[low], pair.t[low]))
        union = a + b - common
        giou.append(share(common, union) - (hull - union) / hull if hull else Fraction(1))
    return (1 - sum(giou) / 2) / 2


ORACLE = {
    "l1": lambda pair: sum(coordinates(pair)),
    "l2": lambda pair: sum(d * d for d in coordinates(pair)),
    "smooth_l1": lambda pair: sum(smooth(d) for d in coordinates(pair)),
    "balanced_l1": lambda pair: sum(balanced(d) for d in coordinates(pair)),
    "iou": lambda pair: 1 - pair.iou(),
    "iou_log": lambda pair: -mp.log(max(_mpf(pair.iou()), mpf("1e-7"))),
    "giou": lambda pair: 1 - pair.iou() + pair.empty(),
    "diou": lambda pair: 1 - pair.iou() + pair.centre(),
    "ciou": ciou,
    "eiou": eiou,
    "focal_eiou": lambda pair: mp.sqrt(_mpf(pair.iou())) * _mpf(eiou(pair)),
    "siou": siou,
    "alpha_iou": lambda pair: 1 - pair.iou() ** 3,
    "alpha_giou": lambda pair: 1 - pair.iou() ** 3 + pair.empty() ** 3,
    "alpha_diou": lambda pair: 1 - pair.iou() ** 3 + pair.centre() ** 3,
    "wiou": lambda pair: mp.exp(_mpf(pair.centre())) * _mpf(1 - pair.iou()),
    "mpdiou": mpdiou,
    "inner_iou": lambda pair: 1 - inner(pair),
    "inner_giou": lambda pair: 1 - inner(pair) + pair.empty(),
    "piou": lambda pair: piou(pair)[0],
    "piou_v2": piou_v2,
    "shape_iou": shape_iou,
    "iou_squared": lambda pair: 1 - pair.iou() ** 2,
    "bounded_iou": bounded_iou,
    "nwd": nwd,
    "mgiou": mgiou,
}


def exact(name, pred, target):
    """The exact loss of one pair of boxes as a 60-digit number."""
    return _mpf(ORACLE[name](Pair(pred, target)))
