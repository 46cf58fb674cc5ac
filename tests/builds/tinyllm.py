"""Whole models of two layers with random weights, which every tool takes for real ones."""

# Run by the toolchain's Python: FAMILY FOLDER.
MAKE_MODEL = """
import sys
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

family, place = sys.argv[1:]
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
special = ["<|im_start|>", "<|im_end|>"]
vocabulary = {token: i for i, token in enumerate(special + letters)}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens(special)
fast = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[1]
)
fast.chat_template = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
fast.save_pretrained(place)
torch.manual_seed(7)
config = AutoConfig.for_model(
    family, vocab_size=len(vocabulary), hidden_size=128, intermediate_size=256,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    dtype="float16",
)
model = AutoModelForCausalLM.from_config(config).half()
with torch.no_grad():
    for weights in model.parameters():
        if weights.dim() > 1:
            weights.normal_(std=0.08)
model.save_pretrained(place)
"""
