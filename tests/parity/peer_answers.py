"""llama.cpp's greedy answers, end to end: its chat template engine, its vocabulary, its forward pass.

Runs in the peer's own Python, which has none of our dependencies.

usage: python peer_answers.py MODEL.gguf MAX_TOKENS < texts.json > answers.json

`texts` are what a user says, each in a conversation of its own. An answer is {"prompt_ids", "answer_ids", "gaps"}: a
gap is the logit of each chosen token less that of the next best, the end token's last.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from llama_cpp import Llama  # type: ignore[import-not-found]
from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # type: ignore[import-not-found]


def answer(model: Llama, formatter: Jinja2ChatFormatter, text: str, max_tokens: int) -> dict[str, Any]:
    """The answer to one text, from an empty KV cache."""
    prompt = formatter(messages=[{"role": "user", "content": text}]).prompt
    prompt_ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
    answer_ids: list[int] = []
    gaps: list[float] = []
    model.reset()
    model.eval(prompt_ids)
    while len(answer_ids) < max_tokens:
        logits = model.scores[model.n_tokens - 1]
        second, first = np.argsort(logits)[-2:]
        gaps.append(round(float(logits[first] - logits[second]), 4))
        if first == model.token_eos():
            break
        answer_ids.append(int(first))
        model.eval([int(first)])
    return {"prompt_ids": prompt_ids, "answer_ids": answer_ids, "gaps": gaps}


def main() -> None:
    """Answers all texts of standard input."""
    model = Llama(sys.argv[1], n_ctx=0, n_batch=1024, n_ubatch=1024, logits_all=True, verbose=False)
    template = model.metadata["tokenizer.chat_template"]
    formatter = Jinja2ChatFormatter(template, eos_token="", bos_token="", stop_token_ids=[model.token_eos()])
    answers = [answer(model, formatter, text, int(sys.argv[2])) for text in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
