"""Where simulated devices compute: on this machine's processor, or on a graphics card.

The same code trains in both places; compiled kernels are the processor's. A card gets the model
once a round, and clips, rounds and adds up what it trained (``devices.encoding_on_card``): of a
group of devices only the sum comes back. The processor draws the exact noise, from the run's own
source of randomness. Where each device rotates, noises or masks a vector of its own, or reports
whether it was clipped, updates come back as they are and the processor does the rest. A card sums
in an order of its own, so its updates are the processor's to float32's rounding, not to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from pfl_lm.validate import one_of

ProcessorName = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Processor:
    """A place to train, and how many devices it trains at once.

    Attributes:
        device: of torch.
        most: devices that are trained as one batch.
        own_bytes: for the coordinates that each of them trains.
        work_bytes: for their activations and scores.
    """

    device: torch.device
    most: int
    own_bytes: int
    work_bytes: int

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        if self.device.type != "cuda":
            return self.device.type
        return f"cuda: {torch.cuda.get_device_name(self.device)}"


# Measured on a processor with 32 MB of L3: the best number stops growing at 16, and activations
# and scores stay within 128 MB. The devices' own values fit in 64 MB.
CPU = Processor(torch.device("cpu"), most=16, own_bytes=64 << 20, work_bytes=128 << 20)


def open_processor(name: ProcessorName, rank: int = 0) -> Processor:
    """Return where to train.

    Args:
        rank: of this process among those that share a run; cards are dealt out in turn.

    Raises:
        ValueError: there is no card, or torch was installed without support for cards.
    """
    one_of(get_args(ProcessorName), processor=name)
    if name == "cpu":
        return CPU
    if not torch.cuda.is_available():
        raise ValueError(
            'processor = "cuda": torch finds no graphics card here; install a build of torch for '
            'your card and its driver, or leave the option out ("cpu")'
        )
    card = torch.device("cuda", rank % torch.cuda.device_count())
    whole = torch.cuda.get_device_properties(card).total_memory
    return Processor(card, most=1024, own_bytes=whole // 8, work_bytes=whole // 4)
