"""The parts of `spectra step` that do not depend on directions: gradient noise, and balls around the parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from spectra.curvature.matrices import definition
from spectra.errors import SpectraError
from spectra.krylov.streams import stream
from spectra.operator import Counting
from spectra.records.noise import Noise, NoiseScale, WorstCase
from spectra.run.session import Session
from spectra.steps import noise_scale, worst_case
from spectra.steps.noise_recording import ball_record, noise_record, scale_record, worst_record
from spectra.steps.noise_scale import NoiseAt
from spectra.steps.worst_case import Ball, search_ball

PURPOSE = "noise scale"  # names the stream of random numbers
FEWEST = 4  # products with a matrix over examples that an estimate of its trace takes at least
NO_ROOM = "`max_products` leaves no room for it"


@dataclass(frozen=True)
class NoiseAndBalls:
    """Gradient noise and balls at a problem's parameters, with their results that need no matrix."""

    noise: NoiseAt | None
    simple: Noise | None
    without: str | None
    balls: list[Ball]
    worst: list[WorstCase]

    @classmethod
    def of(cls, session: Session) -> NoiseAndBalls:
        """Compute what the session's settings request. Raises SpectraError if the model fails at other parameters."""
        settings, problem, noise, simple, without = session.request.settings, session.problem, None, None, None
        if settings.noise:
            try:
                generator = stream(session.request.seed, PURPOSE)
                noise = NoiseAt.of(problem, generator, settings.population, memory=session.request.memory)
                simple = noise_record(noise)
            except SpectraError as error:
                noise, without = None, str(error).removeprefix("`curvature` gradient-covariance: ")
        balls = [Ball(problem, settings.rho, False), Ball(problem, settings.adaptive_rho, True)]
        balls = balls if settings.ascent_steps else []
        worst = [worst_record(search_ball(ball, settings.ascent_steps)) for ball in balls]
        return cls(noise, simple, without, balls, worst)

    def found(self) -> dict[str, Any]:
        """The fields of the record that do not depend on a matrix."""
        return {"noise": self.simple, "without_noise": self.without, "worst": self.worst}

    def matrix(self, operator: Counting, name: str, left: int | None) -> tuple[dict[str, Any], int]:
        """The fields of a matrix's record, and the products spent in addition to those counted by the operator.

        They are empty for a matrix that is not a second derivative of the loss. `left` is the largest number of
        products; None: no limit.
        """
        before, balls, of_the_loss = operator.products, [], definition(name).loss_power == 1
        for i, ball in enumerate(self.balls if of_the_loss else ()):
            room = worst_case.MOST if left is None else (left - operator.products + before) // (len(self.balls) - i)
            if room > 0 and (found := ball.model(operator, min(room, worst_case.MOST))) is not None:
                balls.append(ball_record(ball, found))
        full, without, apart = None, None, 0
        if self.noise is not None and of_the_loss:
            room = None if left is None else left - operator.products + before
            full, without, apart = self._full(self.noise, operator, name, room)
        return {"balls": balls, "full_noise": full, "without_full": without}, apart

    def _full(
        self, noise: NoiseAt, operator: Counting, name: str, room: int | None
    ) -> tuple[NoiseScale | None, str | None, int]:
        spent = noise.deviations.products
        most = noise_scale.MOST if room is None else min(noise_scale.MOST, (room - noise.rest()) // 2)
        if most < FEWEST:
            return None, NO_ROOM, 0
        found, without = None, None
        try:
            found = scale_record(noise.full(operator, name, most))
        except SpectraError as error:  # for example out of memory
            without = str(error)
        return found, without, math.ceil(noise.deviations.products - spent)
