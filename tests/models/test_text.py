import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medgen.cohort.schema import Covariate, Schema
from medgen.diffusion import flow
from medgen.errors import InputError
from medgen.models import unet
from medgen.models.condition import ConditionEncoder
from medgen.models.text import TextEncoderSpec, TextStates
from medgen.sampling import euler
from medgen.sampling.noise import Key, streams
from medgen.training.dropout import dropped
from tests.text_encoder import write_tiny_encoder

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert")


def test_states_are_those_of_the_library(encoder):
    states = TextStates(TextEncoderSpec.of(encoder, 8))(["large ventricles", "old"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    network = transformers.BertModel.from_pretrained(encoder).eval()
    for text, state in states.items():
        with torch.no_grad():
            expected = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert state.shape == (len(text.split()) + 2, 16) and torch.allclose(state, expected, atol=1e-6)


def test_neighbours_change_nothing_and_long_texts_are_cut(encoder):
    states = TextStates(TextEncoderSpec.of(encoder, 6))
    alone, words = states(["old brain"])["old brain"], "small , large , normal , young"
    both = states(["old brain", words])
    assert torch.equal(both["old brain"], alone)
    assert len(both[words]) == 6 and states.cut == 1


def test_cache_is_read_by_its_encoder_alone_and_holds_no_text(encoder, tmp_path, monkeypatch):
    spec, cache = TextEncoderSpec.of(encoder, 8), tmp_path / "states.safetensors"
    first = TextStates(spec, cache=cache)(["large ventricles"])
    assert b"ventricles" not in cache.read_bytes()
    again = TextStates(spec, cache=cache)
    monkeypatch.setattr(TextStates, "_encode", lambda *_: pytest.fail("encoded twice"))
    assert torch.equal(again(["large ventricles"])["large ventricles"], first["large ventricles"])
    with pytest.raises(pytest.fail.Exception):
        TextStates(TextEncoderSpec.of(encoder, 5), cache=cache)(["large ventricles"])


def test_spec_survives_json(encoder):
    spec = TextEncoderSpec.of(encoder, 8)
    assert TextEncoderSpec.from_json(spec.to_json()) == spec and spec.width == 16
    assert str(encoder) not in json.dumps(spec.to_json()) and spec.to_json()["folder"] == encoder.name
    assert "model.safetensors" in spec.files and "tokenizer.json" in spec.files


def test_what_is_no_encoder_is_refused_in_one_sentence(encoder, tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        TextEncoderSpec.of(tmp_path / "nowhere", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no config\.json"):
        TextEncoderSpec.of(tmp_path / "empty", 8)
    with pytest.raises(InputError, match="more than the 24"):
        TextEncoderSpec.of(encoder, 25)
    pickled = tmp_path / "pickled"
    shutil.copytree(encoder, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(InputError, match="pickles are not read"):
        TextEncoderSpec.of(pickled, 8)


def test_a_folder_that_brings_its_own_code_is_refused(encoder, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(encoder, own)
    (own / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}')
    (own / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(InputError, match="cannot be loaded"):
        TextEncoderSpec.of(own, 8)


def test_lost_and_other_encoders_are_told(encoder, tmp_path):
    spec = TextEncoderSpec.of(encoder, 8)
    with pytest.raises(InputError, match="is not there; name its folder with --text-encoder"):
        TextStates(spec, tmp_path / "lost").require()
    other = write_tiny_encoder(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"is not the text encoder .*model\.safetensors differs"):
        TextStates(spec, other)(["old"])
    moved = tmp_path / "moved"
    shutil.copytree(encoder, moved)
    assert torch.equal(TextStates(spec, moved)(["old"])["old"], TextStates(spec)(["old"])["old"])


def test_missing_weights_are_not_filled_with_random_ones(encoder, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(encoder, torn)
    weights = load_file(torn / "model.safetensors")
    weights.pop(next(name for name in weights if "attention" in name))
    save_file(weights, torn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks weights"):
        TextStates(TextEncoderSpec.of(torn, 8)).require()


def test_the_encoder_part_of_an_encoder_decoder_is_taken(tmp_path):
    folder = write_tiny_encoder(tmp_path / "t5")
    config = transformers.T5Config(vocab_size=13, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    (folder / "model.safetensors").unlink()
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    assert TextStates(TextEncoderSpec.of(folder, 8))(["old"])["old"].shape == (3, 16)


@pytest.mark.slow
def test_samples_obey_their_text_and_leave_it_open_without_one(encoder):
    spec = TextEncoderSpec.of(encoder, 8)
    schema = Schema((Covariate("report", "text", tokens=8, width=spec.width),))
    words = ConditionEncoder(schema, (0.0,), (1.0,), spec, TextStates(spec))
    texts, levels = ("large ventricles , old brain", "small ventricles , old brain"), torch.tensor([1.0, -1.0])
    cond, random = words.encode([{"report": t} for t in texts]), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = unet.build(1, schema, channels=(16, 16), attention=(False, True), head_channels=8, token_width=16)
    process, optimiser = flow.build(), torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(200):
        i = torch.randint(0, 2, (16,), generator=random)
        noise, spread = torch.randn(2, 16, 1, 4, 4, 4, generator=random)
        x0 = levels[i, None, None, None, None] + 0.3 * spread
        asked = dropped(cond.rows(i), 0.1, 0.0, random)
        loss = process.loss(net.train(), x0, asked, noise, torch.rand(16, generator=random)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    noise = streams([Key(0, k) for k in range(16)], (1, 4, 4, 4), torch.device("cpu"))
    model = process.as_model(net.eval())

    def drawn(row: dict) -> torch.Tensor:
        with torch.no_grad():
            x = process.sample(model, (16, 1, 4, 4, 4), words.encode([row] * 16), euler.sample, noise, steps=12)
        return x.mean(dim=(1, 2, 3, 4))

    assert drawn({"report": texts[0]}).mean() > 0.5 and drawn({"report": texts[1]}).mean() < -0.5
    assert drawn({"report": "small ventricles , young brain"}).mean() < -0.5, "a text nobody trained on"
    assert drawn({}).std() > 0.3, "without a text both kinds are drawn"
