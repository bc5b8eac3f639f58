"""The quality table as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..metrics.checkerboard import CELLS, BoardQuality
from ..metrics.ood import DetectionResult
from .measure import BoardDensity, RowQuality, ScaleQuality, Spread

SAMPLES_HEADING = (
    *("model", "setting", "labels", "NFE", "gradient passes", "FD-digits", "diversity", "confidence"),
    *("as asked", "nearest", "close", "least, most of a digit"),
)
METRICS = ("auroc", "aupr_balanced", "fpr95_id_positive", "fpr95_ood_positive", "ks", "cohens_d")
SHORT = {"auroc": "AUROC", "aupr_balanced": "AUPR", "fpr95_id_positive": "FPR95 (id)", "ks": "KS", "cohens_d": "d"}

DETECTION_HEADING = (
    *("set", "category", "AUROC", "95% interval"),
    *(SHORT.get(name, "FPR95 (ood)") for name in METRICS[1:]),
)


def samples_table(rows: Sequence[RowQuality]) -> str:
    """One line a row; spreads are standard deviations over the seeds."""
    return _table(SAMPLES_HEADING, (_sample_cells(row) for row in rows))


def auroc_table(found: Sequence[ScaleQuality]) -> str:
    """AUROC of every detector on every set, the mean over its seeds."""
    sets = [result.name for result in found[0].results]
    lines = (
        [entry.detector, str(entry.seeds), *(f"{result.metrics.auroc:.3f}" for result in entry.results)]
        for entry in found
    )
    return _table(("detector", "seeds", *sets), lines)


def near_table(found: Sequence[ScaleQuality]) -> str:
    """Every metric of every detector on the one set that all of them were asked about."""
    lines = ([entry.detector, str(entry.seeds), *_detection_cells(entry.results[0])[2:]] for entry in found)
    return _table(("detector", "seeds", *DETECTION_HEADING[2:]), lines)


def detection_table(entry: ScaleQuality) -> str:
    """Every metric of one detector."""
    return _table(DETECTION_HEADING, (_detection_cells(result) for result in entry.results))


def board_table(name: str, found: Sequence[BoardQuality], densities: Sequence[BoardDensity]) -> str:
    """The checkerboard's numbers: the samples', one line a seed, and the energy's, one line a noise scale."""
    heading = ("model", "on the support", f"cells of {len(CELLS)}", "total variation")
    cells = ([name, f"{q.support:.3f}", str(q.covered), f"{q.total_variation:.3f}"] for q in found)
    scales = _table(
        ("scale", "log Z by quadrature", "total variation of exp(-E)/Z", "KL divergence, nats"),
        ([d.scale, f"{d.log_z:.2f}", f"{d.total_variation:.3f}", f"{d.divergence:.3f}"] for d in densities),
    )
    return f"{_table(heading, cells)}\n\n{scales}"


def _sample_cells(row: RowQuality) -> list[str]:
    return [
        row.row.model,
        row.setting,
        "yes" if row.row.labelled else "",
        str(row.nfe),
        str(row.gradient_passes or ""),
        _spread(row.frechet, 1),
        _spread(row.diversity, 1),
        f"{row.confidence:.3f}",
        "" if row.label_accuracy is None else f"{row.label_accuracy:.3f}",
        f"{row.nearest:.2f}",
        f"{row.close_fraction:.2f}",
        f"{min(row.class_histogram):.3f}, {max(row.class_histogram):.3f}",
    ]


def _detection_cells(result: DetectionResult) -> list[str]:
    interval = result.auroc_interval
    values = [f"{getattr(result.metrics, name):.3f}" for name in METRICS]
    return [result.name, result.category, values[0], f"{interval.low:.3f} - {interval.high:.3f}", *values[1:]]


def _spread(spread: Spread, digits: int) -> str:
    return f"{spread.mean:.{digits}f} ± {spread.deviation:.{digits}f}"


def _table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


EXPLANATION = """\
FD-digits: Frechet distance of the classifier's features to the {train} training images, at {count} samples a seed, mean
and standard deviation over {seeds} seeds; the {test} test images have {floor:.1f}. Numbers at other counts do not
compare. Labels are asked for in turn, 0 to 9; without them the null label. Diversity: the pixels' variance, summed;
within a label where labels are asked for ({train_diversity:.1f} and {label_diversity:.1f} for the training images).
Nearest: median distance to the nearest training image ({nearest:.2f} for test images); close: fraction nearer than 95%
of the test images are. Gradient passes are not in NFE."""
