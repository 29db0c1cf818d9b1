"""A run over the network in which keyboard pages take part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pfl_lm.devices.training import train
from pfl_lm.dp.encoding import decode, protect
from pfl_lm.keyboard.take_part import KeyboardPage, enrolment_link
from pfl_lm.network.task_config import own_tokens
from pfl_lm.run.context import choose_payload, text_of
from pfl_lm.server.state import ServerState, close_round, open_round
from pfl_lm.text.population import windows
from tests.network.conftest import Trial

IN_PAGES = {1: ("ta ne", "na ti ta"), 4: ("ti ti",)}  # device: what its owner sends


class PageTrial(Trial):
    """A trial whose server gives browsers the keyboard page."""

    page: KeyboardPage

    def serving(self, **changes):
        return replace(super().serving(**changes), browsers=self.page)

    def link(self, number: int) -> str:
        at = self.page.at
        address = f"http://127.0.0.1:{at.port}/{at.secret}/"
        return enrolment_link(address, self.key(number), self.keys.server_certificate())

    def expected(self, update_of) -> dict[str, torch.Tensor]:
        """The model after all rounds; the pages' devices send these updates, float32[d]."""
        context, scenario = self.context, self.scenario
        state = ServerState(0, context.start.parameters)
        for number in range(scenario.rounds):
            broadcast = open_round(state, choose_payload(context, number))
            grid = context.privacy.grid(broadcast.payload.dim)
            task = context.task(broadcast, dict(state.parameters))
            total = np.zeros(grid.dim, np.int64)
            for user in range(scenario.cohort):
                if user in IN_PAGES:
                    update = update_of(task, user)[None]
                else:
                    update, _ = train(task, [text_of(context, user, number)], [user])
                bits = context.privacy.bits("device", number, user)
                total += protect(update, grid, None, [bits])[0][0]
            mean = decode(total, grid, scenario.cohort)
            state = close_round(state, broadcast, mean, scenario.server)
        return dict(state.parameters)

    def windows_of(self, user: int) -> np.ndarray:
        tokens = own_tokens("\n".join(IN_PAGES[user]), self.context.tokenizer)
        return windows(tokens, self.scenario.training.window, 65)
