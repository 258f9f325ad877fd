"""Every way in which one value of a JSON file can be missing or of another kind."""

import copy

OTHERS = (None, True, -1, 2.5, "text", [], [None], {}, {"a": 1})


def damages(values):
    """Yield (what, values), with one value in `values` taken away or replaced by something else."""
    for path in paths(values):
        name = ".".join(map(str, path))
        yield f"{name} is gone", changed(values, path)
        here = values
        for key in path:
            here = here[key]
        for other in OTHERS:
            if other != here:
                yield f"{name} = {other!r}", changed(values, path, other)


def paths(values, before=()):
    """List the places of all values; of a list, the first one's."""
    if isinstance(values, dict):
        items = list(values.items())
    elif isinstance(values, list):
        items = list(enumerate(values))[:1]
    else:
        return
    for key, value in items:
        yield (*before, key)
        yield from paths(value, (*before, key))


def changed(values, path, *other):
    """Copy `values` with another value at a path, or none."""
    copied = copy.deepcopy(values)
    here = copied
    for key in path[:-1]:
        here = here[key]
    if other:
        here[path[-1]] = other[0]
    else:
        del here[path[-1]]
    return copied
