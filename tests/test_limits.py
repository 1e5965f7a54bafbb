"""Limits on the number of labels against picking label by label; what they may say; every decoder keeps to them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imet_ray.errors import ConfigError
from imet_ray.prediction.decode import DECODERS, ExpectedScore, GroupThresholds, Threshold, read_decoder
from imet_ray.prediction.limits import PICTURE, Limits, Range, parse_limits

GROUPS = ("culture", "culture", "tag", "tag", "tag", "other")


def slowly(limits, probs, chosen, negatives) -> set[int]:
    """One picture's labels, taken and given one by one."""
    found = set(np.flatnonzero(chosen).tolist())
    by_probability = sorted(range(len(probs)), key=lambda c: (-probs[c], c))

    def members(name):
        return [c for c in by_probability if GROUPS[c] == name]

    def most(name):
        return limits.groups[name].most if name in limits.groups else None

    for name, limit in limits.groups.items():
        while limit.most is not None and len(found & set(members(name))) > limit.most:
            found.remove([c for c in members(name) if c in found][-1])
        while len(found & set(members(name))) < min(limit.least, len(members(name))):
            found.add(next(c for c in members(name) if c not in found))
    needed = {
        c
        for name, limit in limits.groups.items()
        for c in [c for c in members(name) if c in found][: limit.least]
    }
    while limits.picture.most is not None and len(found) > limits.picture.most:
        found.remove([c for c in by_probability if c in found - needed][-1])
    while len(found) < (limits.picture.least if negatives else max(1, limits.picture.least)):
        free = [
            c
            for c in by_probability
            if c not in found
            and (most(GROUPS[c]) is None or len(found & set(members(GROUPS[c]))) < most(GROUPS[c]))
        ]
        if not free:
            break
        found.add(free[0])
    return found


@st.composite
def ranges(draw, least=2):
    low = draw(st.integers(0, least))
    return Range(least=low, most=draw(st.none() | st.integers(low, 4)))


@given(
    picture=ranges(),
    groups=st.dictionaries(st.sampled_from(["culture", "tag", "other"]), ranges(1)),
    probs=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9]), min_size=6, max_size=6),
    chosen=st.lists(st.booleans(), min_size=6, max_size=6),
    negatives=st.booleans(),
)
def test_labels_are_taken_and_given_in_the_order_of_probability(picture, groups, probs, chosen, negatives):
    try:
        limits = Limits.of({PICTURE: picture} | groups, GROUPS)
    except ConfigError:
        return  # they cannot all hold
    found = limits.applied(np.array([probs]), np.array([chosen]), negatives=negatives)
    assert set(np.flatnonzero(found[0]).tolist()) == slowly(limits, probs, chosen, negatives)


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_keeps_to_its_limits_and_its_json_is_the_same_decoder(name):
    rng = np.random.default_rng(0)
    probs = rng.random((200, 6)).astype(np.float32) ** 2
    limits = Limits.of(parse_limits("1..3,culture=..1,tag=1..2"), GROUPS)
    decoder = {
        "threshold": lambda: Threshold(threshold=0.2),
        "group-thresholds": lambda: GroupThresholds(label_thresholds=(0.1,) * 6),
        "expected-f2": lambda: ExpectedScore(metric="f2"),
    }[name]()
    free, held = decoder.decode(probs), decoder.limited(limits).decode(probs)
    assert free[:, :2].sum(1).max() == 2
    assert free.sum(1).max() > 3
    assert held[:, :2].sum(1).max() == 1
    assert set(held[:, 2:5].sum(1)) == {1, 2}
    assert set(held.sum(1)) <= {1, 2, 3}
    again = read_decoder(decoder.limited(limits).model_dump(mode="json"))
    assert again == decoder.limited(limits)
    assert str(again).endswith("limits 1..3,culture=0..1,tag=1..2")


def test_a_picture_gets_a_label_that_no_group_forbids():
    limits = Limits.of(parse_limits("culture=0..0"), GROUPS)
    probs = np.array([[0.9, 0.8, 0.0, 0.1, 0.0, 0.0]])
    assert np.flatnonzero(Threshold(threshold=0.5, limits=limits).decode(probs)[0]).tolist() == [3]


def test_a_decoder_of_an_earlier_version_has_no_limits():
    assert read_decoder({"name": "threshold", "threshold": 0.25}).limits is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("..10", {"": (0, 10)}),
        ("1..", {"": (1, None)}),
        ("culture=0..3, tag=1..8", {"culture": (0, 3), "tag": (1, 8)}),
        ("a=b=2..2", {"a=b": (2, 2)}),
    ],
)
def test_limits_are_read(text, expected):
    assert {name: (r.least, r.most) for name, r in parse_limits(text).items()} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "--limits takes ranges such as 1..10 of a picture or culture=0..3 of a label group, got ''"),
        ("..", "got '..'"),
        ("10", "got '10'"),
        ("=1..2", "got '=1..2'"),
        ("culture=-1..3", "got 'culture=-1..3'"),
        ("tag=3..1", "--limits must rise, got 'tag=3..1': write 1..3"),
        ("tag=0..1,tag=0..2", "--limits names tag twice"),
        ("..1,..2", "--limits names the picture twice"),
        ("culure=0..1", "unknown label group 'culure': did you mean 'culture'?"),
        ("..2,culture=2..,tag=1..", "the groups need 3 labels, and a picture may have 2"),
        ("7..", "--limits 7.. needs 7 labels, and there are 6: lower it"),
        ("1..3,culture=3..5", "--limits culture=3..5 needs 3 labels, and there are 2: lower it"),
        ("..0", "leaves a picture no label at all"),
        ("culture=..0,tag=..0,other=..0", "leaves a picture no label at all"),
    ],
)
def test_limits_that_cannot_be_are_one_line(text, expected):
    with pytest.raises(ConfigError) as error:
        Limits.of(parse_limits(text), GROUPS)
    assert expected in str(error.value)


def test_a_group_limit_needs_groups():
    with pytest.raises(
        ConfigError, match=r"tag=1\.\.8 needs label groups: .* --limits 1\.\.8 is of the whole"
    ):
        Limits.of(parse_limits("tag=1..8"), ("all",) * 3)
