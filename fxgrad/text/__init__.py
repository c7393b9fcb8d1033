"""Whole answers of language models: for every token of an answer, what each token of the prompt gives to its logit.

    found = fxgrad.text.explain(model, tokenizer, "The capital of France is", " Paris")
    found.words().plot("paris.png")

The steps, one file each: prompts (texts to ids), kinds (what a model of each kind is asked), rows (a backward pass for
each row), explanation (the result), pieces (tokens into words and sentences).
"""

from typing import TYPE_CHECKING

from fxgrad import lazy

if TYPE_CHECKING:
    from fxgrad.text.entry import Explainer, explain
    from fxgrad.text.explanation import Explanation

__all__ = ["Explainer", "Explanation", "explain"]

__getattr__, __dir__ = lazy.names(__name__, {"Explainer": "entry", "explain": "entry", "Explanation": "explanation"})
