"""CtP's Table 1 on GOT-10k: three label sources, one recipe."""

import re

import pytest

from lightning_vssl.augment.label_sources import AnnotatedTracks
from lightning_vssl.augment.patches import PatchTracks
from tests.recipes.test_recipes import RECIPES, configured, parsed, settings_of

PATCHES = ["--model.augment.tracks", "lightning_vssl.augment.patches.PatchTracks"]
ONE = ["--model.augment.tracks.trajectories", "1"]


@pytest.mark.parametrize(
    ("words", "kind", "trajectories"),
    [([], AnnotatedTracks, None), (PATCHES, PatchTracks, 3), ([*PATCHES, *ONE], PatchTracks, 1)],
    ids=["annotated", "pre-set x3", "pre-set x1"],
)
def test_the_headers_options_change_the_source_and_nothing_else(words, kind, trajectories):
    recipe = RECIPES / "ctp_got10k.yaml"
    header = re.sub(r"\s+", " ", recipe.read_text().replace("\n#", ""))
    assert " ".join(PATCHES) in header
    assert " ".join(ONE) in header
    built = configured(recipe, *words, instantiate=True)
    tracks = built.model.augment.tracks
    assert type(tracks) is kind
    assert getattr(tracks, "trajectories", None) == trajectories
    mine, plain = settings_of(built), parsed(recipe)
    pre_set = parsed(RECIPES / "ctp_ucf101.yaml")["model"]["init_args"]["augment"]["init_args"]
    force = mine["model"]["init_args"]["augment"]["init_args"]
    if trajectories == 3:
        assert force == pre_set  # the paper's own trajectories, colours and flips
    assert mine["data"] == plain["data"]
    assert mine["trainer"] == plain["trainer"]
