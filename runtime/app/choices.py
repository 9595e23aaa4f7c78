"""The side of the page: which model, and how it is run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import streamlit as st

from runtime.app import exporting
from runtime.app.models import FoundModel, Trial, find_checkpoints, find_models, try_backends
from runtime.app.shared import exports_of
from runtime.app.text import escaped
from runtime.backends import BackendName, BackendOptions
from runtime.cli.app_options import AppOptions
from runtime.errors import BratsError, InputError
from runtime.labels import MODALITIES, REGIONS, Convention
from runtime.segmenter import SegmentOptions
from runtime.windows import Placement

_LARGEST_PATCH: Final = 256
_LOOK_AGAIN_S: Final = 30.0


@dataclass(frozen=True)
class Wanted:
    """How a case is to be segmented."""

    backend: BackendOptions
    options: SegmentOptions
    truth_labels: Convention | None


def needed(model: FoundModel) -> tuple[str, ...]:
    """Modalities that the model cannot do without, in the usual order."""
    card = model.model.card
    return tuple(
        name
        for name in MODALITIES
        if name in card.modalities and name not in card.tolerates_missing
    )


def choose_model(options: AppOptions) -> FoundModel | None:
    """Ask for a model; None where there is none to choose from."""
    with st.sidebar:
        root = Path(options.root)
        exports = exports_of(options.device)
        try:
            models, problems = _found(root, options.named, exports.ended)
        except BratsError as error:
            st.error(escaped(str(error)))
            return None
        for problem in problems:
            st.warning(escaped(str(problem)))
        exporting.offer(find_checkpoints(root, models), root, exports)
        if not models:
            st.error(
                "There is no model here: train one with brats-train, export it with brats-export."
            )
            return None
        # By title: a model that is found meanwhile must not take another's place.
        by_title = {one.title: one for one in models}
        model = by_title[st.selectbox("Model", list(by_title), key="model")]
        _card(model)
        return model


@st.cache_resource(ttl=_LOOK_AGAIN_S, show_spinner=False)
def _found(
    root: Path, named: tuple[Path, ...], exports: int
) -> tuple[tuple[FoundModel, ...], tuple[InputError, ...]]:
    """Folders are not searched again for every change on the page.

    Args:
        root: folder to search.
        named: on the command line.
        exports: how many have ended; another number is another search.
    """
    return find_models(root, named)


def _card(model: FoundModel) -> None:
    card, certificate = model.model.card, model.model.certificate
    training = card.training
    verdict = certificate.get("verdict", "none")
    badge = {"pass": ":green-badge[certified]", "fail": ":red-badge[failed its certificate]"}
    st.markdown(
        f"{badge.get(str(verdict), ':orange-badge[certificate inconclusive]')} "
        f":blue-badge[{len(card.modalities)} modalities]"
    )
    dice = training.get("validation_dice", {})
    shown = [
        f"{name} **{value:.2f}**"
        for name in REGIONS
        if isinstance(dice, dict) and isinstance(value := dice.get(name), int | float)
    ]
    if shown:
        st.markdown(f"Validation Dice: {'  '.join(shown)}")
    if "cases" in training:
        # Whoever wrote the card may have written anything.
        cases, epochs = (escaped(str(training.get(key, "?"))) for key in ("cases", "epochs"))
        st.caption(f"trained on {cases} cases, {epochs} epochs")
    with st.expander("The card"):
        st.json(card.to_json(), expanded=1)


@st.cache_data(show_spinner=False)
def _trials(model_hashes: str, path: str, device: str, threads: int | None) -> tuple[Trial, ...]:
    from runtime.model_dir import ModelDir

    return try_backends(ModelDir.open(Path(path)), device, threads)


def choose_settings(model: FoundModel, options: AppOptions) -> Wanted:
    """Ask how the model is to be run, within what it allows."""
    card = model.model.card
    with st.sidebar, st.expander("How it is run"):
        trials = _trials(
            str(sorted(model.model.hashes.items())),
            str(model.model.path),
            options.device,
            options.threads,
        )
        working = [trial.backend for trial in trials if trial.works]
        backend = st.selectbox("Backend", ["auto", *working], key=f"backend {model.title}")
        for trial in trials:
            if not trial.works:
                st.caption(f"{trial.backend}: {escaped(trial.reason)}")
        # What the card itself asks for is offered, however large.
        sizes = sorted({*range(card.divisor, _LARGEST_PATCH + 1, card.divisor), *card.patch})
        columns = st.columns(3)
        patch = tuple(
            column.selectbox(
                f"Patch {axis}",
                sizes,
                index=sizes.index(size),
                key=f"patch {axis} {model.title}",
            )
            for column, axis, size in zip(columns, "XYZ", card.patch, strict=True)
        )
        overlap = st.slider(
            "Overlap of windows",
            0.0,
            max(0.8, card.inference.overlap),
            float(card.inference.overlap),
            0.05,
            key=f"overlap {model.title}",
            help="Part of a patch that neighbouring windows share: more is slower and smoother.",
        )
        batch = st.number_input(
            "Windows at a time",
            1,
            max(64, card.inference.batch),
            card.inference.batch,
            key=f"batch {model.title}",
        )
        placement = st.selectbox("Placement", get_args(Placement), key="placement")
        probabilities = st.toggle("keep the probabilities", value=True, key="probabilities")
        postprocess = st.toggle("post-process as the card says", value=True, key="postprocess")
        truth_labels = st.selectbox(
            "Numbering of a truth",
            [None, *Convention],
            format_func=lambda one: "as its name says" if one is None else str(one),
            key="truth labels",
        )
    x, y, z = patch
    name: BackendName = backend
    return Wanted(
        BackendOptions(name, options.device, threads=options.threads, patch=(x, y, z)),
        SegmentOptions(
            overlap=overlap,
            placement=placement,
            patch=(x, y, z),
            batch=int(batch),
            probabilities=probabilities,
            postprocess=postprocess,
        ),
        truth_labels,
    )
