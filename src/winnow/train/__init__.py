"""Training: the recipes of the bundled models.   (floor 5 · train)

recipe.py    what a recipe fixes: sizes, tokens, learning rate, lengths
corpus.py    a folder of books -> a tokenizer and one flat file of token ids
run.py       from a recipe to a Hugging Face model directory, restartable
"""
