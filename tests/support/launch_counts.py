"""What launches of the emulated GPU say: names of kernels, and values read and written."""


def names_of(launches):
    return [name for name, _ in launches]


def traffic_of(launch, dtype):
    """(values read, values written) of each array argument."""
    return [(read // dtype.itemsize, written // dtype.itemsize) for read, written in filter(None, launch[1])]
