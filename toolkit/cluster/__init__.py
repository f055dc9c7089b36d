"""Work for many processes or machines: seeds of a recipe, parts of a folder of pictures."""
