"""What a page's answer says in words, before any number, holds in the recorded rows.

Where one fails after new rows, the page's first cell is to be written anew.
"""

import thesis_lib as tl
from thesis_lib.pages import judges, report

SEVEN = list(tl.METHODS.convolutional)


def compared(table, value, reference, methods=SEVEN):
    """The methods beside one of them, as a page's table has it, and which differences are clear."""
    rows = tl.recorded(*table)
    some = rows[rows["method"].isin([*methods, reference])].dropna(subset=[value])
    groups = "class" if table[-1] == "pointing_game" else None
    found = report.paired_table(some, value, reference=reference, groups=groups)
    return found.drop(reference), report.is_clear(found)


def test_insertion_deletion_each_method_is_far_ahead_of_random():
    found, clear = compared(("photographs", "efficientnet_lite0", "insertion_deletion"), "overall", "random")
    assert len(found) == 7 and clear[found.index].all() and (found["difference"] > 0.1).all()


SCENES = ("cutouts_scenes", "vgg19_cutouts_scenes", "pointing_game")


def test_pointing_game_nearly_all_points_hit_and_nobody_leads():
    rows = tl.recorded(*SCENES)
    hits = rows.groupby("method")["hits"].mean()
    assert (hits[SEVEN] > 90).all() and hits["random"] < 15
    found, clear = compared(SCENES, "hits", "msg_cam")
    assert not clear[found.index].any()


def test_pointing_game_cameras_has_most_of_its_map_on_the_object():
    found, clear = compared(SCENES, "pixel_energy", "cameras")
    assert clear[found.index].all() and (found["difference"] < 0).all()


def test_bare_maps_hit_nearly_always_already_but_grad_cams_on_the_transformer():
    for network in ("vgg19_cutouts_scenes", "vit_cutouts_scenes"):
        rows = tl.recorded("cutouts_scenes", network, "windows")
        bare = [name for name in rows["method"].unique() if name in tl.METHODS]
        hits = rows.groupby("method")["hits"].mean()[bare]
        if network.startswith("vit"):
            assert hits.pop("grad_cam") < 70
        assert len(hits) > 1 and (hits > 90).all()


def test_ablation_what_is_clearly_worse_and_what_is_the_same():
    rows = tl.recorded("cutouts", "vgg19_cutouts", "ablation")
    found = report.paired_table(rows, "overall", reference="default")
    clear = report.is_clear(found)
    assert set(clear[clear].index) == {"groups = 1", "theta = 90"}
    assert (found.loc[clear, "difference"] < 0).all()
    same = found.loc[["N = 4", "groups = 64"]]
    assert (same["difference_low"] > -0.01).all() and (same["difference_high"] < 0.01).all()


def test_judges_the_blurred_canvas_hears_black_and_noise_do_not():
    verdicts = judges.judged(tl.recorded("cutouts", "vgg19_cutouts", "judged"))["verdict"]
    for measure in ("insertion_blurred", "deletion_blurred", "overall_blurred", "points_1", "points_100"):
        assert verdicts[measure] == "hears"
    assert verdicts["deletion_black"] == "hears"
    for measure in ("overall_black", "insertion_black", "overall_noise", "insertion_noise", "deletion_noise"):
        assert verdicts[measure] != "hears"
