"""Do bands hold what they promise? Coverage on held-out runs, and on runs unlike those they were calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names
from gptfluence.experiments import shifted
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.scoring import conformal, intervals
from gptfluence.scoring.deviations import mean_over_runs
from gptfluence.simulators.options import Variant
from gptfluence.study.campaign import Campaign

COLUMNS = [*shifted.COLUMNS, *shifted.MORE, "unit", "calibration_runs"]


def bands_of(
    campaign: Campaign, methods: Sequence[str], *, calibration: int, level: float
) -> tuple[dict[Variant, dict[str, conformal.Bands]], Campaign]:
    """Bands of simulators fitted without the last `calibration` training runs, which calibrate with the validation runs.

    Returns variant -> unit -> bands, and the campaign whose simulators they belong to. Simulators without finite errors on
    the runs they were fitted on have no bands and are left out. Validation runs chose among a simulator's epochs or
    settings, so they are not quite exchangeable with new runs: the more of the calibration runs they are, the narrower bands
    may come out. `covered` measures it on runs drawn alike.
    """
    train, validation, _ = campaign.dynamics("loss").split()
    fitted_on, left_out = conformal.calibration_names(train.names, calibration)
    fewer = campaign.with_(runs={"train": len(fitted_on)})
    runs = [*train.select(left_out).runs, *validation.runs]
    calibrating = replace(train, runs=tuple(runs))
    found: dict[Variant, dict[str, conformal.Bands]] = {}
    asked = [train.select(fitted_on), calibrating]
    known, others = (answer.values for answer in fewer.predict_each(methods, asked))
    truth = [part.trajectories("loss") for part in asked]
    for name in known:
        try:
            typical = conformal.Typical.of(known[name], truth[0])
        except ConfigurationError:
            continue
        found[name] = {
            unit: conformal.calibrate(others[name], truth[1], typical, level=level, unit=unit)
            for unit in conformal.UNITS
        }
    return found, fewer


def covered(
    campaigns: Sequence[Campaign],
    kinds: Sequence[str],
    methods: Sequence[str],
    *,
    calibration: int,
    level: float,
    runs: int,
) -> tuple[pd.DataFrame, pd.DataFrame, list[GPTDynamics]]:
    """Coverage and width of bands for every simulator, kind of curriculum and task.

    Returns a frame with `COLUMNS` (statistic: coverage, with its interval over runs, and of each run where these are few;
    mean_width, nats per target token), a frame of example paths with their bands as `trajectories.plot_bands` draws them,
    and the runs. Kinds whose runs are longer than the calibration runs have no bands: they are left out, and an error if
    they are asked for alone.
    """
    rows, paths, sources = [], [], []
    for campaign in campaigns:
        bands, fewer = bands_of(campaign, methods, calibration=calibration, level=level)
        drawn_alike = campaign.dynamics("loss")
        asked = {kind: shifted.record(campaign, kind, runs) for kind in kinds}
        sources += [drawn_alike, *(recorded for kind, recorded in asked.items() if kind != "alike")]
        asked = {
            kind: recorded
            for kind, recorded in asked.items()
            if recorded.curricula[0].steps <= drawn_alike.curricula[0].steps
        }
        answers = fewer.predict_each(list(bands), list(asked.values()))
        for (kind, recorded), answer in zip(asked.items(), answers, strict=True):
            truth = recorded.trajectories("loss")
            for variant, values in answer.values.items():
                for unit, band in bands[variant].items():
                    common = (
                        campaign.setting_name,
                        recorded.model,
                        campaign.task,
                        "loss",
                        kind,
                        variant.method,
                        variant.variant,
                    )
                    common = (*common, len(recorded))
                    inside = conformal.coverage(band, values, truth)
                    share = mean_over_runs(inside, intervals.SHARE)
                    width = mean_over_runs(conformal.mean_width(band, values), intervals.ERROR)
                    reported = [("coverage", *share, ""), ("mean_width", *width, "")]
                    reported += shifted.of_single_runs("coverage", inside, recorded.names)
                    rows += [(*common, *row, unit, band.runs) for row in reported]
                panel = f"{names.task(campaign.task)}: {kind}"
                paths.append(_paths(panel, variant.method, values[0], truth[0], bands[variant]["path"]))
    if not rows:
        raise ConfigurationError(
            f"bands: none can be made for {', '.join(kinds)}; choose a kind of the recorded length"
        )
    return pd.DataFrame(rows, columns=COLUMNS), pd.concat(paths, ignore_index=True), sources


def _paths(panel: str, name: str, values: np.ndarray, truth: np.ndarray, band: conformal.Bands) -> pd.DataFrame:
    """The path of median error of one run, with its band, and what was recorded."""
    error = np.square(np.nan_to_num(values - truth, nan=np.inf)).mean(axis=0)
    example = int(np.argsort(error, kind="stable")[len(error) // 2])
    low, high = (edge[:, example] for edge in band.around(values))
    step, nothing = np.arange(len(truth)), np.full(len(truth), np.nan)
    recorded = {"series": "recorded", "value": truth[:, example].astype(np.float64), "low": nothing, "high": nothing}
    simulated = {"series": name, "value": values[:, example].astype(np.float64), "low": low, "high": high}
    frames = [pd.DataFrame({"panel": panel, "step": step, "of": name, **part}) for part in (recorded, simulated)]
    return pd.concat(frames, ignore_index=True)
