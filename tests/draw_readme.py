"""Draw the picture of the README: one image's way from a tar byte to the loss, and a command's way to rank 3.

    python tests/draw_readme.py      # writes dist_ssl/README.svg

A test compares the committed picture with what this draws, and looks every named file up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "dist_ssl" / "README.svg"
WIDTH, BOX, GAP, HEIGHT, BETWEEN = 1000, 180, 19, 82, 30
"""Sizes, px: the picture, a box, the space between boxes of a row, a box's height, the space between rows."""
LEFT = (WIDTH - 5 * BOX - 4 * GAP) // 2
MOST_LETTERS = 29
"""Of a line in a box, at the widest font that a reader may have."""
FONTS = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
PAPER, INK, FAINT, LINE = "#fcfbf8", "#1f2328", "#57606a", "#6e7781"
COLOURS = {
    "disk": ("#efe9dc", "#8a7a55"),
    "host": ("#dcefdc", "#4a8a4f"),
    "device": ("#dbe8f8", "#3f6fae"),
    "ranks": ("#fae3d3", "#b8622f"),
}
"""Fill and border of a box, by where its work is done."""
LEGEND = {
    "disk": "files",
    "host": "the host's processes and threads",
    "device": "the rank's device (GPU or CPU)",
    "ranks": "all ranks together",
}


@dataclass(frozen=True)
class Box:
    """A step: where it is done (a key of COLOURS), its title, two lines of text, and the file that does it."""

    place: str
    title: str
    first: str
    second: str
    file: str


IMAGE = (
    (
        Box("disk", "1  tar shard", "plain WebDataset tar, with", "a manifest of byte offsets", "shards/make.py"),
        Box("host", "2  lane", "which sample, at which step:", "same for any world size", "data/order/lanes.py"),
        Box("host", "3  read", "local file, or fetched and", "cached once per node", "data/storage/read.py"),
        Box("host", "4  decode", "libjpeg, at the smallest", "scale that covers the crops", "data/images/decode.py"),
        Box("host", "5  crop, resize", "every view of the image,", "uint8", "data/images/views.py"),
    ),
    (
        Box("device", "6  copy", "uint8 views to the device,", "one copy per view slot", "data/stream.py"),
        Box("device", "7  colours", "jitter, blur, normalise;", "draws keyed by sample", "data/images/photometric.py"),
        Box("device", "8  method.embed", "student with gradient,", "teacher without (targets)", "methods/mocov3.py"),
        Box("ranks", "9  gather", "embeddings of all ranks,", "in global sample order", "distributed/world.py"),
        Box("device", "10  method.loss", "over the global batch,", "with queue or bank", "losses/contrastive.py"),
    ),
    (
        Box("ranks", "11  backward", "gradients averaged over", "the ranks", "engines/parallel.py"),
        Box(
            "ranks",
            "12  finite check",
            "NaN or infinity stops the",
            "run; it is never saved",
            "runtime/finite_check.py",
        ),
        Box("device", "13  optimizer", "clip, then update with this", "step's hyperparameters", "optim/recipes.py"),
        Box("device", "14  EMA update", "teacher towards student,", "where there is a teacher", "models/ema.py"),
        Box("ranks", "15  remember", "keys into the queue,", "rows of the bank", "memory/queue.py"),
    ),
)
BESIDE = (
    Box("ranks", "epoch plan", "rank 0 plans each epoch,", "all ranks use its plan", "runtime/coordinator.py"),
    Box("disk", "ledger", "hash of the sample ids of", "each step; for the audit", "data/order/ledger.py"),
    Box("ranks", "meter", "one all-reduce per report:", "metrics.jsonl, Prometheus", "metrics/meter.py"),
    Box("ranks", "agreement", "after each step: save? stop?", "the same on every rank", "runtime/agreement.py"),
    Box("disk", "checkpoint", "staged on the host, written", "beside training, published", "checkpoint/saver.py"),
)
COMMAND = (
    (
        Box("host", "1  compose, check", "arguments + configs/;", "all that can be checked", "launch/preparation.py"),
        Box("disk", "2  run folder", "config and a snapshot of", "the code, runs/NAME/code", "launch/run_dir.py"),
        Box("host", "3  start nodes", "sbatch; without Slurm, local", "processes act as nodes", "launch/submission.py"),
        Box("disk", "4  attempt", "a new number at each start,", "attempts/0001, 0002, ...", "launch/prologue.py"),
        Box("host", "5  agent", "one per node; starts and", "watches its workers", "launch/agent.py"),
    ),
    (
        Box("host", "6  worker = rank 3", "listens to signals first,", "ends with its agent", "launch/worker.py"),
        Box("ranks", "7  rendezvous", "finds rank 0 by a file in the", "attempt's folder", "distributed/rendezvous.py"),
        Box("host", "8  build", "config in, Job out: method,", "engine, stream, ...", "dist_ssl/build.py"),
        Box("ranks", "9  restore", "newest checkpoint that is", "whole, on all ranks", "checkpoint/saver.py"),
        Box("device", "10  train", "the loop: the upper half of", "this picture", "dist_ssl/train.py"),
    ),
    (
        Box("host", "11  outcome", "exit code: 0 finished,", "75 stopped, 2 user error", "launch/ending.py"),
        Box("host", "12  epilogue", "requeues when preempted or", "out of time; otherwise ends", "launch/epilogue.py"),
        Box("disk", "then 4 again", "requeued, or resume=...:", "same folder, new attempt", "launch/prologue.py"),
    ),
)


def boxes() -> Iterator[Box]:
    """Yield every box of the picture."""
    for row in (*IMAGE, BESIDE, *COMMAND):
        yield from row


def source(box: Box) -> Path:
    """Return the file that a box names; names without a folder of the top level are of the package."""
    return next((path for path in (ROOT / box.file, ROOT / "dist_ssl" / box.file) if path.is_file()), ROOT / box.file)


def column(number: int) -> int:
    """Return the left edge of a column of boxes, px."""
    return LEFT + number * (BOX + GAP)


def text(x: float, y: float, words: str, size: float, colour: str = INK, more: str = "") -> str:
    """Return a line of text that begins at (x, y)."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{more}>{escape(words)}</text>'


def drawn(box: Box, x: int, y: int) -> list[str]:
    """Return one box at (x, y). Every line must be short enough for it."""
    assert max(map(len, (box.first, box.second, box.file))) <= MOST_LETTERS, box
    fill, border = COLOURS[box.place]
    return [
        f'<rect x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="7" fill="{fill}" stroke="{border}"/>',
        text(x + 9, y + 20, box.title, 13.5, more=' font-weight="bold"'),
        text(x + 9, y + 38, box.first, 11),
        text(x + 9, y + 53, box.second, 11),
        text(x + 9, y + 72, box.file, 10, FAINT, " font-family=\"Menlo, Consolas, 'DejaVu Sans Mono', monospace\""),
    ]


def arrow(*points: tuple[float, float]) -> str:
    """Return a line through the points that ends in an arrow head."""
    way = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{way}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#head)"/>'


def rows(all_of_them: Sequence[Sequence[Box]], top: int) -> list[str]:
    """Return rows of boxes that are read like text, with an arrow from each box to the next."""
    found = []
    for number, row in enumerate(all_of_them):
        y = top + number * (HEIGHT + BETWEEN)
        for at, box in enumerate(row):
            found += drawn(box, column(at), y)
            if at:
                found.append(arrow((column(at) - GAP + 1, y + HEIGHT / 2), (column(at) - 3, y + HEIGHT / 2)))
        if number:
            last, first = column(len(all_of_them[number - 1]) - 1) + BOX / 2, column(0) + BOX / 2
            turn = y - BETWEEN / 2
            found.append(arrow((last, y - BETWEEN), (last, turn), (first, turn), (first, y - 3)))
    return found


def below(rows_drawn: int, top: int) -> int:
    """Return where the picture goes on below that many rows, px."""
    return top + rows_drawn * (HEIGHT + BETWEEN)


def upper(top: int) -> list[str]:
    """Return the upper half: an image's way, and what stands beside every step."""
    y = below(len(IMAGE), top + 20) + 14
    found = [text(LEFT, top, "One image: from a tar byte to the loss", 17, more=' font-weight="bold"')]
    found += rows(IMAGE, top + 20)
    found.append(text(LEFT, y - 8, "Beside every step", 13, more=' font-weight="bold"'))
    for at, box in enumerate(BESIDE):
        found += drawn(box, column(at), y)
    return found


def lower(top: int) -> list[str]:
    """Return the lower half: a command's way to rank 3, and what ends an attempt."""
    found = [text(LEFT, top, "One command: from python launch/slurm.py to rank 3", 17, more=' font-weight="bold"')]
    return [*found, *rows(COMMAND, top + 20)]


def legend(y: int) -> list[str]:
    """Return the key of the colours."""
    found, x = [], LEFT
    for place, words in LEGEND.items():
        fill, border = COLOURS[place]
        found.append(f'<rect x="{x}" y="{y - 11}" width="16" height="13" rx="3" fill="{fill}" stroke="{border}"/>')
        found.append(text(x + 22, y, words, 11.5, FAINT))
        x += 245
    return found


def picture() -> str:
    """Return the whole picture as SVG."""
    second = below(len(IMAGE), 62) + 14 + HEIGHT + 50
    end = below(len(COMMAND), second + 20) - BETWEEN + 34
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end + 14}" width="{WIDTH}" '
        f'height="{end + 14}" font-family="{FONTS}" role="img">'
    )
    marker = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>'
    )
    paper = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{end + 13}" rx="10" fill="{PAPER}" stroke="#d0d7de"/>'
    title = "<title>An image's way from a tar byte to the loss, and a command's way to rank 3</title>"
    return "\n".join([head, title, marker, paper, *upper(42), *lower(second), *legend(end), "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture())
