"""How long an iteration takes: fitted at start-up, corrected by every iteration that runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from typing import NamedTuple

_SWEEPS = 1000
_PRECISION = 1e-7  # of a coefficient, relative to the one that explains everything alone
_ROUNDS = 4  # of weighing outliers less
_FIT_CLIP = 0.1  # relative error above which an observation counts less


def fit_relative(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Return coefficients c >= 0, one a column, with the least relative errors of `row . c`.

    No row is negative, and all targets are above 0. The loss is Huber's: squares up to an error of
    a tenth, straight from there, so that a few outliers do not count much. Reweighted least
    squares, each solved by coordinate descent.
    """
    shares = [[x / target for x in row] for row, target in zip(rows, targets, strict=True)]
    sizes = [sqrt(sum(x * x for x in column)) or 1.0 for column in zip(*shares, strict=True)]
    scaled = [[x / size for x, size in zip(row, sizes, strict=True)] for row in shares]
    weights = [1.0] * len(scaled)
    solution = [0.0] * len(sizes)
    for _ in range(_ROUNDS):
        _descend(scaled, weights, solution)
        errors = [abs(_dot(row, solution) - 1) for row in scaled]
        weights = [1.0 if error <= _FIT_CLIP else _FIT_CLIP / error for error in errors]
    return [x / size for x, size in zip(solution, sizes, strict=True)]


def _descend(rows: list[list[float]], weights: list[float], solution: list[float]) -> None:
    """Improve `solution` of the weighted problem whose targets are all 1."""
    width = len(solution)
    matrix = [
        [
            sum(w * row[i] * row[j] for w, row in zip(weights, rows, strict=True))
            for j in range(width)
        ]
        for i in range(width)
    ]
    vector = [sum(w * row[i] for w, row in zip(weights, rows, strict=True)) for i in range(width)]
    for _ in range(_SWEEPS):
        before = solution[:]
        for i, line in enumerate(matrix):
            if line[i] > 0:
                solution[i] = max(0.0, solution[i] + (vector[i] - _dot(line, solution)) / line[i])
        if all(abs(a - b) <= _PRECISION for a, b in zip(solution, before, strict=True)):
            return


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


Row = tuple[float, float, float, float, float]


class Work(NamedTuple):
    """What takes time in an iteration. Adds up over its slices."""

    tokens: int  # all of the batch, decodes included
    attention: float  # sum over prompt slices of n * (tokens before the slice + n / 2)
    context: int  # sum over decodes of their tokens in the KV cache
    samples: int  # rows of logits


MAX_TOKENS = 2**20  # what `prompt_tokens` returns if tokens seem to cost nothing
_SHORTEST, _LONGEST = 1e-7, 1e5  # seconds; other times are faults of the clock

# Features of a typical iteration, which give a scale to coefficients that were never observed.
_TYPICAL: Row = (1.0, 128.0, 128.0 * 512, 16.0 * 512, 16.0)
_LEAST_SIZE = 1e-4  # of that; smaller features have no information
_LEAST_SHARE = 0.05  # of an iteration that a feature is assumed to explain, for its scale

# Relative standard deviations: shares of the coefficient or of the time.
_NOISE = 0.1  # of one iteration's time
_UPDATE_CLIP = 0.3  # error of a prediction above which an iteration counts less
_PRIOR, _PRIOR_COMMON = 0.25, 0.2  # how wrong the fit may be, by coefficient and as a whole
_DRIFT, _DRIFT_COMMON = 0.001, 0.015  # change between iterations, likewise
_MOST_UNCERTAIN = 0.5
_LEAST_WIDTH = 0.2  # of the mean coefficient, so that one that is 0 can grow again

_WAIT_SMOOTHING = 0.1  # weight of the latest iteration in the mean wait for masks

_WINDOW = 256  # iterations
_REFRESH = 32  # iterations after which the accuracy is computed again
_FEW = 32  # iterations, below which lateness is presumed
_PRESUMED_LATE = 0.1


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How good the predictions of the latest iterations were."""

    median: float = 0.0  # of |predicted - real| / real
    p90: float = 0.0  # likewise
    count: int = 0  # iterations that the two are of
    late: float = _PRESUMED_LATE  # P98 of real / predicted - 1, at least 0, with prompts


class AccuracyWindow:
    """The errors of the latest predictions."""

    def __init__(self) -> None:
        self._errors: deque[float] = deque(maxlen=_WINDOW)
        self._lateness: deque[float] = deque(maxlen=_WINDOW)
        self._accuracy = Accuracy()
        self._unseen = 0

    def add(self, predicted: float, seconds: float, *, with_prompt: bool) -> None:
        """Add an iteration that took `seconds`."""
        self._errors.append(abs(predicted - seconds) / seconds)
        if with_prompt:
            self._lateness.append(seconds / predicted - 1)
        self._unseen += 1

    @property
    def accuracy(self) -> Accuracy:
        """The accuracy; it may be up to 32 iterations old."""
        if self._unseen >= min(_REFRESH, len(self._errors)) > 0:
            errors = sorted(self._errors)
            count = len(errors)
            self._accuracy = Accuracy(
                errors[count // 2], errors[count * 9 // 10], count, self._late()
            )
            self._unseen = 0
        return self._accuracy

    def _late(self) -> float:
        lateness = sorted(self._lateness)
        if len(lateness) < _FEW:
            return _PRESUMED_LATE
        return max(0.0, lateness[len(lateness) * 49 // 50])


class MaskWait:
    """What sampling waits for masks of grammars, learned from every iteration that has some."""

    def __init__(self) -> None:
        self.seconds = 0.0  # mean for each request with a mask

    def observe(self, constrained: int, seconds: float) -> None:
        """Add an iteration with so many such requests."""
        if constrained and 0 <= seconds <= _LONGEST:
            self.seconds += _WAIT_SMOOTHING * (seconds / constrained - self.seconds)


class LatencyModel:
    """`T = c0 + c1 tokens + c2 attention + c3 context + c4 samples`, no coefficient negative.

    Prompt attention reads every cached token once for each new one, decode attention reads each
    once; everything else takes time per token. `observe` is a Kalman filter whose state is the
    coefficients. They drift together (another process takes half of a core) and, less, each by
    itself. So iterations of decodes only also correct the cost of prompts. An iteration far off
    its prediction is a less certain measurement, in proportion to the error: its effect is
    bounded, as under the loss of Huber ("Robust Estimation of a Location Parameter", 1964), yet a
    lasting change widens the uncertainty and is then followed the faster.

    Any input is safe: predictions are finite and above 0.

    The time that sampling waits for masks is not part of it, but has a mean of its own,
    `mask_wait`: most iterations have none.
    """

    def __init__(self, coefficients: Sequence[float], scales: Sequence[float] = ()) -> None:
        """Make a model with given coefficients.

        Args:
            coefficients: c0 to c4, seconds per unit of `Work`, at least 0.
            scales: units of the filter's state; needed for coefficients that are 0.
        """
        s0, s1, s2, s3, s4 = [
            scale or coefficient or _LEAST_SHARE / typical
            for scale, coefficient, typical in zip(
                scales or (0.0,) * 5, coefficients, _TYPICAL, strict=True
            )
        ]
        self._scales: Row = s0, s1, s2, s3, s4
        c0, c1, c2, c3, c4 = coefficients
        self._coefficients: Row = c0, c1, c2, c3, c4
        # The filter's state: coefficients in units of their scales, and their covariance.
        self._state = [c / s for c, s in zip(coefficients, self._scales, strict=True)]
        widths = self._widths()
        self._covariance = [
            [
                _PRIOR_COMMON**2 * a * b + (_PRIOR**2 * widths[i] ** 2 if i == j else 0.0)
                for j, b in enumerate(self._state)
            ]
            for i, a in enumerate(self._state)
        ]
        self._window = AccuracyWindow()
        self.mask_wait = MaskWait()

    @classmethod
    def fit(cls, observations: Sequence[tuple[Work, float]]) -> LatencyModel:
        """Return the model with the least relative errors on iterations and their seconds.

        `ValueError` if there is no observation with a time above 0.
        """
        usable = [(work, t) for work, t in observations if _SHORTEST <= t <= _LONGEST]
        if not usable:
            raise ValueError("no iteration to fit a latency model to")
        rows = [(1.0, *map(float, work)) for work, _ in usable]
        times = [t for _, t in usable]
        coefficients = fit_relative(rows, times)
        mean = sum(times) / len(times)
        scales = []
        for column, coefficient in enumerate(coefficients):
            size = sum(row[column] for row in rows) / len(rows)
            if size < _LEAST_SIZE * _TYPICAL[column]:
                size = _TYPICAL[column]
            scales.append(max(coefficient, _LEAST_SHARE * mean / size))
        return cls(coefficients, scales)

    @property
    def coefficients(self) -> Row:
        """c0 to c4, in seconds."""
        return self._coefficients

    @property
    def accuracy(self) -> Accuracy:
        """Of predictions made before their iterations corrected the model."""
        return self._window.accuracy

    def predict(self, work: Work) -> float:
        """Return the seconds of an iteration, its fixed part included."""
        c0, c1, c2, c3, c4 = self._coefficients
        tokens, attention, context, samples = work
        return max(c0 + c1 * tokens + c2 * attention + c3 * context + c4 * samples, _SHORTEST)

    def prompt_cost(self, tokens: int, context: int, samples: int) -> float:
        """Return the seconds that a slice of a prompt adds to an iteration.

        The prompt has `context` tokens before the slice, which has `samples` rows of logits: one if
        it ends the prompt.
        """
        _, c1, c2, _, c4 = self._coefficients
        return tokens * (c1 + c2 * (context + tokens / 2)) + c4 * samples

    def prompt_tokens(self, seconds: float, context: int, *, scored: bool = False) -> int:
        """Return the most tokens of one slice that add at most `seconds`.

        They have a row of logits each if they are `scored`, none otherwise.
        """
        if not seconds > 0:
            return 0
        rows = int(scored)  # of a token
        if self.prompt_cost(MAX_TOKENS, context, MAX_TOKENS * rows) <= seconds:
            return MAX_TOKENS
        # n (slope + bend n / 2) = seconds, in the form that does not cancel where bend is small.
        _, slope, bend, _, per_row = self._coefficients
        slope += bend * context + per_row * rows
        tokens = int(2 * seconds / (slope + hypot(slope, sqrt(2 * bend) * sqrt(seconds))))
        while tokens > 0 and self.prompt_cost(tokens, context, tokens * rows) > seconds:
            tokens -= 1
        while self.prompt_cost(tokens + 1, context, (tokens + 1) * rows) <= seconds:
            tokens += 1
        return tokens

    def observe(self, work: Work, seconds: float) -> None:
        """Correct the model by an iteration; ignored if it was empty or its time makes no sense."""
        if not _SHORTEST <= seconds <= _LONGEST or work.tokens < 1:
            return
        predicted = self.predict(work)
        self._window.add(predicted, seconds, with_prompt=work.attention > 0)
        self._drift()
        s0, s1, s2, s3, s4 = self._scales
        # By the prediction: errors are relative, and state changes are shares of the time.
        h0 = s0 / predicted
        h1 = s1 * work.tokens / predicted
        h2 = s2 * work.attention / predicted
        h3 = s3 * work.context / predicted
        h4 = s4 * work.samples / predicted
        error = seconds / predicted - 1
        covariance = self._covariance
        gain = [a * h0 + b * h1 + c * h2 + d * h3 + e * h4 for a, b, c, d, e in covariance]
        g0, g1, g2, g3, g4 = gain
        uncertainty = g0 * h0 + g1 * h1 + g2 * h2 + g3 * h3 + g4 * h4
        noise = _NOISE**2 * max(1.0, abs(error) / _UPDATE_CLIP)
        weight = 1 / (max(0.0, uncertainty) + noise)
        pull = error * weight
        self._state = [max(0.0, x + g * pull) for x, g in zip(self._state, gain, strict=True)]
        for row, g in zip(covariance, gain, strict=True):
            a, b, c, d, e = row
            # g * gain first: products in the same order keep the matrix exactly symmetric.
            row[:] = (
                a - g * g0 * weight,
                b - g * g1 * weight,
                c - g * g2 * weight,
                d - g * g3 * weight,
                e - g * g4 * weight,
            )
        x0, x1, x2, x3, x4 = self._state
        self._coefficients = x0 * s0, x1 * s1, x2 * s2, x3 * s3, x4 * s4

    def _drift(self) -> None:
        """Widen the uncertainty, up to a limit: the machine may have changed since then."""
        state = self._state
        x0, x1, x2, x3, x4 = [_DRIFT_COMMON * x for x in state]
        shrink = []
        for i, width in enumerate(self._widths()):
            row = self._covariance[i]
            a, b, c, d, e = row
            x = _DRIFT_COMMON * state[i]
            row[:] = a + x * x0, b + x * x1, c + x * x2, d + x * x3, e + x * x4
            row[i] += (_DRIFT * width) ** 2
            # Only unobserved coefficients reach the limit; without it they would grow for ever.
            limit = (_MOST_UNCERTAIN * width) ** 2
            shrink.append(sqrt(limit / row[i]) if row[i] > limit else 1.0)
        if min(shrink) < 1:
            for row, r in zip(self._covariance, shrink, strict=True):
                row[:] = [value * (r * s) for value, s in zip(row, shrink, strict=True)]

    def _widths(self) -> list[float]:
        """Return the scale of each coefficient's uncertainty, in units of the state."""
        state = self._state
        least = _LEAST_WIDTH * sum(state) / 5
        return [x if x > least else least for x in state]
