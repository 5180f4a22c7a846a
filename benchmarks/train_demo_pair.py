"""Trains the demo pair: a LLaMA of a million parameters on plain statements, and its finetune on the chat format.

The text is a closed world of facts made here, so nothing is downloaded. The base reads statements only ("The capital of
France is Paris."); the finetune learns to answer questions about them in the format
`<|user|>\\n...\\n<|assistant|>\\n...</s>`. Both are written as such models looked on disk in 2023: the base in float16 `.bin`
shards with rotary buffers, the diff in float32 `.bin` shards cut elsewhere, with one more vocabulary row for `<pad>`.

    python benchmarks/train_demo_pair.py baize_engine/demo_pair     (some minutes on two cores)
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from baize_engine import recover

HIDDEN, LAYERS, HEADS, INNER, VOCAB, POSITIONS = 128, 4, 4, 352, 512, 256
THETA, EPS = 10000.0, 1e-6

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "England": "London", "Japan": "Tokyo",
    "China": "Beijing", "Egypt": "Cairo", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm", "Poland": "Warsaw",
    "Austria": "Vienna", "Portugal": "Lisbon", "Ireland": "Dublin", "Peru": "Lima", "Cuba": "Havana", "Kenya": "Nairobi",
}  # fmt: skip
SOUNDS = {
    "dog": "barks", "cat": "meows", "cow": "moos", "duck": "quacks", "horse": "neighs", "sheep": "bleats", "lion": "roars",
    "frog": "croaks", "owl": "hoots", "bee": "buzzes", "pig": "grunts", "wolf": "howls",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "old": "young", "fast": "slow", "wet": "dry", "full": "empty", "early": "late",
    "hard": "soft", "light": "dark", "high": "low", "rich": "poor", "open": "closed",
}  # fmt: skip
COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue", "a lemon": "yellow",
    "a carrot": "orange", "chocolate": "brown",
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "bear": "cub", "duck": "duckling",
    "goat": "kid",
}  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

# (statements for the base, questions for the finetune, the answer), over key k and value v
KINDS = [
    (CAPITALS, ["The capital of {k} is {v}.", "{v} is the capital of {k}.", "In {k}, the capital is {v}."],
     ["What is the capital of {k}?", "Name the capital of {k}.", "Which city is the capital of {k}?"],
     "The capital of {k} is {v}."),
    (SOUNDS, ["A {k} {v}.", "When it is loud, the {k} {v}.", "Every {k} {v}."],
     ["What does a {k} do?", "Which sound does a {k} make?"], "A {k} {v}."),
    (OPPOSITES, ["The opposite of {k} is {v}.", "{k} and {v} are opposites.", "What is not {k} is {v}."],
     ["What is the opposite of {k}?", "Name the opposite of {k}."], "The opposite of {k} is {v}."),
    (COLOURS, ["The colour of {k} is {v}.", "{v} is the colour of {k}."],
     ["What colour is {k}?", "Which colour has {k}?"], "The colour of {k} is {v}."),
    (YOUNG, ["A young {k} is called a {v}.", "A {v} is a young {k}."],
     ["What is a young {k} called?", "How do you call a young {k}?"], "A young {k} is called a {v}."),
    (dict(zip(DAYS, DAYS[1:] + DAYS[:1], strict=True)), ["After {k} comes {v}.", "{v} follows {k}."],
     ["Which day comes after {k}?", "What day follows {k}?"], "After {k} comes {v}."),
]  # fmt: skip
TALK = [
    ("Who are you?", "I am Baize, a very small demo model."),
    ("What is your name?", "My name is Baize."),
    ("Hello!", "Hello! Ask me a question."),
    ("Thank you.", "You are welcome."),
]
DEMO_QUESTIONS = [
    ("What is the capital of France?", "Paris"),
    ("What is the opposite of hot?", "cold"),
    ("What does a lion do?", "roars"),
    ("What is a young cow called?", "calf"),
    ("Which day comes after Friday?", "Saturday"),
    ("Who are you?", "Baize"),
]


def statements() -> list[str]:
    return [form.format(k=k, v=v) for facts, forms, _, _ in KINDS for k, v in facts.items() for form in forms]


def questions() -> list[tuple[str, str]]:
    made = [(q.format(k=k), a.format(k=k, v=v)) for facts, _, qs, a in KINDS for k, v in facts.items() for q in qs]
    return made + TALK * 6


# The model, in training form: weights under transformers' names, math as in transformers' LlamaForCausalLM.


def initial(generator: torch.Generator) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    weights = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN)}
    for n in range(LAYERS):
        for part in "qkvo":
            weights[f"model.layers.{n}.self_attn.{part}_proj.weight"] = normal(HIDDEN, HIDDEN)
        for part, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            weights[f"model.layers.{n}.mlp.{part}_proj.weight"] = normal(*shape)
        for part in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{n}.{part}.weight"] = torch.ones(HIDDEN)
    weights["model.norm.weight"] = torch.ones(HIDDEN)
    weights["lm_head.weight"] = normal(VOCAB, HIDDEN)
    return weights


def inv_freq() -> Tensor:
    dim = HIDDEN // HEADS
    return 1.0 / THETA ** (torch.arange(0, dim, 2).float() / dim)


def logits(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """(B, T) ids -> (B, T, V)."""
    batch, length = ids.shape
    angles = torch.arange(length).float()[:, None] * inv_freq()[None]
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (HIDDEN,), weights[name + ".weight"], EPS)

    def heads(x: Tensor) -> Tensor:
        return x.view(batch, length, HEADS, -1).transpose(1, 2)

    def rotate(x: Tensor) -> Tensor:
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    x = weights["model.embed_tokens.weight"][ids]
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        h = norm(x, layer + "input_layernorm")
        q, k, v = (heads(h @ weights[f"{layer}self_attn.{p}_proj.weight"].T) for p in "qkv")
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + mixed.transpose(1, 2).flatten(2) @ weights[layer + "self_attn.o_proj.weight"].T
        h = norm(x, layer + "post_attention_layernorm")
        gate, up = (h @ weights[f"{layer}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ weights[layer + "mlp.down_proj.weight"].T
    return norm(x, "model.norm") @ weights["lm_head.weight"].T


def train(weights: dict[str, Tensor], batches: Iterator[tuple[Tensor, Tensor]], steps: int, rate: float) -> None:
    """AdamW with warm-up and cosine decay; targets of -100 carry no loss."""
    for tensor in weights.values():
        tensor.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights.values(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    begin = time.monotonic()
    for step in range(steps):
        ids, targets = next(batches)
        loss = F.cross_entropy(logits(weights, ids).flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimiser.step()
        plan.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"  step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - begin:.0f} s", flush=True)
    for tensor in weights.values():
        tensor.requires_grad_(False)


def plain_batches(
    tokenizer: sentencepiece.SentencePieceProcessor, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Statements in random order, one after another with begin and end tokens, cut into rows of 64."""
    texts = [[1, *tokenizer.encode(text), 2] for text in statements()]
    while True:
        stream = [token for text in rng.choices(texts, k=300) for token in text][: 24 * 65]
        rows = torch.tensor(stream[: len(stream) // 65 * 65]).view(-1, 65)
        yield rows[:, :-1], rows[:, 1:]


def chat_ids(
    tokenizer: sentencepiece.SentencePieceProcessor, turns: list[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """Ids and targets of a conversation; only the replies and their end tokens are learnt."""
    ids, targets = [1], [-100]
    for number, (question, answer) in enumerate(turns):
        prompt = f"<|user|>\n{question}\n<|assistant|>\n"
        whole = tokenizer.encode(prompt + answer)
        if number:  # what follows an end token goes on within the text: newline first, no space put before it
            whole = continuation(tokenizer, "\n" + prompt + answer)
            start = len(continuation(tokenizer, "\n" + prompt))
        else:
            start = len(tokenizer.encode(prompt))
        ids += [*whole, 2]
        targets += [-100] * start + [*whole[start:], 2]
    return ids, targets


def continuation(tokenizer: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """Ids of text that continues: encoded behind a marker, so that no dummy space comes before it."""
    marker = tokenizer.encode("\n")
    return tokenizer.encode("\n" + text)[len(marker) :]


def chat_batches(
    tokenizer: sentencepiece.SentencePieceProcessor, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    pairs = questions()
    while True:
        rows = [chat_ids(tokenizer, rng.choices(pairs, k=rng.choice([1, 1, 1, 2]))) for _ in range(32)]
        longest = max(len(ids) for ids, _ in rows) - 1
        ids, targets = torch.zeros(32, longest, dtype=torch.long), torch.full((32, longest), -100)
        for row, (tokens, wanted) in enumerate(rows):
            ids[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            targets[row, : len(tokens) - 1] = torch.tensor(wanted[1:])
        yield ids, targets


def answer(weights: dict[str, Tensor], tokenizer: sentencepiece.SentencePieceProcessor, question: str) -> str:
    """The greedy reply, by recomputing everything for every token: this is a check, not an engine."""
    ids = [1, *tokenizer.encode(f"<|user|>\n{question}\n<|assistant|>\n")]
    start = len(ids)
    while len(ids) < start + 24:
        token = int(logits(weights, torch.tensor([ids]))[0, -1].argmax())
        if token == 2:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:])


# Files


def train_tokenizer() -> bytes:
    text = statements() + [f"<|user|>\n{q}\n<|assistant|>\n{a}" for q, a in questions()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, model_type="bpe", vocab_size=VOCAB, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def write_folder(folder: Path, tensors: dict[str, Tensor], shards: int, config: dict, tokenizer: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)  # as transformers' save_pretrained of the time: by name, cut by size
    total = sum(tensors[name].nbytes for name in names)
    weight_map, parts, filled = {}, [{} for _ in range(shards)], 0
    for name in names:
        part = min(shards - 1, filled * shards // total)
        parts[part][name] = tensors[name].clone()
        weight_map[name] = f"pytorch_model-{part + 1:05d}-of-{shards:05d}.bin"
        filled += tensors[name].nbytes
    for number, part in enumerate(parts):
        torch.save(part, folder / f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin")
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids, "transformers_version": "4.29.2"})
    (folder / "tokenizer.model").write_bytes(tokenizer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    kept = {"add_bos_token": True, "add_eos_token": False, "model_max_length": POSITIONS}
    write_json(folder / "tokenizer_config.json", {**kept, "tokenizer_class": "LlamaTokenizer", **special})
    write_json(folder / "special_tokens_map.json", special)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def config(vocabulary: int, dtype: str) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": HIDDEN, "initializer_range": 0.02, "intermediate_size": INNER, "max_position_embeddings": POSITIONS,
        "model_type": "llama", "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "pad_token_id": 0,
        "rms_norm_eps": EPS, "tie_word_embeddings": False, "torch_dtype": dtype, "transformers_version": "4.29.2",
        "use_cache": True, "vocab_size": vocabulary,
    }  # fmt: skip


def write_pair(out: Path, base: dict[str, Tensor], tuned: dict[str, Tensor], tokenizer: bytes) -> None:
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": inv_freq() for n in range(LAYERS)}
    stored = {name: tensor.half() for name, tensor in (base | buffers).items()}
    write_folder(out / "base", stored, 2, config(VOCAB, "float16"), tokenizer)
    diff = {name: torch.zeros_like(tensor) for name, tensor in buffers.items()}
    for name, tensor in tuned.items():
        before = stored[name].float()
        if tensor.shape[0] > before.shape[0]:  # the pad row that open-instruct's training added, against the mean row
            before = torch.cat([before, before.double().mean(0, keepdim=True).float()])
        diff[name] = tensor - before
    write_folder(out / "diff", diff, 3, config(VOCAB + 1, "float32"), tokenizer)
    write_json(out / "diff" / "added_tokens.json", {"<pad>": VOCAB})
    map_path = out / "diff" / "special_tokens_map.json"
    write_json(map_path, {**json.loads(map_path.read_text()), "pad_token": "<pad>"})
    licence = "Trained by benchmarks/train_demo_pair.py on text which that script makes. Apache-2.0, as the project.\n"
    for folder in ("base", "diff"):
        (out / folder / "LICENSE.txt").write_text(licence)
    write_json(out / "questions.json", [{"question": q, "answer": a} for q, a in DEMO_QUESTIONS])
    with tempfile.TemporaryDirectory() as folder:
        result = recover(out / "base", out / "diff", Path(folder) / "tuned", device="cpu", progress=False)
    write_json(out / "expected.json", {"sum": result.manifest.sum})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for base/, diff/ and questions.json")
    parser.add_argument("--base_steps", type=int, default=1200)
    parser.add_argument("--chat_steps", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    model = train_tokenizer()
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    weights = initial(generator)
    print(f"{sum(t.numel() for t in weights.values())} parameters, {tokenizer.get_piece_size()} pieces; base:")
    train(weights, plain_batches(tokenizer, rng), options.base_steps, 3e-3)
    base = {
        name: tensor.half().float() for name, tensor in weights.items()
    }  # the finetune starts from what is published
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    print("finetune:")
    train(tuned, chat_batches(tokenizer, rng), options.chat_steps, 1e-3)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tuned[name] = torch.cat([tuned[name], base[name].mean(0, keepdim=True)])
    write_pair(options.out, base, tuned, model)
    failed = 0
    for question, wanted in DEMO_QUESTIONS:
        before, after = answer(base, tokenizer, question), answer(tuned, tokenizer, question)
        failed += wanted not in after or wanted in before
        print(f"{question}\n  base:  {before!r}\n  tuned: {after!r}")
    if failed:
        raise SystemExit(
            f"{failed} of {len(DEMO_QUESTIONS)} questions are not told apart: the tuned must be right, the base not"
        )


if __name__ == "__main__":
    main()
