"""Adapters' own chat templates: reading them, and a separate process that runs them."""

from stacked.chat.sandbox import Sandbox
from stacked.chat.templates import CHAT_FILE, ChatTemplates, stored_chat

__all__ = ["CHAT_FILE", "ChatTemplates", "Sandbox", "stored_chat"]
