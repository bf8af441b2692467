"""A small program to start from: press Run, then type a name in the output panel."""


def greet(name: str) -> str:
    return f"Hello, {name or 'world'}!"


if __name__ == "__main__":
    print(greet(input("What is your name? ")))
