"""What a recipe states of a method's stages, importable without torch and transformers.

The losses lie in ``methods/NAME/objective.py`` and are imported when a stage computes them.
"""
