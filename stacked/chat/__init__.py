"""Chat templates that adapters bring: what they say, and a process apart in which they are run."""

from stacked.chat.sandbox import Sandbox
from stacked.chat.templates import CHAT_FILE, ChatTemplates, stored_chat

__all__ = ["CHAT_FILE", "ChatTemplates", "Sandbox", "stored_chat"]
