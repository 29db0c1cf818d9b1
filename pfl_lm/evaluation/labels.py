"""What tables call the figures of text as it was typed (``as_typed.py``), without torch."""

AS_TYPED = {
    "casing": "words shown as written",
    "marks_top3": "punctuation, top-3",
    "emoji_top1": "emoji, top-1",
    "emoji_top3": "emoji, top-3",
    "keys_saved": "all keys saved",
    "spelled_offered": "words of pieces, offered",
}
