"""MiniMax-M3."""


class MiniMaxM3:
    pass
