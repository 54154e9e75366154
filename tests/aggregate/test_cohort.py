"""The cohort: only the task's windows, one bag a patient where the rule says so, classes that can be learnt."""

from __future__ import annotations

import h5py
import numpy as np
import polars as pl
import pytest

from aggregate.cohort import build_cohort, choose_windows, usable_endpoints
from clear.bags import Bags
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_join import Joined
from clear.windows import ABDOMEN, LUNG, Window

Y = Endpoint("y", "binary", ("absent", "present"))


def joined(scans: list[str], patients: list[str], codes: list[int | None], rule=None) -> Joined:
    frame = pl.DataFrame({"scan_id": scans, "patient_id": patients, "y": pl.Series(codes, dtype=pl.Int64)})
    return Joined(frame, (Y,), rule, {}, ())


@pytest.fixture
def bags(make_bags) -> Bags:
    rng = np.random.default_rng(0)
    return Bags(make_bags({f"s{i}": rng.standard_normal((6 + 2 * i, 4)).astype(np.float32) for i in range(4)}))


def test_only_the_rows_of_the_chosen_windows_are_used_and_they_keep_their_order(bags: Bags) -> None:
    cohort = build_cohort(bags, joined(["s1", "s2"], ["p1", "p2"], [0, 1]), (LUNG,), 1)
    rows = cohort.rows(bags)
    for number, scan in enumerate(["s1", "s2"]):
        bag = bags[scan]
        np.testing.assert_array_equal(rows.take([number])[0].numpy(), bag.features[bag.window == 1])
        here = cohort.row_numbers(number)
        np.testing.assert_array_equal(bags.features[here], bag.features[bag.window == 1])
        assert (bags.window[here] == 1).all()


def test_a_damaged_value_stops_before_training_and_names_the_scan(make_bags) -> None:
    path = make_bags({f"s{i}": np.ones((6, 4), np.float32) for i in range(4)})
    with h5py.File(path, "r+") as file:
        file["features"][8, 2] = np.nan  # of s1
    with Bags(path) as damaged:
        cohort = build_cohort(
            damaged, joined([f"s{i}" for i in range(4)], list("abcd"), [0, 1, 0, 1]), damaged.windows, 2
        )
        with pytest.raises(InputError, match=r"1 scans of the bag file have embeddings that are not finite, first s1:"):
            cohort.rows(damaged)


def test_all_windows_give_the_bags_as_they_are(bags: Bags) -> None:
    cohort = build_cohort(bags, joined(["s0", "s3"], ["p1", "p2"], [0, 1]), (ABDOMEN, LUNG), 1)
    np.testing.assert_array_equal(cohort.rows(bags).take([1])[0].numpy(), bags["s3"].features)
    assert cohort.names == ["s0", "s3"]


def test_pooling_makes_one_bag_a_patient(bags: Bags) -> None:
    cohort = build_cohort(
        bags, joined(["s0", "s1", "s2", "s3"], ["a", "a", "b", "c"], [1, 1, 0, 0], "pool"), (ABDOMEN, LUNG), 1
    )
    assert cohort.names == ["s0;s1", "s2", "s3"]
    assert cohort.patient_ids == ("a", "b", "c")
    expected = np.concatenate([bags["s0"].features, bags["s1"].features])
    np.testing.assert_array_equal(cohort.rows(bags).take([0])[0].numpy(), expected)
    scans, patients, indicators = cohort.by_scan()
    assert (scans, patients) == (["s0", "s1", "s2", "s3"], ["a", "a", "b", "c"])
    assert indicators[:, 1].tolist() == [True, True, False, False]
    assert cohort.bags_of(["s0", "s1", "s3"]).tolist() == [0, 2]
    assert "3 bags" in cohort.remarks[0]


def test_pooling_scans_with_different_labels_stops(bags: Bags) -> None:
    with pytest.raises(InputError, match="1 patients have scans with different y, first 'a'"):
        build_cohort(bags, joined(["s0", "s1", "s2"], ["a", "a", "b"], [1, 0, 0], "pool"), (LUNG,), 1)


def test_an_unknown_label_of_a_pooled_scan_does_not_contradict_the_known_one(bags: Bags) -> None:
    pooled = joined(["s0", "s1", "s2"], ["a", "a", "b"], [None, 1, 0], "pool")
    assert build_cohort(bags, pooled, (LUNG,), 1).targets.codes[:, 0].tolist() == [1, 0]


def test_a_window_is_matched_by_name_and_range(bags: Bags) -> None:
    assert choose_windows(bags, [], "f") == (ABDOMEN, LUNG)
    assert choose_windows(bags, [Window("lung", -1500.0, 500.0)], "f") == (LUNG,)
    assert choose_windows(bags, ["lung", "abdomen", "lung"], "f") == (LUNG, ABDOMEN)
    for wrong in (Window("lung", -1000, 500), Window("chest", -1500, 500), "bone=-450..1050"):
        with pytest.raises(InputError, match=r"it has abdomen \(-175..275 HU\), lung \(-1500..500 HU\)"):
            choose_windows(bags, [wrong], "f")


def test_rows_come_in_the_order_of_the_windows_that_are_wanted_whatever_the_file_s(make_bags) -> None:
    """What an ordered aggregator reads must not depend on the order in which a file was extracted."""
    features = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    swapped = features.reshape(4, 2, 4)[:, ::-1].reshape(8, 4)
    first = Bags(make_bags({"s0": features, "s1": features + 1}, name="first.h5"))
    second = Bags(make_bags({"s0": swapped, "s1": swapped + 1}, name="second.h5", windows=(LUNG, ABDOMEN)))
    labels = joined(["s0", "s1"], ["a", "b"], [0, 1])
    for bags in (first, second):
        windows = choose_windows(bags, [ABDOMEN, LUNG], "f")
        cohort = build_cohort(bags, labels, windows, 1)
        np.testing.assert_array_equal(cohort.rows(bags).take([1])[0].numpy(), features + 1)
        np.testing.assert_array_equal(bags.features[cohort.row_numbers(0)], features)


def frame(*codes: list[int | None]) -> pl.DataFrame:
    columns = {f"e{i}": pl.Series(each, dtype=pl.Int64) for i, each in enumerate(codes)}
    return pl.DataFrame({"patient_id": [f"p{i}" for i in range(len(codes[0]))], **columns})


def test_a_single_endpoint_needs_every_class_in_every_fold() -> None:
    e0 = Endpoint("e0", "binary", ("absent", "present"))
    with pytest.raises(InputError, match=r"e0: one class only: all 3 known labels are 'present'"):
        usable_endpoints(frame([1, 1, 1, None]), [e0], 2)
    with pytest.raises(
        InputError, match=r"only 2 of 5 labelled patients are 'absent', too few for 3 folds .*give --folds 2"
    ):
        usable_endpoints(frame([1, 1, 1, 0, 0]), [e0], 3)
    assert usable_endpoints(frame([1, 1, 1, 0, 0]), [e0], 2) == ([e0], [])


def test_of_several_endpoints_those_of_one_class_are_set_aside() -> None:
    ends = [Endpoint(f"e{i}", "binary", ("absent", "present")) for i in range(3)]
    kept, remarks = usable_endpoints(frame([1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]), ends, 2)
    assert [each.name for each in kept] == ["e0", "e2"]
    assert "e1: set aside" in remarks[0]
    assert "e2: only 1 patients are 'present'" in remarks[1]
    with pytest.raises(InputError, match="nothing to learn"):
        usable_endpoints(frame([1, 1], [0, 0]), [ends[0], ends[1]], 2)


def test_times_without_an_event_and_a_quantity_of_one_value_cannot_be_learnt() -> None:
    time, size = Endpoint("t", "survival", event="dead"), Endpoint("size", "regression")
    columns = {"patient_id": list("abc"), "t": [1.0, 2.0, 3.0], "size": [5.0, 5.0, 5.0]}
    with pytest.raises(InputError, match="none of 3 survival times ends in an event"):
        usable_endpoints(pl.DataFrame({**columns, "t.event": [0, 0, 0]}), [time], 2)
    with pytest.raises(InputError, match="one value only: all 3 known labels are 5"):
        usable_endpoints(pl.DataFrame(columns), [size], 2)
    with pytest.raises(InputError, match="only 1 of 3 labelled patients are 'event', too few for 2 folds"):
        usable_endpoints(pl.DataFrame({**columns, "t.event": [0, 1, 0]}), [time], 2)


def test_events_stand_beside_their_times(bags: Bags) -> None:
    time = Endpoint("t", "survival", event="dead")
    frame = pl.DataFrame({"scan_id": ["s0", "s1", "s2"], "patient_id": list("abc"), "t": [3.0, None, 5.0]})
    frame = frame.with_columns(pl.Series("t.event", [1, None, 0]))
    cohort = build_cohort(bags, Joined(frame, (time,), None, {}, ()), (LUNG,), 1)
    assert cohort.names == ["s0", "s2"]
    assert cohort.targets.codes[:, 0].tolist() == [3, 5]
    assert cohort.targets.events is not None
    assert cohort.targets.events[:, 0].tolist() == [1, 0]
