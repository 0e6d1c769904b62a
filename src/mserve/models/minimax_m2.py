"""MiniMax-M2."""


class MiniMaxM2:
    pass
