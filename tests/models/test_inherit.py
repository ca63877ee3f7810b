import pytest
import torch

from medgen.cohort.schema import Covariate, Schema
from medgen.errors import InputError
from medgen.models import kl, unet, wavelet
from medgen.models.condition import ConditionEncoder
from medgen.models.inherit import codec_state, inherit_encoder, network_state, same_columns, same_labels

LABELS = ("background", "GM", "White Matter", "lesion")


KINDS = pytest.mark.parametrize("kind", [kl, wavelet], ids=lambda kind: kind.__name__.rpartition(".")[2])


def codec(labels, seed, kind=kl):
    torch.manual_seed(seed)
    made = kind.build(1, labels, channels=(8, 8), latent_channels=2)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made.eval()


def carry(theirs, names, ours, our_names):
    ours.load_state_dict(codec_state(theirs, ours, same_labels(names, our_names)), strict=True)
    return ours


@torch.no_grad()
def both(codec, image, ids):
    mean = codec.encode(image, ids).mean
    return mean, codec.decode(mean)


def pair(labels):
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(2, 1, 8, 8, 8, generator=generator)
    return image, torch.randint(-1, labels, (2, 8, 8, 8), generator=generator)


@KINDS
def test_the_same_labels_give_the_same_codec(kind):
    theirs, (image, ids) = codec(4, 0, kind), pair(4)
    ours = carry(theirs, LABELS, codec(4, 1, kind), LABELS)
    for a, b in zip(both(theirs, image, ids)[0], both(ours, image, ids)[0], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(both(theirs, image, ids)[1].label_logits, both(ours, image, ids)[1].label_logits)


@KINDS
def test_labels_go_by_name_whatever_their_order_and_company(kind):
    names = ("background", "white matter", "edema", "gm")
    assert same_labels(LABELS, names) == {0: 0, 1: 2, 3: 1}
    theirs = codec(4, 0, kind)
    ours = carry(theirs, LABELS, codec(4, 1, kind), names)
    image, _ = pair(4)
    ids = torch.tensor([-1, 0, 1, 3])[torch.randint(0, 4, (2, 8, 8, 8), generator=torch.Generator().manual_seed(1))]
    as_theirs = torch.where(ids == 1, 2, torch.where(ids == 3, 1, ids))
    (mean, out), (wanted, truth) = both(ours, image, ids), both(theirs, image, as_theirs)
    assert torch.equal(mean, wanted) and torch.equal(out.image, truth.image)
    assert torch.equal(out.label_logits[:, [0, 1, 3]], truth.label_logits[:, [0, 2, 1]])
    assert not torch.equal(out.label_logits[:, 2], truth.label_logits[:, 3]), "edema is new"


@KINDS
def test_a_model_without_labels_codes_images_as_before(kind):
    theirs, (image, ids) = codec(0, 0, kind), pair(4)
    ours = carry(theirs, (), codec(4, 1, kind), LABELS)
    (mean, out), (wanted, truth) = both(ours, image, ids), both(theirs, image, None)
    torch.testing.assert_close(mean, wanted)
    torch.testing.assert_close(out.image, truth.image)
    bare = carry(ours, LABELS, codec(0, 2, kind), ())
    torch.testing.assert_close(both(bare, image, None)[0], wanted)


def test_a_codec_that_cannot_say_what_its_rows_serve_takes_over_the_same_labels_only():
    def refuses():
        raise NotImplementedError

    theirs, same, other = codec(4, 0), codec(4, 1), codec(3, 1)
    for made in (theirs, same, other):
        made.label_rows = refuses
    codec_state(theirs, same, same_labels(LABELS, LABELS))
    with pytest.raises(InputError, match="only from a model with the same labels"):
        codec_state(theirs, other, same_labels(LABELS, LABELS[:3]))


AGE, SEX = Covariate("age", unit="year"), Covariate("sex", "categorical", levels=("F", "M"))
SCORE, HOUR = Covariate("score"), Covariate("hour", "periodic", period=24.0)


def encoder(*columns, centre=50.0, scale=10.0):
    numeric = [c.kind == "continuous" for c in columns]
    return ConditionEncoder(
        Schema(columns), tuple(centre if n else 0.0 for n in numeric), tuple(scale if n else 1.0 for n in numeric)
    )


def network(schema, seed):
    torch.manual_seed(seed)
    net = unet.build(2, schema, channels=(8, 8), attention=(False, True), norm_groups=8, head_channels=8, token_width=8)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net.eval()


def start(theirs, before, after, seed=1):
    ours = network(after.schema, seed)
    ours.load_state_dict(network_state(theirs, ours, before, after), strict=True)
    return ours


@torch.no_grad()
def call(net, encoder, rows):
    x = torch.randn(len(rows), 2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    return net(x, torch.linspace(0.2, 0.8, len(rows)), encoder.encode(rows))


ROWS = [{"age": 40.0, "sex": "F"}, {"age": 70.0, "sex": "M"}, {"sex": "M"}, {}]


def test_the_same_columns_give_the_same_network():
    before = encoder(AGE, SEX)
    fitted = encoder(AGE, SEX, centre=20.0, scale=3.0)
    after = inherit_encoder(fitted, before)
    assert (after.centre, after.scale) == (before.centre, before.scale)
    theirs = network(before.schema, 0)
    assert torch.equal(call(start(theirs, before, after), after, ROWS), call(theirs, before, ROWS))


def test_columns_go_by_name_and_levels_too():
    before, after = encoder(AGE, SEX), encoder(Covariate("sex", "categorical", levels=("M", "X", "F")), AGE)
    theirs = network(before.schema, 0)
    ours = start(theirs, before, after)
    # Attention does not care for the order of tokens, nor does the summary once its blocks have moved.
    torch.testing.assert_close(call(ours, after, ROWS), call(theirs, before, ROWS), rtol=1e-4, atol=1e-5)


def test_new_columns_are_silent_in_the_summary_and_old_ones_leave_their_null():
    before, after = encoder(AGE, SEX), encoder(AGE, SCORE)
    theirs = network(before.schema, 0)
    ours = start(theirs, before, after)
    rows = [{"age": 40.0, "score": 55.0}, {"age": 60.0}]
    with torch.no_grad():
        summary = ours.covariates(after.encode(rows))[1]
        wanted = theirs.covariates(before.encode(rows))[1]
    torch.testing.assert_close(summary, wanted)


def test_what_a_column_means_decides():
    months = Covariate("age", unit="month")
    assert same_columns(encoder(AGE, SEX, HOUR), encoder(HOUR, AGE)) == {0: 2, 1: 0}
    assert same_columns(encoder(AGE), encoder(months)) == {}
    assert same_columns(encoder(HOUR), encoder(Covariate("hour", "periodic", period=12.0))) == {}
    assert same_columns(encoder(AGE), encoder(Covariate("age", "categorical", levels=("old",)))) == {}
    assert same_columns(encoder(AGE), encoder(Covariate("age"))) == {0: 0}, "an unknown unit is no other unit"


def test_models_without_columns_on_either_side():
    none, some = encoder(), encoder(AGE)
    start(network(none.schema, 0), none, some)
    start(network(some.schema, 0), some, none)


def test_another_architecture_is_one_sentence():
    before = encoder(AGE)
    wide = unet.build(
        2, before.schema, channels=(16, 16), attention=(False, True), norm_groups=8, head_channels=8, token_width=8
    )
    with pytest.raises(InputError, match="has shape"):
        start(wide, before, before)
