"""The demo's tokenizer and chat template: the files beside this one, and what makes them."""
