"""The same answers sooner. Nothing here is needed: without this folder, plain weights still answer.

What decodes faster is put into a plain model from outside (`prepare`, `compile_step`) or takes the
place of the plain sampling loop (`speculation`). `minisafe.session.faster` decides when.
"""
