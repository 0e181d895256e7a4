"""The code of a user's network, with its factory `build`, as a text to be filled in."""

HEAD = """\
import loralib as lora
import torch
from torch import nn
INPUTS = "{inputs}"
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {init}
    def forward(self, x):
        return {forward}
def build():
    return {build}
"""
