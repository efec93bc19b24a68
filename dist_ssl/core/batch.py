"""The batch: the views of one step's samples on one rank, passed from the stream to the engine."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dist_ssl.core.candidates import CandidateViews
from dist_ssl.core.draws import Draws, Ints, SampleDraws
from dist_ssl.core.tokens import ALL_TOKENS, Tokens


@dataclass
class Batch:
    """One rank's part (B samples) of a global batch, lane-major, so that rank order is global sample order."""

    views: list[Tensor]
    """Normalised views on the device, [B, 3, S, S] each; first the global views, then local ones with a side S of their
    own."""
    ids: Tensor
    """Sample numbers in the manifest, [B] int64 on the host."""
    valid: Tensor
    """Validity mask, [B] bool on the device; False where a replacement sample was used for an unreadable one."""
    labels: Tensor | None
    """Class labels, [B] int64 on the host, None if the shards have none; only probes may read them."""
    draws: Draws
    """Randomness for the method, keyed by this epoch; `step` completes the key."""
    step: int
    """Number of this step within its epoch, from 0."""
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Reason why a replacement sample was used, by the number of the unreadable sample."""
    levels: Mapping[int, int] = field(default_factory=dict)
    """Pyramid level at which each unreadable sample was read, by its number; 0 is the original, 1 the smallest copy.

    Empty if the data set has no levels."""
    opened: tuple[int, ...] = ()
    """Local shards that this batch, or others that are loaded ahead, were the first to be read from; places as `Reader`
    numbers them."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Measured costs of loading the batch (seconds, counts), by the keys of the metric table."""
    tokens: Tokens = ALL_TOKENS
    """How a transformer cuts the views."""
    candidates: CandidateViews | None = None
    """Views from which the model chooses; until then `views` is empty. None where there is no choice to make."""
    uses: Tensor | None = None
    """Numbers that key the random numbers of the rows, [B] int64 on the host: a sample may be used several times in an
    epoch. None: the sample numbers."""

    @property
    def draw_ids(self) -> Ints:
        """Return the numbers that key the random numbers of the rows, [B]."""
        return (self.ids if self.uses is None else self.uses).numpy()

    @property
    def on_device(self) -> list[Tensor]:
        """Return all tensors on the device."""
        given = self.candidates
        return [*self.views, self.valid, *([*given.small, *given.pixels] if given else [])]

    def parts(self, number: int) -> list[tuple[list[Tensor], SampleDraws]]:
        """Split the batch into `number` equal parts of consecutive samples; return views and draws of each.

        `number` divides B.
        """
        size, rest = divmod(len(self.ids), number)
        assert not rest
        ids = self.draw_ids
        return [
            ([view[at : at + size] for view in self.views], self.draws.of(ids[at : at + size], self.tokens))
            for at in range(0, len(ids), size)
        ]
