"""Random damage to the bytes of a file."""


def damaged(content, source):
    """Return `content` cut, with bytes changed, removed, repeated or inserted; never as it was."""
    while True:
        data = bytearray(content)
        for _ in range(source.integers(1, 4)):
            place = int(source.integers(len(data))) if data else 0
            length = int(source.integers(1, 9))
            match source.integers(5):
                case 0:
                    data = data[:place]
                case 1:
                    data[place : place + length] = source.bytes(len(data[place : place + length]))
                case 2:
                    del data[place : place + length]
                case 3:
                    data[place:place] = data[place : place + length]
                case _:
                    data[place:place] = source.bytes(length)
        if bytes(data) != content:
            return bytes(data)
