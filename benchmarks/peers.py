"""The peers: other libraries' formulae retyped where they are no dependency, and other ways to run the simulation."""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import generalized_box_iou_loss


def fvcore(pred, target, eps=1e-7):
    """fvcore.nn.giou_loss, v0.1.5, retyped."""
    x1, y1, x2, y2 = pred.unbind(dim=-1)
    x1g, y1g, x2g, y2g = target.unbind(dim=-1)
    left, top, right, bottom = torch.max(x1, x1g), torch.max(y1, y1g), torch.min(x2, x2g), torch.min(y2, y2g)
    both = torch.zeros_like(x1)
    mask = (bottom > top) & (right > left)
    both[mask] = (right[mask] - left[mask]) * (bottom[mask] - top[mask])
    union = (x2 - x1) * (y2 - y1) + (x2g - x1g) * (y2g - y1g) - both
    hull = (torch.max(x2, x2g) - torch.min(x1, x1g)) * (torch.max(y2, y2g) - torch.min(y1, y1g))
    return 1 - (both / (union + eps) - (hull - union) / (hull + eps))


def ultralytics(pred, target, eps=1e-7):
    """The formula of ultralytics' bbox_iou(GIoU=True), v8, retyped."""
    x1, y1, x2, y2 = pred.chunk(4, -1)
    x1g, y1g, x2g, y2g = target.chunk(4, -1)
    w, h, wg, hg = x2 - x1, y2 - y1 + eps, x2g - x1g, y2g - y1g + eps
    both = (x2.minimum(x2g) - x1.maximum(x1g)).clamp_(0) * (y2.minimum(y2g) - y1.maximum(y1g)).clamp_(0)
    union = w * h + wg * hg - both + eps
    hull = (x2.maximum(x2g) - x1.minimum(x1g)) * (y2.maximum(y2g) - y1.minimum(y1g)) + eps
    return 1 - (both / union - (hull - union) / hull)


LOSSES = {"torchvision": generalized_box_iou_loss, "fvcore": fvcore, "ultralytics": ultralytics}


def sgd(state, target, steps, rate=0.1):
    """Steps on (N, 4) boxes in centre and size with torchvision's GIoU loss and torch.optim.SGD, the (2 − IoU) factor
    included."""
    state = state.clone().requires_grad_()
    optimizer = torch.optim.SGD([state], lr=rate)
    corners = torch.cat((target[:, :2] - target[:, 2:] / 2, target[:, :2] + target[:, 2:] / 2), -1)
    for _ in range(steps):
        optimizer.zero_grad()
        moving = torch.cat((state[:, :2] - state[:, 2:] / 2, state[:, :2] + state[:, 2:] / 2), -1)
        with torch.no_grad():
            both = (
                (torch.min(moving[:, 2:], corners[:, 2:]) - torch.max(moving[:, :2], corners[:, :2]))
                .clamp(min=0)
                .prod(-1)
            )
            iou = both / (state[:, 2] * state[:, 3] + target[:, 2] * target[:, 3] - both)
        (generalized_box_iou_loss(moving, corners) * (2 - iou)).sum().backward()
        optimizer.step()
    return state.detach()


def numpy(state, target, steps, rate=0.1):
    """The same with the gradient written out, on columns (4, N) of NumPy arrays."""
    x, y, w, h = state.copy()
    left, top, right, bottom = (
        target[0] - target[2] / 2,
        target[1] - target[3] / 2,
        target[0] + target[2] / 2,
        target[1] + target[3] / 2,
    )
    area = target[2] * target[3]
    for _ in range(steps):
        x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
        iw, ih = np.minimum(x2, right) - np.maximum(x1, left), np.minimum(y2, bottom) - np.maximum(y1, top)
        over = ((iw > 0) & (ih > 0)).astype(x.dtype)
        iw, ih = iw * over, ih * over
        cw, ch = np.maximum(x2, right) - np.minimum(x1, left), np.maximum(y2, bottom) - np.minimum(y1, top)
        both, hull = iw * ih, cw * ch
        union = w * h + area - both
        iou = both / union
        # d(1 − I/U + (C − U)/C) = −dI/U + (I/U² − 1/C) dU + U/C² dC, with dU = dA − dI
        by_union, by_hull = both / union**2 - 1 / hull, union / hull**2
        by_both, factor = -1 / union - by_union, rate * (2 - iou)
        g1, g2 = _by_edges(x1, x2, left, right, by_union * h, by_both * ih, by_hull * ch)
        x, w = x - factor * (g1 + g2), w - factor * (g2 - g1) / 2
        g1, g2 = _by_edges(y1, y2, top, bottom, by_union * (x2 - x1), by_both * iw, by_hull * cw)
        y, h = y - factor * (g1 + g2), h - factor * (g2 - g1) / 2
    return np.stack((x, y, w, h))


def _by_edges(low, high, low_, high_, by_length, by_common, by_hull):
    """The derivative by the lower and the upper edge along one axis from those by the box's, the common and the
    enclosing length."""
    lower = -by_length - by_common * (low > low_) - by_hull * (low < low_)
    return lower, by_length + by_common * (high < high_) + by_hull * (high > high_)


KERNEL = r"""
#include <math.h>
static inline float edge(int yes, float value) { return yes ? value : 0.0f; }

void descend(float *X, float *Y, float *W, float *H, const float *TX, const float *TY, const float *TW, const float *TH,
             long n, int steps, float rate) {
    for (long k = 0; k < n; k += 64) {           /* 64 cases stay in registers for all steps */
        float x[64], y[64], w[64], h[64], l_[64], t_[64], r_[64], b_[64], area[64];
        int m = n - k < 64 ? (int)(n - k) : 64;
        for (int i = 0; i < 64; i++) {
            long j = k + (i < m ? i : 0);
            x[i] = X[j]; y[i] = Y[j]; w[i] = W[j]; h[i] = H[j];
            l_[i] = TX[j] - TW[j] / 2; r_[i] = TX[j] + TW[j] / 2; t_[i] = TY[j] - TH[j] / 2; b_[i] = TY[j] + TH[j] / 2;
            area[i] = TW[j] * TH[j];
        }
        for (int s = 0; s < steps; s++)
            for (int i = 0; i < 64; i++) {
                float l = x[i] - w[i] / 2, r = x[i] + w[i] / 2, t = y[i] - h[i] / 2, b = y[i] + h[i] / 2;
                float iw = fminf(r, r_[i]) - fmaxf(l, l_[i]), ih = fminf(b, b_[i]) - fmaxf(t, t_[i]);
                int over = (iw > 0) & (ih > 0);
                iw = edge(over, iw); ih = edge(over, ih);
                float cw = fmaxf(r, r_[i]) - fminf(l, l_[i]), ch = fmaxf(b, b_[i]) - fminf(t, t_[i]);
                float both = iw * ih, hull = cw * ch, u = w[i] * h[i] + area[i] - both, iou = both / u;
                float by_u = iou / u - 1 / hull, by_c = u / (hull * hull), by_i = -1 / u - by_u, f = rate * (2 - iou);
                float gl = -by_u * h[i] - edge(l > l_[i], by_i * ih) - edge(l < l_[i], by_c * ch);
                float gr = by_u * h[i] + edge(r < r_[i], by_i * ih) + edge(r > r_[i], by_c * ch);
                float gt = -by_u * w[i] - edge(t > t_[i], by_i * iw) - edge(t < t_[i], by_c * cw);
                float gb = by_u * w[i] + edge(b < b_[i], by_i * iw) + edge(b > b_[i], by_c * cw);
                x[i] -= f * (gl + gr); w[i] -= f * (gr - gl) / 2; y[i] -= f * (gt + gb); h[i] -= f * (gb - gt) / 2;
            }
        for (int i = 0; i < m; i++) { X[k + i] = x[i]; Y[k + i] = y[i]; W[k + i] = w[i]; H[k + i] = h[i]; }
    }
}
"""


def c_kernel():
    """All steps of the same in C, the state in registers: (state, target, steps, rate=0.1) -> state on float32 columns
    (4, N), one thread.

    None where there is no compiler.
    """
    folder = Path(tempfile.mkdtemp())
    (folder / "kernel.c").write_text(KERNEL)
    options = ["-O3", "-march=native", "-ffast-math", "-fopenmp-simd", "-shared", "-fPIC"]
    try:
        subprocess.run(
            ["gcc", *options, "kernel.c", "-o", "kernel.so", "-lm"], cwd=folder, check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    library = ctypes.CDLL(str(folder / "kernel.so"))
    pointer = ctypes.POINTER(ctypes.c_float)

    def descend(state, target, steps, rate=0.1):
        state = np.ascontiguousarray(state, dtype=np.float32).copy()
        columns = [
            column.ctypes.data_as(pointer) for column in (*state, *np.ascontiguousarray(target, dtype=np.float32))
        ]
        library.descend(*columns, ctypes.c_long(state.shape[1]), ctypes.c_int(steps), ctypes.c_float(rate))
        return state

    return descend
