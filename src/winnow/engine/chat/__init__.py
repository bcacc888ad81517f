"""Chat: a conversation becomes the prompt that its model was trained on.   (floor 5 · engine)

    sandbox.py       the child process in which a template runs: no files, little memory, little time
    template.py      a model's chat template: found, rendered in the child, bounded
    conversation.py  turns that share one cache, so that only what is new is read

A chat template is a program that comes with the weights, written by whoever published them. Jinja's sandbox
keeps it from Python's objects; it does not keep it from looping for ever or from filling the memory.
"""

from winnow.engine.chat.conversation import Conversation, Message
from winnow.engine.chat.template import ChatTemplate, find_template

__all__ = ["ChatTemplate", "Conversation", "Message", "find_template"]
