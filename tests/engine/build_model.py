"""Writes a tiny Llama with real random weights; run by the engine environment's Python: `build_model.py FOLDER [SEED]`.

Real weights, not vLLM's `--load-format dummy`: there every next token is as likely as any other, and a request
that reads another's KV cache gives the same answer. With these, wrong KV changes the text.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 7
VOCAB_SIZE = 512
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
CORPUS = " ".join(f"user system assistant: at tide {number} each wave was written down once" for number in range(4096))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: takes any text, so no prompt ever meets an unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, "every token that the model can say has a text"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )


def build_model(seed: int) -> LlamaForCausalLM:
    """vLLM's CPU attention takes head_dim 64. The wide init makes answers depend on the whole prompt."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=8192,
            initializer_range=0.1,
            bos_token_id=0,
            eos_token_id=1,
            dtype=torch.float32,
        )
    )


def main(folder: Path, seed: int = SEED) -> None:
    """Write model and tokenizer in the layout that vLLM and the gateway read."""
    build_model(seed).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
