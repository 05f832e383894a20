"""The same answers in less time. All of it is optional: plain weights also run without this folder.

Fast parts are put into a plain model from outside (`prepare`, `compile_step`) or replace the plain
sampling loop (`speculation`). `minisafe.session.faster` decides when.
"""
