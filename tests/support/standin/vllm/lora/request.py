class LoRARequest:
    def __init__(self, name: str, number: int, path: str) -> None:
        self.path = path
